//! Decisions that several rows share, each sum written as the formulas of the peer give it, scorer by scorer.

use super::row::{Decision, Prompt};

/// decode-filter, prefix-cache-scorer × 2.
pub(super) const PREFIX_TWICE: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[("d0", 2.0 * 0.875), ("d1", 0.0), ("d2", 0.0)],
        picks: &["d0"],
        headers: &[],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[("d0", 0.0), ("d1", 0.0), ("d2", 0.0)],
        picks: &["d0", "d1", "d2"],
        headers: &[],
    },
];

/// decode-filter, prefix-cache-scorer × 10.
pub(super) const PREFIX_TENFOLD: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[("d0", 10.0 * 0.875), ("d1", 0.0), ("d2", 0.0)],
        picks: &["d0"],
        headers: &[],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[("d0", 0.0), ("d1", 0.0), ("d2", 0.0)],
        picks: &["d0", "d1", "d2"],
        headers: &[],
    },
];

/// prefix-cache-scorer × 2 and queue-scorer, for decode and prefill. Warm, p1 prefills: 2 × 0.875 + 0 against 0 + 1 of p0;
/// held, d0 needs less than 16 tokens computed, so nobody does; cold, p0: 0 + 1 against 0 + 0.
pub(super) const PREFIX_AND_QUEUE: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[("d0", 2.0 * 0.875 + 0.0), ("d1", 4.0 / 6.0), ("d2", 1.0)],
        picks: &["d0"],
        headers: &[("x-prefiller-host-port", "p1")],
    },
    Decision {
        request: Prompt::Held,
        totals: &[("d0", 2.0 * 1.0 + 0.0), ("d1", 4.0 / 6.0), ("d2", 1.0)],
        picks: &["d0"],
        headers: &[],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[("d0", 0.0), ("d1", 4.0 / 6.0), ("d2", 1.0)],
        picks: &["d2"],
        headers: &[("x-prefiller-host-port", "p0")],
    },
];

/// queue-scorer × 2, kv-cache-utilization-scorer × 2, prefix-cache-scorer × 3, no-hit-lru-scorer × 2. The last knows u1
/// and, newer, u2.
pub(super) const OPTIMIZED_BASELINE: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[
            ("u0", 2.0 + 1.8 + 0.0 + 1.0),
            ("u1", 1.0 + 1.0 + 3.0 * 0.875 + 1.0),
            ("u2", 1.5 + 0.4 + 3.0 * 0.5 + 1.0),
            ("u3", 0.0 + 1.4 + 0.0 + 1.0),
        ],
        picks: &["u1"],
        headers: &[],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[
            ("u0", 2.0 + 1.8 + 2.0),
            ("u1", 1.0 + 1.0 + 2.0 / 3.0),
            ("u2", 1.5 + 0.4 + 0.0),
            ("u3", 0.0 + 1.4 + 4.0 / 3.0),
        ],
        picks: &["u0"],
        headers: &[],
    },
];

/// queue-scorer, kv-cache-utilization-scorer, two prefix-cache-scorers that see the same, no-hit-lru-scorer.
pub(super) const TIERED: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[
            ("u0", 1.0 + 0.9 + 0.0 + 0.5),
            ("u1", 0.5 + 0.5 + 2.0 * 0.875 + 0.5),
            ("u2", 0.75 + 0.2 + 2.0 * 0.5 + 0.5),
            ("u3", 0.0 + 0.7 + 0.0 + 0.5),
        ],
        picks: &["u1"],
        headers: &[],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[
            ("u0", 1.0 + 0.9 + 1.0),
            ("u1", 0.5 + 0.5 + 1.0 / 3.0),
            ("u2", 0.75 + 0.2 + 0.0),
            ("u3", 0.0 + 0.7 + 2.0 / 3.0),
        ],
        picks: &["u0"],
        headers: &[],
    },
];

/// Prefill: prefix-cache-affinity-filter, then token-load-scorer; decode: active-request-scorer. Warm, p1 sticks as long as its
/// tokens in flight don't make it 18 s later than p0 (the guides' rates are 3,585 to 33,821 tokens per second); else p0 has
/// the fewest tokens.
pub(super) const AFFINITY_PD: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[("d0", 0.25), ("d1", 0.75), ("d2", 0.0)],
        picks: &["d1"],
        headers: &[("x-prefiller-host-port", "p1")],
    },
    Decision {
        request: Prompt::WarmButBusy,
        totals: &[("d0", 0.0), ("d1", 0.75), ("d2", 0.0)],
        picks: &["d1"],
        headers: &[("x-prefiller-host-port", "p0")],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[("d0", 0.25), ("d1", 0.75), ("d2", 0.0)],
        picks: &["d1"],
        headers: &[("x-prefiller-host-port", "p0")],
    },
];

/// What token-load-scorer takes as full.
const FULL_TOKENS: f64 = 4_194_304.0;

/// prefix-cache-affinity-filter, then token-load-scorer, which counts what isn't held of the prompt's 1,024
/// tokens too. Warm, u1 sticks as long
/// as its tokens in flight don't make it 18 s later than u0.
pub(super) const AFFINITY_UNIFIED: &[Decision] = &[
    Decision {
        request: Prompt::Warm,
        totals: &[("u1", 1.0 - (4096.0 + 128.0) / FULL_TOKENS)],
        picks: &["u1"],
        headers: &[],
    },
    Decision {
        request: Prompt::WarmButBusy,
        totals: &[
            ("u0", 1.0 - 1024.0 / FULL_TOKENS),
            ("u1", 1.0 - (1_004_096.0 + 128.0) / FULL_TOKENS),
            ("u2", 1.0 - (600.0 + 512.0) / FULL_TOKENS),
            ("u3", 1.0 - (16_384.0 + 1024.0) / FULL_TOKENS),
        ],
        picks: &["u0"],
        headers: &[],
    },
    Decision {
        request: Prompt::Cold,
        totals: &[
            ("u0", 1.0 - 1024.0 / FULL_TOKENS),
            ("u1", 1.0 - (4096.0 + 1024.0) / FULL_TOKENS),
            ("u2", 1.0 - (600.0 + 1024.0) / FULL_TOKENS),
            ("u3", 1.0 - (16_384.0 + 1024.0) / FULL_TOKENS),
        ],
        picks: &["u0"],
        headers: &[],
    },
];
