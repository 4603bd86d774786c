//! The API server is away for a minute. Pods change meanwhile, by a second API server on the same store that pickers don't
//! know; their engines stay until pickers can be told.

use std::time::{Duration, Instant};

use crate::engine_pod::EnginePod;
use crate::stage::{Rig, Stage, StageOptions, engine_host};
use crate::transcript::Row;

/// How long after the API server's return pickers may take to know what changed: their longest pause between attempts,
/// and a second for the news.
const RETURN_LIMIT: Duration = Duration::from_secs(40);

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let mut stage = Stage::open_ready(rig, StageOptions::new("outage")).await?;
    let (all, outage) = (stage.addresses(), rig.outage);
    let load = stage.load(row);
    load.until_picked(&all).await?;
    let second = rig.plane.start_second().await?;
    stage.site.client = second.clone();
    for engine in &mut stage.engines {
        engine.tell(&second);
    }
    stage.ready_log.cut();
    rig.plane.kill_server();
    let began = Instant::now();
    row.event("the API server is killed");

    // One pod stops being ready, one is deleted, one is new, one is replaced by another with the same address.
    stage.engines[0].set_ready(false).await?;
    stage.engines[1].begin_deletion().await?;
    let new = stage.site.start("engine-4", engine_host(4)).await?;
    new.set_ready(true).await?;
    stage.engines.push(new);
    let old = stage.engines.remove(2);
    let replaced = EnginePod::replace_object(old, "engine-2b").await?;
    stage.engines.insert(2, replaced);
    for picker in &stage.pickers {
        picker
            .until("failing watch", |status| status["kubernetes"].to_string().contains("\"failing\""))
            .await?;
    }
    row.event("pods changed, and the pickers say that the API server doesn't tell them");
    tokio::time::sleep(outage.saturating_sub(began.elapsed())).await;
    row.check(load.failed() == 0, format!("no request fails while the API server is away for {outage:?}"));

    rig.plane.start_server().await?;
    let returned = Instant::now();
    let known = [stage.engines[2].address, stage.engines[3].address, stage.engines[4].address];
    stage.until_endpoints(&known).await?;
    stage.ready_log.told();
    let took = returned.elapsed();
    row.event(format!("the API server is back, and {:.1} s later every picker knows", took.as_secs_f64()));
    row.check(took < RETURN_LIMIT, format!("pickers know what changed within {RETURN_LIMIT:?}"));
    // What had gone may end now.
    stage.engines.remove(1).leave().await?;
    stage.engines[0].set_ready(true).await?;
    load.until_picked(&stage.addresses()).await?;

    let client = rig.plane.client().await?;
    stage.client = client.clone();
    for engine in &mut stage.engines {
        engine.tell(&client);
    }
    rig.plane.kill_second();
    rig.client = client;
    row.load(load.finish().await);
    stage.close().await
}
