//! Envoy's configurations, read by Envoy itself and held against the recipes of `deploy/envoy`.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::{Value, json};
use warmroute_demo::harness::Tools;

use crate::objects::{Objects, list};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const EXT_PROC: &str = "envoy.filters.http.ext_proc";

/// Every Envoy of the objects starts with what it is given, and every EnvoyFilter with what a gateway is made of; both
/// ask the picker as a recipe does.
pub(crate) fn are_taken(what: &str, objects: &Objects) {
    for map in objects.of("ConfigMap") {
        if let Some(text) = map["data"]["envoy.yaml"].as_str() {
            let bootstrap = single(what, text);
            follows_a_recipe(what, &bootstrap);
            is_taken(what, &bootstrap);
        }
    }
    for filter in objects.of("EnvoyFilter") {
        let engine = json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 8000}}}});
        let bootstrap = gateway_with(what, filter, (Ipv4Addr::LOCALHOST, 8080).into(), vec![engine]);
        follows_a_recipe(what, &bootstrap);
        is_taken(what, &bootstrap);
    }
}

fn single(what: &str, text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// The parts that decide how requests are picked are those of the recipe with the same body mode.
fn follows_a_recipe(what: &str, bootstrap: &Value) {
    let manager = manager_of(bootstrap).unwrap_or_else(|| panic!("{what}: no gateway listener"));
    let ours = ext_proc_of(manager);
    let recipe = match ours["processing_mode"]["request_body_mode"].as_str() {
        Some("BUFFERED") => "buffered",
        Some("FULL_DUPLEX_STREAMED") => "full-duplex",
        other => panic!("{what}: the picker doesn't get the prompt in mode {other:?}"),
    };
    let text = std::fs::read_to_string(Tools::root().join(format!("deploy/envoy/{recipe}.yaml"))).unwrap();
    let recipe = single(what, &without_placeholders(&text));
    let theirs = manager_of(&recipe).expect("a recipe with a listener");
    let (ours_filter, theirs_filter) = (ours, ext_proc_of(theirs));
    for part in ["processing_mode", "metadata_options", "allow_mode_override"] {
        assert_eq!(ours_filter[part], theirs_filter[part], "{what}: {part}");
    }
    assert_eq!(
        manager["early_header_mutation_extensions"], theirs["early_header_mutation_extensions"],
        "{what}: headers that clients must not send"
    );
    let timeout = ours_filter["message_timeout"].as_str().unwrap().trim_end_matches('s');
    assert!(timeout.parse::<f64>().unwrap() > 1.0, "{what}: a request that waits is a 504");
}

/// A recipe whose placeholders, `${NAME}`, have become words.
fn without_placeholders(text: &str) -> String {
    let mut parts = text.split("${");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once('}').expect("the end of a placeholder");
        whole.push_str(name);
        whole.push_str(rest);
    }
    whole
}

/// The connection manager with an ext_proc filter.
fn manager_of(bootstrap: &Value) -> Option<&Value> {
    let listeners = list(&bootstrap["static_resources"]["listeners"]).iter();
    let chains = listeners.flat_map(|listener| list(&listener["filter_chains"]));
    let mut managers = chains.flat_map(|chain| list(&chain["filters"])).map(|filter| &filter["typed_config"]);
    managers.find(|manager| list(&manager["http_filters"]).iter().any(|filter| filter["name"] == EXT_PROC))
}

fn ext_proc_of(manager: &Value) -> &Value {
    let filter = list(&manager["http_filters"]).iter().find(|filter| filter["name"] == EXT_PROC);
    &filter.unwrap()["typed_config"]
}

/// A bootstrap as Istio would make it of a gateway with one route to these engines, with the patches of an EnvoyFilter in
/// it.
pub(crate) fn gateway_with(what: &str, filter: &Value, address: SocketAddr, engines: Vec<Value>) -> Value {
    let mut clusters = vec![json!({
        "name": "engines", "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": engines}]},
    })];
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "engines"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    let mut listener = json!({
        "name": "gateway",
        "address": {"socket_address": {"address": address.ip(), "port_value": address.port()}},
    });
    for patch in list(&filter["spec"]["configPatches"]) {
        let value = &patch["patch"]["value"];
        let operation = patch["patch"]["operation"].as_str().unwrap();
        match (patch["applyTo"].as_str().unwrap(), operation) {
            ("LISTENER", "MERGE") => merge(&mut listener, value),
            ("NETWORK_FILTER", "MERGE") => merge(&mut manager, &value["typed_config"]),
            ("HTTP_FILTER", "INSERT_BEFORE") => {
                manager["http_filters"].as_array_mut().unwrap().insert(0, value.clone());
            }
            ("CLUSTER", "ADD") => clusters.push(value.clone()),
            ("CLUSTER", "MERGE") => merge(&mut clusters[0], value),
            other => panic!("{what}: an EnvoyFilter with {other:?}"),
        }
    }
    listener["filter_chains"] = json!([{"filters": [{"name": MANAGER, "typed_config": manager}]}]);
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

fn merge(into: &mut Value, value: &Value) {
    for (key, value) in value.as_object().expect("a patch of fields") {
        into[key] = value.clone();
    }
}

/// Envoy accepts a bootstrap. Certificates that a Secret would bring are made for it.
fn is_taken(what: &str, bootstrap: &Value) {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["picker.example.com".to_owned()]).unwrap();
    std::fs::write(folder.path().join("ca.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let mut text = serde_json::to_string(bootstrap).unwrap();
    for mounted in ["/etc/envoy-ca", "/etc/envoy-client"] {
        text = text.replace(mounted, &folder.path().display().to_string());
    }
    let file = folder.path().join("envoy.json");
    std::fs::write(&file, text).unwrap();
    let envoy = Tools::locate_envoy().unwrap();
    let output =
        Command::new(envoy).args(["--mode", "validate", "--config-path"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
