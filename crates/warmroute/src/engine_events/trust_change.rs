use warmroute_kv_events::{Trust, TrustReason, TrustState};

use super::EngineState;
use crate::metrics::EventMetrics;

/// How far an engine's view could be trusted before something happened, and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustChange {
    /// Before.
    pub before: TrustState,
    /// Now.
    pub now: TrustState,
}

impl TrustChange {
    /// Shows a change in the metric, and says once in the log that the view is trusted more or less.
    pub fn tell(self, endpoint: &str, engine: &EngineState, metrics: &EventMetrics) {
        let Self { before, now } = self;
        metrics.show_trust(endpoint, shown(before), shown(now));
        if before.trust == now.trust {
            return;
        }
        let (was, trust, reason) = (before.trust.as_str(), now.trust.as_str(), now.reason.as_str());
        let blocks = engine.blocks();
        if now.trust > before.trust {
            tracing::warn!(
                endpoint,
                was,
                trust,
                reason,
                blocks,
                "the view of this engine's KV cache is trusted less"
            );
        } else {
            tracing::info!(
                endpoint,
                was,
                trust,
                reason,
                blocks,
                "trust in the view of this engine's KV cache"
            );
        }
    }
}

/// What the metric shows: nothing of an engine that nobody wants to follow.
pub(super) fn shown(state: TrustState) -> Option<Trust> {
    (state.reason != TrustReason::NotFollowed).then_some(state.trust)
}
