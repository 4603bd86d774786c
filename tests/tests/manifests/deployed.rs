//! The manifests that are in the repository.

use std::path::{Path, PathBuf};

use serde_json::Value;
use warmroute_demo::harness::Tools;

use crate::holds;
use crate::objects::Objects;

/// The YAML files of a folder and those below it.
fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.extension().and_then(|extension| extension.to_str()) {
            _ if entry.is_dir() => files.extend(yaml_files(&entry)),
            Some("yaml" | "yml") => files.push(entry),
            _ => {}
        }
    }
    files.sort();
    files
}

#[test]
fn every_yaml_file_is_yaml() {
    let root = Tools::root();
    let mut seen = 0;
    for file in yaml_files(&root.join("deploy")).into_iter().chain(yaml_files(&root.join("charts"))) {
        let path = file.strip_prefix(&root).unwrap();
        // Templates are YAML only once they are rendered.
        if path.starts_with("deploy/envoy") || path.starts_with("charts/warmroute/templates") {
            continue;
        }
        let documents = Objects::read(&file);
        assert!(!documents.all().is_empty(), "{}: nothing in it", path.display());
        seen += 1;
    }
    assert!(seen > 20, "only {seen} files");
}

#[test]
fn every_manifest_holds() {
    let folder = Tools::root().join("deploy/kubernetes");
    let names = [
        "istio",
        "istio-envoyfilter",
        "agentgateway",
        "kgateway-2.1",
        "gke",
        "standalone-sidecar",
        "standalone-service",
    ];
    for name in names {
        let objects = Objects::read(&folder.join(format!("{name}.yaml")));
        holds(name, &objects);
        assert!(objects.all().iter().all(|object| object["metadata"]["name"].is_string()), "{name}");
    }
}

#[test]
fn gateways_get_what_they_need() {
    let folder = Tools::root().join("deploy/kubernetes");
    let read = |name: &str| Objects::read(&folder.join(format!("{name}.yaml")));
    let istio = read("istio");
    let rule = &istio.of("DestinationRule")[0]["spec"];
    assert_eq!(rule["host"], "warmroute-epp.inference.svc.cluster.local");
    assert_eq!(rule["trafficPolicy"]["tls"]["mode"], "SIMPLE");
    // agentgateway and kgateway speak TLS to a pool's picker and look at no certificate.
    for name in ["agentgateway", "kgateway-2.1"] {
        assert_eq!(read(name).picker_flag("secure-serving"), Some("true"), "{name}");
    }
    let gke = read("gke");
    assert_eq!(gke.of("HealthCheckPolicy").len(), 1);
    assert_eq!(gke.of("GCPBackendPolicy")[0]["spec"]["targetRef"]["kind"], "InferencePool");
    assert_eq!(gke.of("PodMonitoring").len(), 1);
    // Timeouts of an HTTPRoute aren't taken there.
    assert!(gke.of("HTTPRoute")[0]["spec"]["rules"][0]["timeouts"].is_null());
    let filter = read("istio-envoyfilter");
    assert!(filter.of("InferencePool").is_empty(), "for clusters that have no such resource");
    assert_eq!(filter.of("HTTPRoute")[0]["spec"]["rules"][0]["backendRefs"][0]["kind"], "Service");
    assert_eq!(filter.picker_flag("inference-objective"), Some("batch=-1"));
}

#[test]
fn standalone_mode_needs_no_custom_resource() {
    let folder = Tools::root().join("deploy/kubernetes");
    for name in ["standalone-sidecar", "standalone-service"] {
        for object in Objects::read(&folder.join(format!("{name}.yaml"))).all() {
            let api = object["apiVersion"].as_str().unwrap();
            let known =
                ["v1", "apps/v1", "policy/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1"];
            assert!(known.contains(&api), "{name}: {api} {}", object["kind"]);
        }
    }
}

#[test]
fn values_files_are_checked_by_the_schema_of_the_chart() {
    let chart = Tools::root().join("charts/warmroute");
    let schema: Value =
        serde_json::from_slice(&std::fs::read(chart.join("values.schema.json")).unwrap()).unwrap();
    assert_eq!(schema["additionalProperties"], false, "a misspelt value is refused");
    let values = Objects::read(&chart.join("values.yaml"));
    let image = &values.all()[0]["router"]["proxy"]["image"];
    let version = std::fs::read_to_string(Tools::root().join("deploy/setup/envoy.sh")).unwrap();
    let version = version.split("ENVOY_VERSION:-").nth(1).unwrap().split('}').next().unwrap();
    assert_eq!(
        image,
        &format!("docker.io/envoyproxy/envoy:distroless-v{version}"),
        "the Envoy that tests run"
    );
}
