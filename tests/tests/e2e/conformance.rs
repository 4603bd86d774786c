//! What the inference extension's conformance tests need from the picker beside the gateway under test
//! (`conformance/tests` in github.com/kubernetes-sigs/gateway-api-inference-extension): requests that say which pods they
//! may go to, and responses that say which one served.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use warmroute_demo::harness::{
    EnvoyConfig, FreePorts, HttpClient, PickerTransport, Process, READY_WITHIN, Recipe, wait_until_ready,
};

use crate::fixture::{
    Client, Picker, PickerOptions, Policy, Script, ScriptedEngine, bytes_body, log_name, run, tools,
};

const SELECTION: &str = "test-epp-endpoint-selection";
const SERVED: &str = "x-conformance-test-served-endpoint";

/// The engines' cluster as Istio makes it of an InferencePool: it follows the metadata, and says which host it took.
const OVERRIDE_HOST: &str = r#"    type: STATIC
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
            override_host_sources:
            - metadata: {key: envoy.lb, path: [{key: x-gateway-destination-endpoint}]}
            selected_host_key: {key: envoy.lb, path: [{key: x-gateway-destination-endpoint-served}]}
            fallback_policy:
              policies:
              - typed_extension_config:
                  name: envoy.load_balancing_policies.round_robin
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin
    load_assignment:
      cluster_name: pool
      endpoints: [{lb_endpoints: [ENDPOINTS]}]
"#;

/// Envoy with the full-duplex recipe, whose engines' cluster is [`OVERRIDE_HOST`].
async fn gateway(picker: SocketAddr, engines: &[SocketAddr]) -> (Process, Client) {
    let (tools, name, mut ports) = (tools(), log_name("envoy"), FreePorts::default());
    let config = EnvoyConfig {
        recipe: Recipe::FullDuplex,
        listener: ([127, 0, 0, 1], ports.on_loopback().unwrap()).into(),
        admin_port: ports.on_loopback().unwrap(),
        pickers: vec![picker],
        transport: PickerTransport::Plaintext,
    };
    let endpoints: Vec<String> = engines
        .iter()
        .map(|engine| {
            let (ip, port) = (engine.ip(), engine.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
        })
        .collect();
    let mut text = config.render(&tools.root).unwrap();
    let original = "    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n";
    let by_header = "    original_dst_lb_config:\n      use_http_header: true\n      http_header_name: x-gateway-destination-endpoint\n";
    assert!(text.contains(original) && text.contains(by_header), "the recipe has changed");
    text = text
        .replace(by_header, "")
        .replace(original, &OVERRIDE_HOST.replace("ENDPOINTS", &endpoints.join(", ")));
    let file = tools.logs.join(format!("{name}.yaml"));
    std::fs::create_dir_all(&tools.logs).unwrap();
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(&tools.envoy);
    command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning", "-c"]).arg(&file);
    let mut process = Process::spawn(&name, command, &tools.logs).unwrap();
    let (http, admin) = (HttpClient::default(), SocketAddr::from(([127, 0, 0, 1], config.admin_port)));
    wait_until_ready(&mut process, READY_WITHIN, || async {
        http.get_ok(admin, "/ready").await.map(drop).map_err(|error| error.to_string())
    })
    .await
    .unwrap();
    (process, Client::new(config.listener))
}

#[test]
fn requests_go_to_listed_pods_and_responses_say_which_one_served() {
    run(async {
        let mut engines = Vec::new();
        for _ in 0..3 {
            engines.push(ScriptedEngine::start(Script::Answer).await);
        }
        let addresses: Vec<SocketAddr> = engines.iter().map(|engine| engine.address).collect();
        let mut options = PickerOptions::new(Policy::LeastLoaded);
        options.config_file = Some(tools().root.join("tests/data/configs/conformance.yaml"));
        options.endpoints.clone_from(&addresses);
        let picker = Picker::start(&options).await;
        let (_envoy, gateway) = gateway(picker.grpc, &addresses).await;
        // The suite's path, which is that of no inference API.
        let send = async |selection: Option<String>| {
            let mut request = http::Request::post("/primary-gateway-test");
            if let Some(selection) = selection {
                request = request.header(SELECTION, selection);
            }
            let body = bytes_body("{\"model\":\"conformance-fake-model\",\"prompt\":\"x\"}");
            gateway.send(request.body(body).unwrap()).await
        };

        // One of them, by IP and port.
        for wanted in [addresses[1], addresses[2]] {
            let answer = send(Some(wanted.to_string())).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.values(SERVED), [wanted.to_string()]);
        }
        // Spread over a list, and nowhere else.
        let list = format!("{}, {}", addresses[0], addresses[2]);
        let mut served = BTreeMap::new();
        for _ in 0..100 {
            let answer = send(Some(list.clone())).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            *served.entry(answer.values(SERVED)[0].to_owned()).or_insert(0) += 1;
        }
        let mut both = [addresses[0].to_string(), addresses[2].to_string()];
        both.sort();
        assert_eq!(served.keys().cloned().collect::<Vec<_>>(), both);
        assert!(served.values().all(|count| *count > 10), "{served:?}");
        // All ranks of an IP.
        let answer = send(Some("127.0.0.1".to_owned())).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        // Nothing that is listed is there, or nothing is listed: never another pod.
        for selection in [Some("127.0.0.9:1".to_owned()), None] {
            let answer = send(selection.clone()).await;
            assert_eq!(answer.status, 429, "{selection:?}");
        }
    });
}

#[test]
fn a_gateway_that_does_not_say_which_pod_served_is_told_so() {
    run(async {
        let engine = ScriptedEngine::start(Script::Answer).await;
        let mut options = crate::fixture::StackOptions::least_loaded(Recipe::FullDuplex, &[engine.address]);
        options.config_file = Some(tools().root.join("tests/data/configs/conformance.yaml"));
        let stack = crate::fixture::Stack::start(options).await;
        let request = http::Request::post("/").header(SELECTION, engine.address.to_string());
        let answer = stack.gateway.send(request.body(bytes_body("{}")).unwrap()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.values(SERVED), ["fail: the gateway doesn't say which endpoint served"]);
    });
}
