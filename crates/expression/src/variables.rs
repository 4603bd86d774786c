//! What an expression can read: names, and how a row's value is got.

use std::sync::Arc;

use http::HeaderName;
use warmroute_plugin::{
    AdapterColumn, AdapterState, AttributeColumn, BuildContext, Candidates, Endpoint, EndpointMetrics,
    InferenceRequest, MetricsState, PrefixColumn, PrefixMatch,
};

/// One row of a table, and the request.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) request: &'a InferenceRequest,
    pub(crate) candidates: &'a Candidates<'a>,
    pub(crate) row: usize,
}

/// A variable by its type.
#[derive(Clone, Debug)]
pub(crate) enum Variable {
    Number(NumberVariable),
    Truth(TruthVariable),
    Text(TextVariable),
}

/// A variable that is a number; every one is a double.
#[derive(Clone, Debug)]
pub(crate) enum NumberVariable {
    PromptTokens,
    MaxTokens,
    MediaParts,
    Priority,
    InFlightRequests,
    InFlightPromptTokens,
    /// Of the last scrape, if it is recent enough to act on.
    Metric(fn(&EndpointMetrics) -> f64),
    /// Of the last good scrape, however old.
    LastMetric(fn(&EndpointMetrics) -> f64),
    Prefix(PrefixColumn, fn(&PrefixMatch) -> f64),
    Attribute(AttributeColumn),
}

/// A variable that is true or false.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TruthVariable {
    Stream,
    PromptTokensEstimated,
    Fresh,
    Stale,
    NeverScraped,
}

/// A variable that is a text.
#[derive(Clone, Debug)]
pub(crate) enum TextVariable {
    Model,
    TargetModel,
    Header(HeaderName),
    RequestAttribute(Arc<str>),
    Adapter(AdapterColumn),
    Endpoint(EndpointText),
    /// Of the endpoint that an earlier profile picked.
    Peer(EndpointText),
}

#[derive(Clone, Debug)]
pub(crate) enum EndpointText {
    Name,
    Address,
    Label(Box<str>),
}

impl NumberVariable {
    pub(crate) fn read(&self, row: &Row<'_>) -> Option<f64> {
        let metrics = || row.candidates.metrics().get(row.row);
        let in_flight = || row.candidates.in_flight().get(row.row);
        match self {
            Self::PromptTokens => row.request.prompt_tokens.map(f64::from),
            Self::MaxTokens => row.request.max_tokens.map(f64::from),
            Self::MediaParts => Some(f64::from(row.request.media_parts)),
            Self::Priority => Some(f64::from(row.request.priority)),
            Self::InFlightRequests => in_flight().map(|load| f64::from(load.requests)),
            Self::InFlightPromptTokens => in_flight().map(|load| load.prompt_tokens as f64),
            Self::Metric(of) => metrics().and_then(MetricsState::fresh).map(of),
            Self::LastMetric(of) => metrics().and_then(MetricsState::last).map(of),
            Self::Prefix(column, of) => row.candidates.prefix_match(*column).get(row.row).map(of),
            Self::Attribute(column) => row.candidates.attribute(*column).get(row.row).copied().flatten(),
        }
    }

    pub(crate) fn is_of_request(&self) -> bool {
        matches!(self, Self::PromptTokens | Self::MaxTokens | Self::MediaParts | Self::Priority)
    }
}

impl TruthVariable {
    pub(crate) fn read(self, row: &Row<'_>) -> bool {
        let metrics = row.candidates.metrics().get(row.row).copied().unwrap_or_default();
        match self {
            Self::Stream => row.request.stream,
            Self::PromptTokensEstimated => row.request.prompt_tokens_estimated,
            Self::Fresh => matches!(metrics, MetricsState::Fresh(_)),
            Self::Stale => matches!(metrics, MetricsState::Stale(_)),
            Self::NeverScraped => matches!(metrics, MetricsState::NeverScraped),
        }
    }

    pub(crate) fn is_of_request(self) -> bool {
        matches!(self, Self::Stream | Self::PromptTokensEstimated)
    }
}

