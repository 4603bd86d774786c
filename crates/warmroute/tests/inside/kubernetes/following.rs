//! Pods come, go and change; pools change; nothing fails.

use std::sync::Arc;

use serde_json::json;
use warmroute::kubernetes::{ALPHA_GROUP, KubernetesReport, POOL_GROUP, PoolMembers};
use warmroute::pool::Ranks;

use super::cluster::{Cluster, PACE, PODS, POOLS, labelled, pod, pool};
use crate::fake_api::Fault;

fn names(snapshot: &warmroute::pool::PoolSnapshot) -> Vec<String> {
    snapshot.endpoints.iter().map(|endpoint| endpoint.name.to_string()).collect()
}

#[tokio::test]
async fn pods_of_a_pool_come_and_go() {
    let cluster = Cluster::new().await;
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    cluster.api.apply(PODS, labelled("other", "10.0.0.9", json!({"app": "web"})));
    assert!(!cluster.readiness.is_ready());
    cluster.follow_pool(POOL_GROUP);
    let snapshot = cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.ready().await;
    assert_eq!(names(&snapshot), ["team/a-rank-0"]);
    assert_eq!(snapshot.endpoints[0].labels["app"], "vllm");
    cluster.api.apply(PODS, pod("b", "10.0.0.2"));
    let grown = cluster.addresses(&["10.0.0.1:8000", "10.0.0.2:8000"]).await;
    assert!(Arc::ptr_eq(&grown.states[0], &snapshot.states[0]), "who stays keeps its state");
    cluster.api.delete(PODS, "a");
    cluster.addresses(&["10.0.0.2:8000"]).await;
    cluster.api.delete(PODS, "b");
    cluster.addresses(&[]).await;
    assert!(cluster.readiness.is_ready(), "an empty pool is a known one");
}

#[tokio::test]
async fn only_what_is_ready_and_stays_is_an_endpoint() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")]).await;
    let first = cluster.pool.snapshot().states[0].clone();
    let mut unready = pod("a", "10.0.0.1");
    unready["status"]["conditions"][1]["status"] = json!("False");
    cluster.api.apply(PODS, unready);
    cluster.addresses(&["10.0.0.2:8000", "10.0.0.3:8000"]).await;
    let mut terminating = pod("b", "10.0.0.2");
    terminating["metadata"]["deletionTimestamp"] = json!("2026-11-20T10:00:00Z");
    cluster.api.apply(PODS, terminating);
    cluster.addresses(&["10.0.0.3:8000"]).await;
    let mut no_address = pod("d", "");
    no_address["status"].as_object_mut().unwrap().remove("podIP");
    cluster.api.apply(PODS, no_address);
    let mut new = pod("e", "10.0.0.5");
    new["status"] = json!({});
    cluster.api.apply(PODS, new);
    // Ready again: a new incarnation, since whoever knew it has let go.
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    let snapshot = cluster.addresses(&["10.0.0.1:8000", "10.0.0.3:8000"]).await;
    assert!(first.gone.is_cancelled() && !snapshot.states[0].gone.is_cancelled());
}

#[tokio::test]
async fn a_pod_that_takes_the_place_of_another_inherits_nothing() {
    let cluster = Cluster::with_pods(&[("vllm-0", "10.0.0.1")]).await;
    let old = cluster.pool.snapshot().states[0].clone();
    let _charge = old.load.charge(100);
    // A StatefulSet's pod: the same name, and by chance the same address, without a moment in which it is gone.
    let mut replaced = pod("vllm-0", "10.0.0.1");
    replaced["metadata"]["uid"] = json!("another");
    cluster.api.apply(PODS, replaced);
    let snapshot = cluster.pool_where(|snapshot| snapshot.endpoints[0].id != old.endpoint.id).await;
    assert!(old.gone.is_cancelled());
    assert_eq!(names(&snapshot), ["team/vllm-0-rank-0"]);
    assert_eq!(snapshot.states[0].load.in_flight().requests, 0);
    assert_eq!(old.load.in_flight().requests, 1);
}

