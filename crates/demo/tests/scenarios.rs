//! The committed scenarios and policies: complete, deterministic, and of the size that their descriptions promise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

use warmroute_demo::DemoError;
use warmroute_demo::harness::Tools;
use warmroute_demo::load::Pace;
use warmroute_demo::policy::Policy;
use warmroute_demo::scenario::{HitRatioLead, Plan, ScenarioFile, Workload};

fn file() -> ScenarioFile {
    ScenarioFile::load(&Tools::root().join("deploy/demo/scenarios.yaml")).unwrap()
}

fn body(request: &warmroute_demo::load::PlannedRequest) -> serde_json::Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[test]
fn a_plan_is_the_same_every_time() {
    let file = file();
    for scenario in &file.scenarios {
        let plan = Plan::new(scenario, &file.model);
        assert_eq!(plan, Plan::new(scenario, &file.model));
        for request in plan.warm_up.iter().chain(&plan.requests) {
            let body = body(request);
            assert_eq!(body["model"], file.model);
            assert_eq!(body["stream"], true);
            assert_eq!(body["stream_options"]["include_usage"], true);
        }
    }
}

#[test]
fn repeat_is_the_public_demos_test() {
    let file = file();
    let plan = Plan::new(file.get("repeat").unwrap(), &file.model);
    assert_eq!((plan.warm_up.len(), plan.requests.len()), (1, 30));
    assert!(matches!(plan.pace, Pace::OneByOne(_)));
    let bodies: BTreeSet<_> =
        plan.requests.iter().chain(&plan.warm_up).map(|request| &request.body).collect();
    assert_eq!(bodies.len(), 1, "all thirty and the warm-up are identical");
    assert_ne!(plan.warm_up[0].headers, plan.requests[0].headers, "the warm-up is of another session");
}

#[test]
fn shared_prefix_interleaves_groups_with_one_text_each() {
    let file = file();
    let scenario = file.get("shared-prefix").unwrap();
    let Workload::SharedPrefix(spec) = &scenario.workload else { panic!("{scenario:?}") };
    let plan = Plan::new(scenario, &file.model);
    assert_eq!(plan.warm_up.len(), spec.groups);
    assert_eq!(plan.requests.len(), spec.groups * spec.questions_per_group);
    assert!(plan.requests.is_sorted_by_key(|request| request.due));
    let system = |request| body(request)["messages"][0]["content"].as_str().unwrap().to_owned();
    let documents: BTreeSet<String> = plan.warm_up.iter().map(system).collect();
    assert_eq!(documents.len(), spec.groups, "one warm-up request per group");
    let order: Vec<String> = plan.requests.iter().map(system).collect();
    assert!(order.iter().all(|document| documents.contains(document)));
    for document in &documents {
        assert_eq!(order.iter().filter(|other| *other == document).count(), spec.questions_per_group);
    }
    let neighbours = order.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(neighbours * 10 < order.len(), "{neighbours} of {} follow their own group", order.len());
    let distinct: BTreeSet<_> =
        plan.requests.iter().chain(&plan.warm_up).map(|request| &request.body).collect();
    assert_eq!(distinct.len(), plan.requests.len() + plan.warm_up.len(), "no two questions are the same");
}

#[test]
fn every_policy_is_there_and_says_what_it_does() {
    let root = Tools::root();
    let file = file();
    let names: BTreeSet<&String> =
        file.scenarios.iter().flat_map(|scenario| scenario.policies(&file)).collect();
    assert_eq!(
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["approximate", "least-loaded", "precise", "random"]
    );
    let policies: Vec<Policy> = names.iter().map(|name| Policy::load(&root, name).unwrap()).collect();
    for policy in &policies {
        assert!(policy.description.ends_with('.'), "{policy:?}");
        let text = std::fs::read_to_string(&policy.file).unwrap();
        let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(config["apiVersion"], "llm-d.ai/v1alpha1");
        assert_eq!(config["kind"], "EndpointPickerConfig");
    }
    let reading: Vec<_> =
        policies.iter().filter(|policy| policy.reads_kv_events).map(|policy| policy.name.as_str()).collect();
    assert_eq!(reading, ["precise"]);
    let error = Policy::load(&root, "lucky").unwrap_err();
    assert!(
        matches!(&error, DemoError::Unknown { known, .. } if known.contains(&"precise".to_owned())),
        "{error}"
    );
}

#[test]
fn knowing_must_beat_guessing_where_there_are_three_pickers() {
    let file = file();
    let three = file.get("three-pickers").unwrap();
    assert_eq!(three.pickers, 3);
    let lead = HitRatioLead { policy: "precise".to_owned(), over: "approximate".to_owned(), points: 10.0 };
    assert_eq!(three.expect, [lead]);
    for scenario in &file.scenarios {
        for lead in &scenario.expect {
            for policy in [&lead.policy, &lead.over] {
                assert!(
                    scenario.policies(&file).contains(policy),
                    "{policy} doesn't run in {}",
                    scenario.name
                );
            }
        }
    }
    let one = file.get("shared-prefix").unwrap();
    assert_eq!((one.pickers, &one.workload), (1, &three.workload), "the same load");
}

#[test]
fn a_mistake_in_the_file_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scenarios.yaml");
    std::fs::write(&path, "model: m\npolicies: []\nscenarios: []\nspeed: 3\n").unwrap();
    let error = ScenarioFile::load(&path).unwrap_err().to_string();
    assert!(error.contains("speed") && error.contains("line 4"), "{error}");
}
