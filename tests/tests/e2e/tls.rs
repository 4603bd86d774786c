//! Envoy speaks TLS to a picker that signs its own certificate, which is how pickers serve unless told otherwise.

use serde_json::json;
use warmroute_demo::harness::{PickerTransport, Recipe};

use crate::fixture::{MODEL, Script, ScriptedEngine, Stack, StackOptions};

in_both_recipes!(requests_are_picked_over_tls);

async fn requests_are_picked_over_tls(recipe: Recipe) {
    let engine = ScriptedEngine::start(Script::Answer).await;
    let options = StackOptions {
        transport: PickerTransport::Tls,
        ..StackOptions::least_loaded(recipe, &[engine.address])
    };
    let stack = Stack::start(options).await;
    let body = json!({"model": MODEL, "prompt": "x"});
    let answer = stack.gateway.post("/v1/completions", "tls", &body).await;
    assert_eq!(answer.json(), json!({"ok": true}));
    assert_eq!(stack.picker.receipt("tls").await.pick.as_deref(), Some(engine.address.to_string().as_str()));
    // The health service needs no TLS, the ext-proc port takes nothing else.
    assert!(!stack.picker.takes_plaintext(stack.picker.grpc).await);
    assert!(stack.picker.takes_plaintext(stack.picker.health).await);
}
