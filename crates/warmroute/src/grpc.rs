//! The gRPC servers: ext-proc with health beside it, and health alone on its own port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use warmroute_ext_proc::{EndpointPicker, ExtProcService};

use crate::health::HealthService;
use crate::readiness::Readiness;
use crate::tls::{ServingTls, TlsListener};

/// Binds a listener. The IPv6 any-address falls back to IPv4 where the machine has no IPv6.
///
/// # Errors
/// The port is taken or not allowed; the error names the flag to change.
pub async fn listen(address: IpAddr, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(SocketAddr::new(address, port)).await {
        Err(_) if address == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) => {
            TcpListener::bind(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port)).await
        }
        bound => bound,
    };
    listener.with_context(|| {
        format!("can't listen on port {port} of {address}: change {flag} or stop what uses it")
    })
}

/// Serves ext-proc until `stop`; in plaintext if `tls` is None.
///
/// # Errors
/// The server fails.
pub async fn ext_proc_server<P: EndpointPicker>(
    listener: TcpListener,
    service: ExtProcService<P>,
    readiness: Readiness,
    tls: Option<ServingTls>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut server = Server::builder().http2_keepalive_interval(Some(Duration::from_secs(30)));
    let router = server.add_service(HealthService::server(readiness)).add_service(service.server());
    let stopped = stop.cancelled_owned();
    match tls {
        Some(tls) => {
            let incoming = TlsListener::new(listener, tls).incoming();
            router.serve_with_incoming_shutdown(incoming, stopped).await?;
        }
        None => {
            // With an own listener Nagle's algorithm must be turned off here: it costs about 45 ms per stream.
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, stopped).await?;
        }
    }
    Ok(())
}

/// Serves health alone, in plaintext, until `stop`.
///
/// # Errors
/// The server fails.
pub async fn health_server(
    listener: TcpListener,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = Server::builder().add_service(HealthService::server(readiness));
    Ok(router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await?)
}

/// The service over a picker with the limits that the command line sets. `max_message_bytes` is what
/// `--grpc-max-recv-msg-size` says; 0: nothing.
pub fn ext_proc_service<P: EndpointPicker>(
    picker: Arc<P>,
    max_body_bytes: usize,
    max_message_bytes: u64,
) -> ExtProcService<P> {
    let mut config = warmroute_ext_proc::ServiceConfig::default();
    config.limits.max_body_bytes = max_body_bytes;
    // A whole body may come in one message, with headers and metadata beside it.
    config.max_message_bytes = max_body_bytes.saturating_add(1 << 20);
    if max_message_bytes > 0 {
        let given = usize::try_from(max_message_bytes).unwrap_or(usize::MAX);
        config.max_message_bytes = config.max_message_bytes.min(given);
    }
    ExtProcService::new(picker, config)
}
