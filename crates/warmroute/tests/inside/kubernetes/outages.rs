//! The API server goes away, refuses, is slow: what is known stays in effect, and it is said.

use std::time::Duration;

use serde_json::json;
use warmroute::kubernetes::{FollowState, POOL_GROUP, Pace, PoolMembers, ResourceState};

use super::cluster::{Cluster, PACE, PODS, POOLS, addresses_of, pod, pool};
use crate::fake_api::Fault;

#[tokio::test]
async fn a_server_that_goes_away_and_comes_back_flaps_nothing() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")]).await;
    cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    let seen = cluster.history();
    cluster.api.stop().await;
    let state = cluster.resource_where(PODS, |state| state.state == FollowState::Failing).await;
    assert_eq!(state.objects, 3);
    assert!(cluster.readiness.is_ready(), "it serves on with what it has");
    assert!(cluster.metric("warmroute_kubernetes_following{resource=\"pods\"} 0"));
    // Meanwhile one leaves and one comes.
    cluster.api.delete(PODS, "b");
    cluster.api.apply(PODS, pod("d", "10.0.0.4"));
    cluster.api.start_again().await;
    cluster.addresses(&["10.0.0.1:8000", "10.0.0.3:8000", "10.0.0.4:8000"]).await;
    cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    cluster
        .resource_where(POOLS, |state| state.state == FollowState::Following && state.problem.is_none())
        .await;
    assert!(cluster.metric("warmroute_kubernetes_following{resource=\"pods\"} 1"));
    assert_eq!(seen.await, [["10.0.0.1:8000", "10.0.0.3:8000", "10.0.0.4:8000"]], "one step, and no other");
}

#[tokio::test]
async fn an_outage_in_which_nothing_changes_changes_nothing() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    let seen = cluster.history();
    for (fault, words) in [
        (Fault::Status(429, "later"), "429 later"),
        (Fault::Status(500, "etcd is gone"), "500 etcd is gone"),
        (Fault::Status(503, "starting"), "503 starting"),
        (Fault::WatchStatus(500, "no watch"), "500 no watch"),
        (Fault::WatchEnds, "ends watches before their time"),
    ] {
        cluster.api.fault(PODS, Some(fault.clone()));
        let is_told = |state: &ResourceState| state.problem.as_ref().is_some_and(|told| told.contains(words));
        let state = cluster.resource_where(PODS, is_told).await;
        assert_eq!(state.state, FollowState::Failing);
        assert_eq!(state.objects, 2, "{fault:?}");
        assert!(cluster.readiness.is_ready());
        cluster.api.fault(PODS, None);
        cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    }
    assert_eq!(seen.await, Vec::<Vec<String>>::new());
    let page = cluster.metrics.page().unwrap();
    for cause in ["overloaded", "server-error", "ended-early"] {
        let series = format!("warmroute_kubernetes_failures_total{{cause=\"{cause}\",resource=\"pods\"}}");
        assert!(page.contains(&series), "{series} is not in:\n{page}");
    }
}

#[tokio::test]
async fn an_expired_version_is_listed_anew_and_no_outage() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    let seen = cluster.history();
    // Watches are cut, and what happened in between isn't kept.
    cluster.api.replace_unseen(PODS, vec![pod("b", "10.0.0.2"), pod("c", "10.0.0.3")]);
    let snapshot = cluster.pool_where(|snapshot| snapshot.endpoints[0].name.contains("/b-")).await;
    assert_eq!(addresses_of(&snapshot), ["10.0.0.2:8000", "10.0.0.3:8000"]);
    assert_eq!(seen.await.len(), 1);
    let page = cluster.metrics.page().unwrap();
    let expired = "warmroute_kubernetes_failures_total{cause=\"expired\",resource=\"pods\"}";
    assert!(page.contains(expired), "{page}");
    // Again and again it is one.
    cluster.api.fault(PODS, Some(Fault::WatchExpired));
    let state = cluster.resource_where(PODS, |state| state.state == FollowState::Failing).await;
    assert!(state.problem.unwrap().contains("too old resource version"));
    cluster.api.apply(PODS, pod("d", "10.0.0.4"));
    cluster.addresses(&["10.0.0.2:8000", "10.0.0.3:8000", "10.0.0.4:8000"]).await;
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1")]).await;
    cluster.api.fault(PODS, Some(Fault::Status(403, "pods is forbidden: User \"x\" cannot list")));
    let state = cluster.resource_where(PODS, |state| state.problem.is_some()).await;
    let problem = state.problem.unwrap();
    for part in [
        "a Role in namespace team is missing",
        "{apiGroups: [\"\"], resources: [\"pods\"], verbs: [get, list, watch]}",
        "User \"x\" cannot list",
    ] {
        assert!(problem.contains(part), "{problem}");
    }
    assert_eq!(cluster.pool.snapshot().endpoints.len(), 1);
    assert!(cluster.readiness.is_ready());
    cluster.api.fault(PODS, None);
    cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    cluster.api.fault(POOLS, Some(Fault::Status(401, "Unauthorized")));
    let state = cluster.resource_where(POOLS, |state| state.problem.is_some()).await;
    assert!(state.problem.unwrap().contains("service account token"));
}

