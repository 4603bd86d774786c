//! Three replicas that elect a leader: one is ready, all live; the next one leads when it is told to stop, and when it is
//! killed.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::gateway::PickerList;
use crate::picker_pod::{PickerPod, WITHIN};
use crate::stage::{Rig, Stage, StageOptions};
use crate::transcript::Row;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let options =
        StageOptions { values: "lease", pickers: 3, list: PickerList::Told, ..StageOptions::new("lease") };
    let mut stage = Stage::open(rig, options).await?;
    let leader = until_one_leads(&mut stage.pickers).await?;
    row.event(format!("{} leads", stage.pickers[leader].name));
    for picker in &mut stage.pickers {
        picker.until_health("liveness", "SERVING").await?;
        picker.until_health("something-else", "SERVICE_UNKNOWN").await?;
        picker
            .until_endpoints(&stage.engines.iter().map(|engine| engine.address).collect::<Vec<_>>())
            .await?;
    }
    row.check(true, "every replica lives and knows the pool, and one of three is ready");
    let all: Vec<_> = stage.pickers.iter().map(|picker| picker.grpc).collect();
    stage.gateway.list(&all).await?;
    stage.gateway.until_pickers(1).await?;
    let load = stage.load(row);
    load.until_picked(&stage.addresses()).await?;

    let mut old = stage.pickers.remove(leader);
    let began = Instant::now();
    old.terminate()?;
    // A pod that is told to stop is no endpoint any more.
    let left: Vec<_> = stage.pickers.iter().map(|picker| picker.grpc).collect();
    stage.gateway.list(&left).await?;
    let leader = until_one_leads(&mut stage.pickers).await?;
    row.event(format!(
        "{} leads {:.1} s after {} was told to stop",
        stage.pickers[leader].name,
        began.elapsed().as_secs_f64(),
        old.name
    ));
    stage.gateway.until_pickers(1).await?;
    old.until_ended().await?;
    load.until_picked(&stage.addresses()).await?;
    row.load(load.finish().await);

    // Without load: whoever is killed takes with it what Envoy had asked it.
    let mut killed = stage.pickers.remove(leader);
    let began = Instant::now();
    killed.process.kill();
    let leader = until_one_leads(&mut stage.pickers).await?;
    let took = began.elapsed();
    row.event(format!(
        "{} leads {:.1} s after {} was killed",
        stage.pickers[leader].name,
        took.as_secs_f64(),
        killed.name
    ));
    row.check(
        took < Duration::from_secs(30),
        "a killed leader is followed by another within twice the lease",
    );
    stage.close().await
}

/// Waits until exactly one says that it is ready, and gives its place.
async fn until_one_leads(pickers: &mut [PickerPod]) -> anyhow::Result<usize> {
    let started = Instant::now();
    loop {
        let mut leaders = Vec::new();
        for (at, picker) in pickers.iter_mut().enumerate() {
            picker.process.check()?;
            if picker.health_is("readiness").await == "SERVING" {
                leaders.push(at);
            }
        }
        if let [leader] = leaders[..] {
            return Ok(leader);
        }
        if started.elapsed() > WITHIN {
            bail!("{} of {} replicas say that they lead after {WITHIN:?}", leaders.len(), pickers.len());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
