//! [`EnvoyProxy`]: Envoy as a process, with one of the recipes of `deploy/envoy`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{FreePorts, HttpClient, Process, READY_WITHIN, Tools, wait_until_ready};
use crate::DemoError;

const PLAINTEXT_SOCKET: &str = r#"{name: envoy.transport_sockets.raw_buffer, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}"#;
const TLS_SOCKET: &str = r#"{name: envoy.transport_sockets.tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}"#;

/// One of the templates in `deploy/envoy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// `buffered.yaml`, the recommended one.
    Buffered,
    /// `full-duplex.yaml`, what Istio and other endpoint pickers configure.
    FullDuplex,
}

impl Recipe {
    /// All recipes.
    pub const ALL: [Self; 2] = [Self::Buffered, Self::FullDuplex];

    /// Its name, which is the file's name without `.yaml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::FullDuplex => "full-duplex",
        }
    }

    /// The template's place in the source tree at `root`.
    pub fn path(self, root: &Path) -> PathBuf {
        root.join("deploy/envoy").join(format!("{}.yaml", self.name()))
    }
}

/// How Envoy speaks to the pickers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickerTransport {
    /// HTTP/2 without TLS.
    Plaintext,
    /// TLS that accepts any certificate, as gateways do with pickers that sign their own.
    Tls,
}

/// What fills the placeholders of a recipe.
#[derive(Debug, Clone)]
pub struct EnvoyConfig {
    /// The template.
    pub recipe: Recipe,
    /// Where clients connect.
    pub listener: SocketAddr,
    /// The admin page's port on 127.0.0.1.
    pub admin_port: u16,
    /// The ext-proc addresses of all picker replicas; may be empty.
    pub pickers: Vec<SocketAddr>,
    /// Plaintext or TLS to the pickers.
    pub transport: PickerTransport,
}

impl EnvoyConfig {
    /// The recipe with its placeholders filled in.
    ///
    /// # Errors
    /// [`DemoError::File`] if the template cannot be read.
    pub fn render(&self, root: &Path) -> Result<String, DemoError> {
        let path = self.recipe.path(root);
        let template = std::fs::read_to_string(&path).map_err(DemoError::file("read", &path))?;
        let endpoint = |picker: &SocketAddr| {
            let (ip, port) = (quoted(picker.ip()), picker.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
        };
        let endpoints: Vec<String> = self.pickers.iter().map(endpoint).collect();
        let socket = match self.transport {
            PickerTransport::Plaintext => PLAINTEXT_SOCKET,
            PickerTransport::Tls => TLS_SOCKET,
        };
        Ok(template
            .replace("${LISTENER_ADDRESS}", &quoted(self.listener.ip()))
            .replace("${LISTENER_PORT}", &self.listener.port().to_string())
            .replace("${ADMIN_PORT}", &self.admin_port.to_string())
            .replace("${PICKER_ENDPOINTS}", &endpoints.join(", "))
            .replace("${PICKER_TRANSPORT_SOCKET}", socket))
    }
}

/// An IPv6 address has colons, which YAML would take for a mapping.
fn quoted(ip: IpAddr) -> String {
    format!("\"{ip}\"")
}

/// A running Envoy. Envoy asks the kernel for SIGTERM at the death of its parent, and on Linux that is the thread that
/// started it: start it from a thread that stays, not from `spawn_blocking`.
#[derive(Debug)]
pub struct EnvoyProxy {
    /// Its process.
    pub process: Process,
    /// Where clients connect.
    pub listener: SocketAddr,
    /// Its admin page.
    pub admin: SocketAddr,
}

impl EnvoyProxy {
    /// Starts Envoy in front of `pickers` on loopback and waits until it takes requests. It listens on `listener_port`, or
    /// on a free port. The configuration is left beside the log.
    ///
    /// # Errors
    /// No free port, a process that ends early or is not ready in time.
    pub async fn start(
        tools: &Tools,
        name: &str,
        recipe: Recipe,
        pickers: &[SocketAddr],
        transport: PickerTransport,
        listener_port: Option<u16>,
    ) -> Result<Self, DemoError> {
        let mut ports = FreePorts::default();
        let listener_port = listener_port.map_or_else(|| ports.on_loopback(), Ok)?;
        let config = EnvoyConfig {
            recipe,
            listener: (Ipv4Addr::LOCALHOST, listener_port).into(),
            admin_port: ports.on_loopback()?,
            pickers: pickers.to_vec(),
            transport,
        };
        Self::start_with(tools, name, &config).await
    }

    /// Starts Envoy with `config` and waits until it takes requests.
    ///
    /// # Errors
    /// As [`EnvoyProxy::start`].
    pub async fn start_with(tools: &Tools, name: &str, config: &EnvoyConfig) -> Result<Self, DemoError> {
        Self::start_changed(tools, name, config, |text| text).await
    }

    /// The same with a rendered configuration that `change` has changed.
    ///
    /// # Errors
    /// As [`EnvoyProxy::start`].
    pub async fn start_changed(
        tools: &Tools,
        name: &str,
        config: &EnvoyConfig,
        change: impl FnOnce(String) -> String,
    ) -> Result<Self, DemoError> {
        std::fs::create_dir_all(&tools.logs).map_err(DemoError::file("create", &tools.logs))?;
        let file = tools.logs.join(format!("{name}.yaml"));
        let text = change(config.render(&tools.root)?);
        std::fs::write(&file, text).map_err(DemoError::file("write", &file))?;
        let mut command = Command::new(&tools.envoy);
        // The base id is what keeps several Envoys on one machine apart; two workers are enough for a demo.
        command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]);
        command.args(["--drain-strategy", "immediate", "-c"]).arg(&file);
        let mut process = Process::spawn(name, command, &tools.logs)?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, config.admin_port));
        let client = HttpClient::default();
        wait_until_ready(&mut process, READY_WITHIN, || async {
            client.get_ok(admin, "/ready").await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self { process, listener: config.listener, admin })
    }
}
