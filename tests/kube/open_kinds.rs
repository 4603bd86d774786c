//! Definitions of kinds whose own ones can't be fetched everywhere: any fields are taken, so that only their names and
//! metadata are checked.

use serde_json::json;

use crate::manifests::Manifests;

/// Group, version, kind and plural.
const KINDS: [(&str, &str, &str, &str); 8] = [
    ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    ("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"),
    ("monitoring.googleapis.com", "v1", "PodMonitoring", "podmonitorings"),
    ("networking.gke.io", "v1", "GCPBackendPolicy", "gcpbackendpolicies"),
    ("networking.gke.io", "v1", "HealthCheckPolicy", "healthcheckpolicies"),
    ("gateway.kgateway.dev", "v1alpha1", "BackendConfigPolicy", "backendconfigpolicies"),
    ("agentgateway.dev", "v1alpha1", "AgentgatewayPolicy", "agentgatewaypolicies"),
];

/// The definitions, but for those that are there already.
///
/// # Errors
/// None in practice: the text is made here.
pub(crate) fn definitions(known: &Manifests) -> anyhow::Result<Manifests> {
    let mut text = String::new();
    for (group, version, kind, plural) in KINDS {
        if known.has(&format!("{plural}.{group}")) {
            continue;
        }
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                "versions": [{
                    "name": version,
                    "served": true,
                    "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                }],
            },
        });
        text.push_str(&format!("---\n{definition}\n"));
    }
    Manifests::parse(&text)
}
