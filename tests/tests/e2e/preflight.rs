//! `warmroute doctor gateway` before real Envoys, each set up in another way: what it finds, and what it doesn't.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use warmroute_demo::harness::{EnvoyConfig, EnvoyProxy, FreePorts, PickerTransport, Recipe};

use crate::fixture::{Client, MODEL, Picker, PickerOptions, Policy, SimulatedEngines, log_name, run, tools};

/// A gateway that differs from a recipe.
struct Variant {
    recipe: Recipe,
    /// What is replaced, and by what; each stands in the recipe.
    edits: Vec<(&'static str, String)>,
    transport: PickerTransport,
    engines: u8,
    /// Whether the engines' addresses are endpoints of the gateway's own cluster, picked by override_host.
    override_host: bool,
    arguments: Vec<&'static str>,
    /// Whether others send requests meanwhile, of which none may fail.
    with_traffic: bool,
}

impl Variant {
    fn of(recipe: Recipe) -> Self {
        Self {
            recipe,
            edits: Vec::new(),
            transport: PickerTransport::Plaintext,
            engines: 1,
            override_host: false,
            arguments: Vec::new(),
            with_traffic: false,
        }
    }

    fn with(mut self, old: &'static str, new: impl Into<String>) -> Self {
        self.edits.push((old, new.into()));
        self
    }

    /// The report, with the codes of what isn't only a note, and the exit code.
    async fn examined(self) -> Report {
        let engines = SimulatedEngines::start_adapted(self.engines, true, |engine| {
            engine.latency.decode_ms_per_token = 10.0;
        })
        .await;
        let picker = Picker::start(&PickerOptions {
            endpoints: engines.addresses(),
            secure_serving: self.transport == PickerTransport::Tls,
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        let tools = tools();
        let mut ports = FreePorts::default();
        let config = EnvoyConfig {
            recipe: self.recipe,
            listener: (Ipv4Addr::LOCALHOST, ports.on_loopback().unwrap()).into(),
            admin_port: ports.on_loopback().unwrap(),
            pickers: vec![picker.grpc],
            transport: self.transport,
        };
        let change = |mut text: String| {
            for (old, new) in &self.edits {
                assert!(text.contains(old), "{old:?} doesn't stand in the recipe");
                text = text.replace(old, new);
            }
            if self.override_host { with_override_host(&text, &engines.addresses()) } else { text }
        };
        let envoy = EnvoyProxy::start_changed(&tools, &log_name("envoy"), &config, change).await;
        let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
        let gateway = Client::new(envoy.listener);
        let url = format!("http://{}", envoy.listener);
        let (stop, traffic) = (Cell::new(false), Cell::new(0_u32));
        let examine = async {
            let report = Report::of(&url, &picker, &self.arguments).await;
            stop.set(true);
            report
        };
        // Whatever the doctor does, it does to its own requests.
        let others = async {
            while self.with_traffic && !stop.get() {
                let body = json!({"model": MODEL, "prompt": "x", "max_tokens": 1});
                let answer = gateway.post("/v1/completions", "other", &body).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                traffic.set(traffic.get() + 1);
            }
        };
        let (report, ()) = futures::join!(examine, others);
        assert_eq!(traffic.get() > 0, self.with_traffic);
        picker.until_idle().await;
        report
    }
}

/// The pool's cluster with endpoints of its own, of which the metadata names one.
fn with_override_host(text: &str, engines: &[SocketAddr]) -> String {
    let from = text.find("  - name: pool\n    type: ORIGINAL_DST").unwrap();
    let to = text[from..].find("  # The pickers.").unwrap() + from;
    let endpoint = |engine: &SocketAddr| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
            engine.ip(),
            engine.port()
        )
    };
    let endpoints: Vec<String> = engines.iter().map(endpoint).collect();
    let policies = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    let cluster = format!(
        r#"  - name: pool
    type: STATIC
    connect_timeout: 2s
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            "@type": {policies}.override_host.v3.OverrideHost
            override_host_sources:
            - metadata: {{key: envoy.lb, path: [{{key: x-gateway-destination-endpoint}}]}}
            selected_host_key: {{key: envoy.lb, path: [{{key: x-gateway-destination-endpoint-served}}]}}
            fallback_policy:
              policies:
              - typed_extension_config:
                  name: envoy.load_balancing_policies.round_robin
                  typed_config: {{"@type": {policies}.round_robin.v3.RoundRobin}}
    load_assignment:
      cluster_name: pool
      endpoints: [{{lb_endpoints: [{}]}}]
"#,
        endpoints.join(", ")
    );
    format!("{}{cluster}{}", &text[..from], &text[to..])
}

/// What the doctor printed.
struct Report {
    code: Option<i32>,
    json: Value,
}

impl Report {
    async fn of(url: &str, picker: &Picker, arguments: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(tools().picker);
        command
            .args(["doctor", "gateway", url, "--json", "--address"])
            .arg(format!("http://{}", picker.admin));
        let output = command.args(arguments).output().await.unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { code: output.status.code(), json: serde_json::from_slice(&output.stdout).unwrap() }
    }