#[tokio::test]
async fn of_two_pods_with_one_address_the_newer_counts() {
    let cluster = Cluster::with_pods(&[("z", "10.0.0.1")]).await;
    let mut newer = pod("a", "10.0.0.1");
    newer["metadata"]["creationTimestamp"] = json!("2026-11-20T11:00:00Z");
    cluster.api.apply(PODS, newer);
    let is_newer = |snapshot: &warmroute::pool::PoolSnapshot| names(snapshot) == ["team/a-rank-0"];
    cluster.pool_where(is_newer).await;
    let mut older = pod("b", "10.0.0.1");
    older["metadata"]["creationTimestamp"] = json!("2026-11-20T09:00:00Z");
    cluster.api.apply(PODS, older);
    cluster.api.apply(PODS, pod("c", "10.0.0.3"));
    let snapshot = cluster.addresses(&["10.0.0.1:8000", "10.0.0.3:8000"]).await;
    assert_eq!(names(&snapshot), ["team/a-rank-0", "team/c-rank-0"]);
    let mut newest = pod("zz", "10.0.0.1");
    newest["metadata"]["creationTimestamp"] = json!("2026-11-20T12:00:00Z");
    cluster.api.apply(PODS, newest);
    let snapshot = cluster.addresses(&["10.0.0.3:8000", "10.0.0.1:8000"]).await;
    assert_eq!(names(&snapshot), ["team/c-rank-0", "team/zz-rank-0"]);
}

#[tokio::test]
async fn relabelled_pods_stay_or_leave() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]).await;
    let first = cluster.pool.snapshot().states[0].clone();
    cluster.api.apply(PODS, labelled("a", "10.0.0.1", json!({"app": "vllm", "llm-d.ai/role": "decode"})));
    let snapshot = cluster.pool_where(|snapshot| snapshot.endpoints[0].labels.len() == 2).await;
    assert_eq!(snapshot.endpoints[0].id, first.endpoint.id);
    cluster.api.apply(PODS, labelled("b", "10.0.0.2", json!({"app": "vllm-canary"})));
    cluster.addresses(&["10.0.0.1:8000"]).await;
}

#[tokio::test]
async fn addresses_may_be_ipv6() {
    let cluster = Cluster::with_pods(&[]).await;
    cluster.api.apply(PODS, pod("a", "FD00::0001"));
    let snapshot = cluster.addresses(&["[fd00::1]:8000"]).await;
    assert_eq!(snapshot.subset_rows(&["[fd00::1]:8000".to_owned()]), [0]);
}

#[tokio::test]
async fn each_target_port_is_an_endpoint_and_active_ports_choose() {
    let cluster = Cluster::new().await;
    cluster.api.apply(POOLS, pool("vllm", &[8000, 8001, 8002]));
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    let mut chosen = pod("b", "10.0.0.2");
    chosen["metadata"]["annotations"] =
        json!({"llm-d.ai/active-ports": "8001, 8002,x", "inference.networking.k8s.io/active-ports": "8000"});
    cluster.api.apply(PODS, chosen.clone());
    cluster.follow_pool(POOL_GROUP);
    let all = ["10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.1:8002", "10.0.0.2:8001", "10.0.0.2:8002"];
    let snapshot = cluster.addresses(&all).await;
    assert_eq!(names(&snapshot)[1..4], ["team/a-rank-1", "team/a-rank-2", "team/b-rank-1"]);
    assert_eq!(snapshot.states[4].spec.ranks, Ranks::Own { rank: 2 });
    assert_eq!(snapshot.states[4].spec.ranks.header(), None, "a port of its own needs no header");
    let kept = snapshot.states[4].clone();
    chosen["metadata"]["annotations"] = json!({"inference.networking.k8s.io/active-ports": "8000,8002"});
    cluster.api.apply(PODS, chosen.clone());
    let all = ["10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.1:8002", "10.0.0.2:8000", "10.0.0.2:8002"];
    let snapshot = cluster.addresses(&all).await;
    assert!(Arc::ptr_eq(&kept, &snapshot.states[4]));
    chosen["metadata"]["annotations"] = json!({"llm-d.ai/active-ports": ""});
    cluster.api.apply(PODS, chosen);
    cluster.addresses(&all[..3]).await;
}

