//! Special tokens, truncation and limits of length, with a tokenizer that adds a beginning-of-sequence token.

use std::fs;

use warmroute_inference_api::{Api, parse_request};
use warmroute_tokenize::{ModelTokenizer, PromptOptions, Rejection, TokenizeError, Unsupported};

use crate::files::tiny_tokenizer;

fn tiny() -> ModelTokenizer {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tiny_tokenizer()).unwrap();
    let config = r#"{"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}"#;
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    ModelTokenizer::load(dir.path()).unwrap()
}

fn ids(api: Api, body: &str, options: &PromptOptions) -> Result<Vec<Vec<u32>>, TokenizeError> {
    let request = parse_request(api, body.as_bytes()).unwrap();
    Ok(tiny().tokens(&request, options)?.into_iter().map(|prompt| prompt.ids).collect())
}

fn completion(members: &str) -> Result<Vec<Vec<u32>>, TokenizeError> {
    let mut options = PromptOptions::default();
    options.max_model_len = Some(20);
    ids(Api::Completions, &format!("{{{members}}}"), &options)
}

fn chat(members: &str) -> Result<Vec<Vec<u32>>, TokenizeError> {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"abc"}}]{members}}}"#);
    ids(Api::ChatCompletions, &body, &PromptOptions::default())
}

#[test]
fn special_tokens_are_added_to_completions_only() {
    assert_eq!(completion(r#""prompt":"abc""#), Ok(vec![vec![9, 0, 1, 2]]));
    assert_eq!(completion(r#""prompt":"<B>a""#), Ok(vec![vec![9, 9, 0]]));
    assert_eq!(completion(r#""prompt":"abc","add_special_tokens":false"#), Ok(vec![vec![0, 1, 2]]));
    assert_eq!(completion(r#""prompt":["a","b"]"#), Ok(vec![vec![9, 0], vec![9, 1]]));
    assert_eq!(completion(r#""prompt":["","b"]"#), Ok(vec![vec![9], vec![9, 1]]));
    assert_eq!(completion(r#""prompt":[0,1],"add_special_tokens":true"#), Ok(vec![vec![0, 1]]));
    assert_eq!(chat(""), Ok(vec![vec![0, 1, 2]]));
    assert_eq!(chat(r#","add_special_tokens":true"#), Ok(vec![vec![9, 0, 1, 2]]));
}

#[test]
fn truncation() {
    for (members, expected) in [
        (r#""prompt":"abcd","truncate_prompt_tokens":3"#, vec![9, 2, 3]),
        (r#""prompt":"abcd","truncate_prompt_tokens":3,"truncation_side":"left""#, vec![1, 2, 3]),
        (r#""prompt":"abcd","truncate_prompt_tokens":3,"truncation_side":"right""#, vec![9, 0, 1]),
        (r#""prompt":"abcd","truncate_prompt_tokens":3,"add_special_tokens":false"#, vec![1, 2, 3]),
        (r#""prompt":"abcd","truncate_prompt_tokens":9"#, vec![9, 0, 1, 2, 3]),
        (r#""prompt":[5,6,7],"truncate_prompt_tokens":2"#, vec![6, 7]),
        (r#""prompt":[5,6,7],"truncate_prompt_tokens":2,"truncation_side":"right""#, vec![5, 6]),
    ] {
        assert_eq!(completion(members), Ok(vec![expected]), "{members}");
    }
    for members in [
        r#""prompt":"abcd","truncate_prompt_tokens":-2"#,
        r#""prompt":"abcd","truncate_prompt_tokens":21"#,
        r#""prompt":[1],"truncate_prompt_tokens":0"#,
        r#""prompt":"abcd","truncation_side":"middle""#,
        r#""prompt":"abcd","max_tokens":21"#,
    ] {
        assert!(matches!(completion(members), Err(TokenizeError::Rejected(_))), "{members}");
    }
    let long = "a".repeat(40);
    let cut =
        completion(&format!(r#""prompt":"{long}","truncate_prompt_tokens":-1,"max_tokens":1"#)).unwrap();
    assert_eq!((cut[0].len(), cut[0][0]), (19, 9));
    let unknown = chat(r#","truncate_prompt_tokens":-1"#);
    assert_eq!(unknown, Err(TokenizeError::Unsupported(Unsupported::UnknownContextLength)));
}

#[test]
fn prompts_that_leave_no_room_are_refused() {
    let prompt = |letters: usize| completion(&format!(r#""prompt":"{}""#, "a".repeat(letters)));
    assert_eq!(prompt(18).map(|prompts| prompts[0].len()), Ok(19));
    let refusal = Rejection::TooLong { index: 0, tokens: 20, max_model_len: 20 };
    assert_eq!(prompt(19), Err(TokenizeError::Rejected(refusal)));
}

#[test]
fn ids_of_a_disaggregated_prefill_replace_the_text() {
    assert_eq!(chat(r#","kv_transfer_params":{"prompt_token_ids":[5,6]}"#), Ok(vec![vec![5, 6]]));
    assert_eq!(chat(r#","kv_transfer_params":{"prompt_token_ids":null}"#), Ok(vec![vec![0, 1, 2]]));
    assert!(matches!(
        chat(r#","kv_transfer_params":{"prompt_token_ids":["x"]}"#),
        Err(TokenizeError::Unsupported(_))
    ));
}

#[test]
fn what_pydantic_might_still_read_is_not_blamed_on_the_request() {
    for (prompt, is_rejected) in [
        ("5", true),
        ("[-1]", true),
        (r#"["a",[1]]"#, true),
        ("[null]", true),
        (r#""\ud83d""#, true),
        (r#"["a","\ud83d"]"#, true),
        ("[1.0]", false),
        ("[true]", false),
        ("[4294967296]", false),
    ] {
        let error = completion(&format!(r#""prompt":{prompt}"#)).unwrap_err();
        assert_eq!(matches!(error, TokenizeError::Rejected(_)), is_rejected, "{prompt}: {error}");
    }
}
