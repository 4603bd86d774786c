//! [`Check`]: what each expression gives, in a healthy pool and in trouble, and what is wrong with that.

use std::collections::{BTreeMap, BTreeSet};

use warmroute::metrics::{Metrics, MetricsOptions};

use crate::expression::{Named, filled, legend_labels};
use crate::prometheus::{NAMESPACE, Prometheus, Series};

/// An expression that is watched, and what has been seen of it.
#[derive(Debug)]
pub(crate) struct Check {
    /// Where it stands.
    pub(crate) place: String,
    expr: String,
    legend: String,
    /// What must come of it.
    wanted: Wanted,
    seen_when: Option<&'static str>,
}

/// What must come of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Data, in a healthy pool.
    Always,
    /// Nothing in a healthy pool, data once there was trouble.
    InTrouble,
    /// Nothing in a healthy pool; what comes in trouble doesn't matter.
    Quiet,
    /// Nothing, ever.
    Never,
    /// Whatever the machine's speed makes of it.
    Any,
}

impl Check {
    /// An expression of a source file. The legend may be empty.
    pub(crate) fn new(place: String, expr: &str, legend: &str, wanted: Wanted) -> Self {
        let wanted = if wanted == Wanted::Quiet && is_about_time(expr) { Wanted::Any } else { wanted };
        Self { place, expr: filled(expr, NAMESPACE), legend: legend.to_owned(), wanted, seen_when: None }
    }

    /// Asks for it. Complains if it can't be evaluated, or says in a healthy pool what it must not.
    pub(crate) async fn ask(
        &mut self,
        prometheus: &Prometheus,
        when: &'static str,
        is_healthy: bool,
    ) -> Vec<String> {
        let series = match prometheus.query(&self.expr).await {
            Ok(series) => series,
            Err(error) => return vec![self.complaint(&format!("{error:#}"))],
        };
        let has_data = series.iter().any(Series::is_number);
        if has_data && self.seen_when.is_none() {
            self.seen_when = Some(when);
        }
        match self.wanted {
            Wanted::Always if is_healthy && !has_data => {
                vec![self.complaint("has no data in a healthy pool")]
            }
            Wanted::Always | Wanted::InTrouble if has_data && self.lacks_labels(&series) => {
                vec![self.complaint("has no series with all labels of its legend")]
            }
            Wanted::InTrouble | Wanted::Quiet if is_healthy && has_data => {
                vec![self.complaint("has data in a healthy pool")]
            }
            Wanted::Never if has_data => vec![self.complaint("has data, which it must not")],
            _ => Vec::new(),
        }
    }

    fn lacks_labels(&self, series: &[Series]) -> bool {
        let labels = legend_labels(&self.legend);
        let has_all = |series: &Series| labels.iter().all(|label| series.metric.contains_key(*label));
        !series.iter().any(has_all)
    }

    fn complaint(&self, text: &str) -> String {
        format!("{}: {text}: {}", self.place, self.expr)
    }

    /// What is wrong when all is over.
    pub(crate) fn last_complaint(&self) -> Option<String> {
        let is_missing = self.wanted == Wanted::InTrouble && self.seen_when.is_none();
        is_missing.then(|| self.complaint("never had data, not even in trouble"))
    }

    /// When it first had data.
    pub(crate) fn verdict(&self) -> &'static str {
        self.seen_when.unwrap_or("never")
    }

    /// What it names.
    pub(crate) fn named(&self) -> Named {
        Named::of(&self.expr)
    }
}

/// Whether an alert's expression looks at durations: a busy machine is no reason to complain.
pub(crate) fn is_about_time(expr: &str) -> bool {
    expr.contains("_seconds_bucket")
}

/// Labels that expressions name and no metric of theirs has. Metrics that were never there are left out.
pub(crate) async fn strange_labels(checks: &[Check], prometheus: &Prometheus) -> anyhow::Result<Vec<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut complaints = Vec::new();
    for check in checks {
        let named = check.named();
        let mut labels = BTreeSet::new();
        let mut is_complete = true;
        for metric in &named.metrics {
            if !known.contains_key(metric) {
                known.insert(metric.clone(), prometheus.labels_of(metric).await?.into_iter().collect());
            }
            is_complete &= known.get(metric).is_some_and(|labels| !labels.is_empty());
            labels.extend(known.get(metric).into_iter().flatten().cloned());
        }
        let strange: Vec<&String> = named.labels.iter().filter(|label| !labels.contains(*label)).collect();
        if is_complete && !strange.is_empty() && !check.expr.contains("label_replace") {
            complaints.push(check.complaint(&format!("no metric of it has {strange:?}")));
        }
    }
    Ok(complaints)
}

/// Names that an expression may use: the picker's metrics, what its rules record, and Prometheus' own.
pub(crate) fn known_metrics(recorded: impl IntoIterator<Item = String>) -> anyhow::Result<BTreeSet<String>> {
    // Neither what is deprecated nor what has to be asked for.
    let names = Metrics::try_with(MetricsOptions::default())?.names();
    let mut known: BTreeSet<String> = names.into_iter().map(str::to_owned).collect();
    known.extend(recorded);
    known.insert("up".to_owned());
    Ok(known)
}

/// The names of an expression that aren't known.
pub(crate) fn unknown_metrics(named: &Named, known: &BTreeSet<String>) -> Vec<String> {
    let base = |name: &str| {
        let suffixes = ["_bucket", "_sum", "_count"];
        suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).map(str::to_owned)
    };
    let is_known = |name: &str| known.contains(name) || base(name).is_some_and(|base| known.contains(&base));
    named.metrics.iter().filter(|name| !is_known(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use warmroute_demo::harness::Tools;

    use super::*;
    use crate::dashboard::DashboardFile;
    use crate::expression::expanded;
    use crate::rules::RuleFile;

    #[test]
    fn dashboards_and_rules_name_the_pickers_metrics_and_no_other() {
        let root = Tools::root();
        let rules = RuleFile::load(&root).unwrap();
        let known = known_metrics(rules.rules().filter_map(|rule| rule.record.clone())).unwrap();
        let dashboards = DashboardFile::load(&root).unwrap();
        let dashboards = dashboards.queries().map(|(place, query)| (place, expanded(&query.expr)));
        let name = |rule: &crate::rules::Rule| rule.alert.clone().or(rule.record.clone()).unwrap();
        let all = dashboards.chain(rules.rules().map(|rule| (name(rule), rule.expr.clone())));
        for (place, expr) in all {
            let named = Named::of(&expr);
            assert!(!named.metrics.is_empty(), "{place} names no metric");
            let unknown = unknown_metrics(&named, &known);
            assert!(unknown.is_empty(), "{place} names {unknown:?}, which the picker doesn't export");
        }
    }

    #[test]
    fn parts_of_histograms_are_known_by_their_names() {
        let known = BTreeSet::from(["a_seconds".to_owned(), "b_total".to_owned()]);
        let unknown = |expr: &str| unknown_metrics(&Named::of(expr), &known);
        assert!(unknown("a_seconds_bucket + a_seconds_sum / b_total").is_empty());
        assert_eq!(unknown("a_second_bucket + b_total_count_x"), ["a_second_bucket", "b_total_count_x"]);
    }
}
