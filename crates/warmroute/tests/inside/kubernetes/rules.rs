//! Objectives and model rewrites of both groups.

use bytes::Bytes;
use serde_json::{Value, json};
use warmroute::kubernetes::{FollowState, POOL_GROUP, PoolMembers, PoolRules, PoolSource};
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest};

use super::cluster::{Cluster, PACE};
use crate::fake_api::{Fault, NAMESPACE, PATIENCE};
use crate::fixture::{Fixture, PREFIX_ONLY, completion, completion_with, post};

const OBJECTIVES: &str = "inferenceobjectives.llm-d.ai";
const OLD_OBJECTIVES: &str = "inferenceobjectives.inference.networking.x-k8s.io";
const REWRITES: &str = "inferencemodelrewrites.llm-d.ai";
const OLD_REWRITES: &str = "inferencemodelrewrites.inference.networking.x-k8s.io";
const ALL: [&str; 4] = [OBJECTIVES, OLD_OBJECTIVES, REWRITES, OLD_REWRITES];

fn objective(name: &str, priority: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"priority": priority, "poolRef": {"name": "llama"}, "toCome": 1}})
}

fn rewrite(name: &str, created: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name, "creationTimestamp": created},
        "spec": {"poolRef": {"name": "llama", "group": "inference.networking.k8s.io", "kind": "InferencePool"},
            "rules": rules}})
}

fn exact(models: &[&str], target: &str) -> Value {
    let matches: Vec<Value> =
        models.iter().map(|model| json!({"model": {"type": "Exact", "value": model}})).collect();
    json!({"matches": matches, "targets": [{"modelRewrite": target, "weight": 1}]})
}

fn generic(target: &str) -> Value {
    json!({"targets": [{"modelRewrite": target}]})
}

/// A cluster, and a picker with an endpoint that follows its rules. `--inference-objective` gives `batch` and `chat`.
struct Rules {
    cluster: Cluster,
    picker: Fixture,
}

impl Rules {
    async fn new() -> Self {
        let (cluster, picker) = (Cluster::new().await, Fixture::new(PREFIX_ONLY, 1));
        Self { cluster, picker }
    }

    async fn followed() -> Self {
        let rules = Self::new().await;
        rules.follow(POOL_GROUP);
        for kind in ALL {
            rules.cluster.resource_where(kind, |state| state.state == FollowState::Following).await;
        }
        rules
    }

    fn follow(&self, group: &str) {
        let members = PoolMembers::InferencePool { group: group.to_owned() };
        let rules = PoolRules {
            client: self.cluster.api.client(),
            source: PoolSource { name: "llama".to_owned(), namespace: NAMESPACE.to_owned(), members },
            pace: PACE,
            objectives: self.picker.objectives.clone(),
            rewrites: self.picker.rewrites.clone(),
            status: self.cluster.status.clone(),
        };
        rules.start(&self.cluster.tasks);
    }

