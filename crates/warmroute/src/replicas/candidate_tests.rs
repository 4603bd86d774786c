//! Candidates against an API server that keeps one lease in memory and checks resource versions.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Candidate, ElectionError, ElectionTimings, Standing};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::replicas::{Election, lease_name};
use crate::tasks::Tasks;

#[derive(Default)]
struct Stored {
    lease: Option<Value>,
    version: u64,
    /// What was asked: method and path.
    asked: Vec<String>,
    /// Answers that come instead of the right ones, first to last.
    failures: VecDeque<StatusCode>,
    is_away: bool,
}

#[derive(Clone, Default)]
struct ApiServer(Arc<Mutex<Stored>>);

impl ApiServer {
    fn client(&self) -> Client {
        let stored = self.0.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let stored = stored.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let sent = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
                let (code, answer) = stored.lock().answer(&head.method, head.uri.path(), sent);
                let answer =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn candidate(&self, identity: &str) -> Candidate {
        let leases: Api<Lease> = Api::namespaced(self.client(), "serving");
        let name = lease_name("serving", "llama");
        Candidate::new(leases, name, identity.to_owned(), ElectionTimings::default())
    }

    fn spec(&self) -> Value {
        self.0.lock().lease.as_ref().unwrap()["spec"].clone()
    }

    fn fail_with(&self, code: StatusCode) {
        self.0.lock().failures.push_back(code);
    }
}

impl Stored {
    fn answer(&mut self, method: &Method, path: &str, sent: Value) -> (StatusCode, Value) {
        self.asked.push(format!("{method} {path}"));
        let refuse = |code: StatusCode| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
                "message": "no", "reason": code.canonical_reason().unwrap().replace(' ', "")});
            (code, status)
        };
        if self.is_away {
            return refuse(StatusCode::SERVICE_UNAVAILABLE);
        }
        if let Some(code) = self.failures.pop_front() {
            return refuse(code);
        }
        match (method, &self.lease) {
            (&Method::GET, None) => refuse(StatusCode::NOT_FOUND),
            (&Method::GET, Some(lease)) => (StatusCode::OK, lease.clone()),
            (&Method::POST, None) => self.store(sent),
            (&Method::PUT, Some(lease))
                if lease["metadata"]["resourceVersion"] == sent["metadata"]["resourceVersion"] =>
            {
                self.store(sent)
            }
            _ => refuse(StatusCode::CONFLICT),
        }
    }

    fn store(&mut self, mut lease: Value) -> (StatusCode, Value) {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        (StatusCode::OK, lease)
    }
}

