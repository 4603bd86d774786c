//! [`Picker`]: one replica of Warmroute as a process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{EngineFleet, FreePorts, HttpClient, Process, READY_WITHIN, Tools, wait_until_ready};
use crate::DemoError;
use crate::scrape::MetricsText;

/// The service whose health Envoy and Kubernetes ask for.
const HEALTH_SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// The gauge that says to how many engines' KV events the picker listens.
const SUBSCRIBERS: &str = "llm_d_epp_kv_cache_events_active_subscribers";

/// How a picker is started.
#[derive(Debug, Clone)]
pub struct PickerOptions {
    /// The `EndpointPickerConfig` file.
    pub config_file: PathBuf,
    /// Whether Envoy speaks TLS to it.
    pub secure_serving: bool,
    /// Whether the policy reads KV events, so that being ready includes listening to every engine.
    pub reads_kv_events: bool,
    /// The metrics port that people are told to look at, if it shall not be any free one. Taken by the first replica,
    /// and only if it is free.
    pub metrics_port: Option<u16>,
    /// Further command-line arguments, as the picker understands them.
    pub extra_args: Vec<String>,
}

/// One running replica.
#[derive(Debug)]
pub struct Picker {
    /// Its process.
    pub process: Process,
    /// Where Envoy reaches it (ext-proc over gRPC).
    pub grpc: SocketAddr,
    /// Its gRPC health service.
    pub health: SocketAddr,
    /// Its metrics and debug pages.
    pub metrics: SocketAddr,
}

impl Picker {
    /// Starts one replica in front of `engines` and waits until its health service says SERVING (and, if the policy
    /// reads KV events, until it listens to all engines, so that no event of the first request can be missed).
    ///
    /// # Errors
    /// No free port, a process that ends early or is not ready in time.
    pub async fn start(
        tools: &Tools,
        name: &str,
        options: &PickerOptions,
        engines: &EngineFleet,
    ) -> Result<Self, DemoError> {
        Self::start_for(tools, name, options, &engines.addresses(), engines.kv_events_port).await
    }

    /// The same in front of engines at these addresses, each of which publishes on `kv_events_port` of its own host.
    ///
    /// # Errors
    /// As [`Picker::start`].
    pub async fn start_for(
        tools: &Tools,
        name: &str,
        options: &PickerOptions,
        engines: &[SocketAddr],
        kv_events_port: u16,
    ) -> Result<Self, DemoError> {
        let mut ports = FreePorts::default();
        let mut address = || ports.on_loopback().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let (grpc, health, mut metrics) = (address()?, address()?, address()?);
        if let Some(wished) = options.metrics_port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            && std::net::TcpListener::bind(wished).is_ok()
        {
            metrics = wished;
        }
        let endpoints: Vec<String> = engines.iter().map(ToString::to_string).collect();
        let mut command = Command::new(&tools.picker);
        command
            .arg(format!("--bind-address={}", grpc.ip()))
            .arg(format!("--grpc-port={}", grpc.port()))
            .arg(format!("--grpc-health-port={}", health.port()))
            .arg(format!("--metrics-port={}", metrics.port()))
            .arg(format!("--secure-serving={}", options.secure_serving))
            .arg(format!("--endpoints={}", endpoints.join(",")))
            .arg(format!("--kv-events-port={kv_events_port}"))
            .arg("--tokenizer")
            .arg(&tools.tokenizer)
            .arg("--config-file")
            .arg(&options.config_file)
            .args(&options.extra_args);
        let process = Process::spawn(name, command, &tools.logs)?;
        let mut picker = Self { process, grpc, health, metrics };
        wait_until_ready(&mut picker.process, READY_WITHIN, || serving(health)).await?;
        if options.reads_kv_events {
            let expected = endpoints.len();
            let client = HttpClient::default();
            wait_until_ready(&mut picker.process, READY_WITHIN, || listening(&client, metrics, expected))
                .await?;
        }
        Ok(picker)
    }
}

/// What the gRPC health service at `health` says of a service: `SERVING`, `NOT_SERVING`, ….
///
/// # Errors
/// It doesn't answer; in words.
pub async fn health_status(health: SocketAddr, service: &str) -> Result<&'static str, String> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{health}"));
    let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
    let mut client = HealthClient::new(channel.map_err(|error| error.to_string())?);
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = client.check(request).await.map_err(|status| status.to_string())?.into_inner();
    Ok(answer.status().as_str_name())
}

async fn serving(health: SocketAddr) -> Result<(), String> {
    match health_status(health, HEALTH_SERVICE).await? {
        "SERVING" => Ok(()),
        status => Err(status.to_owned()),
    }
}

/// Whether the picker listens to the KV events of `expected` engines.
async fn listening(client: &HttpClient, metrics: SocketAddr, expected: usize) -> Result<(), String> {
    let page = client.get_ok(metrics, "/metrics").await.map_err(|error| error.to_string())?;
    let page = MetricsText::parse(&page.text()).map_err(|error| error.to_string())?;
    match page.sum(SUBSCRIBERS, &[]) {
        Some(listening) if listening >= expected as f64 => Ok(()),
        Some(listening) => Err(format!("listens to the KV events of {listening} of {expected} engines")),
        None => Err(format!("its metrics page has no {SUBSCRIBERS}")),
    }
}
