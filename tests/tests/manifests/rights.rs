//! What a picker may ask the API server.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::objects::{Objects, list, pod, strings};
use crate::picker_args::pool_name;

type Right = (String, String, String);

/// Exactly the rights that follow from the picker's flags, bound to its service account and to nobody else.
pub(crate) fn are_as_few_as_needed(what: &str, objects: &Objects) {
    let account = pod(objects.picker())["serviceAccountName"].as_str().unwrap();
    let mut wanted = rights("", "pods", &["get", "list", "watch"]);
    if objects.picker_flag("pool-name").is_some() {
        for group in ["inference.networking.k8s.io", "inference.networking.x-k8s.io"] {
            wanted.extend(rights(group, "inferencepools", &["get", "list", "watch"]));
        }
        for group in ["llm-d.ai", "inference.networking.x-k8s.io"] {
            for resource in ["inferenceobjectives", "inferencemodelrewrites"] {
                wanted.extend(rights(group, resource, &["get", "list", "watch"]));
            }
        }
    }
    if objects.picker_flag("ha-enable-leader-election") == Some("true") {
        wanted.extend(rights("coordination.k8s.io", "leases", &["create", "get", "update"]));
    }
    assert_eq!(granted(what, objects, "RoleBinding", "Role", account), wanted, "{what}: Role");
    // Of leases the picker reads and changes its own alone.
    let lease = format!("epp-inference-{}.llm-d.ai", pool_name(what, objects));
    for rule in objects.of("Role").into_iter().flat_map(|role| list(&role["rules"])) {
        if strings(&rule["resources"]) == ["leases"] && strings(&rule["verbs"]) != ["create"] {
            assert_eq!(strings(&rule["resourceNames"]), [lease.as_str()], "{what}");
        }
    }
    let mut wanted = BTreeSet::new();
    if objects.picker_flag("metrics-endpoint-auth") == Some("true") {
        wanted.extend(rights("authentication.k8s.io", "tokenreviews", &["create"]));
        wanted.extend(rights("authorization.k8s.io", "subjectaccessreviews", &["create"]));
        for own_page in ["/status", "/debug/decisions", "/debug/decisions/*"] {
            wanted.extend(rights("", own_page, &["get"]));
        }
    }
    assert_eq!(
        granted(what, objects, "ClusterRoleBinding", "ClusterRole", account),
        wanted,
        "{what}: ClusterRole"
    );
    scraper_reads_metrics_alone(what, objects, account);
}

/// The account of whoever scrapes may read the metrics page, and nothing else in the whole cluster.
fn scraper_reads_metrics_alone(what: &str, objects: &Objects, picker: &str) {
    for account in objects.of("ServiceAccount") {
        let name = account["metadata"]["name"].as_str().unwrap();
        if name == picker {
            continue;
        }
        let wanted = BTreeSet::from([("".to_owned(), "/metrics".to_owned(), "get".to_owned())]);
        assert_eq!(
            granted(what, objects, "ClusterRoleBinding", "ClusterRole", name),
            wanted,
            "{what}: {name}"
        );
        assert!(granted(what, objects, "RoleBinding", "Role", name).is_empty(), "{what}: {name}");
    }
}

fn rights(group: &str, resource: &str, verbs: &[&str]) -> BTreeSet<Right> {
    verbs.iter().map(|verb| (group.to_owned(), resource.to_owned(), (*verb).to_owned())).collect()
}

/// What bindings of a kind grant a service account.
fn granted(what: &str, objects: &Objects, binding: &str, role: &str, account: &str) -> BTreeSet<Right> {
    let bindings = objects.of(binding).into_iter().filter(|binding| {
        list(&binding["subjects"]).iter().any(|subject| {
            assert!(!subject["namespace"].is_null(), "{what}: {subject}");
            subject["kind"] == "ServiceAccount" && subject["name"] == account
        })
    });
    bindings
        .flat_map(|binding| {
            assert_eq!(binding["roleRef"]["kind"], role, "{what}");
            let name = binding["roleRef"]["name"].as_str().unwrap();
            let role = objects.named(role, name).unwrap_or_else(|| panic!("{what}: no {role} {name}"));
            list(&role["rules"]).iter().flat_map(granted_by).collect::<Vec<_>>()
        })
        .collect()
}

fn granted_by(rule: &Value) -> Vec<Right> {
    let mut rights = Vec::new();
    let groups = if rule["apiGroups"].is_null() { vec![""] } else { strings(&rule["apiGroups"]) };
    for group in groups {
        for resource in strings(&rule["resources"]).into_iter().chain(strings(&rule["nonResourceURLs"])) {
            for verb in strings(&rule["verbs"]) {
                rights.push((group.to_owned(), resource.to_owned(), verb.to_owned()));
            }
        }
    }
    rights
}
