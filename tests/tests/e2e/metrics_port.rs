//! The metrics port behind TLS and tokens, and the commands that read it all the same.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::Json;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use warmroute_demo::harness::HttpClient;

use crate::fixture::{Authority, Picker, PickerOptions, Policy, Script, ScriptedEngine, run, tools};

/// A Kubernetes API that knows `reader`, who may read everything, and `nobody`, who may nothing.
struct Reviews {
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Reviews {
    async fn start() -> Self {
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(token_review))
            .route("/apis/authorization.k8s.io/v1/subjectaccessreviews", post(access_review));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, _server: server }
    }

    fn kubeconfig(&self) -> String {
        let cluster = json!({"name": "c", "cluster": {"server": format!("http://{}", self.address)}});
        let context = json!({"name": "c", "context": {"cluster": "c", "user": "u"}});
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster],
            "contexts": [context], "users": [{"name": "u", "user": {}}]})
        .to_string()
    }
}

async fn token_review(Json(mut review): Json<Value>) -> Json<Value> {
    let name = review["spec"]["token"].as_str().unwrap().strip_prefix("token-of-").map(str::to_owned);
    review["status"] = json!({"authenticated": name.is_some(), "user": {"username": name}});
    Json(review)
}

async fn access_review(Json(mut review): Json<Value>) -> Json<Value> {
    assert_eq!(review["spec"]["nonResourceAttributes"]["verb"], "get");
    review["status"] = json!({"allowed": review["spec"]["user"] == "reader"});
    Json(review)
}

/// Runs a command of the picker; whether it succeeded, and what it printed.
async fn command(arguments: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new(tools().picker).args(arguments).output().await.unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

#[test]
fn only_who_may_reads_the_metrics_port() {
    run(async {
        let (engine, dir) = (ScriptedEngine::start(Script::Answer).await, tempfile::tempdir().unwrap());
        let reviews = Reviews::start().await;
        let file = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(file("kubeconfig"), reviews.kubeconfig()).unwrap();
        let picker = Picker::start(&PickerOptions {
            endpoints: vec![engine.address],
            extra_args: vec![
                format!("--kubeconfig={}", file("kubeconfig")),
                "--metrics-endpoint-auth=true".to_owned(),
            ],
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        let client = HttpClient::default();
        for path in
            ["/metrics", "/status", "/debug/decisions", "/debug/decisions/last", "/healthz", "/nowhere"]
        {
            assert_eq!(client.get(picker.admin, path).await.unwrap().status, 401, "{path}");
        }
        let address = format!("http://{}", picker.admin);
        let doctor = ["doctor", "--json", "--address", &address];
        let (ok, words) = command(&doctor).await;
        assert!(!ok && words.contains("give --token-file or --token"), "{words}");
        let (ok, words) = command(&[&doctor[..], &["--token", "token-of-nobody"]].concat()).await;
        assert!(!ok && words.contains("denied for user nobody") && words.contains("/status"), "{words}");
        std::fs::write(file("token"), "token-of-reader\n").unwrap();
        let (ok, words) = command(&[&doctor[..], &["--token-file", &file("token")]].concat()).await;
        assert!(ok && words.contains("\"endpoints\""), "{words}");
    });
}

#[test]
fn the_metrics_port_speaks_tls_with_clients_that_show_a_certificate() {
    run(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.pair().write_to(dir.path());
        let file = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(file("ca.crt"), &authority.pem).unwrap();
        let picker = Picker::start(&PickerOptions {
            extra_args: vec![
                format!("--metrics-cert-dir={}", dir.path().display()),
                format!("--metrics-client-ca-file={}", file("ca.crt")),
            ],
            ..PickerOptions::new(Policy::LeastLoaded)
        })
        .await;
        let address = format!("https://127.0.0.1:{}", picker.admin.port());
        let doctor = ["doctor", "--json", "--address", &address];
        let (ca, certificate, key) = (file("ca.crt"), file("tls.crt"), file("tls.key"));
        let shown = ["--client-cert", &certificate, "--client-key", &key];
        let (ok, words) = command(&[&doctor[..], &["--ca-file", &ca], &shown].concat()).await;
        assert!(ok && words.contains("\"endpoints\""), "{words}");
        let (ok, words) = command(&[&doctor[..], &["--insecure-skip-verify"], &shown].concat()).await;
        assert!(ok, "{words}");
        for lacking in [&["--ca-file", &ca][..], &shown] {
            let (ok, words) = command(&[&doctor[..], lacking].concat()).await;
            assert!(!ok && words.contains("can't reach https://127.0.0.1"), "{words}");
        }
    });
}
