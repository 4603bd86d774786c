//! A Kubernetes API server for tests, over a real socket: it lists, watches, creates, replaces and deletes objects of any
//! kind, and fails as it is told.
//!
//! ```ignore
//! let api = FakeApi::start().await;
//! api.apply(PODS, json!({"metadata": {"name": "a"}}));    // tells every watch of it
//! let client = api.client();
//! api.fault(PODS, Some(Fault::Status(403, "no right")));  // lists and watches of pods are refused, open ones cut
//! api.asked(|request| request.is_watch).await;            // waits for a request
//! api.stop().await; api.start_again().await;              // the server goes away, with every connection
//! ```
//!
//! Single objects: GET, POST (409 if it exists), PUT and merge PATCH (409 if `resourceVersion` is another), DELETE. Reviews
//! (`tokenreviews`, `subjectaccessreviews`): `api.answer_posts("tokenreviews.authentication.k8s.io", |review| …)`.

mod selecting;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{Method, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use selecting::Selector;
use store::Store;

/// Namespace of everything.
pub(crate) const NAMESPACE: &str = "team";

/// Far more than anything takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How requests for a kind of objects fail.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status with this message.
    Status(u16, &'static str),
    /// The same for watches alone.
    WatchStatus(u16, &'static str),
    /// Watches are accepted and tell at once that the resource version is too old.
    WatchExpired,
    /// No answer ever comes.
    Hang,
    /// Lists are answered, watches are accepted and nothing is ever told.
    WatchSilent,
    /// Watches end as soon as they begin.
    WatchEnds,
}

/// A request for a list or a watch.
#[derive(Clone, Debug)]
pub(crate) struct ApiRequest {
    /// Plural name and group of what is asked for, as `pods` or `inferencepools.llm-d.ai`.
    pub(crate) kind: String,
    pub(crate) is_watch: bool,
    pub(crate) labels: String,
    pub(crate) fields: String,
    pub(crate) limit: Option<usize>,
}

type Answer = Arc<dyn Fn(Value) -> Value + Send + Sync>;

struct Inner {
    store: Mutex<Store>,
    faults: Mutex<HashMap<String, Fault>>,
    answers: Mutex<HashMap<String, Answer>>,
    requests: Mutex<Vec<ApiRequest>>,
    /// Grows with every change of anything above, and with [`FakeApi::cut`].
    changes: watch::Sender<u64>,
    /// Watches that began before this number of cuts end.
    cuts: watch::Sender<u64>,
}

/// The server. Clones are the same server.
#[derive(Clone)]
pub(crate) struct FakeApi {
    inner: Arc<Inner>,
    address: SocketAddr,
    serving: Arc<Mutex<Option<JoinSet<()>>>>,
}

impl FakeApi {
    /// A server that knows every kind and has no objects.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = Inner {
            store: Mutex::default(),
            faults: Mutex::default(),
            answers: Mutex::default(),
            requests: Mutex::default(),
            changes: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        };
        let address = listener.local_addr().unwrap();
        let api = Self { inner: Arc::new(inner), address, serving: Arc::default() };
        api.serve(listener);
        api
    }

    /// Ends every connection and takes no new ones.
    pub(crate) async fn stop(&self) {
        let serving = self.serving.lock().take();
        serving.expect("it is stopped already").shutdown().await;
    }

