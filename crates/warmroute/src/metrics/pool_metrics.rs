use std::time::{Duration, Instant};

use prometheus::{Error, GaugeVec, IntCounterVec, IntGaugeVec};

use super::maker::Maker;
use crate::pool::Pool;

/// Metrics of the pool.
#[derive(Debug)]
pub struct PoolMetrics {
    ready: IntGaugeVec,
    /// KV cache utilization, queue, running requests.
    averages: [GaugeVec; 3],
    deviations: [GaugeVec; 3],
    /// Scrapes that failed.
    pub scrape_errors: IntCounterVec,
    /// Pages that were fetched and not understood.
    pub extract_errors: IntCounterVec,
    /// Changes of the endpoints file that were refused, and DNS names that couldn't be resolved, per cause.
    pub discovery_errors: IntCounterVec,
}

impl PoolMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        let gauges = |name, help| make.float_gauges(name, help, &["name"]);
        Ok(Self {
            ready: make.gauges("llm_d_epp_ready_endpoints", "Endpoints with fresh metrics.", &["name"])?,
            averages: [
                gauges("llm_d_epp_average_kv_cache_utilization", "Mean share of the KV cache in use.")?,
                gauges("llm_d_epp_average_queue_size", "Mean of the requests waiting in an engine.")?,
                gauges("llm_d_epp_average_running_requests", "Mean of the requests running in an engine.")?,
            ],
            deviations: [
                gauges(
                    "llm_d_epp_std_dev_kv_cache_utilization",
                    "Sample standard deviation of the share of the KV cache in use.",
                )?,
                gauges(
                    "llm_d_epp_std_dev_queue_size",
                    "Sample standard deviation of the requests waiting in an engine.",
                )?,
                gauges(
                    "llm_d_epp_std_dev_running_requests",
                    "Sample standard deviation of the requests running in an engine.",
                )?,
            ],
            scrape_errors: make.counters(
                "llm_d_epp_datalayer_poll_errors_total",
                "Scrapes of an engine's metrics that failed.",
                &["source_type"],
            )?,
            extract_errors: make.counters(
                "llm_d_epp_datalayer_extract_errors_total",
                "Pages that were fetched and lack what is needed.",
                &["source_type", "extractor_type"],
            )?,
            discovery_errors: make.counters(
                "warmroute_discovery_errors_total",
                "Endpoints files refused (file) and DNS look-ups that failed (dns); the last good list stays.",
                &["cause"],
            )?,
        })
    }

    /// Averages over the endpoints whose metrics are fresh. Without any, only the number of ready endpoints changes.
    ///
    /// As at the llm-d Router EPP (`pkg/epp/datalayer/logger/logger.go`).
    pub fn observe(&self, pool: &Pool, now: Instant, stale_after: Duration) {
        let snapshot = pool.snapshot();
        let states = snapshot.states.iter().map(|state| state.metrics_state(now, stale_after));
        let fresh: Vec<_> = states.filter_map(|state| state.fresh().copied()).collect();
        let labels = [pool.name.as_str()];
        self.ready.with_label_values(&labels).set(fresh.len() as i64);
        if fresh.is_empty() {
            return;
        }
        let columns: [Vec<f64>; 3] = [
            fresh.iter().map(|metrics| metrics.kv_cache_utilization).collect(),
            fresh.iter().map(|metrics| f64::from(metrics.waiting_requests)).collect(),
            fresh.iter().map(|metrics| f64::from(metrics.running_requests)).collect(),
        ];
        for ((values, average), deviation) in columns.iter().zip(&self.averages).zip(&self.deviations) {
            let (mean, spread) = mean_and_deviation(values);
            average.with_label_values(&labels).set(two_decimals(mean));
            deviation.with_label_values(&labels).set(two_decimals(spread));
        }
    }
}

/// Mean and sample standard deviation, which for a single value is 0.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

fn two_decimals(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use warmroute_plugin::EndpointMetrics;

    use super::*;
    use crate::pool::EndpointSpec;

    #[test]
    fn averages_are_over_fresh_endpoints_and_outlive_them() {
        let make = Maker::new();
        let metrics = PoolMetrics::try_new(&make).unwrap();
        let pool = Pool::new("p");
        let spec = |host: &str| EndpointSpec::new(host, host, 1);
        pool.update(&[spec("a"), spec("b"), spec("c"), spec("never")]);
        let (now, limit) = (Instant::now(), Duration::from_secs(2));
        let states = pool.snapshot().states.clone();
        states[0].scraped(EndpointMetrics::new(1, 4, 0.1), now);
        states[1].scraped(EndpointMetrics::new(4, 4, 0.224), now);
        metrics.observe(&pool, now, limit);
        let read =
            |gauges: &[GaugeVec; 3]| gauges.each_ref().map(|gauge| gauge.with_label_values(&["p"]).get());
        assert_eq!(metrics.ready.with_label_values(&["p"]).get(), 2);
        assert_eq!(read(&metrics.averages), [0.16, 2.5, 4.0]);
        // |1 - 2.5|² twice, over n - 1 = 1.
        assert_eq!(read(&metrics.deviations), [0.09, 2.12, 0.0]);
        metrics.observe(&pool, now + limit * 2, limit);
        assert_eq!(metrics.ready.with_label_values(&["p"]).get(), 0);
        assert_eq!(read(&metrics.averages), [0.16, 2.5, 4.0]);
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
    }
}
