//! A rolling update of pickers and of engines at the same time, as a Deployment makes it: a new one first, then an old one
//! less.

use std::time::Duration;

use anyhow::Context;
use warmroute_demo::harness::Recipe;

use crate::engine_pod::EnginePod;
use crate::load::Load;
use crate::stage::{Rig, Stage, StageOptions, engine_host};
use crate::transcript::Row;

/// Requests before, between and after.
const PAUSE: u64 = 200;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row, recipe: Recipe) -> anyhow::Result<()> {
    let name = match recipe {
        Recipe::Buffered => "rolling",
        Recipe::FullDuplex => "rolling-duplex",
    };
    let mut stage = Stage::open_ready(rig, StageOptions { recipe, ..StageOptions::new(name) }).await?;
    let load = stage.load(row);
    load.until_picked(&stage.addresses()).await?;
    load.until_more(PAUSE * 2).await;

    let engines = std::mem::take(&mut stage.engines);
    let (site, mut rolled) = (stage.site.clone(), Vec::new());
    let engines = async {
        for (at, old) in (0_u8..).zip(engines) {
            let new = site.start(&format!("engine-{at}-new"), engine_host(4 + at)).await?;
            new.set_ready(true).await?;
            rolled.push(new);
            EnginePod::leave(old).await?;
        }
        anyhow::Ok(rolled)
    };
    let pickers = roll_pickers(&mut stage, row, &load);
    let (engines, pickers) = tokio::join!(engines, pickers);
    pickers?;
    stage.engines = engines?;
    row.event("every engine and every picker is another one");
    stage.until_endpoints(&stage.addresses()).await?;
    load.until_picked(&stage.addresses()).await?;
    load.until_more(PAUSE).await;
    row.load(load.finish().await);
    stage.close().await
}

async fn roll_pickers(stage: &mut Stage, row: &mut Row, load: &Load) -> anyhow::Result<()> {
    for _ in 0..stage.pickers.len() {
        let new = stage.add_picker()?;
        stage.pickers[new].until_ready().await?;
        let picker = &stage.pickers[new];
        let outcomes = picker.counts("warmroute_replica_snapshot_engines_total", "outcome").await?;
        let taken = outcomes.get("taken").copied().unwrap_or(0.0);
        row.event(format!("{} is ready, with a sibling's views of {taken} engines", picker.name));
        row.check(taken > 0.0, format!("{} starts warm", picker.name));
        let all = stage.pickers.len();
        stage.gateway.until_pickers(all).await?;
        let mut old = stage.pickers.remove(0);
        let name = old.name.clone();
        old.terminate()?;
        stage.gateway.until_pickers(all - 1).await.with_context(|| format!("after SIGTERM of {name}"))?;
        let took: Duration = old.until_ended().await?;
        row.event(format!("{name} ended {:.1} s after Envoy had left it", took.as_secs_f64()));
        load.until_more(PAUSE).await;
    }
    Ok(())
}
