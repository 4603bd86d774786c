//! One ext-proc stream as a pure state machine, and the tonic service that drives it.
//!
//! The host implements [`EndpointPicker`] and serves an [`ExtProcService`]; every HTTP request then
//! becomes one call of [`EndpointPicker::pick`], whatever body modes the gateway uses. The lease
//! that the pick returns is dropped when the request's stream ends, however it ends.
//!
//! Protobuf types stop here: nothing of them is in the traits that the host sees.

mod body_mode;
mod counters;
mod drain;
mod endpoint_picker;
mod ext_proc_service;
mod header_list;
mod http_request;
mod probe_record;
mod probe_watch;
mod probes;
mod process_stream;
pub mod stream;
mod violation;

pub use body_mode::{BodyMode, BodyModes};
pub use counters::{Counters, CountersSnapshot, RefusalCount};
pub use drain::Drain;
pub use endpoint_picker::{EndpointPicker, Picked, Refusal, StreamEnd, StreamLease};
pub use ext_proc_service::{ExtProcService, ServiceConfig};
pub use header_list::HeaderList;
pub use http_request::{HttpRequest, RequestBody, subset_host};
pub use probe_record::{ProbeAnswer, ProbeEnd, ProbeMessage, ProbeOrder, ProbeRecord};
pub use probes::{ProbeRefused, Probes};
pub use process_stream::ProcessStream;
pub use violation::Violation;

/// The request header, and the key in the metadata namespace `envoy.lb`, that names the picked endpoint.
pub const DESTINATION_HEADER: &str = "x-gateway-destination-endpoint";

/// The request header by which vLLM's API server gives a request to one of its data-parallel ranks
/// (`vllm/entrypoints/openai/engine/serving.py`).
pub const RANK_HEADER: &str = "x-data-parallel-rank";

/// The response header that says why a request was refused.
pub const DROPPED_REASON_HEADER: &str = "x-llm-d-request-dropped-reason";

/// The key in the metadata namespace `envoy.lb` of every scored endpoint's score.
pub const SCORES_KEY: &str = "x-gateway-destination-endpoint-scores";

/// Request headers that only a picker may set, because gateways, engines and the sidecars before them route by them.
/// What a client sent under these names is replaced or removed.
///
/// Source: `pkg/epp/metadata/consts.go` and `pkg/common/routing` in github.com/llm-d/llm-d-router, with names of its
/// older versions, which older sidecars obey.
pub const ROUTING_HEADERS: [&str; 10] = [
    DESTINATION_HEADER,
    RANK_HEADER,
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
    "x-prefiller-url",
    "x-gateway-destination-endpoint-served",
    "x-gateway-destination-endpoint-fallback",
    SCORES_KEY,
];

/// The request header that names the nonces of a [probe](Probes), separated by commas. It never reaches an engine by way
/// of the picker.
pub const PROBE_HEADER: &str = "x-warmroute-probe";

/// Request headers by which clients talk to the picker, in today's and in older spellings. They are removed, so that
/// no engine sees them.
///
/// Source: `pkg/epp/metadata/consts.go` and the system-owned headers of `pkg/epp/util/request/headers.go` in
/// github.com/llm-d/llm-d-router, which only means to remove them.
pub const CONTROL_HEADERS: [&str; 15] = [
    "x-llm-d-inference-objective",
    "x-gateway-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
    "x-llm-d-model-name-rewrite",
    "x-gateway-model-name-rewrite",
    "x-llm-d-slo-ttft-ms",
    "x-slo-ttft-ms",
    "x-llm-d-slo-tpot-ms",
    "x-slo-tpot-ms",
    "x-llm-d-video-fps",
    "x-llm-d-video-duration-seconds",
    "x-llm-d-video-resolution",
    "x-gateway-destination-endpoint-subset",
    PROBE_HEADER,
];

/// Most body bytes in one message back to the gateway; some Envoys cap messages at 64 KiB.
pub const MAX_CHUNK_BYTES: usize = 62_000;
