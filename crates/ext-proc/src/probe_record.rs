use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BodyModes;

/// What the picker does with the one request of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeAnswer {
    /// Picks and answers as for every request.
    #[default]
    Pick,
    /// Picks, and names the destination in the request header alone.
    HeaderOnly,
    /// Picks, and names the destination in the metadata namespace `envoy.lb` alone.
    MetadataOnly,
    /// Picks, and names the destination nowhere.
    Neither,
    /// Picks nothing: refuses with 429 and the reason `warmroute-probe` when the request is there. No engine sees it.
    Immediate,
    /// Ends the stream with a gRPC error instead of taking the first message.
    FailAtHeaders,
    /// Ends the stream with a gRPC error instead of picking.
    FailAtPick,
}

impl ProbeAnswer {
    /// Where the answer names the destination: in the header, in the metadata.
    pub(crate) fn names_in(self) -> (bool, bool) {
        match self {
            Self::HeaderOnly => (true, false),
            Self::MetadataOnly => (false, true),
            Self::Neither => (false, false),
            Self::Pick | Self::Immediate | Self::FailAtHeaders | Self::FailAtPick => (true, true),
        }
    }
}

/// How the picker shall behave towards a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeOrder {
    /// What it does.
    pub answer: ProbeAnswer,
    /// How long it waits before it picks, in milliseconds; [`ProbeOrder::MAX_DELAY_MS`] at most.
    pub delay_ms: u32,
}

impl ProbeOrder {
    /// The longest delay that is taken, in milliseconds.
    pub const MAX_DELAY_MS: u32 = 60_000;

    pub(crate) fn delay(self) -> Duration {
        Duration::from_millis(u64::from(self.delay_ms.min(Self::MAX_DELAY_MS)))
    }
}

/// One message of a probe's stream, either way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeMessage {
    /// As the field of the protobuf message is called: `request_headers`, `response_body`, `immediate_response`, …
    pub kind: String,
    /// Bytes of the body; 0 for other kinds.
    pub bytes: usize,
    /// Whether the gateway said that nothing of this direction follows.
    pub end_of_stream: bool,
    /// When, in microseconds since the stream's first message.
    pub at_us: u64,
}

/// How a probe's stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeEnd {
    /// The gRPC status by its name: `OK`, `Canceled`, `Internal`, …
    pub status: String,
    /// Whether the gateway ended it, and not the picker.
    pub by_gateway: bool,
    /// When, in microseconds since the stream's first message.
    pub at_us: u64,
}

/// What the picker saw of a probe. Names, sizes and times; no text of the request but its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// Streams that named the probe. The first is recorded and gets what was ordered, further ones (a gateway that
    /// tries again) are served like any other.
    pub streams: u32,
    /// The other end of the connection that the stream came by, if it is known.
    pub gateway: Option<SocketAddr>,
    /// The body modes that the first message told; None if it told none.
    pub modes: Option<BodyModes>,
    /// `x-request-id` as it came, if it is short.
    pub request_id: Option<String>,
    /// The routing headers ([`crate::ROUTING_HEADERS`]) that came from the client or the gateway.
    pub routing_headers: Vec<String>,
    /// Metadata namespaces that came with any message.
    pub metadata_namespaces: Vec<String>,
    /// Entries of the subset hint, if there was one.
    pub subset_entries: Option<usize>,
    /// Names of the attributes that came.
    pub attributes: Vec<String>,
    /// Messages of the gateway, the first [`ProbeRecord::MAX_MESSAGES`] of them.
    pub received: Vec<ProbeMessage>,
    /// Messages of the picker, the first [`ProbeRecord::MAX_MESSAGES`] of them.
    pub sent: Vec<ProbeMessage>,
    /// Messages that aren't listed any more.
    pub unlisted_messages: u64,
    /// The destination that was picked, as it is named to the gateway.
    pub destination: Option<String>,
    /// The endpoint that served, by the gateway's own word in the response phase.
    pub served: Option<String>,
    /// The end of the stream, if it has ended.
    pub ended: Option<ProbeEnd>,
}

impl ProbeRecord {
    /// Most messages listed per direction.
    pub const MAX_MESSAGES: usize = 256;

    /// The first message of a kind that came.
    pub fn first_received(&self, kind: &str) -> Option<&ProbeMessage> {
        self.received.iter().find(|message| message.kind == kind)
    }

    /// Whether the gateway sent a message of this kind.
    pub fn has_received(&self, kind: &str) -> bool {
        self.first_received(kind).is_some()
    }
}
