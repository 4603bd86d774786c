//! Request bodies: what is read, what is refused, and that nothing panics.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "test code may panic and print"
)]

use std::borrow::Cow;

use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use warmroute_inference_api::{
    Api, ApiRequest, ChatBody, Field, JsonErrorKind, JsonNumber, JsonValue, MAX_SCAN_DEPTH, MAX_TREE_DEPTH,
    MAX_TREE_VALUES, Prompt, Rejection, SseUsage, parse_json, parse_request, usage_of_json,
};

fn chat(body: &str) -> Result<ApiRequest<'_>, Rejection> {
    parse_request(Api::ChatCompletions, body.as_bytes())
}

fn completion(body: &str) -> Result<ApiRequest<'_>, Rejection> {
    parse_request(Api::Completions, body.as_bytes())
}

#[test]
fn members_of_a_chat_request() {
    let body = r#" {"model" : "qwen\u0032", "stream":true, "messages": [{"role":"user"}], "max_tokens": 5,
        "max_completion_tokens": 7.0, "n":2, "cache_salt":"s", "tools":[{"a":[1,2,{"b":"}"}]}], "x":-1.5e3 } "#;
    let request = chat(body).unwrap();
    assert_eq!(request.model.as_deref(), Some("qwen2"));
    assert_eq!(&body[request.model_range.clone().unwrap()], r#""qwen\u0032""#);
    assert!(request.stream);
    assert_eq!((request.max_tokens, request.n, request.cache_salt.as_deref()), (Some(7), Some(2), Some("s")));
    assert_eq!(request.prompt, Prompt::Chat(ChatBody { messages: br#"[{"role":"user"}]"# }));
    assert_eq!(request.field(Field::Tools), Some(&br#"[{"a":[1,2,{"b":"}"}]}]"#[..]));
    assert_eq!(request.field(Field::Documents), None);
}

#[test]
fn last_of_duplicates_wins() {
    let body = r#"{"model":"a","prompt":"x","model":"b","prompt":[1,2],"stream":true,"stream":1,"\u006d\u006fdel":"c"}"#;
    let request = completion(body).unwrap();
    assert_eq!(request.model.as_deref(), Some("c"));
    assert_eq!(&body[request.model_range.clone().unwrap()], "\"c\"");
    assert_eq!((request.prompt, request.stream), (Prompt::TokenIds(vec![1, 2]), false));
}

#[test]
fn prompts() {
    let text = |text: &'static str| Cow::Borrowed(text);
    for (value, expected) in [
        ("\"hi\"", Prompt::Text(text("hi"))),
        (r#""\ud83d\ude00\n""#, Prompt::Text(text("😀\n"))),
        (r#"["a", "b\t"]"#, Prompt::Texts(vec![text("a"), text("b\t")])),
        ("[1, 2]", Prompt::TokenIds(vec![1, 2])),
        ("[[1,2],[3]]", Prompt::TokenIdLists(vec![vec![1, 2], vec![3]])),
        ("[[]]", Prompt::TokenIdLists(vec![vec![]])),
        (r#""\ud83d""#, Prompt::Unclear(br#""\ud83d""#)),
        ("[-1]", Prompt::Unclear(b"[-1]")),
        (r#"["a",[1, 2]]"#, Prompt::Unclear(br#"["a",[1, 2]]"#)),
        ("5", Prompt::Unclear(b"5")),
        ("NaN", Prompt::Unclear(b"NaN")),
    ] {
        let body = format!(r#"{{"prompt":{value} ,"model":"m"}}"#);
        let request = completion(&body).unwrap();
        assert_eq!(request.prompt, expected, "{value}");
        assert_eq!(request.model.as_deref(), Some("m"));
    }
    let raw = b"{\"prompt\":\"\xff\"}";
    let request = parse_request(Api::Completions, raw).unwrap();
    assert_eq!(request.prompt, Prompt::Unclear(b"\"\xff\""));
}

/// The wording is that of the llm-d router.
#[test]
fn refusals() {
    let map = |problem: &str| format!("error unmarshaling request bodyMap: {problem}");
    for (body, expected) in [
        ("{\"prompt\": nothing}", map("invalid character 'o' in literal null (expecting 'u')")),
        ("", map("unexpected end of JSON input")),
        ("{", map("unexpected end of JSON input")),
        ("[]", map("json: cannot unmarshal array into Go value of type map[string]interface {}")),
        ("\"x\"", map("json: cannot unmarshal string into Go value of type map[string]interface {}")),
        ("{\"a\":1} x", map("invalid character 'x' after top-level value")),
        ("{\"a\" 1}", map("invalid character '1' after object key")),
        ("{\"a\":1 \"b\"}", map("invalid character '\"' after object key:value pair")),
        ("{\"a\":[1 2]}", map("invalid character '2' after array element")),
        ("{a:1}", map("invalid character 'a' looking for beginning of object key string")),
        ("{\"a\":}", map("invalid character '}' looking for beginning of value")),
        ("{\"a\":\"\n\"}", map(r"invalid character '\n' in string literal")),
        ("{\"a\":\"\\x\"}", map("invalid character 'x' in string escape code")),
        ("{\"a\":\"\\u00g0\"}", map("invalid character 'g' in \\u hexadecimal character escape")),
        ("{\"a\":-}", map("invalid character '}' in numeric literal")),
        ("{\"a\":1.}", map("invalid character '}' after decimal point in numeric literal")),
        ("{\"a\":1e}", map("invalid character '}' in exponent of numeric literal")),
        ("{\"a\":01}", map("invalid character '1' after object key:value pair")),
        ("null", "invalid completions request: must have prompt field".to_owned()),
        ("{}", "invalid completions request: must have prompt field".to_owned()),
        ("{\"prompt\":null}", "invalid completions request: must have prompt field".to_owned()),
        ("{\"prompt\":\"\"}", "invalid completions request: must have prompt field".to_owned()),
        ("{\"prompt\":[ ]}", "invalid completions request: must have prompt field".to_owned()),
    ] {
        assert_eq!(completion(body).unwrap_err().to_string(), expected, "{body}");
    }
    for body in ["{}", "{\"messages\":[]}", "{\"messages\":null}", "{\"messages\":{}}", "{\"prompt\":\"x\"}"]
    {
        let refusal = chat(body).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "invalid chat completions request: must have valid messages field",
            "{body}"
        );
    }
    assert_eq!(completion("{\"a\":tru}").unwrap_err().offset(), Some(8));
}

#[test]
fn other_bodies_are_never_refused() {
    for body in [&b"not json"[..], b"", b"{\"model\":\"m\"", b"[1]", b"\xff\x00"] {
        let request = parse_request(Api::Other, body).unwrap();
        assert_eq!((request.model, request.prompt), (None, Prompt::None));
    }
    let request = parse_request(Api::Other, br#"{"model":"m","stream":true,"input":"x"}"#).unwrap();
    assert_eq!((request.model.as_deref(), request.stream), (Some("m"), true));
}

fn parsed(api: Api, body: &str) -> Result<ApiRequest<'_>, Rejection> {
    parse_request(api, body.as_bytes())
}

#[test]
fn each_api_has_its_own_prompt_and_limit_of_output() {
    let body = r#"{"model":"m","max_output_tokens":5,"max_tokens":6,"sampling_params":{"max_tokens":7,"max_new_tokens":8},
        "prompt":"p","input":"in","items":[{"role":"user","content":"hi"}],"token_ids":[1,2],"input_ids":[3],"text":"t",
        "messages":[{"role":"user","content":"abc"}],"cache_salt":"s","extra_key":"x","image_data":["a","b"]}"#;
    let text = |text: &'static str| Prompt::Text(Cow::Borrowed(text));
    for (api, prompt, max_tokens, salt, text_bytes) in [
        (Api::Embeddings, text("in"), 6, "s", 2),
        (Api::ImageGenerations, text("p"), 6, "s", 1),
        (Api::Responses, Prompt::Items(b"\"in\""), 5, "s", 2),
        (Api::Conversations, Prompt::Items(br#"[{"role":"user","content":"hi"}]"#), 6, "s", 6),
        (
            Api::Messages,
            Prompt::Chat(ChatBody { messages: br#"[{"role":"user","content":"abc"}]"# }),
            6,
            "s",
            7,
        ),
        (Api::VllmGenerate, Prompt::TokenIds(vec![1, 2]), 7, "s", 0),
        (Api::SglangGenerate, Prompt::TokenIds(vec![3]), 8, "x", 0),
    ] {
        let request = parsed(api, body).unwrap();
        assert_eq!(request.prompt, prompt, "{api:?}");
        assert_eq!(
            (request.max_tokens, request.cache_salt.as_deref()),
            (Some(max_tokens), Some(salt)),
            "{api:?}"
        );
        assert_eq!(request.text_bytes(), text_bytes, "{api:?}");
        assert_eq!(request.media_parts, if api == Api::SglangGenerate { 2 } else { 0 });
    }
    let lists = parsed(Api::Embeddings, r#"{"input":[[1],[2,3]]}"#).unwrap();
    assert_eq!(lists.prompt, Prompt::TokenIdLists(vec![vec![1], vec![2, 3]]));
    for body in [r#"{"input_ids":null,"text":"t"}"#, r#"{"text":"t","input_ids":null}"#] {
        assert_eq!(parsed(Api::SglangGenerate, body).unwrap().prompt, text("t"));
    }
}

/// The wording is that of the llm-d router, but for SGLang's texts, which it doesn't take.
#[test]
fn refusals_of_the_other_apis() {
    for (api, body, expected) in [
        (Api::Embeddings, r#"{"input":[]}"#, "invalid embeddings request: must have input field"),
        (Api::Embeddings, "{}", "invalid embeddings request: must have input field"),
        (Api::Responses, r#"{"input":""}"#, "invalid responses request: must have input field"),
        (Api::Conversations, r#"{"items":"x"}"#, "invalid conversations request: must have items field"),
        (
            Api::ImageGenerations,
            r#"{"prompt":null}"#,
            "invalid images generations request: must have prompt field",
        ),
        (Api::Messages, r#"{"messages":[]}"#, "invalid messages request: must have at least one message"),
        (
            Api::VllmGenerate,
            r#"{"token_ids":[]}"#,
            "invalid generate request: must have non-empty token_ids field",
        ),
        (
            Api::VllmGenerate,
            r#"{"token_ids":"x"}"#,
            "invalid generate request: must have non-empty token_ids field",
        ),
        (Api::SglangGenerate, "{}", "invalid generate request: input_ids or text must be provided"),
        (
            Api::SglangGenerate,
            r#"{"text":""}"#,
            "invalid generate request: input_ids or text must be provided",
        ),
        (Api::SglangGenerate, r#"{"input_ids":[]}"#, "invalid generate request: input_ids cannot be empty"),
        (
            Api::SglangGenerate,
            r#"{"input_ids":"1"}"#,
            "invalid generate request: input_ids must be an array of uint32 integers",
        ),
        (
            Api::SglangGenerate,
            r#"{"input_ids":[-1],"text":"x"}"#,
            "invalid generate request: input_ids must be an array of uint32 integers",
        ),
        (
            Api::SglangGenerate,
            r#"{"text":"x","extra_key":1}"#,
            "unsupported generate request: extra_key must be a string",
        ),
        (
            Api::VllmGenerate,
            "[1]",
            "error unmarshaling request bodyMap: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
    ] {
        assert_eq!(parsed(api, body).unwrap_err().to_string(), expected, "{body}");
    }
    assert_eq!(parsed(Api::CountTokens, "not json").unwrap().prompt, Prompt::None);
}

#[test]
fn media_are_counted_on_the_way() {
    for (api, body, media_parts) in [
        (
            Api::ChatCompletions,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"x"},
            {"image_url":{"url":"data:image/png;base64,AA"},"type":"image_url"},{"type":"input_audio"},{"type":"video_url"}]},
            {"content":"\"type\":\"image_url\"","type":"image"}]}"#,
            3,
        ),
        (
            Api::Messages,
            r#"{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64"}},
            {"type":"tool_result","content":[{"type":"image"},{"type":"text","text":"t"}]}]}]}"#,
            2,
        ),
        (
            Api::Responses,
            r#"{"input":[{"role":"user","content":[{"type":"input_image"},{"type":"input_text"}]},
            {"type":"function_call_output","output":[{"type":"input_image"}]}]}"#,
            2,
        ),
        // Of duplicates the last counts.
        (
            Api::ChatCompletions,
            r#"{"messages":[{"content":[{"type":"image"}]}],"messages":[{"content":"x"}]}"#,
            0,
        ),
    ] {
        assert_eq!(parsed(api, body).unwrap().media_parts, media_parts, "{body}");
    }
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let body = |depth| format!("{{\"prompt\":\"x\",\"a\":{}}}", nested(depth));
    assert!(completion(&body(MAX_SCAN_DEPTH - 1)).is_ok());
    for depth in [MAX_SCAN_DEPTH, 1_000_000] {
        let refusal = completion(&body(depth)).unwrap_err();
        assert!(matches!(refusal, Rejection::NotAnObject(error) if error.kind == JsonErrorKind::TooDeep));
    }
    for depth in [500, 1_000_000] {
        let parts = format!("{}1{}", r#"[{"content":"#.repeat(depth), "}]".repeat(depth));
        let refusal = chat(&format!(r#"{{"messages":[{{"content":{parts}}}]}}"#)).unwrap_err();
        assert!(matches!(refusal, Rejection::NotAnObject(error) if error.kind == JsonErrorKind::TooDeep));
    }
    assert!(parse_json(nested(MAX_TREE_DEPTH).as_bytes()).is_ok());
    let error = parse_json(nested(MAX_TREE_DEPTH + 1).as_bytes()).unwrap_err();
    assert_eq!(error.kind, JsonErrorKind::TooDeep);
}

#[test]
fn trees_are_bounded() {
    let array = |values: usize| format!("[{}0]", "0,".repeat(values - 1));
    assert!(parse_json(array(MAX_TREE_VALUES - 1).as_bytes()).is_ok());
    let error = parse_json(array(MAX_TREE_VALUES).as_bytes()).unwrap_err();
    assert_eq!(error.kind, JsonErrorKind::TooManyValues);
}

/// What Python's `json` accepts beyond the standard, and how it orders duplicate keys.
#[test]
fn dialect_of_python() {
    let tree = parse_json(
        br#"{"b":1,"a":NaN,"b":[1e400,-Infinity,Infinity,-0,123456789012345678901234567890],"c":"\ud800x"}"#,
    )
    .unwrap();
    let keys: Vec<&str> = tree.as_object().unwrap().iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["b", "a", "c"]);
    assert!(matches!(tree.get("a"), Some(JsonValue::Number(JsonNumber::Float(value))) if value.is_nan()));
    assert_eq!(tree.get("c"), Some(&JsonValue::BrokenString));
    let number = JsonValue::Number;
    assert_eq!(
        tree.get("b").unwrap().as_array().unwrap(),
        [
            number(JsonNumber::Float(f64::INFINITY)),
            number(JsonNumber::Float(f64::NEG_INFINITY)),
            number(JsonNumber::Float(f64::INFINITY)),
            number(JsonNumber::Int(0)),
            number(JsonNumber::BigInt("123456789012345678901234567890")),
        ]
    );
    let many = format!(
        "{{{},\"k3\":\"last\"}}",
        (0..40).map(|n| format!("\"k{n}\":{n}")).collect::<Vec<_>>().join(",")
    );
    let tree = parse_json(many.as_bytes()).unwrap();
    assert_eq!(
        (tree.as_object().unwrap().len(), tree.get("k3").and_then(JsonValue::as_str)),
        (40, Some("last"))
    );
    assert!(parse_json(b"\xef\xbb\xbf{}").is_err());
    assert!(completion("\u{feff}{\"prompt\":\"x\"}").is_ok());
}

/// Same value, as far as `serde_json` can hold it.
fn agrees(ours: &JsonValue<'_>, theirs: &serde_json::Value) -> bool {
    match (ours, theirs) {
        (JsonValue::Null, serde_json::Value::Null) => true,
        (JsonValue::Bool(ours), serde_json::Value::Bool(theirs)) => ours == theirs,
        (JsonValue::String(ours), serde_json::Value::String(theirs)) => ours == theirs,
        (JsonValue::Number(JsonNumber::Int(ours)), theirs) if theirs.is_i64() => {
            theirs.as_i64() == Some(*ours)
        }
        (JsonValue::Number(JsonNumber::BigInt(ours)), theirs) => match theirs.as_u64() {
            Some(theirs) => *ours == theirs.to_string(),
            None => theirs.as_f64() == ours.parse().ok(),
        },
        // serde_json rounds the last bit without its feature `float_roundtrip`, and reads -0 as a float. Of numbers below
        // the normal range the last bits are more than a share of 1e-15.
        (JsonValue::Number(JsonNumber::Float(ours)), serde_json::Value::Number(theirs)) => {
            let tolerance = (ours.abs() * 1e-15).max(100.0 * f64::from_bits(1));
            theirs.as_f64().is_some_and(|theirs| (theirs - ours).abs() <= tolerance)
        }
        (JsonValue::Number(JsonNumber::Int(0)), theirs) => theirs.as_f64() == Some(0.0),
        (JsonValue::Array(ours), serde_json::Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| agrees(ours, theirs))
        }
        (JsonValue::Object(ours), serde_json::Value::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().all(|(key, ours)| theirs.get(key).is_some_and(|theirs| agrees(ours, theirs)))
        }
        _ => false,
    }
}

/// JSON texts, mostly valid.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-0".to_owned()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<u64>().prop_map(|value| value.to_string()),
        any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:e}")),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        prop::sample::select(vec![r#""\u00e9\/\b""#, r#""\ud83d\ude00""#, r#""\ud83d""#, "1.50E+3", "\"\""])
            .prop_map(str::to_owned),
        prop::collection::vec(any::<u32>(), 0..20).prop_map(|ids| format!("{ids:?}")),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let key = prop::sample::select(vec![
            "\"a\"",
            "\"b\"",
            "\"\\u0061\"",
            "\"model\"",
            "\"prompt\"",
            "\"usage\"",
            "\"messages\"",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6)
                .prop_map(|elements| format!("[{}]", elements.join(" , "))),
            prop::collection::vec((key, inner), 0..6).prop_map(|members| {
                let members: Vec<String> =
                    members.iter().map(|(key, value)| format!("{key} :{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

const APIS: [Api; 11] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Embeddings,
    Api::Responses,
    Api::Conversations,
    Api::ImageGenerations,
    Api::Messages,
    Api::CountTokens,
    Api::VllmGenerate,
    Api::SglangGenerate,
    Api::Other,
];

fn feed_everything(bytes: &[u8]) {
    for api in APIS {
        if let Ok(request) = parse_request(api, bytes) {
            let _ = (request.text_bytes(), request.media_parts);
            if let Some(range) = &request.model_range {
                assert!(bytes[range.clone()].starts_with(b"\"") && bytes[range.clone()].ends_with(b"\""));
            }
            if let Prompt::Chat(chat) = request.prompt {
                let _ = parse_json(chat.messages);
            }
        }
    }
    let _ = parse_json(bytes);
    let _ = usage_of_json(bytes);
    let mut reader = SseUsage::new();
    reader.feed(bytes);
    reader.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        feed_everything(&bytes);
    }

    #[test]
    fn mutated_bodies_never_panic(
        text in json_text(),
        place in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"{}[]\",:\\u0-eN\xff\x00 tn1".to_vec()),
        cuts in any::<bool>(),
    ) {
        let mut bytes = format!(
            "{{\"model\":\"m\",\"prompt\":{text},\"messages\":[{{\"role\":{text},\"content\":[{text},\
             {{\"type\":\"image\",\"content\":{text}}}]}}],\"usage\":{text},\"input\":{text},\"items\":{text},\
             \"token_ids\":{text},\"input_ids\":{text},\"sampling_params\":{text},\"image_data\":{text}}}"
        ).into_bytes();
        let place = place.index(bytes.len());
        if cuts { bytes.truncate(place) } else { bytes[place] = byte }
        feed_everything(&bytes);
    }

    #[test]
    fn trees_agree_with_serde_json(text in json_text()) {
        if let Ok(theirs) = serde_json::from_str::<serde_json::Value>(&text) {
            let ours = parse_json(text.as_bytes());
            prop_assert!(ours.as_ref().is_ok_and(|ours| agrees(ours, &theirs)), "{text}: {ours:?}");
        }
    }

    #[test]
    fn scans_agree_with_trees(value in json_text()) {
        let body = format!("{{\"a\":{value},\"model\":\"m\",\"prompt\":{value},\"messages\":[{value}]}}");
        let whole = serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok();
        let scanned = parse_request(Api::ChatCompletions, body.as_bytes());
        prop_assert_eq!(scanned.is_ok(), whole || parse_json(body.as_bytes()).is_ok());
        let request = scanned.unwrap();
        prop_assert_eq!(request.model.as_deref(), Some("m"));
        let messages = format!("[{value}]");
        prop_assert_eq!(request.prompt, Prompt::Chat(ChatBody { messages: messages.as_bytes() }));
        if let Ok(ids) = serde_json::from_str::<Vec<u32>>(&value) {
            let prompt = parse_request(Api::Completions, body.as_bytes()).map(|request| request.prompt);
            let expected = if ids.is_empty() { Err(Rejection::NoPrompt) } else { Ok(Prompt::TokenIds(ids)) };
            prop_assert_eq!(prompt, expected);
        }
    }
}
