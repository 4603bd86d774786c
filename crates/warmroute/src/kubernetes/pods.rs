//! Pods, as far as endpoints are made of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::object_watch::Kept;
use crate::pool::{DataParallel, DiscoveredEndpoint, EndpointSpec};

/// Ports of a pod that serve, of those that the pool has; the older name counts if the first is absent
/// (`pkg/epp/datastore/datastore.go` in github.com/llm-d/llm-d-router).
const ACTIVE_PORTS: [&str; 2] = ["llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"];

/// What is kept of a pod.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    uid: Arc<str>,
    /// None while it has none, isn't ready, or is being deleted.
    serves_at: Option<IpAddr>,
    labels: BTreeMap<String, String>,
    /// None: all of the pool's.
    active_ports: Option<Vec<u16>>,
    /// To tell which of two pods is the newer one.
    created: Option<String>,
}

/// What is read of it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodBody {
    #[serde(default)]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Kept for Pod {
    type Body = PodBody;

    fn keep(metadata: ObjectMeta, PodBody { status }: PodBody) -> Result<Self, String> {
        let conditions = status.conditions.unwrap_or_default();
        let is_ready =
            conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True");
        let ip = status.pod_ip.filter(|ip| !ip.is_empty());
        let serves_at = match ip.filter(|_| is_ready && metadata.deletion_timestamp.is_none()) {
            Some(ip) => Some(ip.parse().map_err(|_| format!("status.podIP {ip:?} is no IP address"))?),
            None => None,
        };
        let annotations = metadata.annotations.unwrap_or_default();
        let active = ACTIVE_PORTS.into_iter().find_map(|name| annotations.get(name));
        let ports = |list: &String| list.split(',').filter_map(|port| port.trim().parse().ok()).collect();
        Ok(Self {
            uid: metadata.uid.unwrap_or_default().into(),
            serves_at,
            labels: metadata.labels.unwrap_or_default(),
            active_ports: active.map(ports),
            created: metadata.creation_timestamp.map(|time| time.0.to_string()),
        })
    }
}

/// The endpoints of pods by name: one per target port that is active, each with its place among the target ports, as at
/// the llm-d Router EPP. Of two pods with the same address the newer one counts.
pub(super) fn endpoints_of<'p>(
    namespace: &str,
    pods: impl Iterator<Item = (&'p str, &'p Pod)>,
    ports: &[u16],
    ranks: DataParallel,
) -> Vec<DiscoveredEndpoint> {
    let serving: Vec<(&str, &Pod, IpAddr)> =
        pods.filter_map(|(name, pod)| Some((name, pod, pod.serves_at?))).collect();
    let mut newest: HashMap<(IpAddr, u16), &Pod> = HashMap::new();
    for (_, pod, ip) in &serving {
        for port in ports.iter().filter(|port| pod.is_active(**port)) {
            let known = newest.entry((*ip, *port)).or_insert(pod);
            if (&pod.created, &pod.uid) > (&known.created, &known.uid) {
                *known = pod;
            }
        }
    }
    let endpoints = serving.iter().flat_map(|(name, pod, ip)| {
        let active = (0_u16..).zip(ports).filter(|(_, port)| pod.is_active(**port));
        let newest =
            active.filter(|(_, port)| newest.get(&(*ip, **port)).is_some_and(|known| known.uid == pod.uid));
        newest.map(move |(index, port)| {
            let name = format!("{namespace}/{name}-rank-{index}");
            let mut spec = EndpointSpec::new(name, ip.to_string(), *port);
            spec.uid = pod.uid.clone();
            let data_parallel = match ports.len() {
                0 | 1 => ranks,
                _ => DataParallel { rank: Some(index), ..ranks },
            };
            DiscoveredEndpoint { spec, labels: pod.labels.clone(), data_parallel }
        })
    });
    endpoints.collect()
}

impl Pod {
    fn is_active(&self, port: u16) -> bool {
        self.active_ports.as_ref().is_none_or(|active| active.contains(&port))
    }
}
