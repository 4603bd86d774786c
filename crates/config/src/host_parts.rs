//! The parts of the host that a configuration may name as plugins, for listings.

use crate::peer_types::{HOST_TYPES, HostType};

/// A part of the host that a configuration may name as a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostPart {
    /// Its type in the configuration.
    pub plugin_type: &'static str,
    /// What it is: `producer`, `source`, `parser`, …
    pub kind: &'static str,
    /// One line that says what it does.
    pub description: &'static str,
    /// Its parameters. One within another is written as `outer.inner`.
    pub parameters: &'static [HostParameter],
}

/// A parameter of a [`HostPart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostParameter {
    /// Its name.
    pub name: &'static str,
    /// What it is if it isn't given.
    pub default: Default,
}

/// What a parameter is if it isn't given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Default {
    /// This, as it is written in the configuration.
    Is(&'static str),
    /// Nothing in particular; the description or the documentation says more.
    NotSet,
    /// It must be given.
    Required,
    /// It is taken for the llm-d Router EPP's sake and changes nothing.
    Unused,
    /// The llm-d Router EPP has it and this version hasn't: it is a mistake that says what to do instead.
    Refused,
}

/// What the host has, sorted by type. What happens anyway is listed with the reason why it needs no plugin.
pub fn host_parts() -> Vec<HostPart> {
    let mut parts: Vec<HostPart> = HOST_TYPES
        .iter()
        .filter_map(|(plugin_type, host)| match host {
            HostType::Always(why) => Some(part(plugin_type, "built in", why, &[])),
            _ => PARTS.iter().find(|part| part.plugin_type == *plugin_type).copied(),
        })
        .collect();
    parts.sort_by_key(|part| part.plugin_type);
    parts
}

const fn part(
    plugin_type: &'static str,
    kind: &'static str,
    description: &'static str,
    parameters: &'static [HostParameter],
) -> HostPart {
    HostPart { plugin_type, kind, description, parameters }
}

const fn is(name: &'static str, default: &'static str) -> HostParameter {
    HostParameter { name, default: Default::Is(default) }
}

const fn not_set(name: &'static str) -> HostParameter {
    HostParameter { name, default: Default::NotSet }
}

const fn required(name: &'static str) -> HostParameter {
    HostParameter { name, default: Default::Required }
}

const fn unused(name: &'static str) -> HostParameter {
    HostParameter { name, default: Default::Unused }
}

const fn refused(name: &'static str) -> HostParameter {
    HostParameter { name, default: Default::Refused }
}

const TOKENS: &[HostParameter] = &[
    not_set("local.path"),
    not_set("vllm.url"),
    is("vllm.timeout", "5s"),
    is("vllm.mmTimeout", "30s"),
    not_set("estimate.image"),
    not_set("estimate.video"),
    not_set("modelName"),
    refused("udsTokenizerConfig"),
];

const APPROXIMATE: &[HostParameter] = &[
    is("autoTune", "true"),
    is("blockSizeTokens", "16"),
    is("minBlockSizeTokens", "1"),
    is("maxPrefixTokensToMatch", "131072"),
    is("lruCapacityPerServer", "31250"),
    not_set("maxPrefixBlocksToMatch"),
    not_set("blockSize"),
];

