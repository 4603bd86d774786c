//! Tokens of conversations with images, sounds and videos: those before the first of them.

use std::path::Path;

use serde_json::{Value, json};
use warmroute_inference_api::{Api, parse_request};
use warmroute_tokenize::{ModelTokenizer, PromptOptions, TokenizeError, Unsupported};

use crate::files::{data, qwen, tokenizer_dir};

/// Qwen's special tokens.
const IM_START: u32 = 151_644;
const BOX_START: u32 = 151_648;
const VISION_START: u32 = 151_652;
const IMAGE_PAD: u32 = 151_655;

fn with_template(template: &str) -> ModelTokenizer {
    let tokenizer = ModelTokenizer::load(&tokenizer_dir("qwen2.5")).unwrap();
    tokenizer.with_chat_template(Path::new("template"), template).unwrap()
}

fn before_media(tokenizer: &ModelTokenizer, body: &Value) -> Result<Vec<u32>, TokenizeError> {
    let body = body.to_string();
    let request = parse_request(Api::ChatCompletions, body.as_bytes()).unwrap();
    let whole = tokenizer.tokens(&request, &PromptOptions::default());
    assert!(matches!(whole, Err(TokenizeError::Unsupported(Unsupported::Multimodal { .. }))), "{whole:?}");
    tokenizer.tokens_before_media(&request, &PromptOptions::default())
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn user(content: Value) -> Value {
    json!({"model": "m", "messages": [
        {"role": "system", "content": "You look at pictures."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": content},
    ]})
}

fn image() -> Value {
    json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}})
}

/// What Qwen's own template makes of the conversation up to the last message, and then of a text.
fn ids_of(end: &str) -> Vec<u32> {
    let text = format!(
        "<|im_start|>system\nYou look at pictures.<|im_end|>\n<|im_start|>user\nHello.<|im_end|>\n\
         <|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>{end}"
    );
    let mut ids = Vec::new();
    qwen().encode(&text, false, &mut ids).unwrap();
    ids
}

#[test]
fn the_tokens_before_an_image_are_those_that_a_real_server_had() {
    let tokenizer = with_template(&data("templates/qwen2-vl.jinja"));
    let mut lengths = Vec::new();
    for line in data("vllm/v032-mm/requests.jsonl").lines() {
        let recorded: Value = serde_json::from_str(line).unwrap();
        let ids: Vec<u32> = serde_json::from_value(recorded["prompt_token_ids"].clone()).unwrap();
        let image = ids.iter().position(|id| *id == VISION_START).unwrap();
        let ours = before_media(&tokenizer, &recorded["request_body"]).unwrap();
        assert_eq!(ours, ids[..image], "{}", recorded["note"]);
        lengths.push(image);
    }
    assert_eq!(lengths, [98, 98, 98, 98, 14]);
}

#[test]
fn every_kind_of_media_begins_somewhere() {
    let tokenizer = with_template(&data("templates/qwen2-vl.jinja"));
    let parts = [
        image(),
        json!({"type": "input_image", "image_url": "http://x"}),
        json!({"type": "image_embeds", "image_embeds": "x"}),
        json!({"type": "image_url", "image_url": null, "uuid": "one"}),
        json!({"type": "video_url", "video_url": {"url": "http://x"}}),
    ];
    let expected = ids_of("user\nWhat  is\n\nthis: ");
    for part in parts {
        let body = user(json!([text("What  is\n\nthis: "), part, text("?")]));
        assert_eq!(before_media(&tokenizer, &body), Ok(expected.clone()), "{part}");
    }
    // The template says nothing of sounds.
    let body =
        user(json!([text("a"), {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]));
    let error = before_media(&tokenizer, &body).unwrap_err();
    assert!(matches!(error, TokenizeError::Unsupported(Unsupported::Multimodal { .. })), "{error}");
}

#[test]
fn a_placeholder_in_a_text_counts_as_the_first_one() {
    let tokenizer = with_template(&data("templates/qwen2-vl.jinja"));
    let body = user(json!([text("see <|image_pad|> and "), image(), text("?")]));
    let ids = before_media(&tokenizer, &body).unwrap();
    assert!(!ids.contains(&IMAGE_PAD));
    assert_eq!(ids, ids_of(""), "up to the special token before the text");
    let body = user(json!([text("see <|vision_start|> and "), image(), text("?")]));
    assert_eq!(before_media(&tokenizer, &body), Ok(ids_of("user\nsee ")));
}

#[test]
fn what_is_not_known_of_a_placeholder_is_left_out() {
    let other = data("templates/qwen2-vl.jinja").replace("<|vision_start|><|image_pad|>", "<|box_start|>");
    let tokenizer = with_template(&other);
    let body = user(json!([text("What is this:"), image()]));
    let ids = before_media(&tokenizer, &body).unwrap();
    assert_eq!((ids.last(), ids.contains(&BOX_START)), (Some(&IM_START), false));
    assert_eq!(ids, ids_of(""));
    // No token that a text couldn't have either: nothing is known.
    let plain = other.replace("<|box_start|><|vision_end|>", "(image)");
    let error = before_media(&with_template(&plain), &body).unwrap_err();
    assert!(matches!(error, TokenizeError::Unsupported(Unsupported::Multimodal { .. })), "{error}");
}

#[test]
fn where_contents_are_one_text_nothing_of_the_message_is_known() {
    // Qwen2.5's own template takes texts; a model of images with such a one gets its placeholder in front.
    let body = user(json!([text("What is this:"), image()]));
    assert_eq!(before_media(qwen(), &body), Ok(ids_of("")));
    let named = json!({"model": "m", "messages": [
        {"role": "user", "content": "What does <image> mean?"},
        {"role": "user", "content": [image()]},
    ]});
    assert!(before_media(qwen(), &named).is_err(), "the engine would take it for the placeholder");
}

#[test]
fn prompt_embeddings_have_no_tokens() {
    let chat = json!({"model": "m", "messages": [
        {"role": "user", "content": [{"type": "prompt_embeds", "data": "AAAA"}]},
    ]});
    let completion = json!({"model": "m", "prompt": "", "prompt_embeds": "AAAA"});
    for (api, body) in [(Api::ChatCompletions, chat), (Api::Completions, completion)] {
        let body = body.to_string();
        let request = parse_request(api, body.as_bytes()).unwrap();
        let error = qwen().tokens(&request, &PromptOptions::default()).unwrap_err();
        assert_eq!(error, TokenizeError::Unsupported(Unsupported::PromptEmbeds));
    }
}
