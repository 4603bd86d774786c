//! Objectives and model rewrites of both API groups, and their definitions deleted and added again while requests are
//! sent. Last the definition of InferencePools itself: without a pool there is nothing to pick from, so no load then.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use warmroute_demo::harness::HttpClient;

use crate::load::{Load, LoadOptions};
use crate::manifests::Manifests;
use crate::picker_pod::WITHIN;
use crate::stage::{Rig, Stage, StageOptions};
use crate::transcript::Row;

/// The groups that objectives and rewrites may be of.
const GROUPS: [&str; 2] = ["llm-d.ai", "inference.networking.x-k8s.io"];

/// Requests of which the shares of a rewrite's targets are counted.
const COUNTED: u64 = 600;

/// An objective of its group, and a rewrite of a model that no engine serves by that name, to two that they do.
fn objects(group: &str, priority: i64, model: &str) -> anyhow::Result<Manifests> {
    let pool = json!({"name": "warmroute"});
    let documents = [
        json!({
            "apiVersion": format!("{group}/v1alpha2"),
            "kind": "InferenceObjective",
            "metadata": {"name": format!("objective-{model}")},
            "spec": {"priority": priority, "poolRef": pool},
        }),
        json!({
            "apiVersion": format!("{group}/v1alpha2"),
            "kind": "InferenceModelRewrite",
            "metadata": {"name": format!("rewrite-{model}")},
            "spec": {"poolRef": pool, "rules": [{
                "matches": [{"model": {"type": "Exact", "value": model}}],
                "targets": [{"modelRewrite": "tuned-a", "weight": 3}, {"modelRewrite": "tuned-b", "weight": 1}],
            }]},
        }),
    ];
    Manifests::parse(&documents.map(|document| document.to_string()).join("\n---\n"))
}

/// The models that the objects of the groups rewrite.
const MODELS: [&str; 2] = ["chat", "draft"];

/// Their objectives' priorities.
const PRIORITIES: [i64; 2] = [7, -1];

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let stage = Stage::open_ready(rig, StageOptions::new("custom-resources")).await?;
    let both = [objects(GROUPS[0], PRIORITIES[0], MODELS[0])?, objects(GROUPS[1], PRIORITIES[1], MODELS[1])?];
    for (at, objects) in both.iter().enumerate() {
        objects.apply(&stage.client, &stage.namespace).await?;
        until_effective(&stage, at).await?;
        row.event(format!("objective and rewrite of {} are in effect", GROUPS[at]));
    }
    for model in MODELS {
        count_targets(rig, &stage, row, model).await?;
    }
    let load = stage.load(row);
    load.until_picked(&stage.addresses()).await?;

    // The definitions of both groups go, and with them their objects.
    let definitions = definitions(rig)?;
    definitions.delete_definitions(&stage.client).await?;
    row.event("the definitions of objectives and rewrites are deleted");
    load.until_more(u64::from(rig.per_second) * 2).await;
    definitions.apply(&stage.client, "").await?;
    definitions.until_established(&stage.client).await?;
    for objects in &both {
        objects.apply(&stage.client, &stage.namespace).await?;
    }
    for at in 0..GROUPS.len() {
        until_effective(&stage, at).await?;
    }
    row.event("the definitions are back, and objectives and rewrites in effect again");
    for objects in &both {
        objects.delete(&stage.client, &stage.namespace).await?;
    }
    load.until_more(u64::from(rig.per_second)).await;
    row.load(load.finish().await);
    without_pools(rig, &stage, row).await?;
    stage.close().await
}

/// Definitions of objectives and rewrites.
fn definitions(rig: &Rig) -> anyhow::Result<Manifests> {
    let mut definitions = Manifests::read(&rig.crds.join("llm-d"))?;
    let inference = Manifests::read(&rig.crds.join("inference"))?;
    for plural in ["inferenceobjectives", "inferencemodelrewrites"] {
        definitions.append(inference.only("CustomResourceDefinition", &format!("{plural}.{}", GROUPS[1])));
    }
    Ok(definitions)
}

