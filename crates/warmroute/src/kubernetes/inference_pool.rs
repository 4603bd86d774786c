//! InferencePools, as far as they say which pods are in them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::object_watch::Kept;

/// Which pods are in a pool, and where they serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// A label selector as text.
    pub(super) selector: String,
    /// Serving ports, at least one, each once.
    pub(super) ports: Vec<u16>,
}

/// What is read of a pool, of either version:
/// `api/v1/inferencepool_types.go` and `apix/v1alpha2/inferencepool_types.go` in
/// sigs.k8s.io/gateway-api-inference-extension.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PoolBody {
    spec: PoolSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolSpec {
    /// v1: an object with `matchLabels`; v1alpha2: the labels themselves.
    selector: BTreeMap<String, Value>,
    /// v1.
    target_ports: Option<Vec<TargetPort>>,
    /// v1alpha2.
    target_port_number: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
struct TargetPort {
    number: u16,
}

impl Kept for Membership {
    type Body = PoolBody;

    fn keep(_: ObjectMeta, PoolBody { spec }: PoolBody) -> Result<Self, String> {
        let labels = match spec.selector.get("matchLabels") {
            Some(Value::Object(labels)) => labels.clone().into_iter().collect(),
            _ => spec.selector,
        };
        let pair = |(key, value): (&String, &Value)| match value {
            Value::String(value) => Ok(format!("{key}={value}")),
            _ => Err(format!("the label {key:?} of spec.selector isn't text")),
        };
        let selector = labels.iter().map(pair).collect::<Result<Vec<_>, _>>()?.join(",");
        if selector.is_empty() {
            return Err("spec.selector has no labels, so it would select every pod".to_owned());
        }
        let listed = spec.target_ports.unwrap_or_default().into_iter().map(|port| port.number);
        let mut ports: Vec<u16> = Vec::new();
        for port in listed.chain(spec.target_port_number) {
            if port != 0 && !ports.contains(&port) {
                ports.push(port);
            }
        }
        if ports.is_empty() { Err("it has no target port".to_owned()) } else { Ok(Self { selector, ports }) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(spec: Value) -> Result<Membership, String> {
        let body: PoolBody =
            serde_json::from_value(json!({ "spec": spec })).map_err(|error| error.to_string())?;
        Membership::keep(ObjectMeta::default(), body)
    }

    #[test]
    fn both_versions_are_read() {
        let v1 = json!({"selector": {"matchLabels": {"app": "vllm", "tier": "a"}}, "appProtocol": "http",
            "targetPorts": [{"number": 8000}, {"number": 8001}, {"number": 8000}], "toCome": {"x": 1}});
        let expected =
            |ports: &[u16]| Membership { selector: "app=vllm,tier=a".to_owned(), ports: ports.to_vec() };
        assert_eq!(read(v1), Ok(expected(&[8000, 8001])));
        let alpha =
            json!({"selector": {"app": "vllm", "tier": "a"}, "targetPortNumber": 8000, "extensionRef": {}});
        assert_eq!(read(alpha), Ok(expected(&[8000])));
        let odd = json!({"selector": {"matchLabels": "text"}, "targetPortNumber": 1});
        assert_eq!(read(odd).unwrap().selector, "matchLabels=text");
    }

    #[test]
    fn what_selects_nothing_or_everything_is_refused() {
        let ports = json!([{"number": 8000}]);
        for (spec, words) in [
            (json!({"selector": {"matchLabels": {}}, "targetPorts": ports}), "every pod"),
            (json!({"selector": {}, "targetPorts": ports}), "every pod"),
            (json!({"selector": {"matchLabels": {"a": 1}}, "targetPorts": ports}), "isn't text"),
            (json!({"selector": {"matchLabels": {"a": "b"}}}), "no target port"),
            (json!({"selector": {"a": "b"}, "targetPorts": [{"number": 70000}]}), "u16"),
            (json!({"targetPorts": ports}), "selector"),
        ] {
            let error = read(spec.clone()).unwrap_err();
            assert!(error.contains(words), "{spec}: {error}");
        }
    }
}
