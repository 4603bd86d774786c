//! The fence around the metrics port, before a Kubernetes API that knows two tokens and one permission.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tonic::codegen::Service;
use warmroute::metrics::Metrics;
use warmroute::metrics_auth::{AccessReviews, ReviewError, TokenFence, Verdict, metrics_fence};

/// What the API server is asked, and whether it answers.
#[derive(Default)]
struct Api {
    token_reviews: AtomicU64,
    access_reviews: AtomicU64,
    /// Another status than 200 for every answer, if it isn't 0.
    failing_with: AtomicU16,
}

impl Api {
    fn client(self: &Arc<Self>) -> kube::Client {
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(token_review))
            .route("/apis/authorization.k8s.io/v1/subjectaccessreviews", post(access_review))
            .with_state(self.clone());
        kube::Client::new(router, "default")
    }

    fn asked(&self) -> (u64, u64) {
        (self.token_reviews.load(Ordering::Relaxed), self.access_reviews.load(Ordering::Relaxed))
    }

    fn failure(&self) -> Option<Response> {
        let code = self.failing_with.load(Ordering::Relaxed);
        let status = StatusCode::from_u16(code).ok().filter(|_| code != 0)?;
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "as told", "reason": "Test", "code": code});
        Some((status, Json(body)).into_response())
    }
}

async fn token_review(State(api): State<Arc<Api>>, Json(mut review): Json<Value>) -> Response {
    api.token_reviews.fetch_add(1, Ordering::Relaxed);
    if let Some(failure) = api.failure() {
        return failure;
    }
    let user = match review["spec"]["token"].as_str().unwrap() {
        "of-prometheus" => "prometheus",
        "of-eve" => "eve",
        _ => {
            review["status"] = json!({"authenticated": false, "error": "unknown token"});
            return (StatusCode::CREATED, Json(review)).into_response();
        }
    };
    review["status"] = json!({"authenticated": true, "user": {"username": user, "uid": "7",
        "groups": ["system:authenticated"], "extra": {"pod": ["a"]}}});
    (StatusCode::CREATED, Json(review)).into_response()
}

async fn access_review(State(api): State<Arc<Api>>, Json(mut review): Json<Value>) -> Response {
    api.access_reviews.fetch_add(1, Ordering::Relaxed);
    if let Some(failure) = api.failure() {
        return failure;
    }
    let spec = &review["spec"];
    assert_eq!((&spec["uid"], &spec["groups"]), (&json!("7"), &json!(["system:authenticated"])));
    assert_eq!(spec["extra"], json!({"pod": ["a"]}));
    let allowed = spec["user"] == "prometheus"
        && spec["nonResourceAttributes"] == json!({"path": "/metrics", "verb": "get"});
    review["status"] = json!({"allowed": allowed});
    (StatusCode::CREATED, Json(review)).into_response()
}

