//! The picker's configuration files, read by the picker itself.

use std::process::Command;

use serde_json::Value;

use crate::objects::{Objects, list, pod};

/// Every file of the picker's ConfigMap passes `warmroute check`, and the one that runs is among them.
pub(crate) fn are_taken(what: &str, objects: &Objects) {
    let volume = list(&pod(objects.picker())["volumes"]).iter().find(|volume| volume["name"] == "plugins");
    let name = volume.expect("no volume plugins")["configMap"]["name"].as_str().unwrap();
    let files = &objects.named("ConfigMap", name).expect("no ConfigMap of the picker")["data"];
    let runs = objects.picker_flag("config-file").and_then(|file| file.strip_prefix("/config/"));
    assert!(files[runs.expect("no --config-file in /config")].is_string(), "{what}: no {runs:?}");
    for (name, text) in files.as_object().unwrap() {
        is_taken(&format!("{what}: {name}"), text.as_str().unwrap());
    }
}

/// A configuration passes `warmroute check`; returns its notices.
pub(crate) fn is_taken(what: &str, text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("epp.yaml");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_warmroute-under-test"))
        .args(["check", "--json"])
        .arg(&file)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{what}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(report["ok"], true, "{what}: {report:#}");
    let notices = list(&report["notices"]).iter();
    notices.map(|notice| notice["message"].as_str().unwrap().to_owned()).collect()
}
