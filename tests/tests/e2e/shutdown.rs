//! A picker that is told to stop says so first, goes on serving, and ends without cutting a response.

use http_body_util::BodyExt;
use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;
use warmroute_demo::harness::Recipe;

use crate::fixture::{MODEL, Script, ScriptedEngine, Stack, StackOptions, run, sse_response, until};

const COMPLETIONS: &str = "/v1/completions";

in_both_recipes!(a_running_response_survives_the_end_of_the_picker);

async fn a_running_response_survives_the_end_of_the_picker(recipe: Recipe) {
    let engine = ScriptedEngine::start(Script::HeldStream).await;
    let options = StackOptions {
        // The test ends the wait itself.
        picker_args: vec!["--drain-timeout=100s".to_owned()],
        ..StackOptions::least_loaded(recipe, &[engine.address])
    };
    let mut stack = Stack::start(options).await;
    let body = json!({"model": MODEL, "prompt": "once upon", "stream": true});
    let running = stack.gateway.open_post(COMPLETIONS, "running", &body).await;

    stack.picker.terminate();
    for address in [stack.picker.health, stack.picker.grpc] {
        until("NOT_SERVING", async || {
            let status = stack.picker.check_health(address, "").await;
            (status == ServingStatus::NotServing).then_some(())
        })
        .await;
    }
    assert_eq!(stack.picker.page("/healthz").await, (503, "not ready\n".to_owned()));
    // Gateways take their time to notice, so who still comes is still served.
    let late = stack.gateway.open_post(COMPLETIONS, "late", &body).await;
    assert_eq!(late.status(), 200);
    assert_eq!(stack.picker.status().await.in_flight(engine.address), 2);

    stack.picker.terminate();
    if recipe == Recipe::Buffered {
        // Nothing of the responses passes through the picker, so it need not wait for them.
        assert_eq!(stack.picker.ended().await, "exit status: 0");
    }
    engine.release(2);
    for response in [running, late] {
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), sse_response());
    }
    assert_eq!(stack.picker.ended().await, "exit status: 0");
}

/// What the buffered recipe promises. With full-duplex requests Envoy would cut the response.
#[test]
fn a_running_response_survives_a_killed_picker() {
    run(async {
        let engine = ScriptedEngine::start(Script::HeldStream).await;
        let options = StackOptions::least_loaded(Recipe::Buffered, &[engine.address]);
        let mut stack = Stack::start(options).await;
        let body = json!({"model": MODEL, "prompt": "once upon", "stream": true});
        let running = stack.gateway.open_post(COMPLETIONS, "running", &body).await;
        stack.picker.process.kill();
        // Without a picker a new request has nowhere to go, and hears of it at once.
        let new = stack.gateway.post(COMPLETIONS, "new", &body).await;
        assert_eq!(new.status, 503, "{}", new.text());
        engine.release(1);
        assert_eq!(running.into_body().collect().await.unwrap().to_bytes(), sse_response());
        assert_eq!(engine.received_so_far().len(), 1);
    });
}
