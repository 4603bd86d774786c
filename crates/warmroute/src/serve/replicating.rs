//! What is given to siblings, and taken from them at the start.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::Parts;
use crate::cli::ServeOptions;
use crate::grpc::listen;
use crate::replicas::{SnapshotClient, SnapshotServer, SnapshotStatus, WarmStart};
use crate::tasks::Tasks;

impl Parts {
    /// Starts what siblings are told from and, if there are any to ask, has engines wait for what they know. To be called
    /// before the first engine is followed. What comes of it is for the status page.
    pub(super) fn replicate(
        &self,
        options: &ServeOptions,
        listener: Option<TcpListener>,
        tasks: &Tasks,
    ) -> Option<SnapshotStatus> {
        let process = fastrand::u64(..);
        let (known, adapters) = (self.events.known().clone(), self.events.adapters().clone());
        if let Some(listener) = listener {
            let metrics = self.metrics.clone();
            let server =
                SnapshotServer::new(known.clone(), adapters.clone(), metrics, tasks.clone(), process);
            tasks.spawn_vital("replica server", server.serve(listener, tasks.stop_token()));
        }
        let peers = options.replicas.replica_peers.clone();
        if peers.is_empty() || !self.events.is_on() {
            return None;
        }
        let status = SnapshotStatus::default();
        let metrics = self.metrics.replicas.clone();
        let start = WarmStart {
            client: SnapshotClient { known, adapters, metrics, process },
            peers,
            timeout: options.replicas.replica_snapshot_timeout,
            pool: Arc::clone(&self.pool),
            readiness: self.readiness.clone(),
            status: status.clone(),
        };
        start.announce();
        tasks.spawn("siblings' snapshots", start.run());
        Some(status)
    }
}

/// The listener for siblings, if there is to be one.
///
/// # Errors
/// The port is taken or not allowed.
pub(super) async fn replica_listener(options: &ServeOptions) -> anyhow::Result<Option<TcpListener>> {
    match options.replicas.replica_port {
        0 => Ok(None),
        port => Ok(Some(listen(options.bind_address, port, "--replica-port").await?)),
    }
}
