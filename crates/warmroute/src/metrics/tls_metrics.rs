use prometheus::{Error, IntCounterVec, IntGaugeVec};

use super::maker::Maker;

/// Metrics of TLS, per port (`grpc`, `metrics`).
#[derive(Debug)]
pub struct TlsMetrics {
    /// When the certificate that is served ceases to be valid, in Unix seconds.
    pub certificate_expiry: IntGaugeVec,
    /// Changes of certificate files, by outcome.
    pub reloads: IntCounterVec,
    /// Handshakes that failed, by reason.
    pub handshake_failures: IntCounterVec,
}

impl TlsMetrics {
    pub(super) fn try_new(make: &Maker) -> Result<Self, Error> {
        Ok(Self {
            certificate_expiry: make.gauges(
                "warmroute_tls_certificate_expiry_timestamp_seconds",
                "When the certificate that is served ceases to be valid.",
                &["port"],
            )?,
            reloads: make.counters(
                "warmroute_tls_reloads_total",
                "Changes of certificate files, taken or refused.",
                &["port", "outcome"],
            )?,
            handshake_failures: make.counters(
                "warmroute_tls_handshake_failures_total",
                "Connections that came to no TLS session, by reason.",
                &["port", "reason"],
            )?,
        })
    }
}
