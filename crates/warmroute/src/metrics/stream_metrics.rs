use std::time::Duration;

use prometheus::{Error, Histogram, IntCounterVec, IntGauge};

use super::buckets::STREAM_SECONDS;
use super::maker::Maker;

/// Metrics of ext-proc streams.
#[derive(Debug)]
pub struct StreamMetrics {
    /// Streams that ended before their response could begin: the gateway hides the response from the picker.
    pub lease_blind: IntGauge,
    /// Messages that no ext-proc client should send.
    pub protocol_violations: IntGauge,
    ext_proc: Option<ExtProcMetrics>,
}

/// The peer's metrics of streams, which have to be asked for.
#[derive(Debug)]
struct ExtProcMetrics {
    open: IntGauge,
    seconds: Histogram,
    ended: IntCounterVec,
}

impl StreamMetrics {
    pub(super) fn try_new(make: &Maker, with_ext_proc: bool) -> Result<Self, Error> {
        Ok(Self {
            lease_blind: make.gauge(
                "warmroute_lease_blind_streams",
                "Streams that ended before their response could begin.",
            )?,
            protocol_violations: make
                .gauge("warmroute_protocol_violations", "Messages that no ext-proc client should send.")?,
            ext_proc: with_ext_proc.then(|| ExtProcMetrics::try_new(make)).transpose()?,
        })
    }

    /// Says how many streams are open, if that was asked for.
    pub fn set_open(&self, streams: usize) {
        if let Some(ext_proc) = &self.ext_proc {
            ext_proc.open.set(streams as i64);
        }
    }

    /// Counts the end of a stream by its gRPC status, if that was asked for.
    pub fn ended(&self, open_for: Duration, code: &str) {
        if let Some(ext_proc) = &self.ext_proc {
            ext_proc.seconds.observe(open_for.as_secs_f64());
            ext_proc.ended.with_label_values(&[code]).inc();
        }
    }
}

impl ExtProcMetrics {
    fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            open: make.gauge("llm_d_epp_extproc_streams_inflight", "Open ext-proc streams.")?,
            seconds: make.histogram(
                "llm_d_epp_extproc_stream_duration_seconds",
                "How long an ext-proc stream was open.",
                &STREAM_SECONDS,
            )?,
            ended: make.counters(
                "llm_d_epp_extproc_streams_total",
                "Ext-proc streams that ended, by gRPC status.",
                &["code"],
            )?,
        })
    }
}
