//! The engines' side of KV events, sans IO: ZMTP codec, event decoding, sequence tracking.
//!
//! An engine (vLLM, SGLang) publishes what enters and leaves its KV cache as msgpack batches over a ZeroMQ PUB
//! socket. This crate turns bytes into messages ([`zmtp`]), messages into numbered payloads ([`LiveMessage`]),
//! payloads into events ([`decode_batch`]), and numbered batches, live and replayed, into one engine's history and how
//! far it can be trusted ([`EngineFeed`], [`Replay`]). Nothing here owns a socket, a task or a clock.
//!
//! Everything is fed by peers that may be broken or hostile, so no input panics, and memory and time are bounded by
//! the size of the input and by [`DecodeLimits`] and [`zmtp::Limits`].

mod batch_decoder;
mod decode;
mod decode_error;
pub mod engine_feed;
mod engine_hash;
mod event_batch;
mod live_message;
mod msgpack;
mod replay;
mod token_pairs;
mod trust;
pub mod zmtp;

pub use batch_decoder::BatchDecoder;
pub use decode::{DecodeLimits, batch_rank, batch_time, decode_batch};
pub use decode_error::DecodeError;
pub use engine_feed::{
    EngineFeed, FeedBatch, FeedEvent, FeedHistory, FeedSettings, FeedSink, KnownBatch, ReplayOrder,
};
pub use engine_hash::EngineHash;
pub use event_batch::{
    BlocksRemoved, BlocksStored, EventBatch, ExtraKey, KvEvent, Medium, SkippedEvent, SkippedEvents, SpecKind,
};
pub use live_message::{LiveMessage, LiveMessageError};
pub use replay::{Replay, ReplayEnd, ReplayLimits, ReplayStep};
pub use trust::{ApplyFacts, Trust, TrustReason, TrustState};
