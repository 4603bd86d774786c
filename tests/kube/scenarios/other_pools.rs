//! Pools of other kinds: with several target ports, each an endpoint of its own, of which a pod may have some only; and
//! the InferencePool of the older group.

use std::net::SocketAddr;

use serde_json::json;
use warmroute_engine_sim::RunningEngine;

use crate::engine_pod::{EnginePorts, start_engine};
use crate::manifests::Manifests;
use crate::stage::{Rig, Stage, StageOptions, engine_host};
use crate::transcript::Row;

pub(crate) async fn ports(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let options = StageOptions { engines: 0, ports: 2, pickers: 1, ..StageOptions::new("ports") };
    let mut stage = Stage::open(rig, options).await?;
    let mut seconds: Vec<RunningEngine> = Vec::new();
    for at in 0..2 {
        let first = stage.site.ports;
        let ports = EnginePorts {
            http: first.http + 1,
            kv_events: first.kv_events + 1,
            kv_replay: first.kv_replay + 1,
        };
        let second = start_engine(engine_host(at), ports).await?;
        let engine = stage.site.start(&format!("engine-{at}"), engine_host(at)).await?;
        stage.ready_log.begin(second.http_address(), &engine.name);
        engine.set_ready(true).await?;
        seconds.push(second);
        stage.engines.push(engine);
    }
    let mut all = stage.addresses();
    all.extend(seconds.iter().map(RunningEngine::http_address));
    stage.pickers[0].until_ready().await?;
    stage.until_endpoints(&all).await?;
    stage.gateway.until_pickers(1).await?;
    let load = stage.load(row);
    load.until_picked(&all).await?;
    row.event("two pods with two ports each are four endpoints, and each is picked");

    let one = stage.engines[0].name.clone();
    stage.engines[0].annotate("llm-d.ai/active-ports", Some(&stage.site.ports.http.to_string())).await?;
    stage.ready_log.end(all[2], &one);
    let active: Vec<SocketAddr> = all.iter().copied().filter(|address| *address != all[2]).collect();
    stage.until_endpoints(&active).await?;
    load.until_more(200).await;
    stage.ready_log.begin(all[2], &one);
    stage.engines[0].annotate("llm-d.ai/active-ports", None).await?;
    load.until_picked(&all).await?;
    row.event("one pod's second port was inactive for a while");
    row.load(load.finish().await);
    stage.close().await?;
    for second in seconds {
        second.stop().await;
    }
    Ok(())
}

pub(crate) async fn older_group(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let options = StageOptions { engines: 2, pickers: 0, ..StageOptions::new("older-group") };
    let mut stage = Stage::open(rig, options).await?;
    let (port, pool) = (stage.site.ports.http, "inference.networking.x-k8s.io");
    let pool = json!({
        "apiVersion": format!("{pool}/v1alpha2"),
        "kind": "InferencePool",
        "metadata": {"name": "older"},
        "spec": {"selector": {"app": "vllm"}, "targetPortNumber": port, "extensionRef": {"name": "warmroute"}},
    });
    Manifests::parse(&pool.to_string())?.apply(&stage.client, &stage.namespace).await?;
    stage.picker_site.args.retain(|arg| !arg.starts_with("--pool-name") && !arg.starts_with("--pool-group"));
    let flags = ["--pool-name=older", "--pool-group=inference.networking.x-k8s.io"];
    stage.picker_site.args.extend(flags.map(str::to_owned));
    stage.add_picker()?;
    stage.pickers[0].until_ready().await?;
    stage.until_endpoints(&stage.addresses()).await?;
    stage.gateway.until_pickers(1).await?;
    let load = stage.load(row);
    load.until_picked(&stage.addresses()).await?;
    stage.engines.remove(0).leave().await?;
    stage.until_endpoints(&stage.addresses()).await?;
    load.until_more(200).await;
    row.event("an InferencePool of the older group is followed; one of its pods left");
    row.load(load.finish().await);
    stage.close().await
}
