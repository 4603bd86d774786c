//! Who may reach a picker.

use serde_json::Value;

use crate::objects::{Objects, container, list, selects};

/// Where there is a policy: snapshots are for other pickers alone, KV events for engines alone, and what isn't served
/// isn't open.
pub(crate) fn is_closed_to_strangers(what: &str, objects: &Objects) {
    let labels = &objects.picker()["spec"]["template"]["metadata"]["labels"];
    let policies = objects.of("NetworkPolicy").into_iter();
    let policy =
        policies.into_iter().find(|policy| selects(&policy["spec"]["podSelector"]["matchLabels"], labels));
    let Some(policy) = policy else { return };
    let rules = list(&policy["spec"]["ingress"]);
    let siblings = rule_of(rules, objects.picker_flag("replica-port").unwrap());
    let siblings = list(&siblings.expect("no rule for replicas")["from"]);
    assert_eq!(siblings.len(), 1, "{what}: {siblings:?}");
    assert!(selects(&siblings[0]["podSelector"]["matchLabels"], labels), "{what}: {siblings:?}");
    assert!(siblings[0]["namespaceSelector"].is_null(), "{what}: {siblings:?}");
    let epp = container(objects.picker(), "epp").unwrap();
    let events = list(&epp["ports"]).iter().find(|port| port["name"] == "kv-events");
    if let Some(events) = events {
        let rule = rule_of(rules, &events["containerPort"].to_string()).expect("no rule for KV events");
        assert!(!list(&rule["from"]).is_empty(), "{what}: everybody may say what engines hold");
    }
    for rule in rules {
        assert!(!list(&rule["ports"]).is_empty(), "{what}: a rule opens every port");
    }
    // An Envoy in the same pod asks by loopback, so nobody else has any business there.
    let sidecar = container(objects.picker(), "envoy").is_some();
    let ext_proc = rule_of(rules, objects.picker_flag("grpc-port").unwrap());
    assert!(!sidecar || ext_proc.is_none_or(|rule| !list(&rule["from"]).is_empty()), "{what}");
}

fn rule_of<'a>(rules: &'a [Value], port: &str) -> Option<&'a Value> {
    rules
        .iter()
        .find(|rule| list(&rule["ports"]).iter().any(|given| given["port"].as_u64() == port.parse().ok()))
}