impl TextVariable {
    pub(crate) fn read<'a>(&'a self, row: &Row<'a>) -> Option<&'a str> {
        match self {
            Self::Model => Some(&row.request.model),
            Self::TargetModel => Some(&row.request.target_model),
            Self::Header(name) => std::str::from_utf8(row.request.headers.get(name)?.as_bytes()).ok(),
            Self::RequestAttribute(key) => row.request.attribute(key),
            Self::Adapter(column) => {
                let state = row.candidates.adapters(*column).get(row.row).copied();
                Some(adapter_word(state.unwrap_or_default()))
            }
            Self::Endpoint(text) => text.read(row.candidates.endpoint(row.row)),
            Self::Peer(text) => text.read(row.candidates.peer()?),
        }
    }

    pub(crate) fn is_of_request(&self) -> bool {
        matches!(
            self,
            Self::Model | Self::TargetModel | Self::Header(_) | Self::RequestAttribute(_) | Self::Peer(_)
        )
    }
}

impl EndpointText {
    fn read<'a>(&self, endpoint: &'a Endpoint) -> Option<&'a str> {
        match self {
            Self::Name => Some(&endpoint.name),
            Self::Address => Some(&endpoint.address),
            Self::Label(key) => endpoint.labels.get(&**key).map(String::as_str),
        }
    }
}

fn adapter_word(state: AdapterState) -> &'static str {
    match state {
        AdapterState::Active => "active",
        AdapterState::Room => "room",
        AdapterState::Waiting => "waiting",
        AdapterState::Full => "full",
        _ => "unknown",
    }
}

const ROOTS: &str =
    "request, endpoint, peer, metrics, last_metrics, in_flight, prefix, attributes and adapter";
const REQUEST: &str = "model, target_model, stream, priority, prompt_tokens, prompt_tokens_estimated, max_tokens, \
                       media_parts, headers and attributes";
const METRICS: &str =
    "waiting_requests, running_requests, kv_cache_utilization, block_size_tokens and num_gpu_blocks";
const PREFIX: &str = "matched_ratio, matched_blocks, matched_tokens, total_blocks and block_size_tokens";

/// The variable with this name, for example `["request", "headers", "x-tier"]`; its column is asked for.
///
/// # Errors
///
/// What is wrong with the name, and which there are.
pub(crate) fn variable(path: &[&str], context: &mut BuildContext<'_>) -> Result<Variable, String> {
    let unknown =
        |of: &str, name: &str, known: &str| Err(format!("{of} has no field {name}; there are {known}"));
    match path {
        ["request", rest @ ..] => request_variable(rest, context),
        ["endpoint", rest @ ..] => {
            endpoint_text("endpoint", rest).map(TextVariable::Endpoint).map(Variable::Text)
        }
        ["peer", rest @ ..] => endpoint_text("peer", rest).map(TextVariable::Peer).map(Variable::Text),
        ["metrics", "fresh"] => Ok(Variable::Truth(TruthVariable::Fresh)),
        ["metrics", "stale"] => Ok(Variable::Truth(TruthVariable::Stale)),
        ["metrics", "never_scraped"] => Ok(Variable::Truth(TruthVariable::NeverScraped)),
        ["metrics", name] => match metric(name) {
            Some(of) => Ok(Variable::Number(NumberVariable::Metric(of))),
            None => unknown("metrics", name, &format!("{METRICS}, and fresh, stale and never_scraped")),
        },
        ["last_metrics", name] => match metric(name) {
            Some(of) => Ok(Variable::Number(NumberVariable::LastMetric(of))),
            None => unknown("last_metrics", name, METRICS),
        },
        ["in_flight", "requests"] => Ok(Variable::Number(NumberVariable::InFlightRequests)),
        ["in_flight", "prompt_tokens"] => Ok(Variable::Number(NumberVariable::InFlightPromptTokens)),
        ["in_flight", name] => unknown("in_flight", name, "requests and prompt_tokens"),
        ["prefix", ""] => Err("a producer's name must not be empty".to_owned()),
        ["prefix", producer, name] => match prefix_field(name) {
            Some(of) => Ok(Variable::Number(NumberVariable::Prefix(context.prefix_match(producer), of))),
            None => unknown("a prefix match", name, PREFIX),
        },
        ["prefix", _] => Err(format!("a prefix match is no value; it has the fields {PREFIX}")),
        ["attributes", key] => Ok(Variable::Number(NumberVariable::Attribute(context.attribute(key)))),
        ["adapter"] => Ok(Variable::Text(TextVariable::Adapter(context.adapters()))),
        [root @ ("metrics" | "last_metrics" | "in_flight" | "prefix" | "attributes")] => {
            Err(format!("{root} is no value; name a field of it"))
        }
        ["metrics" | "last_metrics" | "in_flight" | "prefix" | "attributes" | "adapter", ..] => {
            Err(format!("{} has no such field", path[..path.len() - 1].join(".")))
        }
        [root, ..] => Err(format!("there is no variable {root}; there are {ROOTS}")),
        [] => Err(format!("there are the variables {ROOTS}")),
    }
}

