//! How long the simulated GPU takes for a step.

use std::time::Duration;

/// A linear model of one engine step: every new prompt token costs a fixed time, a step in which any request
/// decodes costs a fixed time more, and a step in which a request starts its prefill may cost an overhead.
/// All running requests advance together, so a prefill delays the decodes that share its step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyModel {
    /// Time per prompt token that isn't in the cache, in microseconds.
    pub prefill_us_per_token: f64,
    /// Time per prompt token that is loaded from the host's memory, in microseconds.
    pub load_us_per_token: f64,
    /// Time of a step that decodes, in milliseconds: every running request gains one token in it.
    pub decode_ms_per_token: f64,
    /// Extra time of a step in which at least one request is admitted, in milliseconds.
    pub prefill_overhead_ms: f64,
    /// Factor on every modelled time: 0.1 runs ten times faster, 0 doesn't wait at all.
    pub time_scale: f64,
}

impl Default for LatencyModel {
    /// No modelled time.
    fn default() -> Self {
        Self {
            prefill_us_per_token: 0.0,
            load_us_per_token: 0.0,
            decode_ms_per_token: 0.0,
            prefill_overhead_ms: 0.0,
            time_scale: 1.0,
        }
    }
}

/// What a step has to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Prompt tokens computed in this step (also recomputed tokens of a preempted request).
    pub prefill_tokens: u64,
    /// Prompt tokens loaded from the host's memory.
    pub loaded_tokens: u64,
    /// Requests that are past their prompt and compute one token.
    pub decoding_requests: u32,
    /// Requests admitted to this step.
    pub admitted_requests: u32,
}

impl LatencyModel {
    /// Whether no step takes any modelled time.
    #[must_use]
    pub fn is_instant(&self) -> bool {
        let prefill_us_per_token = self.prefill_us_per_token.max(self.load_us_per_token);
        let largest = prefill_us_per_token.max(self.decode_ms_per_token).max(self.prefill_overhead_ms);
        self.time_scale <= 0.0 || largest <= 0.0
    }

    /// The modelled time of a step. Negative and non-finite parameters count as no time.
    #[must_use]
    pub fn step_time(&self, work: StepWork) -> Duration {
        // A step never holds more than 2^32 tokens, which f64 counts exactly.
        let mut ms = work.prefill_tokens as f64 * self.prefill_us_per_token / 1000.0;
        ms += work.loaded_tokens as f64 * self.load_us_per_token / 1000.0;
        if work.decoding_requests > 0 {
            ms += self.decode_ms_per_token;
        }
        if work.admitted_requests > 0 {
            ms += self.prefill_overhead_ms;
        }
        Duration::try_from_secs_f64(ms * self.time_scale / 1000.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{LatencyModel, StepWork};
    use std::time::Duration;

    #[test]
    fn a_step_costs_its_prefill_and_one_decode() {
        let model = LatencyModel {
            prefill_us_per_token: 100.0,
            load_us_per_token: 10.0,
            decode_ms_per_token: 10.0,
            prefill_overhead_ms: 5.0,
            time_scale: 1.0,
        };
        let work = |prefill_tokens, decoding_requests, admitted_requests| StepWork {
            prefill_tokens,
            loaded_tokens: 0,
            decoding_requests,
            admitted_requests,
        };
        assert_eq!(model.step_time(work(1000, 0, 1)), Duration::from_millis(105));
        assert_eq!(model.step_time(work(0, 7, 0)), Duration::from_millis(10));
        let loading = StepWork { loaded_tokens: 200, ..work(100, 0, 0) };
        assert_eq!(model.step_time(loading), Duration::from_millis(12));
        assert_eq!(model.step_time(work(1000, 7, 2)), Duration::from_millis(115));
        assert_eq!(
            LatencyModel { time_scale: 0.1, ..model }.step_time(work(0, 1, 0)),
            Duration::from_millis(1)
        );
    }

    #[test]
    fn odd_parameters_count_as_no_time() {
        let model = LatencyModel { decode_ms_per_token: f64::NAN, ..LatencyModel::default() };
        assert_eq!(model.step_time(StepWork { decoding_requests: 1, ..StepWork::default() }), Duration::ZERO);
        let model = LatencyModel { decode_ms_per_token: -1.0, ..LatencyModel::default() };
        assert_eq!(model.step_time(StepWork { decoding_requests: 1, ..StepWork::default() }), Duration::ZERO);
    }
}
