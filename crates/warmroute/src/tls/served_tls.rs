use std::sync::Arc;

use super::{CertificateWatch, ServingTls, TlsError, TlsFlags, TlsSettings};
use crate::metrics::Metrics;
use crate::tasks::Tasks;

/// TLS of all ports of this process.
#[derive(Debug)]
pub struct ServedTls {
    /// Of the ext-proc port; None: plaintext.
    pub ext_proc: Option<ServingTls>,
    /// Of the metrics port; None: plaintext.
    pub metrics: Option<ServingTls>,
    watches: Vec<CertificateWatch>,
}

impl ServedTls {
    /// Reads every certificate that the flags name.
    ///
    /// # Errors
    /// The flags contradict each other, or a file isn't usable.
    pub fn try_new(flags: &TlsFlags, metrics: &Arc<Metrics>) -> Result<Self, TlsError> {
        let mut watches = Vec::new();
        let mut serving = |settings: Option<TlsSettings>| -> Result<Option<ServingTls>, TlsError> {
            let Some(settings) = settings else { return Ok(None) };
            let (serving, watch) = ServingTls::try_new(settings, metrics.clone())?;
            watches.extend(watch);
            Ok(Some(serving))
        };
        let (ext_proc, metrics) = (serving(flags.ext_proc()?)?, serving(flags.metrics()?)?);
        Ok(Self { ext_proc, metrics, watches })
    }

    /// Begins to take changed files.
    pub fn watch(&mut self, tasks: &Tasks) {
        for watch in self.watches.drain(..) {
            tasks.spawn("certificate watch", watch.run());
        }
    }
}
