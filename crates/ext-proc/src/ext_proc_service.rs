use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use envoy_types::pb::envoy::service::ext_proc::v3::ProcessingRequest;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

use crate::stream::StreamLimits;
use crate::{Counters, CountersSnapshot, Drain, EndpointPicker, Probes, ProcessStream};

/// The limits of a service.
#[derive(Clone, Copy, Debug)]
pub struct ServiceConfig {
    /// What one stream may hold.
    pub limits: StreamLimits,
    /// Largest gRPC message taken. In BUFFERED mode, and in full duplex with a raised buffer limit,
    /// a whole body comes in one message, so it must be above `limits.max_body_bytes`; tonic's own
    /// limit would be 4 MiB.
    pub max_message_bytes: usize,
    /// How long a request may keep still before all of it has come; then the client gets 408.
    /// Envoy has no timeout of its own for full-duplex bodies.
    pub body_idle_timeout: Duration,
    /// See [`CountersSnapshot::lease_blind_ends`].
    pub lease_blind_within: Duration,
}

impl Default for ServiceConfig {
    /// Bodies up to 32 MiB, messages up to 33 MiB, 60 s of stillness, 10 ms for a lease-blind end.
    fn default() -> Self {
        Self {
            limits: StreamLimits::default(),
            max_message_bytes: 33 << 20,
            body_idle_timeout: Duration::from_secs(60),
            lease_blind_within: Duration::from_millis(10),
        }
    }
}

/// The `envoy.service.ext_proc.v3.ExternalProcessor` service over an [`EndpointPicker`].
///
/// Each stream is driven by the task that tonic runs for it anyway; nothing is spawned. Serve
/// [`server`](Self::server) with a tonic `Server`, and mind two traps:
///
/// * With an own listener, `TcpIncoming::from(listener).with_nodelay(Some(true))` is needed:
///   `Server::tcp_nodelay` acts in `serve(addr)` only, and Nagle's algorithm costs about 45 ms per stream.
/// * Don't cap concurrent streams: Envoy opens one per running request, up to tens of thousands.
pub struct ExtProcService<P> {
    pub(crate) shared: Arc<ServiceShared<P>>,
}

pub(crate) struct ServiceShared<P> {
    pub(crate) picker: Arc<P>,
    pub(crate) config: ServiceConfig,
    pub(crate) drain: Drain,
    pub(crate) counters: Counters,
    pub(crate) probes: Arc<Probes>,
}

impl<P> Clone for ExtProcService<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<P: EndpointPicker> ExtProcService<P> {
    /// A service over one picker. Clones share picker, drain and counters.
    pub fn new(picker: Arc<P>, config: ServiceConfig) -> Self {
        let (drain, counters, probes) = (Drain::new(), Counters::default(), Arc::default());
        Self { shared: Arc::new(ServiceShared { picker, config, drain, counters, probes }) }
    }

    /// The tonic service with the message limits of the config; takes gzip-compressed messages.
    pub fn server(&self) -> ExternalProcessorServer<Self> {
        let max_bytes = self.shared.config.max_message_bytes;
        ExternalProcessorServer::new(self.clone())
            .max_decoding_message_size(max_bytes)
            .max_encoding_message_size(max_bytes)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// The handle that drains this service.
    pub fn drain(&self) -> Drain {
        self.shared.drain.clone()
    }

    /// What was counted so far; a stream's bytes, violations and refusal are added at its end.
    pub fn counters(&self) -> CountersSnapshot {
        self.shared.counters.snapshot(self.shared.drain.open_streams())
    }

    /// Where probes of a gateway are registered and read.
    pub fn probes(&self) -> Arc<Probes> {
        self.shared.probes.clone()
    }

    /// Drives one stream of messages, for hosts and tests that don't use tonic's server.
    pub fn process_stream<S>(&self, inbound: S) -> ProcessStream<P, S>
    where
        S: futures::Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
    {
        self.shared.counters.streams.fetch_add(1, Ordering::Relaxed);
        ProcessStream::new(Arc::clone(&self.shared), inbound)
    }
}

#[tonic::async_trait]
impl<P: EndpointPicker> ExternalProcessor for ExtProcService<P> {
    type ProcessStream = ProcessStream<P, Streaming<ProcessingRequest>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let from = request.remote_addr();
        Ok(Response::new(self.process_stream(request.into_inner()).coming_from(from)))
    }
}
