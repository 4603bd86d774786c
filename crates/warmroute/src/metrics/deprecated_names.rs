//! The names under which the llm-d Router EPP shows its metrics a second time, for dashboards that are older than the
//! `llm_d_epp_` names (`pkg/epp/metrics/metrics.go` and the plugins' own files in github.com/llm-d/llm-d-router).
//!
//! Made from what was gathered under the new names, so that the two can't differ and nothing is counted twice.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// A family's older twin.
struct Twin {
    name: &'static str,
    old_name: &'static str,
    /// Labels that the older one has, by new and old name; series that then have equal labels are added up.
    /// None: the same labels.
    labels: Option<&'static [(&'static str, &'static str)]>,
}

const fn twin(
    name: &'static str,
    old_name: &'static str,
    labels: Option<&'static [(&'static str, &'static str)]>,
) -> Twin {
    Twin { name, old_name, labels }
}

const MODEL: (&str, &str) = ("model_name", "model_name");
const TARGET: (&str, &str) = ("target_model_name", "target_model_name");
const MODELS: Option<&[(&str, &str)]> = Some(&[MODEL, TARGET]);
const NO_LABELS: Option<&[(&str, &str)]> = Some(&[]);
const DECISION: Option<&[(&str, &str)]> = Some(&[MODEL, ("decision_type", "decision_type")]);

#[rustfmt::skip]
const TWINS: [Twin; 39] = [
    twin("llm_d_epp_request_total", "inference_objective_request_total",
        Some(&[MODEL, TARGET, ("priority", "priority")])),
    twin("llm_d_epp_request_error_total", "inference_objective_request_error_total",
        Some(&[MODEL, TARGET, ("error_code", "error_code")])),
    twin("llm_d_epp_request_duration_seconds", "inference_objective_request_duration_seconds", MODELS),
    twin("llm_d_epp_request_size_bytes", "inference_objective_request_sizes", MODELS),
    twin("llm_d_epp_response_size_bytes", "inference_objective_response_sizes", MODELS),
    twin("llm_d_epp_request_input_tokens", "inference_objective_input_tokens", MODELS),
    twin("llm_d_epp_request_output_tokens", "inference_objective_output_tokens", MODELS),
    twin("llm_d_epp_request_cached_tokens", "inference_objective_prompt_cached_tokens", MODELS),
    twin("llm_d_epp_request_running", "inference_objective_running_requests", Some(&[MODEL])),
    twin("llm_d_epp_request_ntpot_seconds", "inference_objective_normalized_time_per_output_token_seconds", MODELS),
    twin("llm_d_epp_average_kv_cache_utilization", "inference_pool_average_kv_cache_utilization", None),
    twin("llm_d_epp_average_queue_size", "inference_pool_average_queue_size", None),
    twin("llm_d_epp_average_running_requests", "inference_pool_average_running_requests", None),
    twin("llm_d_epp_ready_endpoints", "inference_pool_ready_pods", None),
    twin("llm_d_epp_per_endpoint_queue_size", "inference_pool_per_pod_queue_size",
        Some(&[("name", "name"), ("model_server_endpoint", "model_server_pod")])),
    twin("llm_d_epp_scheduler_e2e_duration_seconds", "inference_extension_scheduler_e2e_duration_seconds", None),
    twin("llm_d_epp_scheduler_attempts_total", "inference_extension_scheduler_attempts_total",
        Some(&[("status", "status"), TARGET, ("endpoint_name", "pod_name"), ("namespace", "namespace"),
            ("port", "port")])),
    twin("llm_d_epp_plugin_duration_seconds", "inference_extension_plugin_duration_seconds", None),
    twin("llm_d_epp_info", "inference_extension_info", None),
    twin("llm_d_epp_model_rewrite_decisions_total", "inference_extension_model_rewrite_decisions_total", None),
    twin("llm_d_epp_datalayer_poll_errors_total", "llm_d_inference_scheduler_datalayer_poll_errors_total", None),
    twin("llm_d_epp_datalayer_extract_errors_total",
        "llm_d_inference_scheduler_datalayer_extract_errors_total", None),
    twin("llm_d_epp_prefix_indexer_size", "inference_extension_prefix_indexer_size", NO_LABELS),
    twin("llm_d_epp_prefix_indexer_hit_ratio", "inference_extension_prefix_indexer_hit_ratio", NO_LABELS),
    twin("llm_d_epp_prefix_indexer_hit_bytes", "inference_extension_prefix_indexer_hit_bytes", NO_LABELS),
    twin("llm_d_epp_disagg_decision_total", "llm_d_inference_scheduler_disagg_decision_total", DECISION),
    twin("llm_d_epp_pd_decision_total", "llm_d_inference_scheduler_pd_decision_total", DECISION),
    twin("llm_d_epp_kv_cache_index_admissions_total", "kvcache_index_admissions_total", None),
    twin("llm_d_epp_kv_cache_index_evictions_total", "kvcache_index_evictions_total", None),
    twin("llm_d_epp_kv_cache_index_lookup_requests_total", "kvcache_index_lookup_requests_total", None),
    twin("llm_d_epp_kv_cache_index_max_pod_hit_count_total", "kvcache_index_max_pod_hit_count_total", None),
    twin("llm_d_epp_kv_cache_index_lookup_hits_total", "kvcache_index_lookup_hits_total", None),
    twin("llm_d_epp_kv_cache_index_lookup_latency_seconds", "kvcache_index_lookup_latency_seconds", None),
    twin("llm_d_epp_kv_cache_events_dedup_removed_hashes_suppressed_total",
        "kvcache_kvevents_dedup_removed_hashes_suppressed_total", None),
    twin("llm_d_epp_kv_cache_events_dedup_removed_hashes_forwarded_total",
        "kvcache_kvevents_dedup_removed_hashes_forwarded_total", None),
    twin("llm_d_epp_flow_control_request_queue_duration_seconds",
        "inference_extension_flow_control_request_queue_duration_seconds", None),
    twin("llm_d_epp_flow_control_pool_saturation", "inference_extension_flow_control_pool_saturation", None),
    twin("llm_d_epp_flow_control_queue_size", "inference_extension_flow_control_queue_size", None),
    twin("llm_d_epp_flow_control_queue_bytes", "inference_extension_flow_control_queue_bytes", None),
];