#[tokio::test]
async fn a_selector_on_the_command_line_needs_no_pool() {
    let cluster = Cluster::new().await;
    cluster.api.uninstall(POOLS);
    cluster.api.fault(POOLS, Some(Fault::Status(403, "not asked for")));
    for (name, ip, tier) in [("a", "10.0.0.1", "x"), ("b", "10.0.0.2", "y"), ("c", "10.0.0.3", "z")] {
        cluster.api.apply(PODS, labelled(name, ip, json!({"app": "vllm", "tier": tier})));
    }
    let selector = "app=vllm,tier in (x,y),!draining".to_owned();
    cluster.follow(PoolMembers::Selector { selector: selector.clone(), ports: vec![8000, 9000] }, PACE);
    cluster.addresses(&["10.0.0.1:8000", "10.0.0.1:9000", "10.0.0.2:8000", "10.0.0.2:9000"]).await;
    cluster.ready().await;
    let draining = json!({"app": "vllm", "tier": "x", "draining": ""});
    cluster.api.apply(PODS, labelled("a", "10.0.0.1", draining));
    cluster.addresses(&["10.0.0.2:8000", "10.0.0.2:9000"]).await;
    let requests = cluster.api.requests();
    assert!(
        requests.iter().all(|request| request.kind == PODS && request.labels == selector),
        "{requests:?}"
    );
}

#[tokio::test]
async fn the_older_kind_of_pool_is_read() {
    let cluster = Cluster::new().await;
    let older = "inferencepools.inference.networking.x-k8s.io";
    cluster.api.apply(
        older,
        json!({"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool",
            "metadata": {"name": "llama"}, "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000}}),
    );
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    // A pool of the same name in the other group is another pool.
    cluster.api.apply(POOLS, pool("web", &[9000]));
    cluster.follow_pool(ALPHA_GROUP);
    cluster.addresses(&["10.0.0.1:8000"]).await;
}

#[tokio::test]
async fn only_the_named_pool_and_its_pods_are_asked_for() {
    let cluster = Cluster::new().await;
    let mut other = pool("web", &[1]);
    other["metadata"]["name"] = json!("other");
    cluster.api.apply(POOLS, other.clone());
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    cluster.follow_pool(POOL_GROUP);
    cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.api.asked(|request| request.kind == PODS && request.is_watch).await;
    for request in cluster.api.requests() {
        match request.kind.as_str() {
            POOLS => assert_eq!(request.fields, "metadata.name=llama"),
            _ => assert_eq!(request.labels, "app=vllm"),
        }
        assert!(request.is_watch || request.limit == Some(100), "lists come in pages");
    }
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let cluster = Cluster::new().await;
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    for number in 0..250 {
        cluster.api.apply(PODS, pod(&format!("p{number:03}"), &format!("10.0.1.{number}")));
    }
    cluster.follow_pool(POOL_GROUP);
    let snapshot = cluster.pool_where(|snapshot| !snapshot.endpoints.is_empty()).await;
    assert_eq!(snapshot.endpoints.len(), 250, "the first version that is seen is whole");
    let lists = cluster.api.requests().iter().filter(|r| r.kind == PODS && !r.is_watch).count();
    assert_eq!(lists, 3);
}

#[tokio::test]
async fn other_ports_count_at_once() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1")]).await;
    let first = cluster.pool.snapshot().states[0].clone();
    cluster.api.apply(POOLS, pool("vllm", &[8000, 8001]));
    let snapshot = cluster.addresses(&["10.0.0.1:8000", "10.0.0.1:8001"]).await;
    assert!(Arc::ptr_eq(&first, &snapshot.states[0]));
    cluster.api.apply(POOLS, pool("vllm", &[9000]));
    cluster.addresses(&["10.0.0.1:9000"]).await;
}

#[tokio::test]
async fn another_selector_takes_effect_without_an_empty_moment() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1")]).await;
    cluster.api.apply(PODS, labelled("b", "10.0.0.2", json!({"app": "sglang"})));
    let seen = cluster.history();
    // Pods of the new selector can't be listed yet, so the old ones stay, with the old ports.
    cluster.api.fault(PODS, Some(Fault::Status(500, "not now")));
    cluster.api.apply(POOLS, pool("sglang", &[9000]));
    cluster.api.asked(|request| request.kind == PODS && request.labels == "app=sglang").await;
    assert_eq!(super::cluster::addresses_of(&cluster.pool.snapshot()), ["10.0.0.1:8000"]);
    assert!(cluster.readiness.is_ready());
    cluster.api.fault(PODS, None);
    cluster.addresses(&["10.0.0.2:9000"]).await;
    assert_eq!(seen.await, [["10.0.0.2:9000"]], "one step, and no other");
    // The pods of the old selector mean nothing any more.
    cluster.api.apply(PODS, pod("c", "10.0.0.3"));
    cluster.api.apply(PODS, labelled("d", "10.0.0.4", json!({"app": "sglang"})));
    cluster.addresses(&["10.0.0.2:9000", "10.0.0.4:9000"]).await;
}

