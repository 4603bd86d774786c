//! What is registered: every type with its kind and its parameters, as a listing shows it.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use std::fmt::Write as _;

use warmroute_plugin::Registry;

const LISTING: &str = "\
active-request-scorer: scorer idleThreshold=0 inFlightLoadProducerName=\"inflight-load-producer\" maxBusyScore=1.0
by-label: filter allowsNoLabel=false label validValues=[]
by-label-selector: filter matchExpressions=[] matchLabels={}
concurrency-detector: filter concurrencyMode=\"requests\" headroom=0.0 \
inFlightLoadProducerName=\"inflight-load-producer\" maxConcurrency=100 maxTokenConcurrency=1000000
context-length-aware: scorer enableFiltering=false label=\"llm-d.ai/context-length-range\"
context-length-filter: filter label=\"llm-d.ai/context-length-range\"
decode-filter: filter
encode-filter: filter
endpoint-attribute-filter: filter algorithm attribute fallbackOnEmpty=false onMissing=\"Pass\" producer=null
endpoint-attribute-scorer: scorer algorithm attributeKey producer=null
header-based-testing-filter: filter
header-label-affinity-scorer: scorer headerName labelKey
kv-cache-utilization-scorer: scorer unknownMetrics=\"below-fresh\"
label-selector-filter: filter matchExpressions=[] matchLabels={}
load-aware-scorer: scorer threshold=128 unknownMetrics=\"below-fresh\"
lora-affinity-scorer: scorer
max-score-picker: picker maxNumOfEndpoints=1
no-hit-lru-scorer: scorer lruSize=1024 prefixMatchInfoProducerName=\"approx-prefix-cache-producer\"
prefill-filter: filter
prefix-cache-affinity-filter: filter affinityThreshold=0.8 explorationProbability=0.0 \
inFlightLoadProducerName=\"inflight-load-producer\" maxTTFTPenaltyMs=18000.0 peakPrefillThroughput=15928.0 \
prefixMatchInfoProducerName=\"approx-prefix-cache-producer\" ttftSource=\"prefillThroughput\"
prefix-cache-scorer: scorer matchLengthScaleTokens=8192.0 matchLengthWeight=0.0 \
prefixMatchInfoProducerName=\"approx-prefix-cache-producer\"
queue-scorer: scorer unknownMetrics=\"below-fresh\"
random-picker: picker maxNumOfEndpoints=1
running-requests-size-scorer: scorer unknownMetrics=\"below-fresh\"
session-affinity-filter: filter encodedEndpointHeaderConfig={\"header\":\"x-session-token\"} profileName=\"\" \
sessionIdConfig={\"evictionSweepSeconds\":10.0,\"evictionTtlSeconds\":300.0,\"sources\":[{\"header\":\"x-session-id\"}]} \
strategy=\"encoded_endpoint_header\"
session-affinity-scorer: scorer encodedEndpointHeaderConfig={\"header\":\"x-session-token\"} profileName=\"\" \
sessionIdConfig={\"evictionSweepSeconds\":10.0,\"evictionTtlSeconds\":300.0,\"sources\":[{\"header\":\"x-session-id\"}]} \
strategy=\"encoded_endpoint_header\"
token-load-scorer: scorer inFlightLoadProducerName=\"inflight-load-producer\" prefixMatchInfoProducerName=null \
queueThresholdTokens=4194304
topology-affinity-filter: filter minAffinity=\"host\" topologyProducerName=null
topology-affinity-scorer: scorer topologyProducerName=null
utilization-detector: filter headroom=0.0 kvCacheUtilThreshold=0.8 metricsStalenessThreshold=\"200ms\" \
queueDepthThreshold=5 stalenessPolicy=\"ignore\"
utilization-filter: filter conditions fallbackOnEmpty=false \
inFlightLoadProducerName=\"inflight-load-producer\" unknownMetrics=\"below-fresh\"
weighted-random-picker: picker maxNumOfEndpoints=1
";

#[test]
fn every_type_is_listed_with_its_parameters_and_their_defaults() {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry).unwrap();
    let mut listing = String::new();
    for plugin_type in registry.types() {
        write!(listing, "{}: {}", plugin_type.name(), plugin_type.kind()).unwrap();
        let mut parameters = plugin_type.parameters().to_vec();
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        for parameter in parameters {
            write!(listing, " {}", parameter.name).unwrap();
            if let Some(default) = parameter.default {
                write!(listing, "={default}").unwrap();
            }
        }
        listing.push('\n');
        assert!(!plugin_type.description().is_empty() && !plugin_type.description().contains('\n'));
    }
    assert_eq!(listing, LISTING);
}
