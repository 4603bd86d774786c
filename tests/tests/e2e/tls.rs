//! Envoy speaks TLS to a picker: with the certificate that it signs itself, with files that are swapped while requests
//! run, and showing a certificate of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use warmroute_demo::harness::{EnvoyConfig, EnvoyProxy, FreePorts, PickerTransport, Recipe};

use crate::fixture::{
    Authority, Client, MODEL, Picker, PickerOptions, Policy, Script, ScriptedEngine, Stack, StackOptions,
    log_name, run, tools, until,
};

in_both_recipes!(requests_are_picked_over_tls, no_request_fails_while_certificates_are_swapped);

const COMPLETIONS: &str = "/v1/completions";

async fn requests_are_picked_over_tls(recipe: Recipe) {
    let engine = ScriptedEngine::start(Script::Answer).await;
    let options = StackOptions {
        transport: PickerTransport::Tls,
        ..StackOptions::least_loaded(recipe, &[engine.address])
    };
    let stack = Stack::start(options).await;
    let body = json!({"model": MODEL, "prompt": "x"});
    let answer = stack.gateway.post(COMPLETIONS, "tls", &body).await;
    assert_eq!(answer.json(), json!({"ok": true}));
    assert_eq!(stack.picker.receipt("tls").await.pick.as_deref(), Some(engine.address.to_string().as_str()));
    // The health service needs no TLS, the ext-proc port takes nothing else.
    assert!(!stack.picker.takes_plaintext(stack.picker.grpc).await);
    assert!(stack.picker.takes_plaintext(stack.picker.health).await);
}

async fn no_request_fails_while_certificates_are_swapped(recipe: Recipe) {
    let (engine, dir) = (ScriptedEngine::start(Script::Answer).await, tempfile::tempdir().unwrap());
    let authority = Authority::new();
    authority.pair().write_to(dir.path());
    let options = StackOptions {
        transport: PickerTransport::Tls,
        picker_args: vec![format!("--cert-path={}", dir.path().display()), "--enable-cert-reload".to_owned()],
        ..StackOptions::least_loaded(recipe, &[engine.address])
    };
    let stack = Stack::start(options).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut load = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let (gateway, is_over) = (stack.gateway.clone(), is_over.clone());
        load.spawn(async move {
            let mut answered = 0;
            while !is_over.load(Ordering::Relaxed) {
                let body = json!({"model": MODEL, "prompt": "x"});
                let answer = gateway.post(COMPLETIONS, &format!("{worker}-{answered}"), &body).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                answered += 1;
            }
            answered
        });
    }
    let reloads = async |outcome: &str| {
        let (_, page) = stack.picker.page("/metrics").await;
        let line = format!("warmroute_tls_reloads_total{{outcome=\"{outcome}\",port=\"grpc\"}} ");
        let count = page.lines().find_map(|metric| metric.strip_prefix(&line)?.parse::<u32>().ok());
        count.unwrap_or(0)
    };
    for swaps in 1..=2 {
        authority.pair().write_to(dir.path());
        until("a new pair taken", async || (reloads("taken").await == swaps).then_some(())).await;
    }
    std::fs::write(dir.path().join("tls.key"), authority.pair().key_pem).unwrap();
    until("a bad pair refused", async || (reloads("refused").await == 1).then_some(())).await;
    is_over.store(true, Ordering::Relaxed);
    let answered: u32 = load.join_all().await.into_iter().sum();
    assert!(answered > 100, "{answered}");
    stack.picker.until_idle().await;
}

/// Envoy with a client certificate, trusting the picker's authority: what `docs/kubernetes/security.md` shows.
async fn verified_envoy(
    recipe: Recipe,
    picker: &Picker,
    dir: &Path,
    shows_certificate: bool,
) -> (EnvoyProxy, Client) {
    let mut ports = FreePorts::default();
    let config = EnvoyConfig {
        recipe,
        listener: ([127, 0, 0, 1], ports.on_loopback().unwrap()).into(),
        admin_port: ports.on_loopback().unwrap(),
        pickers: vec![picker.grpc],
        transport: PickerTransport::Tls,
    };
    let dir = dir.display();
    let shown = match shows_certificate {
        true => format!(
            "tls_certificates: [{{certificate_chain: {{filename: {dir}/tls.crt}}, private_key: {{filename: {dir}/tls.key}}}}], "
        ),
        false => String::new(),
    };
    let context = format!(
        "sni: localhost, common_tls_context: {{{shown}validation_context: {{trusted_ca: {{filename: {dir}/ca.crt}}, \
         match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: localhost}}}}]}}}}"
    );
    let change = |text: String| {
        let changed = text.replace("v3.UpstreamTlsContext}", &format!("v3.UpstreamTlsContext, {context}}}"));
        assert_ne!(changed, text);
        changed
    };
    let name = log_name(&format!("envoy-{shows_certificate}"));
    let envoy = EnvoyProxy::start_changed(&tools(), &name, &config, change).await;
    let envoy = envoy.unwrap_or_else(|error| panic!("{error}"));
    let client = Client::new(envoy.listener);
    (envoy, client)
}

#[test]
fn only_a_gateway_with_a_certificate_gets_picks() {
    run(async {
        let (engine, dir) = (ScriptedEngine::start(Script::Answer).await, tempfile::tempdir().unwrap());
        let authority = Authority::new();
        authority.pair().write_to(dir.path());
        std::fs::write(dir.path().join("ca.crt"), &authority.pem).unwrap();
        let picker = Picker::start(&PickerOptions {
            endpoints: vec![engine.address],
            secure_serving: true,
            extra_args: vec![
                format!("--cert-path={}", dir.path().display()),
                format!("--client-ca-file={}", dir.path().join("ca.crt").display()),
                "--tls-min-version=VersionTLS12".to_owned(),
            ],
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        let body = json!({"model": MODEL, "prompt": "x"});
        let (_envoy, gateway) = verified_envoy(Recipe::Buffered, &picker, dir.path(), true).await;
        assert_eq!(gateway.post(COMPLETIONS, "shown", &body).await.status, 200);
        let (_other, gateway) = verified_envoy(Recipe::Buffered, &picker, dir.path(), false).await;
        assert!(gateway.post(COMPLETIONS, "hidden", &body).await.status >= 500);
        until("its handshake counted", async || {
            let (_, page) = picker.page("/metrics").await;
            let line =
                "warmroute_tls_handshake_failures_total{port=\"grpc\",reason=\"no-client-certificate\"} ";
            page.lines().any(|metric| metric.starts_with(line)).then_some(())
        })
        .await;
        assert_eq!(engine.received_so_far().len(), 1);
    });
}