#[tokio::test]
async fn before_the_first_list_it_is_not_ready_and_says_why() {
    let cluster = Cluster::new().await;
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    cluster.api.stop().await;
    cluster.follow_pool(POOL_GROUP);
    let state = cluster.resource_where(POOLS, |state| state.problem.is_some()).await;
    assert_eq!((state.state, state.objects), (FollowState::Failing, 0));
    assert!(!cluster.readiness.is_ready());
    assert!(cluster.status.report().no_pool.unwrap().contains("hasn't told"));
    // It comes, without the kind.
    cluster.api.uninstall(POOLS);
    cluster.api.start_again().await;
    let says = |part: &'static str| {
        move |state: &ResourceState| state.problem.as_ref().is_some_and(|problem| problem.contains(part))
    };
    cluster.resource_where(POOLS, says("the CRD isn't installed")).await;
    let why = cluster.status.report().why_no_pool().unwrap();
    assert!(why.contains(&format!("; {POOLS}: the cluster has no inferencepools")), "{why}");
    assert!(!cluster.readiness.is_ready());
    // Then with it, but the pods may not be read.
    cluster.api.fault(PODS, Some(Fault::Status(403, "no")));
    cluster.api.install(POOLS);
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.resource_where(PODS, says("a Role in namespace team is missing")).await;
    assert!(!cluster.readiness.is_ready() && cluster.pool.snapshot().endpoints.is_empty());
    cluster.api.fault(PODS, None);
    cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.ready().await;
}

#[tokio::test]
async fn a_pool_whose_kind_is_removed_is_gone_and_comes_back() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1")]).await;
    cluster.api.asked(|request| request.kind == POOLS && request.is_watch).await;
    cluster.api.uninstall(POOLS);
    cluster.addresses(&[]).await;
    assert!(!cluster.readiness.is_ready());
    cluster.api.install(POOLS);
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.ready().await;
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    let cluster = Cluster::new().await;
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    let impatient = Pace { answer: Duration::from_millis(200), watch_seconds: 1, ..PACE };
    cluster.follow(PoolMembers::InferencePool { group: POOL_GROUP.to_owned() }, impatient);
    cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    for fault in [Fault::Hang, Fault::WatchSilent] {
        cluster.api.fault(PODS, Some(fault.clone()));
        let says = |state: &ResourceState| {
            state.problem.as_ref().is_some_and(|problem| problem.contains("no answer within"))
        };
        cluster.resource_where(PODS, says).await;
        assert_eq!(addresses_of(&cluster.pool.snapshot()), ["10.0.0.1:8000"], "{fault:?}");
        assert!(cluster.readiness.is_ready());
        cluster.api.fault(PODS, None);
        cluster.resource_where(PODS, |state| state.state == FollowState::Following).await;
    }
    cluster.api.apply(PODS, pod("b", "10.0.0.2"));
    cluster.addresses(&["10.0.0.1:8000", "10.0.0.2:8000"]).await;
}

#[tokio::test]
async fn a_watch_whose_time_is_over_goes_on_where_it_stood() {
    let cluster = Cluster::new().await;
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    let short = Pace { watch_seconds: 1, ..PACE };
    cluster.follow(PoolMembers::InferencePool { group: POOL_GROUP.to_owned() }, short);
    cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.api.bookmark(PODS);
    cluster.api.asked_times(3, |request| request.kind == PODS && request.is_watch).await;
    cluster.api.apply(PODS, pod("b", "10.0.0.2"));
    cluster.addresses(&["10.0.0.1:8000", "10.0.0.2:8000"]).await;
    let lists =
        cluster.api.requests().iter().filter(|request| request.kind == PODS && !request.is_watch).count();
    assert_eq!(lists, 1, "nothing was listed again");
}

#[tokio::test]
async fn flips_of_readiness_are_all_followed() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    for round in 0..20 {
        let mut flipped = pod("b", "10.0.0.2");
        flipped["status"]["conditions"][1]["status"] = json!("False");
        cluster.api.apply(PODS, flipped);
        cluster.pool_where(|snapshot| snapshot.endpoints.len() == 1).await;
        cluster.api.apply(PODS, pod("b", "10.0.0.2"));
        cluster.pool_where(|snapshot| snapshot.endpoints.len() == 2).await;
        assert!(cluster.readiness.is_ready(), "{round}");
    }
}