    /// The codes of the findings that aren't only notes.
    fn wrong(&self) -> Vec<&str> {
        let findings = self.json["findings"].as_array().unwrap().iter();
        let wrong = findings.filter(|finding| finding["severity"] != "note");
        wrong.map(|finding| finding["code"].as_str().unwrap()).collect()
    }

    fn notes(&self) -> Vec<&str> {
        let findings = self.json["findings"].as_array().unwrap().iter();
        let notes = findings.filter(|finding| finding["severity"] == "note");
        notes.map(|finding| finding["code"].as_str().unwrap()).collect()
    }

    fn check(&self, name: &str) -> &str {
        let checks = self.json["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap()["seen"].as_str().unwrap()
    }

    #[track_caller]
    fn assert(&self, wrong: &[&str], notes: &[&str]) {
        assert_eq!((self.wrong(), self.notes()), (wrong.to_vec(), notes.to_vec()), "{:#}", self.json);
        assert_eq!(self.code, Some(i32::from(!wrong.is_empty())));
    }
}

/// Waits of a thorough examination, kept short.
const THOROUGH: [&str; 2] = ["--thorough", "--longest-wait=2s"];

#[test]
fn the_recommended_recipe_is_fine() {
    run(async {
        let report = Variant::of(Recipe::Buffered).examined().await;
        report.assert(&[], &[]);
        assert_eq!(report.check("lease"), "held while the response runs");
        assert_eq!(report.check("destination"), "followed from the header alone");
        assert!(report.check("request").contains("bodies BUFFERED; a prompt comes as headers, body "));
    });
}

#[test]
fn full_duplex_is_fine_too() {
    run(async {
        let report = Variant::of(Recipe::FullDuplex).examined().await;
        report.assert(&[], &["response-bodies-pass", "stall-unbounded"]);
        assert_eq!(report.check("lease"), "held while the response runs");
    });
}

#[test]
fn hidden_and_streamed_request_bodies() {
    run(async {
        for mode in ["NONE", "STREAMED"] {
            let variant = Variant::of(Recipe::Buffered);
            let variant = variant.with("request_body_mode: BUFFERED", format!("request_body_mode: {mode}"));
            let report = variant.examined().await;
            report.assert(&["request-body-hidden"], &[]);
            assert!(
                report.check("request").contains(&format!("bodies {mode}")),
                "{}",
                report.check("request")
            );
        }
    });
}

#[test]
fn a_lease_that_is_lost_and_responses_that_are_held_back() {
    run(async {
        let variant = Variant::of(Recipe::FullDuplex)
            .with("response_body_mode: FULL_DUPLEX_STREAMED", "response_body_mode: NONE")
            .with("response_trailer_mode: SEND", "response_trailer_mode: SKIP");
        variant.examined().await.assert(&["lease-blind"], &["stall-unbounded"]);
        let variant = Variant::of(Recipe::Buffered);
        let variant = variant.with("response_body_mode: NONE", "response_body_mode: BUFFERED");
        variant.examined().await.assert(&["response-buffered"], &[]);
    });
}

#[test]
fn fail_open_and_fail_closed() {
    run(async {
        let mut open = Variant { with_traffic: true, ..Variant::of(Recipe::Buffered) };
        open.arguments.extend(THOROUGH);
        let report = open.examined().await;
        report.assert(&[], &["fail-open-nowhere"]);
        let mut closed =
            Variant::of(Recipe::Buffered).with("failure_mode_allow: true", "failure_mode_allow: false");
        closed.arguments.extend(THOROUGH);
        closed.examined().await.assert(&["fail-closed"], &[]);
    });
}

#[test]
fn fail_open_with_somewhere_to_go() {
    run(async {
        let mut variant = Variant { engines: 2, override_host: true, ..Variant::of(Recipe::FullDuplex) };
        variant.arguments.extend(THOROUGH);
        let report = variant.examined().await;
        report.assert(&["fail-open-not-for-bodies"], &["response-bodies-pass", "stall-unbounded"]);
    });
}

#[test]
fn small_buffers_and_short_patience() {
    run(async {
        let limit = "per_connection_buffer_limit_bytes: 67108864";
        let variant = Variant::of(Recipe::Buffered).with(limit, "per_connection_buffer_limit_bytes: 65536");
        let report = variant.examined().await;
        report.assert(&["body-limit"], &[]);
        let size = report.check("body size");
        assert!(size.starts_with("30 kB passes, 300 kB doesn't: 413; the picker"), "{size}");
        // Longer than a busy machine takes, shorter than the probe.
        let variant = Variant::of(Recipe::Buffered).with("message_timeout: 10s", "message_timeout: 1s");
        let report = variant.examined().await;
        report.assert(&["message-timeout"], &[]);
    });
}

#[test]
fn whom_a_gateway_follows() {
    run(async {
        let of = |recipe| Variant { engines: 2, override_host: true, ..Variant::of(recipe) };
        let report = of(Recipe::FullDuplex).examined().await;
        report.assert(&[], &["response-bodies-pass", "stall-unbounded"]);
        assert_eq!(
            report.check("destination"),
            "the gateway chooses where none is named; named in the header: not followed, in the metadata envoy.lb: followed"
        );
        let deaf = of(Recipe::FullDuplex)
            .with("receiving_namespaces: {untyped: [envoy.lb]}", "receiving_namespaces: {untyped: []}");
        let report = deaf.examined().await;
        report.assert(&["destination-ignored"], &["response-bodies-pass", "stall-unbounded"]);
        let subset = r#"http_filters:
          - name: envoy.filters.http.set_metadata
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
              metadata:
              - metadata_namespace: envoy.lb.subset_hint
                value: {x-gateway-destination-endpoint-subset: ["127.0.0.2:1", "127.0.0.3:1"]}"#;
        let report = Variant::of(Recipe::Buffered).with("http_filters:", subset).examined().await;
        report.assert(&[], &[]);
        assert!(
            report.check("metadata").contains("a subset hint of 2 entries"),
            "{}",
            report.check("metadata")
        );
        // Nothing of the response comes to the picker, so nobody says who served.
        of(Recipe::Buffered).examined().await.assert(&[], &["destination-unclear"]);
    });
}

#[test]
fn tls_and_routing_headers_of_clients() {
    run(async {
        let variant = Variant { transport: PickerTransport::Tls, ..Variant::of(Recipe::Buffered) };
        let variant = variant.with("{remove: x-gateway-destination-endpoint}", "{remove: x-nobody}");
        let report = variant.examined().await;
        report.assert(&["routing-headers-pass"], &["ext-proc-unverified"]);
        assert_eq!(report.check("routing headers"), "1 of a client's reach the picker");
        assert!(report.check("connection").starts_with("gRPC over TLS with a self-signed certificate"));
    });
}

#[test]
fn what_cannot_be_examined_is_said() {
    run(async {
        let engines = SimulatedEngines::start(1, false).await;
        let picker = Picker::start(&PickerOptions {
            endpoints: engines.addresses(),
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        // No gateway, but the picker.
        let nobody = format!("http://127.0.0.1:{}", FreePorts::default().on_loopback().unwrap());
        let report = Report::of(&nobody, &picker, &[]).await;
        assert_eq!(
            (report.code, &report.json["examined"]),
            (Some(2), &Value::Bool(false)),
            "{:#}",
            report.json
        );
        // An engine as the gateway, and no picker.
        let engine = format!("http://{}", engines.addresses()[0]);
        let output = tokio::process::Command::new(tools().picker)
            .args(["doctor", "gateway", &engine, "--address", &nobody])
            .output()
            .await
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("GET /v1/models: 200") && text.contains("what shows from outside only"),
            "{text}"
        );
        // No URL at all.
        let output = tokio::process::Command::new(tools().picker)
            .args(["doctor", "gateway", "x"])
            .output()
            .await
            .unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
        assert!(String::from_utf8_lossy(&output.stderr).contains("begins with http:// or https://"));
    });
}

#[test]
fn a_picker_that_is_not_asked() {
    run(async {
        let variant =
            Variant::of(Recipe::Buffered).with("request_header_mode: SEND", "request_header_mode: SKIP");
        variant.examined().await.assert(&["picker-not-asked"], &[]);
    });
}
