//! Templates that fail, run away or use unusual features.

use std::path::Path;

use warmroute_inference_api::{Api, parse_request};
use warmroute_tokenize::{ContentFormat, Limit, ModelTokenizer, PromptOptions, Rejection, TokenizeError};

use crate::files::{qwen, recorded_options, tokenizer_dir};

/// Renders a template of the request for one user message.
fn render_with(template: &str, options: &PromptOptions) -> Result<String, TokenizeError> {
    let template = serde_json::to_string(template).unwrap();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hello"}}],"chat_template":{template}}}"#);
    let request = parse_request(Api::ChatCompletions, body.as_bytes()).unwrap();
    qwen().render_chat(&request, options)
}

fn render(template: &str) -> Result<String, TokenizeError> {
    render_with(template, &recorded_options())
}

#[test]
fn a_template_that_does_not_end_runs_out_of_fuel() {
    let mut options = recorded_options();
    options.template_fuel = 100_000;
    let template = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let error = render_with(template, &options).unwrap_err();
    assert_eq!(error, TokenizeError::Limit(Limit::Fuel { instructions: 100_000 }));
}

#[test]
fn endless_recursion_ends() {
    let error = render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").unwrap_err();
    assert!(matches!(error, TokenizeError::Unsupported(_)), "{error}");
}

#[test]
fn output_is_bounded() {
    let mut options = recorded_options();
    options.max_rendered_bytes = 10_000;
    let error = render_with("{% for a in range(9999) %}0123456789{% endfor %}", &options).unwrap_err();
    assert_eq!(error, TokenizeError::Limit(Limit::RenderedBytes { bytes: 10_000 }));
}

#[test]
fn what_a_template_raises_is_the_engines_refusal() {
    let error = render("{{ raise_exception('no ' ~ messages|length) }}").unwrap_err();
    assert_eq!(error, TokenizeError::Rejected(Rejection::RaisedByTemplate("no 1".to_owned())));
    let nested = "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}";
    let error = render(nested).unwrap_err();
    assert_eq!(error, TokenizeError::Rejected(Rejection::RaisedByTemplate("deep".to_owned())));
    let error = render("{{ messages.nope.deep }}").unwrap_err();
    assert!(matches!(error, TokenizeError::Unsupported(_)), "{error}");
}

#[test]
fn the_clock_is_injected() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "20 Nov 2026");
    let in_macro = "{% macro f() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ f() }}";
    assert_eq!(render(in_macro).unwrap(), "2026-11-20");
    assert!(render("{{ strftime_now('%!') }}").is_err());
}

#[test]
fn python_idioms() {
    for (template, expected) in [
        ("{{ 'a,b,c'.rsplit(',', 1) }}", "['a,b', 'c']"),
        ("{{ '  a b\x1c'.strip() }}|{{ ' a  b '.split() }}", "a b|['a', 'b']"),
        ("{{ 'k=v'.partition('=') }}", "('k', '=', 'v')"),
        ("{{ 'x'.rjust(3) }}{{ 'x'.ljust(3, '.') }}{{ '-5'.zfill(4) }}", "  xx..-005"),
        ("{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'a.txt'.removesuffix('.txt') }}", "xa"),
        ("{{ '%s has %d%%' % ('x', 5) }}", "x has 5%"),
        ("{{ [1, 'two', none, 1e22, {'k': (1,)}] }}", "[1, 'two', None, 1e+22, {'k': (1,)}]"),
        ("{{ (messages[0].content ~ '\\n') | trim }}", "hello"),
        (
            "{{ {'b': 1, 'a': [1, 2]} | tojson(sort_keys=true, indent=2) }}",
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": 1\n}",
        ),
        ("{{ [] | tojson(indent=2) }}{{ {} | tojson }}", "[]{}"),
        ("{{ 'é<\u{2028}😀\x7f' | tojson }}", "\"é<\u{2028}😀\x7f\""),
        ("{{ 'é😀\x7f' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83d\\ude00\\u007f\""),
        ("{{ ['a', 1] | trim }}", "['a', 1]"),
        ("{% generation %}x{% endgeneration %}", "x"),
    ] {
        assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn templates_of_requests_need_trust() {
    let mut options = recorded_options();
    options.trust_request_chat_template = false;
    assert!(matches!(render_with("x", &options), Err(TokenizeError::Rejected(_))));
    assert!(matches!(render_with("", &options), Err(TokenizeError::Rejected(_))));
}

/// Settings of the server that other recorded sets don't have.
#[test]
fn server_settings() {
    let template = "{{ tools is none }} {{ enable_thinking }} {{ messages[0].content | tojson }}";
    let tokenizer = ModelTokenizer::load(&tokenizer_dir("qwen2.5"))
        .and_then(|tokenizer| tokenizer.with_chat_template(Path::new("inline"), template))
        .unwrap();
    let body = br#"{"messages":[{"role":"user","content":"x"}],"tool_choice":"none",
        "tools":[{"function":{"name":"f"}}]}"#;
    let request = parse_request(Api::ChatCompletions, body).unwrap();
    let mut options = PromptOptions::default();
    assert_eq!(tokenizer.render_chat(&request, &options).unwrap(), "False  \"x\"");
    options.exclude_tools_when_tool_choice_none = true;
    options.default_chat_template_kwargs = Some(r#"{"enable_thinking": false}"#.to_owned());
    options.content_format = Some(ContentFormat::OpenAi);
    let expected = r#"True False [{"type": "text", "text": "x"}]"#;
    assert_eq!(tokenizer.render_chat(&request, &options).unwrap(), expected);
}

#[test]
fn values_that_nest_too_deep_are_a_limit() {
    let deep = format!("{}{}", "[".repeat(400), "]".repeat(400));
    let body =
        format!(r#"{{"messages":[{{"role":"user","content":"x"}}],"chat_template_kwargs":{{"a":{deep}}}}}"#);
    let request = parse_request(Api::ChatCompletions, body.as_bytes()).unwrap();
    let error = qwen().tokens(&request, &recorded_options()).unwrap_err();
    assert_eq!(error, TokenizeError::Limit(Limit::Depth { member: "chat_template_kwargs" }));
}
