//! Who may reach the ports of this process.

use std::sync::Arc;

use crate::admin::AdminAccess;
use crate::cli::ServeOptions;
use crate::metrics::Metrics;
use crate::metrics_auth::{TokenFence, metrics_fence};
use crate::tls::{ServedTls, ServingTls};

/// TLS of the ports, and the fence around the metrics port.
pub(super) struct Access {
    pub(super) tls: ServedTls,
    fence: Option<Arc<TokenFence>>,
}

impl Access {
    /// As the flags say; `kube` is the client that the process has.
    pub(super) async fn build(
        options: &ServeOptions,
        kube: Option<kube::Client>,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let tls = ServedTls::try_new(&options.tls, metrics)?;
        let asked = options.tls.metrics_endpoint_auth;
        let kubeconfig = options.kubernetes.kubeconfig.as_deref();
        let fence = metrics_fence(asked, kube, kubeconfig, metrics).await?;
        if fence.is_some() && tls.metrics.is_none() {
            tracing::warn!("tokens for the metrics port pass in plaintext: --metrics-cert-dir turns TLS on");
        }
        Ok(Self { tls, fence })
    }

    /// Of the ext-proc port.
    pub(super) fn ext_proc(&self) -> Option<ServingTls> {
        self.tls.ext_proc.clone()
    }

    /// Of the metrics port.
    pub(super) fn admin(&self) -> AdminAccess {
        AdminAccess { tls: self.tls.metrics.clone(), fence: self.fence.clone() }
    }
}
