//! Bodies of every API: who reads them, what is refused, and what is known of a prompt without a tokenizer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use warmroute::prompt::{AdapterNames, KeysWanted, PromptReader};
use warmroute::receipt::{Fallback, Receipt};
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, Refusal};
use warmroute_inference_api::{Api, Rejection};
use warmroute_tokenize::VideoHints;

use crate::fixture::{ACTIVE_REQUESTS, Fixture, PREFIX_ONLY, post};

async fn picked(fixture: &Fixture, path: &str, body: &str) -> Arc<Receipt> {
    fixture.picker.pick(post(path, body)).await.unwrap();
    fixture.receipts.find("last").unwrap()
}

async fn refused(fixture: &Fixture, path: &str, body: &str) -> Refusal {
    let refusal = fixture.picker.pick(post(path, body)).await.unwrap_err();
    assert_eq!((refusal.status, refusal.code), (400, "BadRequest"), "{path} {body}");
    refusal
}

fn with_parsers(parsers: &str) -> String {
    format!("{ACTIVE_REQUESTS}requestHandler:\n  parsers: {parsers}\n")
}

#[tokio::test]
async fn the_default_parsers_read_their_paths() {
    let fixture = Fixture::new(ACTIVE_REQUESTS, 2);
    for (path, body, api, tokens) in [
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[{"role":"user","content":"12345678"}]}"#,
            "chat-completions",
            Some(3),
        ),
        ("/v1/completions/render", r#"{"model":"m","prompt":"12345678"}"#, "completions", Some(2)),
        ("/v1/embeddings", r#"{"model":"m","input":["1234","5"]}"#, "embeddings", Some(2)),
        ("/v1/responses", r#"{"model":"m","input":"1234"}"#, "responses", Some(1)),
        (
            "/v1/conversations",
            r#"{"model":"m","items":[{"role":"user","content":"1234"}]}"#,
            "conversations",
            Some(2),
        ),
        ("/v1/images/generations", r#"{"model":"m","prompt":"a cat"}"#, "image-generations", None),
        (
            "/v1/messages?beta=true",
            r#"{"model":"m","messages":[{"role":"user","content":"1234"}]}"#,
            "messages",
            Some(2),
        ),
        ("/v1/messages/count_tokens", "no json", "count-tokens", None),
        ("/generate", "no json", "other", None),
    ] {
        let receipt = picked(&fixture, path, body).await;
        assert_eq!((receipt.api.as_str(), receipt.prompt_tokens), (api, tokens), "{path}");
        assert_eq!(receipt.prompt_tokens_estimated, tokens.is_some(), "{path}");
    }
    let receipt = picked(&fixture, "/inference/v1/generate", r#"{"model":"m","token_ids":[1,2,3]}"#).await;
    assert_eq!((receipt.prompt_tokens, receipt.prompt_tokens_estimated), (Some(3), false));
    let tokens = fixture.metrics.requests.prompt_tokens.get();
    assert_eq!(tokens, 3, "guesses aren't counted");
}

#[tokio::test]
async fn a_body_must_name_its_model_unless_it_passes_unread() {
    let fixture = Fixture::new(ACTIVE_REQUESTS, 2);
    for (path, body) in [
        ("/v1/completions", r#"{"prompt":"x"}"#),
        ("/v1/completions", r#"{"prompt":"x","model":""}"#),
        ("/v1/completions", r#"{"prompt":"x","model":7}"#),
        ("/v1/messages", r#"{"messages":[{}]}"#),
        ("/inference/v1/generate", r#"{"token_ids":[1]}"#),
    ] {
        assert_eq!(refused(&fixture, path, body).await.message, "model not found in request body");
    }
    let sglang = Fixture::new(&with_parsers("[{pluginRef: sglanghttp-parser}]"), 1);
    let receipt = picked(&sglang, "/generate", r#"{"input_ids":[5,6]}"#).await;
    assert_eq!((receipt.api.as_str(), receipt.prompt_tokens), ("sglang-generate", Some(2)));
    let receipt = picked(&sglang, "/generate", r#"{"text":"12345678"}"#).await;
    assert_eq!((receipt.prompt_tokens, receipt.prompt_tokens_estimated), (Some(2), true));
}

#[tokio::test]
async fn paths_that_no_parser_takes_are_refused() {
    let fixture =
        Fixture::new(&with_parsers("[{pluginRef: anthropic-parser}, {pluginRef: sglanghttp-parser}]"), 1);
    let refusal = refused(&fixture, "/v1/completions?x", r#"{"model":"m","prompt":"x"}"#).await;
    assert_eq!(refusal.message, "no parser registered matching path suffix for: /v1/completions");
    let refusal = refused(&fixture, "/v2/generate", "{}").await;
    assert_eq!(refusal.message, "unsupported path: /v2/generate");
    let passthrough = Fixture::new(&with_parsers("[{pluginRef: passthrough-parser}]"), 1);
    assert_eq!(picked(&passthrough, "/v1/completions", "no json").await.api, "other");
}

#[tokio::test]
async fn token_ids_of_every_api_are_matched_exactly() {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    let prompt: Vec<u32> = (0..100).collect();
    fixture.announce(1, &prompt[..64]);
    for (path, body) in [
        ("/inference/v1/generate", format!(r#"{{"model":"m","token_ids":{prompt:?},"features":null}}"#)),
        ("/v1/embeddings", format!(r#"{{"model":"m","input":{prompt:?}}}"#)),
    ] {
        let receipt = picked(&fixture, path, &body).await;
        assert_eq!((receipt.predicted_cached_tokens, receipt.prompt_tokens), (64, Some(100)), "{path}");
        assert_eq!(receipt.fallbacks, [], "{path}");
    }
    // An image begins in the third block.
    let placeholders = r#"{"mm_placeholders":{"image":[{"offset":70,"length":4},{"offset":40,"length":4}]}}"#;
    let body = format!(r#"{{"model":"m","token_ids":{prompt:?},"features":{placeholders}}}"#);
    let receipt = picked(&fixture, "/inference/v1/generate", &body).await;
    assert_eq!((receipt.predicted_cached_tokens, receipt.prompt_tokens), (32, Some(100)));
    assert_eq!(receipt.fallbacks[0].kind.as_str(), "matched-up-to-media");
    assert!(receipt.prompt_tokens_estimated);
    assert_eq!(receipt.prompt_blocks, 6, "all of the prompt's, so that a match isn't taken for the whole");
    // Where its media are isn't said.
    let body = format!(r#"{{"model":"m","token_ids":{prompt:?},"features":{{"mm_hashes":{{}}}}}}"#);
    let receipt = picked(&fixture, "/inference/v1/generate", &body).await;
    assert_eq!((receipt.predicted_cached_tokens, receipt.fallbacks[0].kind.as_str()), (0, "no-prompt-api"));
    assert!(receipt.prompt_tokens_estimated);
}

#[tokio::test]
async fn embeddings_and_adapters_that_events_do_not_tell_match_nothing() {
    let fixture = Fixture::new(PREFIX_ONLY, 2);
    let zeros = [0; 64];
    fixture.announce(1, &zeros);
    for (member, detail) in [
        (r#""prompt":"","prompt_embeds":"AAAA""#.to_owned(), "prompt embeddings have no tokens"),
        (format!(r#""prompt":{zeros:?},"prompt_embeds":["AAAA"]"#), "prompt embeddings have no tokens"),
        (
            format!(r#""prompt":{zeros:?},"lora_path":"ada""#),
            "events don't tell adapters that are asked for by lora_path",
        ),
    ] {
        let receipt = picked(&fixture, "/v1/completions", &format!(r#"{{"model":"m",{member}}}"#)).await;
        assert_eq!(receipt.predicted_cached_tokens, 0, "{member}");
        let note = &receipt.fallbacks[0];
        assert_eq!((note.kind.as_str(), note.detail.as_str()), ("not-tokenizable", detail));
    }
    let plain = format!(r#"{{"model":"m","prompt":{zeros:?},"prompt_embeds":null,"lora_path":null}}"#);
    assert_eq!(picked(&fixture, "/v1/completions", &plain).await.predicted_cached_tokens, 48);
}

#[tokio::test]
async fn token_ids_are_handed_out_exact_or_estimated() {
    let reader = PromptReader::new(None, Arc::new(AdapterNames::default()), 1, Duration::from_secs(60));
    let read = async |api: Api, body: &str, wanted: &KeysWanted| {
        let body = Bytes::copy_from_slice(body.as_bytes());
        reader.read(api, &body, VideoHints::default(), wanted.clone()).await
    };
    let wanted = KeysWanted { token_ids: true, estimate: true, ..KeysWanted::default() };
    let exact = read(Api::Completions, r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":9}"#, &wanted)
        .await
        .unwrap();
    let ids = exact.token_ids().unwrap();
    assert_eq!((ids.prompts, ids.is_estimated), ([vec![1, 2], vec![3]].as_slice(), false));
    assert_eq!((exact.max_tokens, exact.prompt_tokens(), exact.estimated.clone()), (Some(9), Some(3), None));
    let chat = r#"{"model":"m","cache_salt":"s","messages":[{"role":"user","content":[{"type":"text","text":"1234"},
        {"type":"image_url","image_url":{"url":"http://x"}}]}]}"#;
    let read_chat = read(Api::ChatCompletions, chat, &wanted).await.unwrap();
    let ids = read_chat.token_ids().unwrap();
    assert_eq!((ids.prompts[0].len(), ids.is_estimated), (2 + 225, true));
    assert_eq!((read_chat.media_parts, read_chat.prompt_tokens()), (1, Some(227)));
    assert_eq!(
        (read_chat.cache_salt.as_deref(), read_chat.fallback),
        (Some("s"), None),
        "an estimate was asked for"
    );
    // Unless asked for, they aren't made.
    let counted = read(Api::ChatCompletions, chat, &KeysWanted::default()).await.unwrap();
    assert_eq!((counted.token_ids(), counted.prompt_tokens()), (None, Some(227)));
    let refusal = read(Api::Responses, r#"{"input":"x"}"#, &wanted).await.unwrap_err();
    assert_eq!(refusal, Rejection::NoModel);
}

#[tokio::test]
async fn a_header_puts_another_model_in_the_place_of_the_bodys() {
    let fixture = Fixture::new(ACTIVE_REQUESTS, 1);
    let ask = async |path: &str, body: &str, target: &str| {
        let headers = [(":method", "POST"), (":path", path), ("x-llm-d-model-name-rewrite", target)];
        let request = HttpRequest::new(HeaderList::from_pairs(headers), body.to_owned());
        let picked = fixture.picker.pick(request).await.unwrap();
        let body = picked.body.map(|body| String::from_utf8(body.to_vec()).unwrap());
        (body, fixture.receipts.find("last").unwrap())
    };
    let (body, receipt) =
        ask("/v1/completions", r#"{"prompt":"p", "model" : "m","n":1}"#, "an \"adapter\"").await;
    assert_eq!(body.as_deref(), Some(r#"{"prompt":"p", "model" : "an \"adapter\"","n":1}"#));
    assert_eq!((receipt.model.as_str(), receipt.engine_model()), ("m", "an \"adapter\""));
    assert!(receipt.fallbacks.iter().all(|note| note.kind != Fallback::ModelRewriteIgnored));
    let page = fixture.metrics.page().unwrap();
    assert!(page.contains(r#"target_model_name="an \"adapter\"""#), "{page}");
    assert_eq!(ask("/v1/completions", r#"{"model":"m","prompt":"p"}"#, "m").await.0, None, "nothing changes");
    let long = "x".repeat(257);
    let too_long = ("/v1/completions", r#"{"model":"m","prompt":"p"}"#, long.as_str());
    for (path, body, target) in [too_long, ("/v1/messages/count_tokens", "{}", "n")] {
        let (body, receipt) = ask(path, body, target).await;
        assert_eq!((body, receipt.target_model.as_str()), (None, ""), "{path}");
        assert!(receipt.fallbacks.iter().any(|note| note.kind == Fallback::ModelRewriteIgnored), "{path}");
    }
}
