//! How near two endpoints are to each other, by their labels.

use serde::{Deserialize, Serialize};
use warmroute_plugin::Endpoint;

/// A level of nearness, the tightest one first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TopologyLevel {
    /// The same machine.
    #[default]
    Host,
    /// The same rack.
    Rack,
    /// The same zone.
    Zone,
    /// The same region.
    Region,
}

impl TopologyLevel {
    /// All of them, the tightest first.
    pub const ALL: [Self; 4] = [Self::Host, Self::Rack, Self::Zone, Self::Region];

    /// The label that says where an endpoint is on this level.
    pub fn label(self) -> &'static str {
        match self {
            Self::Host => "kubernetes.io/hostname",
            Self::Rack => "topology.kubernetes.io/rack",
            Self::Zone => "topology.kubernetes.io/zone",
            Self::Region => "topology.kubernetes.io/region",
        }
    }

    /// The tightest level that two endpoints share; `None` if none, or if their labels don't say.
    pub fn shared(one: &Endpoint, other: &Endpoint) -> Option<Self> {
        Self::ALL.into_iter().find(|level| {
            let place = one.labels.get(level.label()).filter(|place| !place.is_empty());
            place.is_some() && place == other.labels.get(level.label())
        })
    }
}
