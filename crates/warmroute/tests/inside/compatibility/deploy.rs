//! The configurations in `deploy/config` of the peer.

use super::row::{Decision, PoolKind, Prompt, Row, Verdict};
use super::shared::{PREFIX_AND_QUEUE, PREFIX_TENFOLD, PREFIX_TWICE};

pub(super) const ROWS: &[Row] = &[
    Row {
        file: "deploy/01-dp-epp-config.yaml",
        peer: "deploy/config/dp-epp-config.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[Decision {
                request: Prompt::Warm,
                totals: &[("d0", 1.75), ("d1", 0.0), ("d2", 0.0)],
                picks: &["d0"],
                headers: &[("x-data-parallel-host-port", "d0")],
            }],
        },
        until: &[],
    },
    Row {
        file: "deploy/02-epp-burst-prefix-cache-config.yaml",
        peer: "deploy/config/epp-burst-prefix-cache-config.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[Decision {
                request: Prompt::Cold,
                totals: &[("d0", 0.5 * (1.0 - 6.0 / 128.0)), ("d1", 0.5 * (1.0 - 2.0 / 128.0)), ("d2", 0.5)],
                picks: &["d2"],
                headers: &[],
            }],
        },
        until: &[],
    },
    Row {
        file: "deploy/03-epp-config.yaml",
        peer: "deploy/config/epp-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_TWICE },
        until: &[],
    },
    Row {
        file: "deploy/04-epp-estimate-prefix-cache-config.yaml",
        peer: "deploy/config/epp-estimate-prefix-cache-config.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[
                        ("d0", 0.875 + 0.5 * (1.0 - 6.0 / 128.0)),
                        ("d1", 0.5 * (1.0 - 2.0 / 128.0)),
                        ("d2", 0.5),
                    ],
                    picks: &["d0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[
                        ("d0", 0.5 * (1.0 - 6.0 / 128.0)),
                        ("d1", 0.5 * (1.0 - 2.0 / 128.0)),
                        ("d2", 0.5),
                    ],
                    picks: &["d2"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "deploy/05-epp-mm-embeddings-cache-config.yaml",
        peer: "deploy/config/epp-mm-embeddings-cache-config.yaml",
        verdict: Verdict::Refused {
            by: &["mm-embeddings-cache-producer", "mm-embeddings-cache-scorer"],
            why: "What encoders have cached is not followed yet. At the peer this file does not start, because of `cacheSizeInMB`.",
        },
        until: &[],
    },
    Row {
        file: "deploy/06-epp-precise-prefix-cache-config.yaml",
        peer: "deploy/config/epp-precise-prefix-cache-config.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[
                        ("d0", 1.75 + 0.4 + 0.0),
                        ("d1", 0.0 + 0.8 + 4.0 / 6.0),
                        ("d2", 0.0 + 0.1 + 1.0),
                    ],
                    picks: &["d0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[("d0", 0.4), ("d1", 0.8 + 4.0 / 6.0), ("d2", 1.1)],
                    picks: &["d1"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "deploy/07-pd-epp-config.yaml",
        peer: "deploy/config/pd-epp-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_AND_QUEUE },
        until: &[],
    },
    Row {
        file: "deploy/08-pd-topology-epp-config.yaml",
        peer: "deploy/config/pd-topology-epp-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_AND_QUEUE },
        until: &[],
    },
    Row {
        file: "deploy/09-probabilistic-admitter-epp-config.yaml",
        peer: "deploy/config/probabilistic-admitter-epp-config.yaml",
        verdict: Verdict::Refused {
            by: &["probabilistic-admitter"],
            why: "Requests are not turned away at random.",
        },
        until: &[],
    },
    Row {
        file: "deploy/10-sim-e-p-d-epp-config.yaml",
        peer: "deploy/config/sim-e-p-d-epp-config.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[Decision {
                request: Prompt::Warm,
                totals: &[("d0", 0.0), ("d1", 4.0 / 6.0), ("d2", 1.0)],
                picks: &["d2"],
                headers: &[("x-prefiller-host-port", "p0")],
            }],
        },
        until: &[],
    },
    Row {
        file: "deploy/11-sim-e-pd-epp-config.yaml",
        peer: "deploy/config/sim-e-pd-epp-config.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[Decision {
                request: Prompt::Warm,
                totals: &[("d0", 0.0), ("d1", 0.0), ("d2", 0.0)],
                picks: &["d0", "d1", "d2"],
                headers: &[],
            }],
        },
        until: &[],
    },
    Row {
        file: "deploy/12-sim-epp-config.yaml",
        peer: "deploy/config/sim-epp-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_TWICE },
        until: &[],
    },
    Row {
        file: "deploy/13-sim-epp-gpu-config.yaml",
        peer: "deploy/config/sim-epp-gpu-config.yaml",
        verdict: Verdict::Refused {
            by: &["dcgm-data-source", "dcgm-extractor"],
            why: "GPU metrics are not scraped.",
        },
        until: &[],
    },
    Row {
        file: "deploy/14-sim-epp-kvcache-config.yaml",
        peer: "deploy/config/sim-epp-kvcache-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_TENFOLD },
        until: &[],
    },
    Row {
        file: "deploy/15-sim-epp-no-hit-lru.yaml",
        peer: "deploy/config/sim-epp-no-hit-lru.yaml",
        verdict: Verdict::Works {
            differs: &[],
            pool: PoolKind::Roles,
            decisions: &[
                Decision {
                    request: Prompt::Warm,
                    totals: &[("d0", 1.75 + 0.5), ("d1", 0.5), ("d2", 0.5)],
                    picks: &["d0"],
                    headers: &[],
                },
                Decision {
                    request: Prompt::Cold,
                    totals: &[("d0", 0.0), ("d1", 1.0), ("d2", 0.5)],
                    picks: &["d1"],
                    headers: &[],
                },
            ],
        },
        until: &[],
    },
    Row {
        file: "deploy/16-sim-epp-tokenizer-vllm-http-config.yaml",
        peer: "deploy/config/sim-epp-tokenizer-vllm-http-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_TENFOLD },
        until: &[],
    },
    Row {
        file: "deploy/17-sim-pd-epp-config.yaml",
        peer: "deploy/config/sim-pd-epp-config.yaml",
        verdict: Verdict::Works { differs: &[], pool: PoolKind::Roles, decisions: PREFIX_AND_QUEUE },
        until: &[],
    },
    Row {
        file: "deploy/18-sim-program-aware-config.yaml",
        peer: "deploy/config/sim-program-aware-config.yaml",
        verdict: Verdict::Refused {
            by: &["flowControl", "program-aware-fairness"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
    Row {
        file: "deploy/19-soft-reflective-ceiling-epp-config.yaml",
        peer: "deploy/config/soft-reflective-ceiling-epp-config.yaml",
        verdict: Verdict::Refused {
            by: &["flowControl", "soft-reflective-ceiling-policy"],
            why: "Requests are not queued yet.",
        },
        until: &[],
    },
];
