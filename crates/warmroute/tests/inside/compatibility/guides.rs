//! The configurations of the llm-d guides.

use super::row::{Decision, PoolKind, Prompt, Row, Verdict};
use super::shared::{AFFINITY_PD, AFFINITY_UNIFIED, OPTIMIZED_BASELINE, TIERED};

/// Requests in flight, by two, for decoding. Of the prefill endpoints p1 holds 7/8 of the warm prompt (2.625) and half
/// of its cache is free (1), which its queue outweighs: p0's is empty (2 + 1.8).
const MULTI_TIER_PD: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[("d0", 0.5), ("d1", 1.5), ("d2", 0.0)],
        picks: &["d1"],
        headers: &[("x-prefiller-host-port", "p0")],
    },
    Decision {
        request: Prompt::WarmButBusy,
        totals: &[("d0", 0.0), ("d1", 1.5), ("d2", 0.0)],
        picks: &["d1"],
        headers: &[("x-prefiller-host-port", "p0")],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[("d0", 0.5), ("d1", 1.5), ("d2", 0.0)],
        picks: &["d1"],
        headers: &[("x-prefiller-host-port", "p0")],
    },
];

pub(super) const ROWS: &[Row] = &[
    Row {
        file: "guides/01-optimized-baseline.yaml",
        peer: "optimized-baseline/router/optimized-baseline.values.yaml @0a3b0c93",
        verdict: Verdict::Refused {
            by: &["maxTokensInFlightPenalty"],
            why: "At the commit that is compared, the peer refuses this parameter too.",
        },
        until: &[],
    },
    Row {
        file: "guides/02-optimized-baseline-trtllm.yaml",
        peer: "optimized-baseline/router/optimized-baseline-trtllm.values.yaml @2ad7f919",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Unified, decisions: OPTIMIZED_BASELINE },
        until: &[],
    },
    Row {
        file: "guides/03-precise-prefix-cache-routing.yaml",
        peer: "precise-prefix-cache-routing/router/precise-prefix-cache-routing.values.yaml @076e65dc",
        verdict: Verdict::Refused {
            by: &["token-producer: udsTokenizerConfig"],
            why: "Deprecated at the peer; the replacements work.",
        },
        until: &[],
    },
    Row {
        file: "guides/04-lmetric.yaml",
        peer: "precise-prefix-cache-routing/router/lmetric.values.yaml @3440ef30",
        verdict: Verdict::Refused {
            by: &["lmetric-scorer"],
            why: "A type of an experimental image, unknown to the peer at the commit that is compared.",
        },
        until: &[],
    },
    Row {
        file: "guides/05-precise-sglang.yaml",
        peer: "precise-prefix-cache-routing/router/sglang.values.yaml @a8748227",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Unified, decisions: AFFINITY_UNIFIED },
        until: &[],
    },
    Row {
        file: "guides/06-pd-disaggregation.yaml",
        peer: "pd-disaggregation/router/pd-disaggregation.values.yaml @83bb7c18",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: AFFINITY_PD },
        until: &[],
    },
    Row {
        file: "guides/07-pd-multi-tier.yaml",
        peer: "pd-disaggregation/router/pd-multi-tier.values.yaml @3ed9c2d9",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: MULTI_TIER_PD },
        until: &[],
    },
    Row {
        file: "guides/08-flow-control.yaml",
        peer: "flow-control/router/flow-control.values.yaml @99fba218",
        verdict: Verdict::Refused {
            by: &["flowControl", "round-robin-fairness-policy"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/09-wide-ep-lws.yaml",
        peer: "wide-ep-lws/router/wide-ep-lws.values.yaml @1b92e23a",
        verdict: Verdict::Refused {
            by: &["disaggregatedset-rollout-screener"],
            why: "Revisions of a roll-out are not followed. The peer at the commit that is compared refuses `requiredRoles`.",
        },
        until: &[],
    },
    Row {
        file: "guides/10-wide-ep-precise.yaml",
        peer: "wide-ep-lws/router/precise-routing.values.yaml @3b20d7f4",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: AFFINITY_PD },
        until: &[],
    },
    Row {
        file: "guides/11-predicted-latency.yaml",
        peer: "predicted-latency-routing/router/predicted-latency.values.yaml @4ccd4490",
        verdict: Verdict::Refused {
            by: &["predicted-latency-producer", "latency-scorer", "ttftSource: latencyPredictor"],
            why: "There is no latency predictor yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/12-predicted-latency-slo.yaml",
        peer: "predicted-latency-routing/router/predicted-latency-slo.values.yaml @8fc4c593",
        verdict: Verdict::Refused {
            by: &[
                "predicted-latency-producer",
                "slo-headroom-tier-filter",
                "latency-scorer",
                "latency-slo-admitter",
                "ttftSource: latencyPredictor",
            ],
            why: "There is no latency predictor yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/13-predicted-latency-pd.yaml",
        peer: "predicted-latency-routing/router/predicted-latency-pd.values.yaml @8fc4c593",
        verdict: Verdict::Refused {
            by: &["predicted-latency-producer", "latency-scorer"],
            why: "There is no latency predictor yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/14-predicted-latency-multimodal.yaml",
        peer: "predicted-latency-routing/router/predicted-latency-multimodal.values.yaml @034b29da",
        verdict: Verdict::Refused {
            by: &["predicted-latency-producer", "latency-scorer", "ttftSource: latencyPredictor"],
            why: "There is no latency predictor yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/15-tiered-single-host.yaml",
        peer: "tiered-prefix-cache/router/single-host/tiered-prefix-cache-cpu.values.yaml @68d37a35",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Unified, decisions: TIERED },
        until: &[],
    },
    Row {
        file: "guides/16-tiered-multi-host.yaml",
        peer: "tiered-prefix-cache/router/multi-host/tiered-prefix-cache-cpu.values.yaml @28097b12",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Unified, decisions: TIERED },
        until: &[],
    },
    Row {
        file: "guides/17-mooncake-offloading.yaml",
        peer: "tiered-prefix-cache/router/mooncake-offloading.values.yaml @289780eb",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Unified, decisions: OPTIMIZED_BASELINE },
        until: &[],
    },
    Row {
        file: "guides/18-multimodal-aggregation.yaml",
        peer: "multimodal-serving/aggregation/router/aggregation.values.yaml @175da00a",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Unified,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[("u1", 1.0 - (4096.0 + 128.0) / 4_194_304.0)],
                    picks: &["u1"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::WarmButBusy,
                    totals: &[
                        ("u0", 1.0 - 1024.0 / 4_194_304.0),
                        ("u1", 1.0 - 1_004_224.0 / 4_194_304.0),
                        ("u2", 1.0 - 1112.0 / 4_194_304.0),
                        ("u3", 1.0 - 17_408.0 / 4_194_304.0),
                    ],
                    picks: &["u0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[
                        ("u0", 1.0 - 1024.0 / 4_194_304.0),
                        ("u1", 1.0 - 5120.0 / 4_194_304.0),
                        ("u2", 1.0 - 1624.0 / 4_194_304.0),
                        ("u3", 1.0 - 17_408.0 / 4_194_304.0),
                    ],
                    picks: &["u0"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "guides/19-multimodal-e-p-d.yaml",
        peer: "multimodal-serving/e-disaggregation/router/vllm/e-p-d-disaggregation.values.yaml @0bc3f335",
        verdict: Verdict::Refused {
            by: &["mm-embeddings-cache-producer", "mm-embeddings-cache-scorer"],
            why: "What encoders have cached is not followed yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/20-multimodal-e-pd.yaml",
        peer: "multimodal-serving/e-disaggregation/router/vllm/e-pd-disaggregation.values.yaml @68d37a35",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[("d0", 1.0 - (4096.0 + 128.0) / 4_194_304.0)],
                    picks: &["d0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[
                        ("d0", 1.0 - 5120.0 / 4_194_304.0),
                        ("d1", 1.0 - 1024.0 / 4_194_304.0),
                        ("d2", 1.0 - 3072.0 / 4_194_304.0),
                    ],
                    picks: &["d1"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "guides/21-multimodal-precise-affinity.yaml",
        peer: "multimodal-serving/precise-affinity/router/precise-affinity.values.yaml @5c4a203d",
        verdict: Verdict::Refused {
            by: &["mm-embeddings-cache-producer", "mm-embeddings-cache-scorer"],
            why: "What encoders have cached is not followed yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/22-agentic-serving.yaml",
        peer: "agentic-serving/router/agentic-serving.values.yaml @5cf25d8c",
        verdict: Verdict::Refused {
            by: &["flowControl", "program-aware-fairness", "agent-identity"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/23-agentic-serving-gpu.yaml",
        peer: "agentic-serving/router/agentic-serving-gpu.values.yaml @1aaa821f",
        verdict: Verdict::Refused {
            by: &["active-request-scorer, which is not declared"],
            why: "The peer refuses it too.",
        },
        until: &[],
    },
    Row {
        file: "guides/24-agentic-serving-gpu-program-aware.yaml",
        peer: "agentic-serving/router/agentic-serving-gpu-program-aware.values.yaml @b568fd3a",
        verdict: Verdict::Refused {
            by: &["flowControl", "program-aware-fairness", "agent-identity"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/25-agentic-serving-tpu-disagg.yaml",
        peer: "agentic-serving/router/agentic-serving-tpu-disagg.values.yaml @99fba218",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: AFFINITY_PD },
        until: &[],
    },
    Row {
        file: "guides/26-batch-flow-control-evictable.yaml",
        peer: "batch-serving/asynchronous-processing/multitenant/values/router/flow-control-evictable.yaml @16cbcc8a",
        verdict: Verdict::Refused {
            by: &["flowControl", "round-robin-fairness-policy"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/27-batch-flow-control-holdback.yaml",
        peer: "batch-serving/asynchronous-processing/multitenant/values/router/flow-control-holdback.yaml @2290df88",
        verdict: Verdict::Refused {
            by: &["flowControl", "round-robin-fairness-policy", "priority-holdback-policy"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "guides/28-context-length-aware-pd.yaml",
        peer: "context-length-aware-pd/router.values.yaml @6f9e0651",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            // p0 is for short prompts, so prefill is at p1 also where p0 has less to do.
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[("d0", 0.25), ("d1", 0.75), ("d2", 0.0)],
                    picks: &["d1"],
                    headers: &[("x-prefiller-host-port", "p1")],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[("d0", 0.25), ("d1", 0.75), ("d2", 0.0)],
                    picks: &["d1"],
                    headers: &[("x-prefiller-host-port", "p1")],
                },
            ],
        },
        until: &[],
    },
];
