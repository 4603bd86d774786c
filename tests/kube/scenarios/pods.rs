//! Pods come, go, flip readiness, are relabelled and replaced under the same address.

use std::net::SocketAddr;

use crate::load::Load;
use crate::stage::{Rig, Stage, StageOptions, engine_host};
use crate::transcript::Row;

/// Requests between two changes.
const PAUSE: u64 = 100;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let mut stage = Stage::open_ready(rig, StageOptions::new("pods")).await?;
    let all = stage.addresses();
    row.event(format!("{} pickers pick from {} engines", stage.pickers.len(), all.len()));
    let load = stage.load(row);
    load.until_picked(&all).await?;
    readiness(&mut stage, row, &load, &all).await?;
    labels_and_addresses(&mut stage, row, &load, &all).await?;
    fewer_and_more(&mut stage, row, &load, &all).await?;
    let tally = load.finish().await;
    let mut asked = 0;
    for picker in &stage.pickers {
        let requests: f64 = picker.counts("llm_d_epp_request_total", "model_name").await?.values().sum();
        asked += usize::from(requests > 0.0);
    }
    row.check(asked == stage.pickers.len(), "every picker was asked");
    row.load(tally);
    stage.close().await
}

/// All addresses but one.
fn others(stage: &Stage, not: SocketAddr) -> Vec<SocketAddr> {
    stage.addresses().into_iter().filter(|address| *address != not).collect()
}

async fn readiness(stage: &mut Stage, row: &mut Row, load: &Load, all: &[SocketAddr]) -> anyhow::Result<()> {
    let engine = stage.site.start("engine-4", engine_host(4)).await?;
    load.until_more(PAUSE).await;
    stage.until_endpoints(all).await?;
    engine.set_ready(true).await?;
    stage.engines.push(engine);
    load.until_picked(&stage.addresses()).await?;
    row.event("a fifth pod came, and was picked once it was ready");
    for at in [0, 3] {
        stage.engines[at].set_ready(false).await?;
        stage.until_endpoints(&others(stage, all[at])).await?;
        load.until_more(PAUSE).await;
        stage.engines[at].set_ready(true).await?;
        load.until_picked(&[all[at]]).await?;
    }
    row.event("two pods were unready for a while, and picked again after it");
    for _ in 0..20 {
        stage.engines[1].set_ready(false).await?;
        load.until_more(5).await;
        stage.engines[1].set_ready(true).await?;
        load.until_more(5).await;
    }
    load.until_picked(&[all[1]]).await?;
    row.event("one pod flipped twenty times");
    Ok(())
}

async fn labels_and_addresses(
    stage: &mut Stage,
    row: &mut Row,
    load: &Load,
    all: &[SocketAddr],
) -> anyhow::Result<()> {
    stage.engines[2].set_member(false).await?;
    stage.until_endpoints(&others(stage, all[2])).await?;
    load.until_more(PAUSE).await;
    stage.engines[2].set_member(true).await?;
    load.until_picked(&[all[2]]).await?;
    row.event("one pod lost its label and got it back");

    let old = stage.engines.remove(3);
    let new = old.replace("engine-3b").await?;
    stage.engines.insert(3, new);
    load.until_picked(&[all[3]]).await?;
    row.event(
        "one pod was replaced under the same address, its object gone only after the new one was ready",
    );

    let old = stage.engines.remove(0);
    let host = old.address.ip();
    old.leave().await?;
    let new = stage.site.start("engine-0", host).await?;
    new.set_ready(true).await?;
    stage.engines.insert(0, new);
    load.until_picked(&[all[0]]).await?;
    row.event("one pod was replaced under the same name and address");
    Ok(())
}

async fn fewer_and_more(
    stage: &mut Stage,
    row: &mut Row,
    load: &Load,
    all: &[SocketAddr],
) -> anyhow::Result<()> {
    for engine in stage.engines.drain(1..).collect::<Vec<_>>() {
        engine.leave().await?;
        load.until_more(PAUSE / 2).await;
    }
    stage.until_endpoints(&all[..1]).await?;
    load.until_more(PAUSE).await;
    row.event("all pods but one left");
    for at in 1..4 {
        let engine = stage.site.start(&format!("engine-{at}c"), engine_host(at)).await?;
        engine.set_ready(true).await?;
        stage.engines.push(engine);
    }
    load.until_picked(all).await?;
    row.event("three came back");
    Ok(())
}