/// The older twins of what was gathered.
pub(super) fn twins_of(families: &[MetricFamily]) -> Vec<MetricFamily> {
    let twin = |family: &MetricFamily| {
        let twin = TWINS.iter().find(|twin| twin.name == family.name())?;
        Some(twin.family(family))
    };
    families.iter().filter_map(twin).collect()
}

impl Twin {
    fn family(&self, family: &MetricFamily) -> MetricFamily {
        let kind = family.get_field_type();
        let mut series: Vec<Metric> = Vec::new();
        for metric in family.get_metric() {
            let mut metric = metric.clone();
            if let Some(labels) = self.labels {
                let kept = metric.get_label().iter().filter_map(|pair| old_label(pair, labels)).collect();
                metric.set_label(kept);
            }
            match series.iter_mut().find(|other| other.get_label() == metric.get_label()) {
                Some(other) => add(kind, other, &metric),
                None => series.push(metric),
            }
        }
        let help = family.help();
        let help = help.strip_prefix("[ALPHA] ").unwrap_or(help);
        let mut twin = MetricFamily::default();
        twin.set_name(self.old_name.to_owned());
        twin.set_help(format!("[ALPHA] [Deprecated: Use {}] {help}", self.name));
        twin.set_field_type(kind);
        twin.set_metric(series);
        twin
    }
}