const PARTS: &[HostPart] = &[
    part("single-profile-handler", "profile handler", "runs the only scheduling profile", &[]),
    part(
        "disagg-profile-handler",
        "profile handler",
        "picks an endpoint to decode, and where its deciders say so one to prefill and one to encode",
        &[
            is("stageOrder", "decode-first"),
            is("profiles.decode", "decode"),
            is("profiles.prefill", "prefill"),
            is("profiles.encode", "encode"),
            not_set("deciders.prefill"),
            not_set("deciders.encode"),
            is("onPrefillFailure", "aggregate"),
            is("onEncodeFailure", "aggregate"),
            not_set("decodeProfile"),
            not_set("prefillProfile"),
            not_set("encodeProfile"),
            not_set("prefillDeciderPluginName"),
            not_set("encodeDeciderPluginName"),
            not_set("deciderPluginName"),
        ],
    ),
    part(
        "pd-profile-handler",
        "profile handler",
        "deprecated, use disagg-profile-handler",
        &[
            is("decodeProfile", "decode"),
            is("prefillProfile", "prefill"),
            is("deciderPluginName", "prefix-based-pd-decider"),
            not_set("prefixMatchInfoProducerName"),
            is("onPrefillFailure", "aggregate"),
            not_set("primaryPort"),
            unused("prefixPluginType"),
            unused("prefixPluginName"),
        ],
    ),
    part(
        "data-parallel-profile-handler",
        "profile handler",
        "deprecated: picks a rank, and sends to the first port of its host",
        &[is("primaryPort", "8000")],
    ),
    part(
        "header-profile-handler",
        "profile handler",
        "runs the profile that a header of the request names",
        &[is("headerName", "EPP-Profile"), is("defaultProfile", "decode")],
    ),
    part("always-disagg-pd-decider", "decider", "prefill always gets an endpoint of its own", &[]),
    part(
        "prefix-based-pd-decider",
        "decider",
        "prefill gets an endpoint of its own if many of the prompt's tokens aren't cached",
        &[is("nonCachedTokens", "0"), is("promptTokens", "0"), not_set("prefixMatchInfoProducerName")],
    ),
    part(
        "always-disagg-multimodal-decider",
        "decider",
        "prompts with media get an endpoint to encode them",
        &[],
    ),
    part(
        "disagg-headers-handler",
        "built in",
        "deprecated: the profile handler sets the headers",
        &[is("prefillProfile", "prefill"), is("encodeProfile", "encode")],
    ),
    part(
        "prefill-header-handler",
        "built in",
        "deprecated: the profile handler sets the headers",
        &[is("prefillProfile", "prefill"), is("encodeProfile", "encode")],
    ),
    part(
        "precise-prefix-cache-producer",
        "producer",
        "tells which leading blocks of a prompt each engine holds, by the engines' KV events",
        &[
            is("speculativeIndexing", "true"),
            is("speculativeTTL", "2s"),
            is("doubtfulMatchWeight", "0.5"),
            is("indexerConfig.kvCacheBackendConfigs", "gpu 1, cpu 0.8, others 1"),
            is("relearnHotPrefixes", "false"),
            is("kvEventsConfig.topicFilter", ""),
            is("kvEventsConfig.concurrency", "4"),
            unused("kvEventsConfig.engineType"),
            not_set("kvEventsConfig.zmqEndpoint"),
            is("kvEventsConfig.discoverPods", "true"),
            not_set("kvEventsConfig.podDiscoveryConfig.socketPort"),
            not_set("kvEventsConfig.podDiscoveryConfig.replaySocketPort"),
            unused("tokenProcessorConfig"),
            unused("indexerConfig"),
        ],
    ),
    part(
        "approx-prefix-cache-producer",
        "producer",
        "tells which leading blocks of a prompt were sent to each endpoint",
        APPROXIMATE,
    ),
    part(
        "prefix-cache-producer",
        "producer",
        "tells what an engine holds by its KV events where they are seen, else what was sent there",
        APPROXIMATE,
    ),
    part(
        "burst-prefix-cache-producer",
        "producer",
        "as approx-prefix-cache-producer: every pick sees the one before it, so a burst needs no window",
        &[
            is("blockSizeTokens", "64"),
            is("maxPrefixTokensToMatch", "0"),
            unused("windowDurationMs"),
            unused("maxPerReplica"),
            unused("minColocateBlocks"),
            unused("maxBatchSize"),
            unused("balanceBy"),
        ],
    ),
    part(
        "inflight-load-producer",
        "built in",
        "requests in flight are always counted",
        &[
            not_set("prefixMatchInfoProducerName"),
            refused("addEstimatedOutputTokens"),
            unused("outputRatio"),
            unused("maxEstimatedOutputTokens"),
            unused("syncCrossReplicaState"),
        ],
    ),
    part(
        "token-producer",
        "producer",
        "makes the token ids that the engine will see, or estimates them",
        TOKENS,
    ),
    part("tokenizer", "producer", "deprecated name of token-producer", TOKENS),
    part(
        "session-id-producer",
        "producer",
        "finds session ids in requests, in a header or in a cookie: exactly one of them must be given",
        &[not_set("headerName"), not_set("cookieName"), unused("lruSize"), unused("ttl")],
    ),
    part(
        "destination-endpoint-served-verifier",
        "response header",
        "tells in x-conformance-test-served-endpoint which endpoint served, by the gateway's word; for tests of gateways",
        &[],
    ),
    part(
        "metrics-data-source",
        "source",
        "fetches each engine's metrics page",
        &[
            is("scheme", "http"),
            is("path", "/metrics"),
            not_set("port"),
            not_set("interval"),
            is("insecureSkipVerify", "true"),
            not_set("caCertPath"),
            not_set("clientCertPath"),
            not_set("clientKeyPath"),
        ],
    ),
    part(
        "core-metrics-extractor",
        "extractor",
        "reads load, cache, adapters and custom metrics from a metrics page",
        &[
            is("engineLabelKey", "llm-d.ai/engine-type"),
            is("defaultEngine", "vllm"),
            not_set("engineConfigs"),
            is("rankSeries", "combined"),
        ],
    ),
    part(
        "models-data-source",
        "source",
        "fetches which models each engine serves",
        &[
            is("scheme", "http"),
            is("path", "/v1/models"),
            not_set("port"),
            is("interval", "5s"),
            is("insecureSkipVerify", "true"),
            not_set("caCertPath"),
            not_set("clientCertPath"),
            not_set("clientKeyPath"),
        ],
    ),
    part("models-data-extractor", "extractor", "reads the models that an engine serves", &[]),
    part(
        "file-discovery",
        "discovery",
        "takes endpoints from a file",
        &[required("path"), is("watchFile", "false")],
    ),
    part("openai-parser", "parser", "reads requests of the OpenAI API, by their path", &[]),
    part("anthropic-parser", "parser", "reads requests of the Anthropic Messages API, by their path", &[]),
    part("vllmhttp-parser", "parser", "reads requests of vLLM's generate API, by their path", &[]),
    part("sglanghttp-parser", "parser", "reads requests of SGLang's generate API, by their path", &[]),
    part("passthrough-parser", "parser", "takes requests that no other parser takes, unread", &[]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{KnownTypes, check};

    #[test]
    fn every_part_is_listed_once_and_described() {
        let parts = host_parts();
        let listed: BTreeSet<&str> = parts.iter().map(|part| part.plugin_type).collect();
        let known: BTreeSet<&str> = HOST_TYPES.iter().map(|(plugin_type, _)| *plugin_type).collect();
        assert_eq!(listed, known, "describe new types in PARTS");
        assert_eq!(parts.len(), known.len());
        assert!(parts.iter().all(|part| !part.description.is_empty() && !part.description.contains('\n')));
    }

    /// A parser of parameters names all that it knows when it meets one that it doesn't know.
    #[test]
    fn the_listed_parameters_are_those_that_are_read() {
        for part in host_parts() {
            let text = format!(
                "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: {}\n  parameters: {{qqqqqqqqqqqq: 1}}\n",
                part.plugin_type
            );
            let error = check("f", text.as_bytes(), &KnownTypes::default()).unwrap_err();
            let unknown = error.mistakes.iter().find(|mistake| mistake.message.contains("qqqqqqqqqqqq"));
            let hint =
                unknown.and_then(|mistake| mistake.hint.as_deref()).unwrap_or_else(|| panic!("{error}"));
            let read: BTreeSet<&str> = match hint.strip_prefix("there are ") {
                Some(names) => names.split(", ").collect(),
                None => BTreeSet::new(),
            };
            let outer = |parameter: &HostParameter| parameter.name.split('.').next().unwrap_or_default();
            let listed: BTreeSet<&str> = part.parameters.iter().map(outer).collect();
            assert_eq!(listed, read, "{}", part.plugin_type);
        }
    }
}
