//! The configurations that the peer's own integration test calls well known.

use super::row::{Decision, PoolKind, Prompt, Row, Verdict};
use super::shared::OPTIMIZED_BASELINE;

pub(super) const ROWS: &[Row] = &[
    Row {
        file: "well-known/01-optimized-baseline.yaml",
        peer: "optimized-baseline",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Unified, decisions: OPTIMIZED_BASELINE },
        until: &[],
    },
    Row {
        file: "well-known/02-tiered-prefix-cache-cpu.yaml",
        peer: "tiered-prefix-cache-cpu",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Unified,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[
                        ("u0", 2.0 + 1.8),
                        ("u1", 1.0 + 1.0 + 2.0 * 0.875),
                        ("u2", 1.5 + 0.4 + 2.0 * 0.5),
                        ("u3", 0.0 + 1.4),
                    ],
                    picks: &["u0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Held,
                    totals: &[
                        ("u0", 2.0 + 1.8),
                        ("u1", 1.0 + 1.0 + 2.0 * 1.0),
                        ("u2", 1.5 + 0.4 + 2.0 * 512.0 / 896.0),
                        ("u3", 0.0 + 1.4),
                    ],
                    picks: &["u1"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "well-known/03-pd-disaggregation.yaml",
        peer: "pd-disaggregation",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[("d0", 2.0 * 0.25 + 3.0 * 0.875), ("d1", 2.0 * 0.75), ("d2", 0.0)],
                    picks: &["d0"],
                    headers: &[("x-prefiller-host-port", "p0")],
                },
                Decision {
                    request: Prompt::Held,
                    totals: &[("d0", 2.0 * 0.25 + 3.0 * 1.0), ("d1", 2.0 * 0.75), ("d2", 0.0)],
                    picks: &["d0"],
                    headers: &[("x-prefiller-host-port", "p1")],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[("d0", 2.0 * 0.25), ("d1", 2.0 * 0.75), ("d2", 0.0)],
                    picks: &["d1"],
                    headers: &[("x-prefiller-host-port", "p0")],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "well-known/04-wide-ep-lws.yaml",
        peer: "wide-ep-lws",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[("d0", 2.0 * 0.25 + 1.0 * 0.875), ("d1", 2.0 * 0.75), ("d2", 0.0)],
                    picks: &["d1"],
                    headers: &[("x-prefiller-host-port", "p0")],
                },
                Decision {
                    request: Prompt::Held,
                    totals: &[("d0", 2.0 * 0.25 + 1.0 * 1.0), ("d1", 2.0 * 0.75), ("d2", 0.0)],
                    picks: &["d0", "d1"],
                    headers: &[("x-prefiller-host-port", "p1")],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[("d0", 2.0 * 0.25), ("d1", 2.0 * 0.75), ("d2", 0.0)],
                    picks: &["d1"],
                    headers: &[("x-prefiller-host-port", "p0")],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "well-known/05-wide-ep-lws-experimental-dp-aware.yaml",
        peer: "wide-ep-lws-experimental-dp-aware",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[Decision {
                request: Prompt::Warm,
                totals: &[("d0", 0.25 + 0.0), ("d1", 0.75 + 4.0 / 6.0), ("d2", 0.0 + 1.0)],
                picks: &["d1"],
                headers: &[("x-prefiller-host-port", "p0")],
            }],
        },
        until: &[],
    },
    Row {
        file: "well-known/06-flow-control.yaml",
        peer: "flow-control",
        verdict: Verdict::Refused {
            by: &["flowControl", "round-robin-fairness-policy"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "well-known/07-predicted-latency-slo.yaml",
        peer: "predicted-latency-slo",
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
        file: "well-known/08-payload-agnostic.yaml",
        peer: "payload-agnostic",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Unified,
            decisions: &[
                Decision {
                    request: Prompt::Cold,
                    totals: &[("u0", 1.0), ("u1", 0.75), ("u2", 0.5), ("u3", 0.0)],
                    picks: &["u0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Session,
                    totals: &[("u0", 1.0), ("u1", 0.75 + 1.0), ("u2", 0.5), ("u3", 0.0)],
                    picks: &["u1"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
];
