//! A selector instead of a pool, with no right to read custom resources: pods come, go and are relabelled.

use crate::stage::{Rig, Stage, StageOptions, engine_host};
use crate::transcript::Row;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let options = StageOptions { values: "selector", engines: 3, ..StageOptions::new("selector") };
    let mut stage = Stage::open_ready(rig, options).await?;
    row.check(
        stage.manifests.kinds().iter().all(|kind| *kind != "InferencePool"),
        "there is no InferencePool",
    );
    let all = stage.addresses();
    let load = stage.load(row);
    load.until_picked(&all).await?;
    let new = stage.site.start("engine-3", engine_host(3)).await?;
    new.set_ready(true).await?;
    load.until_picked(&[new.address]).await?;
    stage.engines.push(new);
    row.event("a fourth pod came");
    stage.engines[0].set_member(false).await?;
    stage.until_endpoints(&stage.addresses()[1..]).await?;
    load.until_more(200).await;
    stage.engines[0].set_member(true).await?;
    load.until_picked(&all[..1]).await?;
    row.event("one lost its label and got it back");
    stage.engines.remove(1).leave().await?;
    stage.until_endpoints(&stage.addresses()).await?;
    load.until_picked(&stage.addresses()).await?;
    row.event("one left");
    row.load(load.finish().await);
    stage.close().await
}
