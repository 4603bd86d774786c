//! The picker as the inference extension's conformance suite deploys one (`conformance/resources` in
//! github.com/kubernetes-sigs/gateway-api-inference-extension): with its command line, configuration and rights.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use serde_json::json;

use crate::load::post;
use crate::manifests::Manifests;
use crate::picker_pod::WITHIN;
use crate::stage::{Rig, Stage, StageOptions};
use crate::transcript::Row;

/// Requests to a list of pods, as many as the suite sends.
const REQUESTS: usize = 100;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let options = StageOptions { engines: 3, pickers: 0, ..StageOptions::new("conformance") };
    let mut stage = Stage::open(rig, options).await?;
    narrow_rights(&stage).await?;
    stage.picker_site.config_file = rig.tools.root.join("tests/data/configs/conformance.yaml");
    let namespace = stage.namespace.clone();
    stage.picker_site.args =
        ["--pool-name", "warmroute", "--pool-namespace", &namespace, "--v", "4", "--zap-encoder", "json"]
            .map(str::to_owned)
            .to_vec();
    stage.add_picker()?;
    stage.pickers[0].until_ready().await?;
    stage.gateway.until_pickers(1).await?;
    row.event("the picker takes the suite's flags and configuration, and is ready with the suite's rights");
    let all = stage.addresses();
    for address in &all {
        until_served(&stage, &address.ip().to_string(), *address).await?;
    }
    row.event("each pod is reached by its IP");
    for listed in [&all[2..], &all[..2], &all[..]] {
        let list: Vec<String> = listed.iter().map(|address| address.ip().to_string()).collect();
        let mut served = BTreeSet::new();
        for _ in 0..REQUESTS {
            let (status, by) = ask(&stage, &list.join(",")).await?;
            if status != 200 {
                bail!("status {status} for pods {list:?}");
            }
            served.extend(by);
        }
        let wanted: BTreeSet<SocketAddr> = listed.iter().copied().collect();
        row.check(
            served == wanted,
            format!("{REQUESTS} requests for {} pods reach each of them, and no other", list.len()),
        );
    }
    // The suite gives it 30 s to drain.
    stage.pickers.clear();
    stage.close().await
}

/// The suite's Role has no rules for objects of `llm-d.ai`, nor for reviews of tokens.
async fn narrow_rights(stage: &Stage) -> anyhow::Result<()> {
    let verbs = ["get", "list", "watch"];
    for name in stage.manifests.names_of("Role") {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": [
                {
                    "apiGroups": ["inference.networking.x-k8s.io"],
                    "resources": ["inferenceobjectives", "inferencemodelrewrites", "inferencepools"],
                    "verbs": verbs,
                },
                {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": verbs},
                {"apiGroups": [""], "resources": ["pods"], "verbs": verbs},
            ],
        });
        Manifests::parse(&role.to_string())?.apply(&stage.client, &stage.namespace).await?;
    }
    Ok(())
}

async fn ask(stage: &Stage, list: &str) -> anyhow::Result<(u16, Option<SocketAddr>)> {
    let body = json!({"model": "qwen2.5", "prompt": [1, 2, 3], "max_tokens": 1}).to_string();
    post(stage.gateway.listener, &[("test-epp-endpoint-selection", list)], Bytes::from(body)).await
}

async fn until_served(stage: &Stage, list: &str, wanted: SocketAddr) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let answer = ask(stage, list).await?;
        if answer == (200, Some(wanted)) {
            return Ok(());
        }
        if started.elapsed() > WITHIN {
            bail!("a request for {list} gets {answer:?} after {WITHIN:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
