//! `warmroute doctor gateway` before real Envoys, each set up in another way: what it finds, and what it doesn't.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use warmroute_demo::harness::{EnvoyConfig, EnvoyProxy, FreePorts, PickerTransport, Recipe};

use crate::fixture::{
    Authority, Client, MODEL, Picker, PickerOptions, Policy, SimulatedEngines, log_name, run, tools,
};

/// A gateway that differs from a recipe.
struct Variant {
    recipe: Recipe,
    /// What is replaced, and by what; each stands in the recipe.
    edits: Vec<(&'static str, String)>,
    transport: PickerTransport,
    engines: u8,
    /// Whether the engines' addresses are endpoints of the gateway's own cluster, picked by override_host.
    override_host: bool,
    arguments: Vec<String>,
    scheme: &'static str,
    /// Replicas, all of which the doctor asks.
    pickers: usize,
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
            scheme: "http",
            pickers: 1,
            with_traffic: false,
        }
    }

    fn with(mut self, old: &'static str, new: impl Into<String>) -> Self {
        self.edits.push((old, new.into()));
        self
    }

    /// Examined thoroughly, with waits kept short.
    fn thorough(mut self) -> Self {
        self.arguments.extend(["--thorough", "--longest-wait=2s"].map(str::to_owned));
        self
    }

    /// The report, with the codes of what isn't only a note, and the exit code.
    async fn examined(self) -> Report {
        let engines = SimulatedEngines::start_adapted(self.engines, true, |engine| {
            engine.latency.decode_ms_per_token = 10.0;
        })
        .await;
        let options = PickerOptions {
            endpoints: engines.addresses(),
            secure_serving: self.transport == PickerTransport::Tls,
            ..PickerOptions::new(Policy::LeastLoaded)
        };
        let mut pickers = Vec::new();
        for _ in 0..self.pickers {
            pickers.push(Picker::start(&options).await);
        }
        let tools = tools();
        let mut ports = FreePorts::default();
        let config = EnvoyConfig {
            recipe: self.recipe,
            listener: (Ipv4Addr::LOCALHOST, ports.on_loopback().unwrap()).into(),
            admin_port: ports.on_loopback().unwrap(),
            pickers: pickers.iter().map(|picker| picker.grpc).collect(),
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
        let url = format!("{}://{}", self.scheme, envoy.listener);
        let (stop, traffic) = (Cell::new(false), Cell::new(0_u32));
        let examine = async {
            let report = Report::of(&url, &pickers, &self.arguments).await;
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
        for picker in &pickers {
            picker.until_idle().await;
        }
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
    async fn of(url: &str, pickers: &[Picker], arguments: &[String]) -> Self {
        let addresses: Vec<String> =
            pickers.iter().map(|picker| format!("http://{}", picker.admin)).collect();
        let mut command = tokio::process::Command::new(tools().picker);
        command.args(["doctor", "gateway", url, "--json", "--address", &addresses.join(",")]);
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

/// Each probe reaches one of them, and nobody knows which.
#[test]
fn several_replicas_are_asked_together() {
    run(async {
        let report = Variant { pickers: 2, ..Variant::of(Recipe::Buffered) }.examined().await;
        report.assert(&[], &[]);
        let pickers = report.json["observation"]["pickers"].as_array().unwrap();
        assert!(pickers.len() == 2 && pickers[0]["facts"]["instance"] != pickers[1]["facts"]["instance"]);
        let refused = report.json["observation"]["refused"].as_array().unwrap();
        assert!(refused.iter().all(|exchange| exchange["record"]["streams"] == 1), "{:#}", report.json);
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
        let open = Variant { with_traffic: true, ..Variant::of(Recipe::Buffered) };
        let report = open.thorough().examined().await;
        report.assert(&[], &["fail-open-nowhere"]);
        let closed =
            Variant::of(Recipe::Buffered).with("failure_mode_allow: true", "failure_mode_allow: false");
        closed.thorough().examined().await.assert(&["fail-closed"], &[]);
    });
}

#[test]
fn fail_open_with_somewhere_to_go() {
    run(async {
        let variant = Variant { engines: 2, override_host: true, ..Variant::of(Recipe::FullDuplex) };
        let report = variant.thorough().examined().await;
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
        let report = Report::of(&nobody, std::slice::from_ref(&picker), &[]).await;
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
fn a_gateway_that_speaks_tls() {
    run(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.pair().write_to(dir.path());
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(file("ca.pem"), &authority.pem).unwrap();
        let certificate = format!("certificate_chain: {{filename: {}}}", file("tls.crt"));
        let pair = format!("{{{certificate}, private_key: {{filename: {}}}}}", file("tls.key"));
        let context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        let chain = format!(
            r#"filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": {context}
          common_tls_context: {{alpn_protocols: [h2, http/1.1], tls_certificates: [{pair}]}}
      filters:"#
        );
        let mut variant = Variant { scheme: "https", ..Variant::of(Recipe::Buffered) };
        variant = variant.with("filter_chains:\n    - filters:", chain);
        variant.arguments.push(format!("--gateway-ca-file={}", file("ca.pem")));
        let report = variant.examined().await;
        report.assert(&[], &[]);
        assert!(report.check("gateway").ends_with("HTTP/1.1 and HTTP/2"), "{}", report.check("gateway"));
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
