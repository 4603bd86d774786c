use std::sync::Arc;

use warmroute_scheduler::Decision;

use super::charging::Charging;

/// Address and total score of every endpoint that the deciding profile scored, worst first: where ranks share an
/// address, the best one's comes last, so that it stands in a map of them.
pub(super) fn endpoint_scores(charging: &Charging<'_>, decision: &Decision<'_>) -> Vec<(Arc<str>, f64)> {
    let run = decision.primary();
    let scored = run.kept().iter().zip(run.totals());
    let mut scores: Vec<(Arc<str>, f64)> =
        scored.map(|(row, total)| (charging.state(*row as usize).endpoint.address.clone(), *total)).collect();
    scores.sort_by(|one, other| one.1.total_cmp(&other.1));
    scores
}