fn request_variable(path: &[&str], context: &mut BuildContext<'_>) -> Result<Variable, String> {
    let number = |variable| Ok(Variable::Number(variable));
    let text = |variable| Ok(Variable::Text(variable));
    match path {
        ["model"] => text(TextVariable::Model),
        ["target_model"] => text(TextVariable::TargetModel),
        ["stream"] => Ok(Variable::Truth(TruthVariable::Stream)),
        ["prompt_tokens_estimated"] => Ok(Variable::Truth(TruthVariable::PromptTokensEstimated)),
        ["priority"] => number(NumberVariable::Priority),
        ["prompt_tokens"] => number(NumberVariable::PromptTokens),
        ["max_tokens"] => number(NumberVariable::MaxTokens),
        ["media_parts"] => number(NumberVariable::MediaParts),
        ["headers", name] => match HeaderName::try_from(*name) {
            Ok(name) => text(TextVariable::Header(name)),
            Err(_) => Err(format!("{name:?} can't be the name of a header")),
        },
        ["attributes", key] => text(TextVariable::RequestAttribute(context.request_attribute(key))),
        ["headers" | "attributes"] => Err(format!("request.{} is no value; name an entry of it", path[0])),
        [] => Err(format!("request is no value; it has the fields {REQUEST}")),
        [name] => Err(format!("request has no field {name}; there are {REQUEST}")),
        [name, ..] => Err(format!("request.{name} has no such field")),
    }
}

fn endpoint_text(of: &str, path: &[&str]) -> Result<EndpointText, String> {
    match path {
        ["name"] => Ok(EndpointText::Name),
        ["address"] => Ok(EndpointText::Address),
        ["labels", key] => Ok(EndpointText::Label((*key).into())),
        ["labels"] => Err(format!("{of}.labels is no value; name a label")),
        [] => Err(format!("{of} is no value; it has the fields name, address and labels")),
        [name, ..] => Err(format!("{of} has no field {name}; there are name, address and labels")),
    }
}

fn metric(name: &str) -> Option<fn(&EndpointMetrics) -> f64> {
    Some(match name {
        "waiting_requests" => |metrics| f64::from(metrics.waiting_requests),
        "running_requests" => |metrics| f64::from(metrics.running_requests),
        "kv_cache_utilization" => |metrics| metrics.kv_cache_utilization,
        "block_size_tokens" => |metrics| f64::from(metrics.block_size_tokens),
        "num_gpu_blocks" => |metrics| f64::from(metrics.num_gpu_blocks),
        _ => return None,
    })
}

fn prefix_field(name: &str) -> Option<fn(&PrefixMatch) -> f64> {
    Some(match name {
        "matched_ratio" => PrefixMatch::ratio,
        "matched_blocks" => |matched| f64::from(matched.matched_blocks),
        "matched_tokens" => |matched| matched.matched_tokens() as f64,
        "total_blocks" => |matched| f64::from(matched.total_blocks),
        "block_size_tokens" => |matched| f64::from(matched.block_size_tokens),
        _ => return None,
    })
}