fn old_label(pair: &LabelPair, labels: &[(&str, &str)]) -> Option<LabelPair> {
    let (_, old) = labels.iter().find(|(new, _)| *new == pair.name())?;
    let mut label = LabelPair::default();
    label.set_name((*old).to_owned());
    label.set_value(pair.value().to_owned());
    Some(label)
}

fn add(kind: MetricType, sum: &mut Metric, other: &Metric) {
    match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(sum.get_counter().get_value() + other.get_counter().get_value());
            sum.set_counter(counter);
        }
        MetricType::GAUGE => {
            let mut gauge = Gauge::default();
            gauge.set_value(sum.get_gauge().get_value() + other.get_gauge().get_value());
            sum.set_gauge(gauge);
        }
        MetricType::HISTOGRAM => sum.set_histogram(histogram_sum(sum.get_histogram(), other.get_histogram())),
        MetricType::SUMMARY | MetricType::UNTYPED => {}
    }
}

/// Both have the same bounds: they are of one family.
fn histogram_sum(one: &Histogram, other: &Histogram) -> Histogram {
    let bucket = |(one, other): (&Bucket, &Bucket)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(one.upper_bound());
        bucket.set_cumulative_count(one.cumulative_count() + other.cumulative_count());
        bucket
    };
    let mut sum = Histogram::default();
    sum.set_bucket(one.get_bucket().iter().zip(other.get_bucket()).map(bucket).collect());
    sum.set_sample_count(one.get_sample_count() + other.get_sample_count());
    sum.set_sample_sum(one.get_sample_sum() + other.get_sample_sum());
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{DEFAULT_FAIRNESS_ID, Metrics, MetricsOptions, RequestFigure};

    fn page(deprecated: bool) -> String {
        let options = MetricsOptions { deprecated, ..MetricsOptions::default() };
        let metrics = Metrics::try_with(options).unwrap();
        for (fairness, seconds) in [(DEFAULT_FAIRNESS_ID, 0.3), ("tenant-b", 7.0)] {
            let series = metrics.requests.series("m", "m", fairness, 2);
            series.total.inc();
            series.running.inc();
            series.observe(RequestFigure::Duration, seconds);
        }
        metrics.scheduling.count_attempt("m", Some(["pod-1", "ns", "8000"]));
        metrics.page().unwrap()
    }

    #[test]
    fn series_that_differ_in_new_labels_are_added_up() {
        let page = page(true);
        for line in [
            "inference_objective_request_total{model_name=\"m\",priority=\"2\",target_model_name=\"m\"} 2",
            "inference_objective_running_requests{model_name=\"m\"} 2",
            "inference_objective_request_duration_seconds_bucket{model_name=\"m\",target_model_name=\"m\",le=\"0.4\"} 1",
            "inference_objective_request_duration_seconds_sum{model_name=\"m\",target_model_name=\"m\"} 7.3",
            "inference_objective_request_duration_seconds_count{model_name=\"m\",target_model_name=\"m\"} 2",
            "# HELP inference_objective_request_total [ALPHA] [Deprecated: Use llm_d_epp_request_total] Requests \
             decided or refused.",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line} is not in:\n{page}");
        }
        assert!(
            page.contains("inference_extension_scheduler_attempts_total{pod_name=\"pod-1\",namespace=\"ns\"")
                || page.contains("pod_name=\"pod-1\""),
            "{page}"
        );
    }

    #[test]
    fn they_are_left_out_unless_asked_for() {
        let page = page(false);
        for twin in &TWINS {
            assert!(!page.contains(&format!("# TYPE {} ", twin.old_name)), "{}", twin.old_name);
        }
    }

    #[test]
    fn every_new_name_is_of_a_metric_or_of_a_feature_to_come() {
        let names = Metrics::try_new().unwrap().names();
        for twin in &TWINS {
            let to_come = twin.name.contains("flow_control");
            assert!(to_come || names.contains(&twin.name), "{}", twin.name);
        }
    }
}