    /// Serves again, at the same address, with what it knew.
    pub(crate) async fn start_again(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    fn serve(&self, listener: TcpListener) {
        let router = Router::new().fallback(answer).with_state(self.inner.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        *self.serving.lock() = Some(serving);
    }

    /// A client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    /// A kubeconfig by which it is reached.
    pub(crate) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: u, user: {{}}}}]\nclusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n",
            self.address
        )
    }

    /// Creates or replaces an object, in place of which nothing is checked, and tells the watches.
    pub(crate) fn apply(&self, kind: &str, object: Value) {
        self.inner.store.lock().put(kind, object);
        self.inner.changed();
    }

    /// Deletes an object and tells the watches.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        assert!(self.inner.store.lock().delete(kind, name).is_some(), "there is no {name} of {kind}");
        self.inner.changed();
    }

    /// Replaces all objects of a kind without telling the watches, which are cut, and forgets what happened before.
    pub(crate) fn replace_unseen(&self, kind: &str, objects: Vec<Value>) {
        self.inner.store.lock().replace_unseen(kind, objects);
        self.cut();
    }

    /// Removes a kind with its objects, as when its CRD is deleted: watches are told of the objects, then cut.
    pub(crate) fn uninstall(&self, kind: &str) {
        self.inner.store.lock().uninstall(kind);
        self.inner.changed();
        self.cut();
    }

    /// Installs a kind again.
    pub(crate) fn install(&self, kind: &str) {
        self.inner.store.lock().install(kind);
        self.inner.changed();
    }

    /// Tells the watches of a kind how far things are, as a bookmark does.
    pub(crate) fn bookmark(&self, kind: &str) {
        self.inner.store.lock().bookmark(kind);
        self.inner.changed();
    }

    /// Requests for this kind fail so, or don't any more. Open watches of all kinds are cut.
    pub(crate) fn fault(&self, kind: &str, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.inner.faults.lock().insert(kind.to_owned(), fault),
            None => self.inner.faults.lock().remove(kind),
        };
        self.cut();
    }

    /// Ends every watch.
    pub(crate) fn cut(&self) {
        self.inner.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Answers POSTs of this kind so.
    pub(crate) fn answer_posts(&self, kind: &str, answer: impl Fn(Value) -> Value + Send + Sync + 'static) {
        self.inner.answers.lock().insert(kind.to_owned(), Arc::new(answer));
    }

    /// An object as it is now.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.inner.store.lock().get(kind, name)
    }

    /// The lists and watches asked for so far, oldest first.
    pub(crate) fn requests(&self) -> Vec<ApiRequest> {
        self.inner.requests.lock().clone()
    }

    /// Waits for a request like this one, from now on or before.
    pub(crate) async fn asked(&self, is_it: impl Fn(&ApiRequest) -> bool) {
        self.asked_times(1, is_it).await;
    }

    /// Waits until there have been so many of them.
    pub(crate) async fn asked_times(&self, times: usize, is_it: impl Fn(&ApiRequest) -> bool) {
        let mut changes = self.inner.changes.subscribe();
        let asked =
            changes.wait_for(|_| self.inner.requests.lock().iter().filter(|r| is_it(r)).count() >= times);
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        assert!(asked.is_ok(), "not asked for: {:?}", self.requests());
    }
}

impl Inner {
    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// What a path names.
struct Target {
    kind: String,
    name: Option<String>,
}

/// `/api/v1/…` and `/apis/GROUP/VERSION/…`, with a namespace or without.
fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] => rest,
        rest => rest,
    };
    let (plural, name) = match rest {
        [plural] => (plural, None),
        [plural, name] => (plural, Some((*name).to_owned())),
        _ => return None,
    };
    let kind = if group.is_empty() { (*plural).to_owned() } else { format!("{plural}.{group}") };
    Some(Target { kind, name })
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
}

