//! Texts that are meant to do harm: whatever they are, the answer is bounded.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use proptest::prelude::any;
use proptest::{collection, prop_assert, proptest};
use warmroute_config::{ConfigError, KnownTypes, SchedulingKind, check};

fn known() -> KnownTypes {
    KnownTypes::new([("queue-scorer", SchedulingKind::Scorer)])
}

fn refused(text: &[u8]) -> ConfigError {
    let error = check("f", text, &known()).unwrap_err();
    assert!(!error.mistakes.is_empty());
    assert!(error.mistakes.len() <= 101);
    assert!(error.to_string().len() < 200_000);
    error
}

#[test]
fn aliases_cannot_multiply() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let error = refused(bomb.as_bytes());
    assert!(error.mistakes[0].message.contains("too many values"), "{error}");
}

#[test]
fn a_long_text_cannot_be_repeated_at_will() {
    let long = "x".repeat(500_000);
    let text = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 1000].join(", "));
    assert!(refused(text.as_bytes()).mistakes[0].message.contains("too many values"));
}

#[test]
fn nesting_is_bounded() {
    for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(50_000)] {
        refused(text.as_bytes());
    }
}

#[test]
fn an_alias_of_itself_is_refused() {
    refused(b"a: &a [*a]\n");
    refused(b"a: *nowhere\n");
}

#[test]
fn cycles_through_several_anchors_and_anchors_given_twice_are_answered() {
    refused(b"a: &a\n  b: &b\n    c: *a\n");
    refused(b"a: &a [*b]\nb: &b [*a]\n");
    refused(b"a: &a {<<: *a}\n");
    let twice = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n\
                 - &q {type: queue-scorer, name: a}\n- &q {type: queue-scorer, name: b}\n- {<<: *q, name: c}\n";
    assert_eq!(check("f", twice.as_bytes(), &known()).unwrap().plugins.len(), 4, "the newest one counts");
}

#[test]
fn a_key_given_twice_is_a_mistake_wherever_it_is() {
    let head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";
    for (body, line) in [
        ("plugins:\n- type: queue-scorer\n  name: a\n  name: b\n", 6),
        ("plugins:\n- {type: queue-scorer, parameters: {a: {b: 1, b: 2}}}\n", 4),
        ("schedulingProfiles:\n- name: p\n  \"name\": q\n", 5),
        ("kind: EndpointPickerConfig\n", 3),
    ] {
        let error = refused(format!("{head}{body}").as_bytes());
        let twice = error.mistakes.iter().find(|mistake| mistake.message.contains("is given twice"));
        assert_eq!(twice.map(|mistake| mistake.place.line), Some(line), "{error}");
    }
}

#[test]
fn plugins_that_are_missing_in_any_way_are_named() {
    let head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";
    for body in [
        "plugins: [null]\n",
        "plugins: [[]]\n",
        "plugins: [{}]\n",
        "plugins: queue-scorer\n",
        "plugins: [{type: null}]\n",
        "plugins: [{type: \"\"}]\n",
        "plugins: [{name: a}]\n",
        "schedulingProfiles: [{name: p, plugins: [null]}]\n",
        "schedulingProfiles: [{name: p, plugins: [{pluginRef: a}]}]\n",
        "schedulingProfiles: [{plugins: []}]\n",
        "schedulingProfiles: [null]\n",
        "dataLayer: {sources: [{pluginRef: a}]}\n",
        "dataLayer: {discovery: {endpoints: {pluginRef: a}}}\n",
        "requestHandler: {parsers: [{pluginRef: a}]}\n",
        "flowControl: {saturationDetector: {pluginRef: a}}\n",
        "saturationDetector: {pluginRef: queue-scorer}\n",
    ] {
        let error = refused(format!("{head}{body}").as_bytes());
        assert!(error.mistakes.iter().all(|mistake| mistake.place.line == 3), "{error}");
    }
}

#[test]
fn many_mistakes_are_cut_off() {
    let text: String = (0..5000).map(|i| format!("k{i}: 1\n")).collect();
    let error = refused(text.as_bytes());
    assert_eq!(error.mistakes.len(), 101);
    assert!(error.mistakes[100].message.contains("more mistakes"), "{:?}", error.mistakes[100]);
}

#[test]
fn lists_are_bounded() {
    let head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";
    let plugins: String = (0..20_000).map(|i| format!("- type: type-{i}\n")).collect();
    let error = refused(format!("{head}plugins:\n{plugins}").as_bytes());
    assert!(error.mistakes[0].message.contains("has 20000 entries"), "{:?}", error.mistakes[0]);
    let references: String = (0..20_000).map(|i| format!("  - pluginRef: name-{i}\n")).collect();
    let profile = format!("{head}schedulingProfiles:\n- name: p\n  plugins:\n{references}");
    assert!(refused(profile.as_bytes()).mistakes[0].message.contains("has 20000 entries"));
}

#[test]
fn long_names_and_control_characters_are_cut_and_replaced_in_messages() {
    let text = format!("apiVersion: \"{}\"\nkind: \"\\e[31m\"\n", "v".repeat(100_000));
    let error = refused(text.as_bytes());
    assert!(error.to_string().len() < 2000, "{}", error.to_string().len());
    assert!(!error.to_string().contains('\u{1b}'));
}

#[test]
fn bytes_that_are_no_utf8_are_placed() {
    let error = refused(b"apiVersion: x\nkind: \xFF\n");
    assert_eq!((error.mistakes[0].place.line, error.mistakes[0].place.column), (2, 7));
    assert_eq!(error.mistakes[0].message, "this is not UTF-8");
}

#[test]
fn large_texts_are_refused_unread() {
    let error = refused(&vec![b'#'; (1 << 20) + 1]);
    assert!(error.mistakes[0].message.contains("at most 1048576"), "{error}");
}

#[test]
fn merge_keys_are_carried_out_once() {
    let text = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- &q {type: queue-scorer, name: a}\n- {<<: *q, name: b}\n";
    let config = check("f", text.as_bytes(), &known()).unwrap();
    let names: Vec<&str> = config.plugins.iter().map(|plugin| plugin.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "max-score-picker"]);
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in collection::vec(any::<u8>(), 0..300)) {
        let _ = check("f", &bytes, &known());
    }

    #[test]
    fn any_yaml_like_text_is_answered(text in "([a-z]{1,3}: |- |\\[|\\]|\\{|\\}|, |&a |\\*a|<<: |\n|  |'|\"|plugins:|type: |\\||>|#|!|%|---){0,60}") {
        if let Err(error) = check("f", text.as_bytes(), &known()) {
            let lines = text.lines().count() as u32 + 1;
            for mistake in &error.mistakes {
                prop_assert!(mistake.place.line >= 1 && mistake.place.line <= lines, "{:?}", mistake);
                prop_assert!(mistake.place.column >= 1);
            }
            let _ = error.to_string();
        }
    }
}
