//! Directories that can't be loaded.

use std::fs;
use std::path::Path;

use warmroute_tokenize::{LoadError, ModelTokenizer};

use crate::files::tiny_tokenizer;

fn error_of(dir: &Path) -> LoadError {
    match ModelTokenizer::load(dir) {
        Ok(_) => panic!("{} loads", dir.display()),
        Err(error) => error,
    }
}

#[test]
fn missing_directory_and_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = error_of(&dir.path().join("nowhere"));
    assert!(matches!(error, LoadError::NoDirectory { .. }));
    assert!(error.to_string().contains("nowhere does not exist; download"), "{error}");

    let error = error_of(dir.path());
    assert!(matches!(error, LoadError::Unreadable { .. }));
    assert!(error.to_string().contains("tokenizer_config.json"), "{error}");

    fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, LoadError::Unreadable { .. }));
    assert!(error.to_string().contains("tokenizer.json: No such file"), "{error}");
}

#[test]
fn corrupt_files_are_named_with_the_problem() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), "{\"bos_token\": nul").unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, LoadError::Invalid { .. }));
    assert!(error.to_string().contains("unexpected end of JSON input at byte 17"), "{error}");

    fs::write(dir.path().join("tokenizer_config.json"), "[]").unwrap();
    assert!(matches!(error_of(dir.path()), LoadError::Invalid { .. }));

    fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    for text in ["", "{", "{}", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "[1]"] {
        fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let error = error_of(dir.path());
        assert!(matches!(error, LoadError::Encoder { .. }), "{error}");
        assert!(error.to_string().contains("tokenizer.json can't be loaded: "), "{error}");
    }
}

#[test]
fn templates_that_do_not_compile_are_named_with_the_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "line one\n{% if %}"}"#)
        .unwrap();
    let error = error_of(dir.path());
    assert!(matches!(error, LoadError::Template { .. }));
    assert!(error.to_string().contains("tokenizer_config.json does not compile"), "{error}");
    assert!(error.to_string().contains(":2)"), "{error}");

    fs::write(dir.path().join("chat_template.jinja"), "{% for %}").unwrap();
    assert!(error_of(dir.path()).to_string().contains("chat_template.jinja does not compile"));
}

/// A template file goes before the one in the configuration, and a list has templates by name.
#[test]
fn templates_are_found_where_models_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tiny_tokenizer()).unwrap();
    let config = r#"{"bos_token": {"content": "<B>"}, "eos_token": "<E>", "chat_template": [
        {"name": "default", "template": "default{{ bos_token }}{{ eos_token }}{{ pad_token }}"},
        {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]}"#;
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let render = |dir: &Path, tools: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"x"}}]{tools}}}"#);
        let api = warmroute_inference_api::Api::ChatCompletions;
        let request = warmroute_inference_api::parse_request(api, body.as_bytes()).unwrap();
        ModelTokenizer::load(dir).unwrap().render_chat(&request, &Default::default())
    };
    let tools = r#","tools":[{"function":{"name":"f"}}]"#;
    assert_eq!(render(dir.path(), "").unwrap(), "default<B><E>");
    assert_eq!(render(dir.path(), tools).unwrap(), "tools");
    fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(render(dir.path(), tools).unwrap(), "file");
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    assert!(render(dir.path(), "").is_err());
}
