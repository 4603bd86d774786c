//! Token ids against those of a real vLLM 0.32 server.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use warmroute_inference_api::{Api, api_of_path, parse_request};
use warmroute_tokenize::{ModelTokenizer, PromptOptions, TokenizeError};

use crate::files;

/// One recorded case.
#[derive(Deserialize)]
struct Case<'a> {
    id: String,
    api: String,
    #[serde(borrow)]
    request: Option<&'a RawValue>,
    request_raw: Option<String>,
    token_ids: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(Vec<u32>),
    Several(Vec<Vec<u32>>),
}

impl Case<'_> {
    fn body(&self) -> &[u8] {
        match (&self.request_raw, self.request) {
            (Some(raw), _) => raw.as_bytes(),
            (None, Some(request)) => request.get().as_bytes(),
            (None, None) => panic!("{} has no request", self.id),
        }
    }

    fn api(&self) -> Option<Api> {
        match self.api.as_str() {
            "chat" => Some(Api::ChatCompletions),
            "completion" => Some(Api::Completions),
            _ => None,
        }
    }

    fn expected(&self) -> Option<Vec<Vec<u32>>> {
        self.token_ids.as_ref().map(|ids| match ids {
            Ids::One(ids) => vec![ids.clone()],
            Ids::Several(lists) => lists.clone(),
        })
    }
}

/// Number of cases that the engine accepted, number it refused, and what we said to the latter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    accepted: usize,
    refused: usize,
    also_refused: usize,
    told_apart: BTreeMap<&'static str, usize>,
}

fn ids_of(
    tokenizer: &ModelTokenizer,
    api: Api,
    body: &[u8],
    options: &PromptOptions,
) -> Result<Vec<Vec<u32>>, &'static str> {
    let request = parse_request(api, body).map_err(|_| "rejected by the picker")?;
    match tokenizer.tokens(&request, options) {
        Ok(prompts) => Ok(prompts.into_iter().map(|prompt| prompt.ids).collect()),
        Err(TokenizeError::Rejected(_)) => Err("rejected"),
        Err(TokenizeError::Unsupported(_)) => Err("unsupported"),
        Err(TokenizeError::Limit(_)) => Err("limit"),
    }
}

fn compare(set: &str, tokenizer: &ModelTokenizer) -> Outcome {
    let vectors = files::data(&format!("chat/{set}/vectors.jsonl"));
    let options = files::recorded_options();
    let mut outcome = Outcome::default();
    let mut wrong = Vec::new();
    for line in vectors.lines() {
        let case: Case<'_> = serde_json::from_str(line).expect("a case");
        let Some(api) = case.api() else { continue };
        let ours = ids_of(tokenizer, api, case.body(), &options);
        match (case.expected(), ours) {
            (Some(expected), ours) => {
                outcome.accepted += 1;
                if ours.as_ref() != Ok(&expected) {
                    wrong.push(format!("{}: {:?}", case.id, ours.map(|_| "other ids")));
                }
            }
            (None, Ok(_)) => {
                outcome.refused += 1;
                println!("{}: refused by the engine, not by us", case.id);
            }
            (None, Err(kind)) => {
                outcome.refused += 1;
                outcome.also_refused += 1;
                *outcome.told_apart.entry(kind).or_default() += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), outcome.accepted, wrong.join("\n"));
    outcome
}

#[test]
fn every_accepted_case_has_the_ids_of_the_engine() {
    let outcome = compare("qwen2.5", files::qwen());
    println!("{outcome:?}");
    // The one that only the engine refuses asks for a model that it doesn't serve.
    assert_eq!((outcome.accepted, outcome.refused, outcome.also_refused), (285, 51, 50));
}

/// These templates print their own input, so they prove the preparation of messages, tools and variables.
#[test]
fn templates_get_what_the_engine_gives_them() {
    for (set, accepted, refused) in [("dump-string", 165, 29), ("dump-openai", 166, 28)] {
        let meta: serde_json::Value =
            serde_json::from_str(&files::data(&format!("chat/{set}/meta.json"))).expect("meta");
        let template = meta["chat_template"].as_str().expect("a template");
        let tokenizer = ModelTokenizer::load(&files::tokenizer_dir("qwen2.5"))
            .and_then(|tokenizer| tokenizer.with_chat_template(Path::new(set), template))
            .expect("loads");
        let outcome = compare(set, &tokenizer);
        println!("{set}: {outcome:?}");
        assert_eq!((outcome.accepted, outcome.refused, outcome.also_refused), (accepted, refused, refused));
    }
}

#[derive(Deserialize)]
struct Recorded<'a> {
    path: String,
    #[serde(borrow)]
    request_body: Option<&'a RawValue>,
    prompt_token_ids: Option<Vec<u32>>,
}

#[test]
fn prompts_of_the_recorded_event_scenarios() {
    let scenarios = [
        "v023-lora-bs16",
        "v023-sha256cbor-seed0-bs16",
        "v032-dup-sha256cbor-seed0",
        "v032-lora",
        "v032-salt",
        "v032-sha256-seed0-bytes",
        "v032-sha256cbor-noseed-bytes",
        "v032-sha256cbor-seed0",
        "v032-sha256cbor-seed42",
    ];
    let mut compared = 0;
    for scenario in scenarios {
        for line in files::data(&format!("vllm/{scenario}/requests.jsonl")).lines() {
            let recorded: Recorded<'_> = serde_json::from_str(line).expect("a request");
            let (Some(body), Some(expected)) = (recorded.request_body, recorded.prompt_token_ids) else {
                continue;
            };
            let mut options = files::recorded_options();
            options.max_model_len = Some(512);
            let api = api_of_path(&recorded.path);
            let ours = ids_of(files::qwen(), api, body.get().as_bytes(), &options);
            assert_eq!(ours, Ok(vec![expected]), "{scenario}: {}", body.get());
            compared += 1;
        }
    }
    assert_eq!(compared, 118);
}