/// The answer to one request through the fence: status and body.
async fn through(router: &mut Router, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token);
    }
    let answer = router.call(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn fenced(api: &Arc<Api>) -> (Router, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let fence = Arc::new(TokenFence::new(AccessReviews::new(api.client()), metrics.clone()));
    let page = || async { "page" };
    (fence.around(Router::new().route("/metrics", get(page)).route("/status", get(page))), metrics)
}

#[tokio::test]
async fn a_token_passes_where_its_user_may() {
    let api = Arc::new(Api::default());
    let (mut router, metrics) = fenced(&api);
    let prometheus = Some("Bearer of-prometheus");
    assert_eq!(through(&mut router, "GET", "/metrics", prometheus).await, (200, "page".to_owned()));
    for (token, path) in [(None, "/metrics"), (Some("Bearer no"), "/metrics"), (Some("Basic x"), "/nowhere")]
    {
        assert_eq!(through(&mut router, "GET", path, token).await, (401, "Unauthorized\n".to_owned()));
    }
    for (method, path, token, user) in [
        ("GET", "/status", "Bearer of-prometheus", "prometheus"),
        ("HEAD", "/metrics", "Bearer of-prometheus", "prometheus"),
        ("GET", "/metrics", "Bearer of-eve", "eve"),
        ("GET", "/nowhere", "Bearer of-eve", "eve"),
    ] {
        let (status, words) = through(&mut router, method, path, Some(token)).await;
        assert_eq!(status, 403, "{method} {path}");
        assert!(method == "HEAD" || words == format!("Authorization denied for user {user}\n"), "{words}");
    }
    let requests = |outcome: &str| metrics.metrics_port_requests.with_label_values(&[outcome]).get();
    assert_eq!((requests("granted"), requests("unauthorized"), requests("denied")), (1, 3, 4));
}

#[tokio::test]
async fn without_a_verdict_there_is_500_and_nothing_is_remembered() {
    let api = Arc::new(Api::default());
    let (mut router, metrics) = fenced(&api);
    let token = Some("Bearer of-prometheus");
    for code in [500, 403, 401] {
        api.failing_with.store(code, Ordering::Relaxed);
        let answer = through(&mut router, "GET", "/metrics", token).await;
        assert_eq!(answer, (500, "Authentication failed\n".to_owned()));
    }
    api.failing_with.store(0, Ordering::Relaxed);
    assert_eq!(through(&mut router, "GET", "/metrics", token).await.0, 200);
    // What was answered before holds while the API server is away.
    api.failing_with.store(503, Ordering::Relaxed);
    assert_eq!(through(&mut router, "GET", "/metrics", token).await.0, 200);
    assert_eq!(metrics.metrics_port_requests.with_label_values(&["failed"]).get(), 3);

    let reviews = AccessReviews::new(api.client());
    api.failing_with.store(403, Ordering::Relaxed);
    let error = reviews.verdict("x", "get", "/metrics", Instant::now()).await.unwrap_err();
    assert!(matches!(error, ReviewError::Forbidden { kind: "TokenReview" }));
    assert!(error.to_string().contains("ClusterRole"), "{error}");
}

#[tokio::test]
async fn answers_hold_for_a_while() {
    let api = Arc::new(Api::default());
    let reviews = AccessReviews::new(api.client());
    let start = Instant::now();
    let at = async |seconds: u64, token: &str| {
        let now = start + Duration::from_secs(seconds);
        reviews.verdict(token, "get", "/metrics", now).await.unwrap()
    };
    for second in 0..60 {
        assert_eq!(at(second, "of-prometheus").await, Verdict::Granted);
    }
    assert_eq!(api.asked(), (1, 1));
    assert_eq!((at(60, "of-prometheus").await, api.asked()), (Verdict::Granted, (2, 1)));
    assert_eq!((at(301, "of-prometheus").await, api.asked()), (Verdict::Granted, (3, 2)));

    let denied = Verdict::Denied { user: "eve".into() };
    assert_eq!(
        (at(0, "of-eve").await, at(29, "of-eve").await, api.asked()),
        (denied.clone(), denied.clone(), (4, 3))
    );
    assert_eq!((at(30, "of-eve").await, api.asked()), (denied, (4, 4)));

    assert_eq!(
        (at(0, "no").await, at(9, "no").await, api.asked()),
        (Verdict::Nobody, Verdict::Nobody, (5, 4))
    );
    assert_eq!((at(10, "no").await, api.asked()), (Verdict::Nobody, (6, 4)));
    // What no token can be isn't asked for.
    assert_eq!((at(0, &"x".repeat(20_000)).await, api.asked()), (Verdict::Nobody, (6, 4)));
}

#[tokio::test]
async fn without_kubernetes_tokens_are_asked_for_only_if_that_is_said() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let nowhere = Some(std::path::Path::new("/nowhere/kubeconfig"));
    assert!(metrics_fence(None, None, nowhere, &metrics).await.unwrap().is_none());
    let client = Arc::new(Api::default()).client();
    assert!(metrics_fence(Some(false), Some(client.clone()), nowhere, &metrics).await.unwrap().is_none());
    assert!(metrics_fence(None, Some(client), nowhere, &metrics).await.unwrap().is_some());
    let Err(error) = metrics_fence(Some(true), None, nowhere, &metrics).await else { panic!("no error") };
    assert!(error.to_string().contains("/nowhere/kubeconfig"), "{error}");
}
