//! What the documentation shows works: its files are those of the repository, its configurations load.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use warmroute::Warmroute;
use warmroute::profile::{build_scheduler, read_config};
use warmroute_config::CheckedConfig;

use crate::fixture::options;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Loads a configuration with the built-in plugins and those of the template, whose notices are to be none.
fn load(name: &str, text: &str) -> CheckedConfig {
    let registry = Arc::new(Warmroute::new().plugin(acme::register).registry().unwrap());
    let config = read_config(&options(text), &registry).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(config.notice_lines().collect::<Vec<_>>(), [""; 0], "{name}");
    build_scheduler(&config, &registry).unwrap_or_else(|error| panic!("{name}: {error}"));
    config
}

/// The fenced blocks of a page: the line before each, its language, its text.
fn blocks(page: &str) -> Vec<(String, String, String)> {
    let (mut blocks, mut lines, mut before) = (Vec::new(), page.lines(), "");
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: String =
                lines.by_ref().take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect();
            blocks.push((before.to_owned(), language.to_owned(), text));
        }
        before = line;
    }
    blocks
}

#[test]
fn the_files_that_the_scorer_page_shows_are_those_of_the_template() {
    let page = read("docs/writing-a-scorer.md");
    let mut shown = 0;
    for (before, _, text) in blocks(&page) {
        let Some(path) = before.strip_prefix("`").and_then(|rest| rest.split_once("`:")) else { continue };
        let file = read(&format!("deploy/custom/{}", path.0));
        assert!(file.contains(&text), "{} isn't what the page shows:\n{text}", path.0);
        shown += 1;
    }
    assert!(shown >= 6, "{shown}");
}

#[test]
fn the_templates_configuration_loads_with_its_plugins() {
    let config = load("acme.yaml", &read("deploy/custom/acme.yaml"));
    let plugins = &config.profiles[0].plugins;
    assert_eq!(plugins.iter().filter(|plugin| plugin.plugin_ref.starts_with("acme-")).count(), 3);
}

#[test]
fn the_plugins_of_the_sessions_chapter_load() {
    let page = read("docs/configuration.md");
    let chapter = page.split("## Sessions").nth(1).unwrap().split("\n## ").next().unwrap();
    let plugins = &blocks(chapter)[0].2;
    let text = format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n{plugins}- type: max-score-picker\n\
         schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: session-affinity-scorer\n  \
         - pluginRef: session-affinity-filter\n  - pluginRef: max-score-picker\n"
    );
    assert_eq!(load("docs/configuration.md", &text).session_id_producers.len(), 1);
}

#[test]
fn configurations_with_expressions_load() {
    let mut loaded = 0;
    for (_, language, text) in blocks(&read("docs/expressions.md")) {
        assert_eq!(language, "yaml");
        load("docs/expressions.md", &format!("apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n{text}"));
        loaded += 1;
    }
    assert!(loaded > 0);
}
