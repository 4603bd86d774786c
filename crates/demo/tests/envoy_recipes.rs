//! Envoy itself accepts every recipe, and they configure what their comments promise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::net::SocketAddr;
use std::process::Command;

use warmroute_demo::harness::{EnvoyConfig, PickerTransport, Recipe, Tools};

fn configs() -> Vec<EnvoyConfig> {
    let addresses = |text: &[&str]| text.iter().map(|text| text.parse::<SocketAddr>().unwrap()).collect();
    let mut configs = Vec::new();
    for recipe in Recipe::ALL {
        for transport in [PickerTransport::Plaintext, PickerTransport::Tls] {
            let pickers: [Vec<SocketAddr>; 3] = [
                addresses(&[]),
                addresses(&["127.0.0.1:9002"]),
                addresses(&["10.0.0.7:9002", "[fd00::7]:9002"]),
            ];
            for (listener, pickers) in
                [("127.0.0.1:8080", &pickers[0]), ("0.0.0.0:8080", &pickers[1]), ("[::1]:8080", &pickers[2])]
            {
                let (listener, pickers) = (listener.parse().unwrap(), pickers.clone());
                configs.push(EnvoyConfig { recipe, listener, admin_port: 19000, pickers, transport });
            }
        }
    }
    configs
}

#[test]
fn envoy_validates_every_recipe() {
    let envoy = Tools::locate_envoy().unwrap_or_else(|error| panic!("{error}"));
    let folder = tempfile::tempdir().unwrap();
    for (index, config) in configs().iter().enumerate() {
        let file = folder.path().join(format!("{index}.yaml"));
        std::fs::write(&file, config.render(&Tools::root()).unwrap()).unwrap();
        let output = Command::new(&envoy)
            .args(["--mode", "validate", "--use-dynamic-base-id", "--log-level", "error", "-c"])
            .arg(&file)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{config:?}: {words}");
    }
}

#[test]
fn no_placeholder_is_left_and_every_picker_is_there() {
    for config in configs() {
        let text = config.render(&Tools::root()).unwrap();
        assert!(!text.contains("${"), "{text}");
        let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let clusters = parsed["static_resources"]["clusters"].as_array().unwrap();
        let picker = clusters.iter().find(|cluster| cluster["name"] == "picker").unwrap();
        let endpoints = picker["load_assignment"]["endpoints"][0]["lb_endpoints"].as_array().unwrap();
        assert_eq!(endpoints.len(), config.pickers.len());
        for (endpoint, address) in endpoints.iter().zip(&config.pickers) {
            let socket = &endpoint["endpoint"]["address"]["socket_address"];
            assert_eq!(socket["address"], address.ip().to_string());
            assert_eq!(socket["port_value"], address.port());
        }
    }
}

/// The HTTP connection manager of a recipe.
fn connection_manager(recipe: Recipe) -> serde_json::Value {
    let config = configs().into_iter().find(|config| config.recipe == recipe).unwrap();
    let text = config.render(&Tools::root()).unwrap();
    let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    parsed["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"].clone()
}

#[test]
fn clients_cannot_set_routing_headers() {
    for recipe in Recipe::ALL {
        let manager = connection_manager(recipe);
        let mutations = &manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"];
        let removed: Vec<_> = mutations
            .as_array()
            .unwrap()
            .iter()
            .map(|mutation| mutation["remove"].as_str().unwrap())
            .collect();
        assert!(removed.contains(&"x-gateway-destination-endpoint"), "{removed:?}");
        assert!(removed.contains(&"x-prefiller-host-port"), "{removed:?}");
    }
}

#[test]
fn the_buffered_recipe_pays_nothing_for_responses() {
    let mode =
        connection_manager(Recipe::Buffered)["http_filters"][0]["typed_config"]["processing_mode"].clone();
    assert_eq!(mode["request_body_mode"], "BUFFERED");
    assert_eq!(mode["response_header_mode"], "SKIP");
    assert_eq!(mode["response_body_mode"], "NONE");
    // Without it Envoy closes the stream before the response has ended, and load is counted wrongly.
    assert_eq!(mode["response_trailer_mode"], "SEND");
}
