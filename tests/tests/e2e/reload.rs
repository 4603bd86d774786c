//! A configuration that changes under load: no request notices but by where it goes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::future::join_all;
use serde_json::json;
use warmroute_demo::harness::Recipe;

use crate::fixture::{Client, MODEL, Policy, Stack, StackOptions, tools};

const COMPLETIONS: &str = "/v1/completions";
/// Clients that send one request after the other, each with a prompt of its own.
const CLIENTS: u32 = 8;
/// Versions of the configuration that come after the first one.
const CHANGES: u64 = 4;

in_both_recipes!(a_reload_under_load_fails_no_request);

/// As Kubernetes updates a mounted ConfigMap: the file is a link into a folder that is a link, and that is swapped.
fn publish(folder: &Path, version: &str, text: &str) {
    let target = folder.join(version);
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("config.yaml"), text).unwrap();
    let (link, next) = (folder.join("data"), folder.join("data-next"));
    std::os::unix::fs::symlink(&target, &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
}

async fn a_reload_under_load_fails_no_request(recipe: Recipe) {
    let folder = tempfile::tempdir().unwrap();
    let precise = std::fs::read_to_string(Policy::Precise.config_file(&tools())).unwrap();
    publish(folder.path(), "v0", &precise);
    let config_file = folder.path().join("config.yaml");
    std::os::unix::fs::symlink(folder.path().join("data/config.yaml"), &config_file).unwrap();
    let options = StackOptions { config_file: Some(config_file), ..StackOptions::simulated(recipe, 3) };
    let stack = Stack::start(options).await;

    let (done, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    let load = join_all((0..CLIENTS).map(|client| send_until(&stack.gateway, client, &done, &answered)));
    let changes = async {
        for change in 1..=CHANGES {
            // A bad one between two good ones.
            publish(folder.path(), &format!("bad-{change}"), "kind: EndpointPickerConfig\nplugins: {}\n");
            stack.picker.until("the bad one refused", |status| status.reloads("refused") == change).await;
            let weight = format!("weight: {}", 3 + change);
            publish(folder.path(), &format!("v{change}"), &precise.replace("weight: 3", &weight));
            stack.picker.until("the good one taken", |status| status.reloads("taken") == change).await;
            let so_far = answered.load(Ordering::Relaxed);
            stack
                .picker
                .until("requests under the new one", |_| answered.load(Ordering::Relaxed) > so_far + CLIENTS)
                .await;
        }
        done.store(true, Ordering::Relaxed);
    };
    futures::future::join(load, changes).await;

    // What was known before the first change still decides after the last one.
    let prompt = prompt_of(0);
    let answer = stack
        .gateway
        .post(COMPLETIONS, "last", &json!({"model": MODEL, "prompt": prompt, "max_tokens": 1}))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let receipt = stack.picker.receipt("last").await;
    assert!(receipt.predicted_cached_tokens > 0, "{receipt:?}");
    assert_eq!(receipt.candidates[0].scores[0].weight, (3 + CHANGES) as f64);
    assert_eq!(stack.picker.metric("llm_d_epp_request_error_total").await.unwrap_or(0.0), 0.0);
    stack.picker.until_idle().await;
}

/// Sends one request after the other; each must be answered.
async fn send_until(gateway: &Client, client: u32, done: &AtomicBool, answered: &AtomicU32) {
    let body = json!({"model": MODEL, "prompt": prompt_of(client), "max_tokens": 1});
    let mut sent = 0;
    while !done.load(Ordering::Relaxed) {
        let id = format!("reload-{client}-{sent}");
        let answer = gateway.post(COMPLETIONS, &id, &body).await;
        assert_eq!(answer.status, 200, "{id}: {}", answer.text());
        sent += 1;
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

fn prompt_of(client: u32) -> Vec<u32> {
    (client * 1000..client * 1000 + 100).collect()
}
