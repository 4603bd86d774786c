use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::ProtocolConfiguration;
use serde::{Deserialize, Serialize};

/// How the gateway hands bodies of one direction to the picker (Envoy's `BodySendMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BodyMode {
    /// No body is sent.
    None,
    /// Chunk by chunk, each answered before the next part of the body goes on; request headers
    /// must be answered before the body is sent.
    Streamed,
    /// The whole body in one message.
    Buffered,
    /// One message with as much as the gateway's buffer holds.
    BufferedPartial,
    /// Chunks in, chunks out, each direction at its own pace.
    FullDuplex,
    /// gRPC messages one by one, answered in the language of full duplex.
    Grpc,
    /// A mode that this build doesn't know.
    Unknown,
}

impl BodyMode {
    fn from_proto(mode: i32) -> Self {
        match BodySendMode::try_from(mode) {
            Ok(BodySendMode::None) => Self::None,
            Ok(BodySendMode::Streamed) => Self::Streamed,
            Ok(BodySendMode::Buffered) => Self::Buffered,
            Ok(BodySendMode::BufferedPartial) => Self::BufferedPartial,
            Ok(BodySendMode::FullDuplexStreamed) => Self::FullDuplex,
            Ok(BodySendMode::Grpc) => Self::Grpc,
            Err(_) => Self::Unknown,
        }
    }

    /// Whether every chunk has to be handed back in order to go on.
    pub fn is_echoed(self) -> bool {
        matches!(self, Self::FullDuplex | Self::Grpc)
    }
}

/// The body modes of both directions, as told by the first message of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyModes {
    /// How request bodies come.
    pub request: BodyMode,
    /// How response bodies come.
    pub response: BodyMode,
}

impl BodyModes {
    /// Full duplex in both directions: what a gateway is taken to mean that tells no modes. Older
    /// gateways and the peers' test clients send no `protocol_config`, and full duplex is the only
    /// mode that the llm-d Router picker serves.
    pub const UNTOLD: Self = Self { request: BodyMode::FullDuplex, response: BodyMode::FullDuplex };

    /// Presence counts, not content: with both modes NONE the message is there and empty.
    pub fn from_proto(config: Option<&ProtocolConfiguration>) -> Self {
        config.map_or(Self::UNTOLD, |config| Self {
            request: BodyMode::from_proto(config.request_body_mode),
            response: BodyMode::from_proto(config.response_body_mode),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_is_none_and_an_absent_one_full_duplex() {
        let empty = BodyModes::from_proto(Some(&ProtocolConfiguration::default()));
        assert_eq!(empty, BodyModes { request: BodyMode::None, response: BodyMode::None });
        assert_eq!(BodyModes::from_proto(None), BodyModes::UNTOLD);
    }

    #[test]
    fn every_number_has_a_mode() {
        let modes: Vec<_> = (0..7).map(BodyMode::from_proto).collect();
        use BodyMode::{Buffered, BufferedPartial, FullDuplex, Grpc, None, Streamed, Unknown};
        assert_eq!(modes, [None, Streamed, Buffered, BufferedPartial, FullDuplex, Grpc, Unknown]);
    }
}
