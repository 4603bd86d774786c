//! What the repository promises about its own files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use warmroute::profile::{build_scheduler, read_config};

use crate::fixture::{options, registry};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_policy_of_the_demo_loads_without_a_notice() {
    let registry = Arc::new(registry());
    let mut loaded = 0;
    for entry in std::fs::read_dir(root().join("deploy/demo/policies")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let config = read_config(&options(&text), &registry).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.notice_lines().collect::<Vec<_>>(), [""; 0], "{}", path.display());
        build_scheduler(&config, &registry).unwrap();
        loaded += 1;
    }
    assert!(loaded >= 3);
}

/// Files that tell an Envoy what to remove before its filters run; with the picker away nothing else does.
fn early_mutations() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("deploy"), root().join("charts")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains("HeaderMutation\n")) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_envoy_recipe_removes_every_routing_header_before_its_filters() {
    let recipes = early_mutations();
    assert!(recipes.len() >= 3, "{recipes:?}");
    for recipe in recipes {
        let text = std::fs::read_to_string(&recipe).unwrap();
        for name in warmroute_ext_proc::ROUTING_HEADERS {
            let removes = |line: &str| line.trim_end_matches('}').ends_with(&format!("remove: {name}"));
            assert!(text.lines().any(removes), "{} doesn't remove {name}", recipe.display());
        }
    }
}

#[test]
fn a_scorer_crate_depends_on_little() {
    let manifest = std::fs::read_to_string(root().join("crates/plugin/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split('[').next().unwrap();
    let names: Vec<&str> = dependencies
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .collect();
    assert_eq!(names, ["http", "serde", "serde_json", "thiserror"]);
    assert!(!manifest.contains("[target") && !manifest.contains("[build-dependencies"));
    // And the template's plugins need nothing of ours beside it.
    let template = std::fs::read_to_string(root().join("deploy/custom/acme/Cargo.toml")).unwrap();
    let ours: Vec<&str> = template.lines().filter(|line| line.contains("path =")).collect();
    assert_eq!(ours, [r#"warmroute-plugin = { path = "../../../crates/plugin" }"#]);
}

#[test]
fn mistakes_in_a_config_are_told_all_at_once_with_their_lines() {
    let text = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorr\n\
                - type: prefix-cache-scorer\n  parameters: {matchLengthWeight: 7}\n- type: max-score-picker\n\
                schedulingProfiles:\n- name: default\n  plugins:\n  - pluginRef: nobody\n";
    let error = read_config(&options(text), &Arc::new(registry())).unwrap_err().to_string();
    for part in ["queue-scorer", ":4:", "matchLengthWeight", ":6:", "nobody", ":11:"] {
        assert!(error.contains(part), "{part} is not in:\n{error}");
    }
}