/// Waits until every picker gives a request of the objective its priority, and rewrites its model.
async fn until_effective(stage: &Stage, at: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let http = HttpClient::default();
    for picker in &stage.pickers {
        loop {
            // Through the gateway, until this picker was asked and did so.
            let id = send(stage, MODELS[at]).await?;
            let page = http.get(picker.metrics, &format!("/debug/decisions/{id}")).await?;
            let receipt: Value = serde_json::from_slice(&page.body).unwrap_or_default();
            let priority = receipt["priority"].as_i64();
            if priority == Some(PRIORITIES[at]) && is_target(&receipt) {
                break;
            }
            if started.elapsed() > WITHIN {
                bail!(
                    "{} doesn't follow the objects of {} after {WITHIN:?}; a receipt: {receipt}",
                    picker.name,
                    GROUPS[at]
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

fn is_target(receipt: &Value) -> bool {
    let text = receipt.to_string();
    text.contains("tuned-a") || text.contains("tuned-b")
}

/// Sends one request of an objective and returns its id; whatever the answer, since the model may not be rewritten yet.
async fn send(stage: &Stage, model: &str) -> anyhow::Result<String> {
    static SENT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let id = format!("objective-{}", SENT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let body = json!({"model": model, "prompt": [1, 2, 3], "max_tokens": 1}).to_string();
    let gateway = stage.gateway.listener;
    let objective = format!("objective-{model}");
    crate::load::post(
        gateway,
        &[("x-request-id", id.as_str()), ("x-llm-d-inference-objective", &objective)],
        Bytes::from(body),
    )
    .await
    .context("asking for a rewritten model")?;
    Ok(id)
}

/// Counts where requests of a rewritten model went; any that isn't rewritten fails, since no engine serves it.
async fn count_targets(rig: &Rig, stage: &Stage, row: &mut Row, model: &'static str) -> anyhow::Result<()> {
    let before = targets(stage).await?;
    let mut options = LoadOptions::new(stage.gateway.listener, rig.per_second);
    options.model = model;
    let load = Load::start(options, stage.ready_log.clone());
    load.until_more(COUNTED).await;
    let tally = load.finish().await;
    row.check(tally.failed == 0, format!("none of {} requests for {model} fails", tally.sent));
    let after = targets(stage).await?;
    let count =
        |target: &str| after.get(target).copied().unwrap_or(0.0) - before.get(target).copied().unwrap_or(0.0);
    let (first, second) = (count("tuned-a"), count("tuned-b"));
    let share = first / (first + second).max(1.0);
    row.check(
        (0.65..0.85).contains(&share),
        format!(
            "{model}: of weights 3 and 1 the first has {:.0} % of {} requests",
            share * 100.0,
            first + second
        ),
    );
    Ok(())
}

/// Requests by the model that the engine was asked for, over all pickers.
async fn targets(stage: &Stage) -> anyhow::Result<std::collections::BTreeMap<String, f64>> {
    let mut sum = std::collections::BTreeMap::new();
    for picker in &stage.pickers {
        for (target, count) in picker.counts("llm_d_epp_request_total", "target_model_name").await? {
            *sum.entry(target).or_insert(0.0) += count;
        }
    }
    Ok(sum)
}

/// The definition of InferencePools goes, and comes back with the pool.
async fn without_pools(rig: &Rig, stage: &Stage, row: &mut Row) -> anyhow::Result<()> {
    let name = "inferencepools.inference.networking.k8s.io";
    let definition = Manifests::read(&rig.crds.join("inference"))?.only("CustomResourceDefinition", name);
    row.check(definition.len() == 1, format!("there is a definition {name}"));
    definition.delete_definitions(&stage.client).await?;
    row.event("the definition of InferencePools is deleted, and the pool with it");
    definition.apply(&stage.client, "").await?;
    definition.until_established(&stage.client).await?;
    stage.manifests.only("InferencePool", "warmroute").apply(&stage.client, &stage.namespace).await?;
    stage.until_endpoints(&stage.addresses()).await?;
    let load = stage.load(row);
    load.until_picked(&stage.addresses()).await?;
    let tally = load.finish().await;
    row.event("the definition and the pool are back");
    row.check(
        tally.failed == 0 && tally.wrong_picks == 0,
        format!("no picker had to be restarted: none of {} requests fails", tally.sent),
    );
    Ok(())
}