async fn answer(
    State(inner): State<Arc<Inner>>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let Some(Target { kind, name }) = target(request.uri().path()) else {
        return status(404, "NotFound", "no such path");
    };
    let (method, body) = (request.method().clone(), request.into_body());
    if !inner.store.lock().knows(&kind) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    if name.is_none() && method == Method::GET {
        return read_many(inner, kind, query).await;
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let fault = inner.faults.lock().get(&kind).cloned();
    match fault {
        Some(Fault::Status(code, message)) => return status(code, "Faulty", message),
        Some(Fault::Hang) => std::future::pending().await,
        _ => {}
    }
    let given: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answers = inner.answers.lock().get(&kind).cloned();
    if let (Some(answers), &Method::POST) = (answers, &method) {
        return (StatusCode::CREATED, axum::Json(answers(given))).into_response();
    }
    let answer = inner.store.lock().one(&method, &kind, name, given);
    inner.changed();
    match answer {
        Ok((code, object)) => (StatusCode::from_u16(code).unwrap(), axum::Json(object)).into_response(),
        Err((code, reason)) => status(code, reason, reason),
    }
}

async fn read_many(inner: Arc<Inner>, kind: String, query: BTreeMap<String, String>) -> Response {
    let word = |name: &str| query.get(name).cloned().unwrap_or_default();
    let is_watch = matches!(word("watch").as_str(), "true" | "1");
    let request = ApiRequest {
        kind: kind.clone(),
        is_watch,
        labels: word("labelSelector"),
        fields: word("fieldSelector"),
        limit: word("limit").parse().ok(),
    };
    let selector = Selector::new(&request.labels, &request.fields);
    inner.requests.lock().push(request.clone());
    inner.changed();
    let fault = inner.faults.lock().get(&kind).cloned();
    match (&fault, is_watch) {
        (Some(Fault::Status(code, message)), _) | (Some(Fault::WatchStatus(code, message)), true) => {
            return status(*code, "Faulty", message);
        }
        (Some(Fault::Hang), _) => std::future::pending().await,
        (Some(Fault::WatchEnds), true) => return Body::empty().into_response(),
        _ => {}
    }
    if !is_watch {
        let page = inner.store.lock().page(&kind, &selector, request.limit, &word("continue"));
        return match page {
            Ok(page) => axum::Json(page).into_response(),
            Err(reason) => status(410, "Expired", reason),
        };
    }
    let is_silent = matches!(fault, Some(Fault::WatchSilent));
    let from = match fault {
        Some(Fault::WatchExpired) => 0,
        _ => word("resourceVersion").parse().unwrap_or(0),
    };
    let seconds = word("timeoutSeconds").parse().unwrap_or(290);
    watch_events(inner, kind, selector, from, Duration::from_secs(seconds), is_silent)
}

/// What has happened since `from`, and then what happens, until the time is over or the watches are cut.
fn watch_events(
    inner: Arc<Inner>,
    kind: String,
    selector: Selector,
    from: u64,
    limit: Duration,
    is_silent: bool,
) -> Response {
    let (mut changes, mut cuts) = (inner.changes.subscribe(), inner.cuts.subscribe());
    cuts.mark_unchanged();
    let events = async_stream(move |send| async move {
        let mut from = from;
        loop {
            changes.mark_unchanged();
            let (told, to) = inner.store.lock().since(&kind, &selector, from);
            from = to;
            for event in told.into_iter().filter(|_| !is_silent) {
                let is_last = event["type"] == "ERROR";
                if send.send(Bytes::from(format!("{event}\n"))).await.is_err() || is_last {
                    return;
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = cuts.changed() => {
                    // What happened before the cut is still told.
                    let (told, _) = inner.store.lock().since(&kind, &selector, from);
                    for event in told.into_iter().filter(|_| !is_silent) {
                        let _ = send.send(Bytes::from(format!("{event}\n"))).await;
                    }
                    return;
                }
            }
        }
    });
    let until = tokio::time::sleep(if is_silent { PATIENCE } else { limit });
    Body::from_stream(events.map(Ok::<_, Infallible>).take_until(until)).into_response()
}

/// What a task sends.
fn async_stream<F: Future<Output = ()> + Send + 'static>(
    task: impl FnOnce(tokio::sync::mpsc::Sender<Bytes>) -> F,
) -> impl futures::Stream<Item = Bytes> + Send + 'static {
    let (send, receive) = tokio::sync::mpsc::channel(16);
    let task = task(send);
    let sent = futures::stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|bytes| (bytes, receive))
    });
    // The task runs as long as somebody reads.
    futures::stream::select(sent, futures::stream::once(task).filter_map(|()| async { None }))
}