#[tokio::test]
async fn a_selector_that_is_taken_back_changes_nothing() {
    let watches_of_pods =
        |report: &KubernetesReport| report.resources.iter().filter(|state| state.resource == PODS).count();
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1")]).await;
    let first = cluster.pool.snapshot().states[0].clone();
    cluster.api.fault(PODS, Some(Fault::Status(500, "not now")));
    cluster.api.apply(POOLS, pool("sglang", &[9000]));
    cluster.api.asked(|request| request.labels == "app=sglang").await;
    assert_eq!(watches_of_pods(&cluster.status.report()), 2);
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.status_where(|report| watches_of_pods(report) == 1).await;
    cluster.api.fault(PODS, None);
    cluster.api.apply(PODS, pod("b", "10.0.0.2"));
    let snapshot = cluster.addresses(&["10.0.0.1:8000", "10.0.0.2:8000"]).await;
    assert!(Arc::ptr_eq(&first, &snapshot.states[0]));
}

#[tokio::test]
async fn without_its_pool_nothing_is_picked_until_it_is_back() {
    let cluster = Cluster::new().await;
    cluster.api.apply(PODS, pod("a", "10.0.0.1"));
    cluster.follow_pool(POOL_GROUP);
    let is_missing = |report: &KubernetesReport| {
        report.no_pool.as_ref().is_some_and(|why| why.contains("no InferencePool team/llama: create it"))
    };
    cluster.status_where(is_missing).await;
    assert!(!cluster.readiness.is_ready());
    cluster.api.apply(POOLS, pool("vllm", &[8000]));
    cluster.addresses(&["10.0.0.1:8000"]).await;
    cluster.ready().await;
    assert_eq!(cluster.status.report().no_pool, None);
    cluster.api.delete(POOLS, "llama");
    cluster.addresses(&[]).await;
    cluster.status_where(is_missing).await;
    assert!(!cluster.readiness.is_ready());
    cluster.api.apply(POOLS, pool("vllm", &[8001]));
    cluster.addresses(&["10.0.0.1:8001"]).await;
    cluster.ready().await;
}

#[tokio::test]
async fn what_cannot_be_used_is_named_and_its_last_good_version_stays() {
    let cluster = Cluster::with_pods(&[("a", "10.0.0.1")]).await;
    let mut broken = pool("vllm", &[]);
    broken["spec"]["targetPorts"] = json!("many");
    cluster.api.apply(POOLS, broken.clone());
    let state = cluster.resource_where(POOLS, |state| !state.refused.is_empty()).await;
    assert!(state.refused["llama"].contains("many"), "{state:?}");
    cluster.api.apply(PODS, pod("b", "10.0.0.2"));
    cluster.addresses(&["10.0.0.1:8000", "10.0.0.2:8000"]).await;
    let mut odd = pod("b", "10.0.0.2");
    odd["status"]["podIP"] = json!("nowhere");
    cluster.api.apply(PODS, odd);
    let mut worse = pod("c", "10.0.0.3");
    worse["status"]["conditions"] = json!([7]);
    cluster.api.apply(PODS, worse);
    let state = cluster.resource_where(PODS, |state| state.refused.len() == 2).await;
    assert!(state.refused["b"].contains("nowhere"), "{state:?}");
    assert_eq!(cluster.pool.snapshot().endpoints.len(), 2);
    assert!(cluster.metric("warmroute_kubernetes_objects_refused_total{resource=\"pods\"} 2"));
    // The same again in a list is nothing new; what is mended isn't shown any more.
    cluster.api.cut();
    cluster.api.apply(PODS, pod("b", "10.0.0.4"));
    cluster.addresses(&["10.0.0.1:8000", "10.0.0.4:8000"]).await;
    cluster.api.delete(PODS, "c");
    cluster.resource_where(PODS, |state| state.refused.is_empty()).await;
    assert!(cluster.metric("warmroute_kubernetes_objects_refused_total{resource=\"pods\"} 2"));
    cluster.api.apply(POOLS, pool("vllm", &[8001]));
    cluster.addresses(&["10.0.0.1:8001", "10.0.0.4:8001"]).await;
}