fn follows(leader: &str) -> Standing {
    Standing::Follows { leader: leader.to_owned() }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn the_lease_is_the_peers_and_is_made_if_there_is_none() {
    let server = ApiServer::default();
    let mut one = server.candidate("one");
    assert!(!one.leads());
    assert_eq!(one.attempt(Instant::now()).await.unwrap(), Standing::Leads);
    assert!(one.leads());
    let asked = server.0.lock().asked.clone();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/serving/leases";
    assert_eq!(asked, [format!("GET {leases}/epp-serving-llama.llm-d.ai"), format!("POST {leases}")]);
    let spec = server.spec();
    assert_eq!((&spec["holderIdentity"], &spec["leaseDurationSeconds"]), (&json!("one"), &json!(15)));
    assert_eq!(spec["leaseTransitions"], json!(0));
    assert_eq!(spec["acquireTime"], spec["renewTime"]);
}

#[tokio::test]
async fn a_leader_renews_with_one_request_and_another_one_waits() {
    let server = ApiServer::default();
    let (mut one, mut two) = (server.candidate("one"), server.candidate("two"));
    let start = Instant::now();
    one.attempt(start).await.unwrap();
    let acquired = server.spec()["acquireTime"].clone();
    assert_eq!(two.attempt(start).await.unwrap(), follows("one"));
    for step in 1..20 {
        server.0.lock().asked.clear();
        let now = start + 2 * step * SECOND;
        assert_eq!(one.attempt(now).await.unwrap(), Standing::Leads);
        assert_eq!(server.0.lock().asked.len(), 1, "one PUT");
        assert_eq!(two.attempt(now).await.unwrap(), follows("one"));
    }
    assert_eq!(server.spec()["acquireTime"], acquired);
    assert_eq!(server.spec()["leaseTransitions"], json!(0));
}

#[tokio::test]
async fn a_lease_is_over_when_it_has_stood_unchanged_before_ones_own_eyes() {
    let server = ApiServer::default();
    let (mut one, mut two) = (server.candidate("one"), server.candidate("two"));
    let start = Instant::now();
    one.attempt(start).await.unwrap();
    // Its times say that it was over long ago, by a clock that is wrong: they don't count.
    server.0.lock().lease.as_mut().unwrap()["spec"]["renewTime"] = json!("2001-01-01T00:00:00.000000Z");
    let seen = start + 100 * SECOND;
    assert_eq!(two.attempt(seen).await.unwrap(), follows("one"), "seen for the first time");
    assert_eq!(two.attempt(seen + 14 * SECOND).await.unwrap(), follows("one"));
    assert_eq!(two.attempt(seen + 15 * SECOND).await.unwrap(), Standing::Leads);
    assert_eq!(server.spec()["leaseTransitions"], json!(1));
    // The old leader finds out when it comes back.
    assert!(one.leads());
    assert_eq!(one.attempt(seen + 16 * SECOND).await.unwrap(), follows("two"));
    assert!(!one.leads());
}

#[tokio::test]
async fn who_gives_the_lease_back_lets_another_one_lead_at_once() {
    let server = ApiServer::default();
    let (mut one, mut two) = (server.candidate("one"), server.candidate("two"));
    let start = Instant::now();
    one.attempt(start).await.unwrap();
    two.attempt(start).await.unwrap();
    two.release().await.unwrap();
    assert_eq!(server.spec()["holderIdentity"], json!("one"), "only its holder can give it back");
    one.release().await.unwrap();
    assert!(!one.leads());
    assert_eq!(server.spec()["holderIdentity"], json!(""));
    assert_eq!(two.attempt(start + SECOND).await.unwrap(), Standing::Leads);
    assert_eq!(server.spec()["leaseTransitions"], json!(1));
}

#[tokio::test]
async fn of_two_that_take_it_at_the_same_time_one_gets_it() {
    let server = ApiServer::default();
    let mut one = server.candidate("one");
    let start = Instant::now();
    // Between its GET, which finds nothing, and its POST another one has made it.
    server.fail_with(StatusCode::NOT_FOUND);
    server.candidate("two").attempt(start).await.unwrap();
    server.fail_with(StatusCode::NOT_FOUND);
    let error = one.attempt(start).await.unwrap_err();
    assert!(matches!(error, ElectionError::Conflict { .. }), "{error}");
    assert_eq!(one.attempt(start).await.unwrap(), follows("two"));
    // Of two that find it over, the first one.
    let over = start + 15 * SECOND;
    let mut three = server.candidate("three");
    three.attempt(start).await.unwrap();
    assert_eq!(three.attempt(over).await.unwrap(), Standing::Leads);
    assert_eq!(one.attempt(over).await.unwrap(), follows("three"));
}

#[tokio::test]
async fn a_leader_whose_lease_was_touched_reads_it_and_goes_on() {
    let server = ApiServer::default();
    let mut one = server.candidate("one");
    let start = Instant::now();
    one.attempt(start).await.unwrap();
    // A label changes the resource version.
    {
        let mut stored = server.0.lock();
        let mut lease = stored.lease.clone().unwrap();
        lease["metadata"]["labels"] = json!({"team": "a"});
        stored.store(lease);
        stored.asked.clear();
    }
    assert_eq!(one.attempt(start + SECOND).await.unwrap(), Standing::Leads);
    assert_eq!(server.0.lock().asked.len(), 3, "PUT refused, GET, PUT");
    assert_eq!(server.0.lock().lease.as_ref().unwrap()["metadata"]["labels"]["team"], json!("a"));
}

#[tokio::test]
async fn a_leader_that_cannot_reach_the_server_still_leads() {
    let server = ApiServer::default();
    let mut one = server.candidate("one");
    let start = Instant::now();
    one.attempt(start).await.unwrap();
    server.0.lock().is_away = true;
    for seconds in [2, 20, 60] {
        let error = one.attempt(start + seconds * SECOND).await.unwrap_err();
        assert!(matches!(error, ElectionError::Api { .. }), "{error}");
        assert!(one.leads());
    }
    server.0.lock().is_away = false;
    assert_eq!(one.attempt(start + 61 * SECOND).await.unwrap(), Standing::Leads);
    assert_eq!(server.spec()["leaseTransitions"], json!(0));
}

#[tokio::test]
async fn elections_change_the_leader_when_it_drains() {
    let server = ApiServer::default();
    let timings = ElectionTimings {
        lease_duration: 15 * SECOND,
        renew_deadline: 10 * SECOND,
        retry_period: Duration::from_millis(2),
    };
    let metrics = Metrics::try_new().unwrap();
    let (tasks, mut ends) = Tasks::new();
    let start = |identity: &str| {
        let readiness = Readiness::default();
        let leases = Api::namespaced(server.client(), "serving");
        let candidate = Candidate::new(leases, "l".to_owned(), identity.to_owned(), timings);
        let election = Election::new(candidate, timings, readiness.clone(), metrics.replicas.clone());
        tasks.spawn_vital("election", election.run(tasks.stop_token()));
        readiness
    };
    let one = start("one");
    one.leads_now().await;
    let two = start("two");
    assert_eq!(two.leadership(), Some(false));
    assert!(metrics.page().unwrap().contains("leader_election_master_status{name=\"l\"}"));
    one.is_draining();
    two.leads_now().await;
    assert_eq!(one.leadership(), Some(false));
    server.0.lock().is_away = true;
    while metrics.replicas.election_errors.get() < 3 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(two.leadership(), Some(true), "nobody else can have it");
    assert!(tasks.shut_down(20 * SECOND).await);
    assert!(ends.try_recv().is_err(), "it ends when it is told to");
    assert_eq!(two.leadership(), Some(false));
}
