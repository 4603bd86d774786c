//! What cannot be served is refused by the picker, in the words and with the headers of other endpoint pickers.

use warmroute_demo::harness::Recipe;

use crate::fixture::{Script, ScriptedEngine, Stack, StackOptions, bytes_body};

in_both_recipes!(a_malformed_request_gets_400, without_endpoints_there_is_503);

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn a_malformed_request_gets_400(recipe: Recipe) {
    let engine = ScriptedEngine::start(Script::Answer).await;
    let stack = Stack::start(StackOptions::least_loaded(recipe, &[engine.address])).await;
    for (path, body, words) in [
        (COMPLETIONS, "no json at all", "error unmarshaling request bodyMap: "),
        (COMPLETIONS, "{\"model\":\"m\",\"prompt\":\"cut off", "error unmarshaling request bodyMap: "),
        (COMPLETIONS, "{\"model\":\"m\"}", "invalid completions request: must have prompt field"),
        (CHAT, "{\"model\":\"m\"}", "invalid chat completions request: must have valid messages field"),
    ] {
        let request = http::Request::post(path).header("x-request-id", "malformed");
        let answer = stack.gateway.send(request.body(bytes_body(body)).unwrap()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let start = format!("inference error: BadRequest - {words}");
        assert!(answer.text().starts_with(&start), "{body}: {}", answer.text());
        let receipt = stack.picker.receipt("malformed").await;
        assert!(receipt.pick.is_none() && receipt.refusal.unwrap().contains(words));
    }
    assert!(engine.received_so_far().is_empty());
    stack.picker.until_idle().await;
}

async fn without_endpoints_there_is_503(recipe: Recipe) {
    let stack = Stack::start(StackOptions::least_loaded(recipe, &[])).await;
    for (method, path, body) in
        [("POST", COMPLETIONS, "{\"model\":\"m\",\"prompt\":\"x\"}"), ("GET", "/v1/models", "")]
    {
        let request = http::Request::builder().method(method).uri(path);
        let answer = stack.gateway.send(request.body(bytes_body(body)).unwrap()).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.values("x-llm-d-request-dropped-reason"), ["rejected-no-endpoints"]);
        assert!(
            answer
                .text()
                .starts_with("inference error: ServiceUnavailable - failed to find endpoint candidates"),
            "{}",
            answer.text()
        );
    }
}
