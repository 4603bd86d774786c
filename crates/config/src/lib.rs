//! `EndpointPickerConfig`: from YAML to a checked configuration, or to every mistake with its place.
//!
//! A configuration is read in three steps: the text becomes a tree in which everything has its place; the
//! sections are read from that and checked against each other; what isn't said gets its default. Mistakes are
//! collected on the way, so that an operator sees all of them at once. What this version doesn't have is
//! refused by name, and nothing is silently ignored: see [`CheckedConfig::notices`].
//!
//! The file that `file-discovery` names is read in the same way, by [`read_endpoints`].

mod built_in;
mod check;
mod checked;
mod endpoints;
mod engine_metrics;
mod fields;
mod filter_side;
mod handler_spec;
mod handlers;
mod host_parts;
mod host_plugins;
mod known_types;
mod peer_type_list;
mod peer_types;
mod place;
mod plugins;
mod prefix_binding;
mod prefix_producer;
mod profiles;
mod scalar;
mod sections;
mod suggest;
mod summary;
mod text;
mod token_producer_spec;
mod yaml;

pub use built_in::{BUILT_IN, built_in};
pub use check::check;
pub use checked::{
    CheckedConfig, FileDiscoverySpec, HttpSourceSpec, Parser, PluginRef, PluginSpec, ProfileSpec,
    SessionIdProducerSpec, SessionIdSource, SourceTlsSpec,
};
pub use endpoints::{ListedEndpoint, MAX_RANKS, read_endpoints};
pub use engine_metrics::{
    CustomMetricSpec, EngineMetricsSpec, MetricSpec, MetricSpecError, MetricsExtractorSpec, OLD_ENGINE_LABEL,
    RankSeries,
};
pub use handler_spec::{
    DeciderKind, DeciderSpec, DisaggregationSpec, HandlerKind, OnFailureSpec, ProfileHandlerSpec,
    StageOrderSpec, StageSpec,
};
pub use host_parts::{Default as ParameterDefault, HostParameter, HostPart, host_parts};
pub use known_types::{KnownTypes, ParameterMistake, SchedulingKind};
pub use peer_type_list::{PeerType, peer_types};
pub use place::{ConfigError, Mistake, Notice, Place, Source};
pub use prefix_producer::{
    ApproximatePrefixSpec, PrecisePrefixSpec, PrefixLimit, PrefixProducerSpec, TierWeights,
};
pub use token_producer_spec::{
    EstimateSpec, FramesSpec, ImageEstimateSpec, PictureTokensSpec, ResolutionSpec, TokenBackend,
    TokenProducerSpec, VideoEstimateSpec, VllmBackendSpec,
};
