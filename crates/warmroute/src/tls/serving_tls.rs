use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::certificate_files::{CertificateBytes, LoadedCertificate};
use super::{CertificateFiles, CertificateWatch, HandshakeFailure, LogRate, TlsError, TlsProtocol};
use crate::metrics::Metrics;

/// Handshakes that fail are told at most this often per port.
const FAILURES_TOLD_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// TLS of one port.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The port's name in metrics and the log: `grpc` or `metrics`.
    pub port: &'static str,
    /// The protocol inside, as ALPN names it.
    pub alpn: &'static [u8],
    /// Where certificates come from.
    pub files: CertificateFiles,
    /// Whether changed files are taken.
    pub reload: bool,
    /// Versions and cipher suites.
    pub protocol: TlsProtocol,
}

/// What new connections of one port are served with. Cheap to clone; all clones see a change.
#[derive(Clone)]
pub struct ServingTls {
    shared: Arc<Shared>,
}

struct Shared {
    port: &'static str,
    config: ArcSwap<ServerConfig>,
    metrics: Arc<Metrics>,
    failures: LogRate,
}

impl fmt::Debug for ServingTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingTls").field("port", &self.shared.port).finish_non_exhaustive()
    }
}

impl ServingTls {
    /// Reads the certificates. The watch is there if changed files are to be taken and there are files.
    ///
    /// # Errors
    /// A file is missing, unreadable or malformed, or certificate and key are of two pairs.
    pub fn try_new(
        settings: TlsSettings,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Option<CertificateWatch>), TlsError> {
        let bytes = settings.files.read(None)?;
        let loaded = settings.files.load(&bytes, &settings.protocol, settings.alpn)?;
        tracing::info!(
            port = settings.port,
            self_signed = settings.files.pair.is_none(),
            client_certificates = settings.files.client_ca.is_some(),
            expires_unix_seconds = loaded.valid.1,
            "serving {}",
            settings.protocol.describe()
        );
        let shared = Shared {
            port: settings.port,
            config: ArcSwap::new(loaded.config.clone()),
            metrics,
            failures: LogRate::new(FAILURES_TOLD_EVERY),
        };
        let serving = Self { shared: Arc::new(shared) };
        serving.take(&loaded);
        let has_files = settings.files != CertificateFiles::default();
        let watch =
            (settings.reload && has_files).then(|| CertificateWatch::new(serving.clone(), settings, bytes));
        Ok((serving, watch))
    }

    /// What a connection that begins now is served with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.shared.config.load_full()
    }

    /// The port's name.
    pub fn port(&self) -> &'static str {
        self.shared.port
    }

    /// Serves this from now on.
    pub(super) fn take(&self, loaded: &LoadedCertificate) {
        let (not_before, not_after) = loaded.valid;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        if !(not_before..=not_after).contains(&now) {
            tracing::warn!(
                port = self.shared.port,
                not_before,
                not_after,
                "the certificate isn't valid now: clients that verify it refuse it"
            );
        }
        self.shared.metrics.tls.certificate_expiry.with_label_values(&[self.shared.port]).set(not_after);
        self.shared.config.store(loaded.config.clone());
    }

    /// Counts a change of the files.
    pub(super) fn count_reload(&self, outcome: &str) {
        self.shared.metrics.tls.reloads.with_label_values(&[self.shared.port, outcome]).inc();
    }

    /// Counts a handshake that failed, and tells of it unless it told of another one just now.
    pub(super) fn failed(&self, failure: HandshakeFailure, peer: &str, error: &str) {
        let Shared { port, metrics, failures, .. } = &*self.shared;
        metrics.tls.handshake_failures.with_label_values(&[port, failure.as_str()]).inc();
        if failure.is_news()
            && let Some(left_out) = failures.due(Instant::now())
        {
            tracing::warn!(
                port,
                peer,
                reason = failure.as_str(),
                left_out,
                "a TLS handshake failed: {error}"
            );
        }
    }
}

/// Tells bytes of certificates apart without showing them.
impl fmt::Debug for CertificateBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateBytes")
    }
}