    /// Waits until this holds, looking after every change of what is known.
    async fn until(&self, holds: impl Fn() -> bool) {
        let mut changes = self.cluster.status.changes();
        // A change is counted just before it takes effect, so a look in between may come too early.
        let reached = async {
            while !holds() {
                let _ = tokio::time::timeout(std::time::Duration::from_millis(20), changes.changed()).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{:?}", self.cluster.status.report());
    }

    fn priority(&self, name: &str) -> Option<i32> {
        self.picker.objectives.priority_of(name)
    }

    fn target(&self, model: &str) -> Option<String> {
        Some(self.picker.rewrites.table()?.rewrite(model, 0)?.model.to_string())
    }

    /// What the engine gets, and the receipt.
    async fn pick(&self, request: HttpRequest) -> (Option<Bytes>, warmroute::receipt::Receipt) {
        let picked = self.picker.picker.pick(request).await.unwrap();
        (picked.body.clone(), (*self.picker.receipts.find("last").unwrap()).clone())
    }
}

#[tokio::test]
async fn objectives_of_both_groups_give_priorities() {
    let rules = Rules::new().await;
    rules.cluster.api.apply(OBJECTIVES, objective("gold", json!(10)));
    rules.cluster.api.apply(OLD_OBJECTIVES, objective("bronze", json!(-5)));
    rules.cluster.api.apply(OLD_OBJECTIVES, objective("gold", json!(1)));
    rules.follow(POOL_GROUP);
    rules.until(|| rules.priority("gold") == Some(10) && rules.priority("bronze") == Some(-5)).await;
    let (_, receipt) = rules.pick(completion_with(&[("x-llm-d-inference-objective", "gold")], None)).await;
    assert_eq!(
        (receipt.priority, receipt.fallbacks.iter().any(|note| note.detail.contains("gold"))),
        (10, false)
    );
    // The older group's one is there when the newer one's goes.
    rules.cluster.api.delete(OBJECTIVES, "gold");
    rules.until(|| rules.priority("gold") == Some(1)).await;
    rules.cluster.api.delete(OLD_OBJECTIVES, "gold");
    rules.until(|| rules.priority("gold").is_none()).await;
}

#[tokio::test]
async fn an_objective_without_priority_has_0_and_the_command_line_counts_first() {
    let rules = Rules::followed().await;
    rules.cluster.api.apply(OBJECTIVES, objective("plain", Value::Null));
    rules.cluster.api.apply(OBJECTIVES, objective("batch", json!(100)));
    rules.until(|| rules.priority("plain") == Some(0)).await;
    rules.cluster.resource_where(OBJECTIVES, |state| state.objects == 2).await;
    assert_eq!((rules.priority("batch"), rules.priority("chat")), (Some(-1), Some(3)));
    rules.cluster.api.apply(OBJECTIVES, objective("plain", json!(-7)));
    rules.until(|| rules.priority("plain") == Some(-7)).await;
}

#[tokio::test]
async fn objects_of_other_pools_are_nothing_to_us() {
    let rules = Rules::followed().await;
    let of = |name: &str, reference: Value| {
        let mut objective = objective(name, json!(1));
        objective["spec"]["poolRef"] = reference;
        rules.cluster.api.apply(OBJECTIVES, objective);
    };
    of("another-name", json!({"name": "mistral"}));
    of("another-group", json!({"name": "llama", "group": "inference.networking.x-k8s.io"}));
    of("own-group", json!({"name": "llama", "group": "inference.networking.k8s.io"}));
    of("last", json!({"name": "llama", "group": ""}));
    rules.until(|| rules.priority("last").is_some()).await;
    let known = ["another-name", "another-group", "own-group"].map(|name| rules.priority(name));
    assert_eq!(known, [None, None, Some(1)]);
    let mut elsewhere = rewrite("r", "2026-01-01T00:00:00Z", json!([generic("other")]));
    elsewhere["spec"]["poolRef"]["name"] = json!("mistral");
    rules.cluster.api.apply(REWRITES, elsewhere);
    rules.cluster.resource_where(REWRITES, |state| state.objects == 1).await;
    rules.cluster.api.apply(REWRITES, rewrite("s", "2026-01-01T00:00:00Z", json!([exact(&["a"], "b")])));
    rules.until(|| rules.target("a").is_some()).await;
    assert_eq!(rules.target("m"), None);
}

#[tokio::test]
async fn a_pool_of_the_older_group_has_objects_that_refer_to_it() {
    let rules = Rules::new().await;
    let alpha = "inference.networking.x-k8s.io";
    rules.follow(alpha);
    rules.cluster.api.apply(OLD_OBJECTIVES, objective("default-group", json!(1)));
    let mut own = objective("own", json!(2));
    own["spec"]["poolRef"]["group"] = json!(alpha);
    rules.cluster.api.apply(OLD_OBJECTIVES, own);
    rules.until(|| rules.priority("own") == Some(2)).await;
    assert_eq!(rules.priority("default-group"), None);
}

#[tokio::test]
async fn exact_rules_count_before_generic_ones_then_the_oldest_object() {
    let rules = Rules::followed().await;
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    rules
        .cluster
        .api
        .apply(REWRITES, rewrite("a-new", new, json!([exact(&["m", "n"], "new"), generic("new-any")])));
    rules.until(|| rules.target("other").as_deref() == Some("new-any")).await;
    // Of the other group, older: both count together.
    rules.cluster.api.apply(
        OLD_REWRITES,
        rewrite("z-old", old, json!([generic("old-any"), exact(&["m"], "old"), exact(&["m"], "never")])),
    );
    rules.until(|| rules.target("other").as_deref() == Some("old-any")).await;
    assert_eq!(rules.target("m").as_deref(), Some("old"));
    assert_eq!(rules.target("n").as_deref(), Some("new"), "exact, so it counts before the older generic one");
    // The same name in the newer group hides it.
    rules.cluster.api.apply(REWRITES, rewrite("z-old", old, json!([exact(&["m"], "newer group")])));
    rules.until(|| rules.target("m").as_deref() == Some("newer group")).await;
    assert_eq!(rules.target("other").as_deref(), Some("new-any"));
    rules.cluster.api.delete(REWRITES, "z-old");
    rules.until(|| rules.target("m").as_deref() == Some("old")).await;
}

#[tokio::test]
async fn the_engine_is_asked_for_the_rewritten_model() {
    let rules = Rules::followed().await;
    let when = "2026-01-01T00:00:00Z";
    rules.cluster.api.apply(REWRITES, rewrite("canary", when, json!([exact(&["m"], "tuned \"x\"")])));
    rules.until(|| rules.target("m").is_some()).await;
    let (body, receipt) = rules.pick(completion(&[1, 2, 3])).await;
    let body: Value = serde_json::from_slice(&body.expect("another body")).unwrap();
    assert_eq!(body, json!({"model": "tuned \"x\"", "prompt": [1, 2, 3]}));
    assert_eq!((receipt.model.as_str(), receipt.target_model.as_str()), ("m", "tuned \"x\""));
    assert_eq!(receipt.model_rewrite, "canary");
    assert!(warmroute::explain::describe(&receipt).contains("by InferenceModelRewrite canary"));
    // A rule counts before a header, and a header where no rule is for the model.
    let header = ("x-llm-d-model-name-rewrite", "by-header");
    let (_, receipt) = rules.pick(completion_with(&[header], None)).await;
    assert_eq!(receipt.target_model, "tuned \"x\"");
    let path = [(":method", "POST"), (":path", "/v1/completions"), header];
    let other = HttpRequest::new(HeaderList::from_pairs(path), "{\"model\":\"n\",\"prompt\":[1,2,3]}");
    let (_, receipt) = rules.pick(other).await;
    assert_eq!((receipt.target_model.as_str(), receipt.model_rewrite.as_str()), ("by-header", ""));
    let page = rules.picker.metrics.page().unwrap();
    let line = r#"llm_d_epp_model_rewrite_decisions_total{model_name="m",model_rewrite_name="canary",target_model="tuned \"x\""} 2"#;
    assert!(page.lines().any(|shown| shown == line), "{page}");
}

#[tokio::test]
async fn weights_are_shares_of_requests() {
    let rules = Rules::followed().await;
    let targets = json!([{"modelRewrite": "a", "weight": 3}, {"modelRewrite": "b", "weight": 1},
        {"modelRewrite": "never"}]);
    let rule = json!([{"matches": [], "targets": targets}]);
    rules.cluster.api.apply(REWRITES, rewrite("split", "2026-01-01T00:00:00Z", rule));
    rules.until(|| rules.target("m").is_some()).await;
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..400 {
        let (_, receipt) = rules.pick(completion(&[1, 2, 3])).await;
        *counts.entry(receipt.target_model).or_insert(0) += 1;
    }
    // Six standard deviations around 300.
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!((248..=352).contains(&counts["a"]), "{counts:?}");
}

#[tokio::test]
async fn a_body_whose_model_cannot_be_replaced_stays_and_it_is_said() {
    let rules = Rules::followed().await;
    rules.cluster.api.apply(REWRITES, rewrite("all", "2026-01-01T00:00:00Z", json!([generic("x")])));
    rules.until(|| rules.target("m").is_some()).await;
    let (body, receipt) = rules.pick(post("/v1/messages/count_tokens", "{\"model\":\"m\"}")).await;
    assert_eq!((body, receipt.target_model.as_str()), (None, ""), "{receipt:?}");
    let note = receipt.fallbacks.iter().find(|note| note.kind.as_str() == "model-rewrite-ignored").unwrap();
    assert!(note.detail.contains("asked for by InferenceModelRewrite all"), "{note:?}");
    // What names no model has nothing to rewrite.
    let (_, receipt) = rules.pick(post("/v1/messages/count_tokens", "{}")).await;
    assert!(
        receipt.fallbacks.iter().all(|note| note.kind.as_str() != "model-rewrite-ignored"),
        "{receipt:?}"
    );
}

#[tokio::test]
async fn kinds_may_be_absent_come_later_and_go() {
    let rules = Rules::new().await;
    for kind in ALL {
        rules.cluster.api.uninstall(kind);
    }
    rules.follow(POOL_GROUP);
    for kind in ALL {
        let state =
            rules.cluster.resource_where(kind, |state| state.state == FollowState::NotInstalled).await;
        assert_eq!(state.problem, None, "nothing is wrong");
    }
    rules.cluster.api.install(REWRITES);
    rules.cluster.api.install(OLD_OBJECTIVES);
    rules.cluster.api.apply(REWRITES, rewrite("r", "2026-01-01T00:00:00Z", json!([generic("x")])));
    rules.cluster.api.apply(OLD_OBJECTIVES, objective("gold", json!(10)));
    rules.until(|| rules.target("m").is_some() && rules.priority("gold") == Some(10)).await;
    rules.cluster.resource_where(REWRITES, |state| state.state == FollowState::Following).await;
    rules.cluster.api.uninstall(REWRITES);
    rules.until(|| rules.target("m").is_none()).await;
    assert_eq!(rules.priority("gold"), Some(10));
    // Removed while nobody could be told: then its objects are gone once the answer has been the same for a while.
    rules.cluster.resource_where(OLD_OBJECTIVES, |state| state.state == FollowState::Following).await;
    rules.cluster.api.stop().await;
    rules.cluster.resource_where(OLD_OBJECTIVES, |state| state.state == FollowState::Failing).await;
    assert_eq!(rules.priority("gold"), Some(10));
    rules.cluster.api.uninstall(OLD_OBJECTIVES);
    rules.cluster.api.start_again().await;
    rules.until(|| rules.priority("gold").is_none()).await;
    rules.cluster.api.install(OLD_OBJECTIVES);
    rules.cluster.api.apply(OLD_OBJECTIVES, objective("gold", json!(11)));
    rules.until(|| rules.priority("gold") == Some(11)).await;
}

#[tokio::test]
async fn a_missing_right_is_named_and_the_rest_goes_on() {
    let rules = Rules::new().await;
    rules.cluster.api.fault(REWRITES, Some(Fault::Status(403, "no")));
    rules.cluster.api.apply(OBJECTIVES, objective("gold", json!(10)));
    rules.follow(POOL_GROUP);
    let state = rules.cluster.resource_where(REWRITES, |state| state.problem.is_some()).await;
    let rule =
        "{apiGroups: [\"llm-d.ai\"], resources: [\"inferencemodelrewrites\"], verbs: [get, list, watch]}";
    assert!(state.problem.as_ref().unwrap().contains(rule), "{state:?}");
    rules.until(|| rules.priority("gold") == Some(10)).await;
}

#[tokio::test]
async fn what_cannot_be_used_is_named_and_its_last_good_version_stays() {
    let rules = Rules::followed().await;
    let when = "2026-01-01T00:00:00Z";
    rules.cluster.api.apply(REWRITES, rewrite("r", when, json!([generic("good")])));
    rules.cluster.api.apply(OBJECTIVES, objective("gold", json!(10)));
    rules.until(|| rules.target("m").is_some() && rules.priority("gold") == Some(10)).await;
    for (broken, words) in [
        (json!([{"targets": []}]), "spec.rules[0]: there are no targets"),
        (
            json!([generic("x"), {"matches": [{"model": {"type": "Regex", "value": "a.*"}}], "targets": [{"modelRewrite": "x"}]}]),
            "spec.rules[1]: a match is of the type \"Regex\"",
        ),
        (json!([{"matches": [{"model": {"value": ""}}], "targets": [{"modelRewrite": "x"}]}]), "empty model"),
        (json!([{"targets": [{"modelRewrite": ""}]}]), "empty modelRewrite"),
        (json!([{"targets": [{"modelRewrite": "x", "weight": -1}]}]), "-1"),
        (json!("rules"), "Expected a sequence"),
    ] {
        rules.cluster.api.apply(REWRITES, rewrite("r", when, broken));
        let is_told = |state: &warmroute::kubernetes::ResourceState| {
            state.refused.get("r").is_some_and(|why| why.contains(words))
        };
        rules.cluster.resource_where(REWRITES, is_told).await;
        assert_eq!(rules.target("m").as_deref(), Some("good"), "{words}");
    }
    rules.cluster.api.apply(OBJECTIVES, objective("gold", json!("high")));
    rules.cluster.resource_where(OBJECTIVES, |state| state.refused.contains_key("gold")).await;
    assert_eq!(rules.priority("gold"), Some(10));
    rules.cluster.api.apply(REWRITES, rewrite("r", when, json!([generic("better")])));
    rules.until(|| rules.target("m").as_deref() == Some("better")).await;
    rules.cluster.resource_where(REWRITES, |state| state.refused.is_empty()).await;
}
