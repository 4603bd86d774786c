//! How the API server is reached, and that the fake one behaves like one with single objects.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use warmroute::kubernetes::connect;

use super::cluster::{PODS, pod};
use crate::fake_api::{FakeApi, NAMESPACE};

#[tokio::test]
async fn a_kubeconfig_says_where_the_server_is() {
    let api = FakeApi::start().await;
    api.apply(PODS, pod("a", "10.0.0.1"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    std::fs::write(&path, api.kubeconfig()).unwrap();
    let client = connect(Some(&path)).await.unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, NAMESPACE);
    assert_eq!(pods.get("a").await.unwrap().status.unwrap().pod_ip.unwrap(), "10.0.0.1");
    let missing = connect(Some(&dir.path().join("none"))).await.err().unwrap().to_string();
    assert!(missing.starts_with("--kubeconfig /"), "{missing}");
}

#[tokio::test]
async fn leases_are_created_renewed_and_contended() {
    let api = FakeApi::start().await;
    let leases: Api<Lease> = Api::namespaced(api.client(), NAMESPACE);
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    };
    assert_eq!(code(leases.get("l").await.unwrap_err()), 404);
    let lease: Lease =
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})).unwrap();
    let mut held = leases.create(&PostParams::default(), &lease).await.unwrap();
    assert_eq!(code(leases.create(&PostParams::default(), &lease).await.unwrap_err()), 409);
    let stale = held.clone();
    held.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
    leases.replace("l", &PostParams::default(), &held).await.unwrap();
    assert_eq!(code(leases.replace("l", &PostParams::default(), &stale).await.unwrap_err()), 409);
    let patch = Patch::Merge(json!({"spec": {"leaseTransitions": 7, "holderIdentity": null}}));
    leases.patch("l", &PatchParams::default(), &patch).await.unwrap();
    let object = api.object("leases.coordination.k8s.io", "l").unwrap();
    assert_eq!(object["spec"], json!({"leaseTransitions": 7}));
    leases.delete("l", &DeleteParams::default()).await.unwrap();
    assert!(api.object("leases.coordination.k8s.io", "l").is_none());
}

#[tokio::test]
async fn reviews_are_answered_as_the_test_says() {
    let api = FakeApi::start().await;
    api.answer_posts("tokenreviews.authentication.k8s.io", |mut review| {
        review["status"] = json!({"authenticated": review["spec"]["token"] == "good"});
        review
    });
    let reviews: Api<TokenReview> = Api::all(api.client());
    for (token, expected) in [("good", true), ("bad", false)] {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        assert_eq!(answer.status.unwrap().authenticated, Some(expected), "{token}");
    }
}
