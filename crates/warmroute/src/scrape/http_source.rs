//! Fetches one page from every endpoint, over HTTP or HTTPS, on connections that are kept.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use warmroute_config::{HttpSourceSpec, SourceTlsSpec};

use crate::pool::{EndpointSpec, host_port};
use crate::tls::{ClientTls, ClientTlsError, without_roots};

/// Largest page read; a vLLM page has 50 to 70 KB.
const PAGE_LIMIT_BYTES: usize = 8 * 1024 * 1024;
/// Longest time for one fetch, as at the llm-d Router EPP.
const FETCH_DEADLINE: Duration = Duration::from_secs(1);

/// Why one fetch gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No whole answer in time.
    #[error("no answer within {}ms", FETCH_DEADLINE.as_millis())]
    Deadline,
    /// The connection failed.
    #[error("can't connect: {0}")]
    Connect(#[source] hyper_util::client::legacy::Error),
    /// An HTTP status other than 200.
    #[error("answered {0}")]
    Status(http::StatusCode),
    /// The page broke off or is over the limit.
    #[error("page not readable: {0}")]
    Body(String),
    /// The endpoint's address makes no URL.
    #[error("address makes no URL: {0}")]
    Url(#[from] http::uri::InvalidUri),
}

/// A page that every endpoint has. One for the process, so that connections are kept.
#[derive(Clone, Debug)]
pub struct HttpSource {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    scheme: &'static str,
    path: String,
    port: Option<u16>,
}

impl HttpSource {
    /// A source as a configuration describes it. Certificate files are read once, here.
    ///
    /// # Errors
    /// A certificate or key file isn't usable.
    pub fn try_new(spec: &HttpSourceSpec) -> Result<Self, ClientTlsError> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(FETCH_DEADLINE));
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new();
        let connector = match &spec.tls {
            Some(tls) => connector.with_tls_config(client_config(tls)?).https_only(),
            None => connector.with_tls_config(without_roots()?).https_or_http(),
        };
        let connector = connector.enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        let scheme = if spec.tls.is_some() { "https" } else { "http" };
        Ok(Self { client, scheme, path: spec.path.clone(), port: spec.port })
    }

    /// Where an endpoint has the page.
    ///
    /// # Errors
    /// The endpoint's host and the path make no URL.
    pub fn uri(&self, endpoint: &EndpointSpec) -> Result<Uri, FetchError> {
        let address = host_port(&endpoint.host, self.port.unwrap_or(endpoint.port));
        Ok(format!("{}://{address}{}", self.scheme, self.path).parse()?)
    }

    /// Fetches the page, within a second.
    ///
    /// # Errors
    /// There is no whole page of at most 8 MiB.
    pub async fn fetch(&self, uri: &Uri) -> Result<Bytes, FetchError> {
        let fetch = async {
            let response = self.client.get(uri.clone()).await.map_err(FetchError::Connect)?;
            if response.status() != http::StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), PAGE_LIMIT_BYTES).collect().await;
            Ok(body.map_err(|error| FetchError::Body(error.to_string()))?.to_bytes())
        };
        tokio::time::timeout(FETCH_DEADLINE, fetch).await.map_err(|_| FetchError::Deadline)?
    }
}

fn client_config(tls: &SourceTlsSpec) -> Result<ClientConfig, ClientTlsError> {
    let identity = tls.client_identity.as_ref();
    ClientTls {
        insecure_skip_verify: tls.insecure_skip_verify,
        roots: ("caCertPath", tls.ca_cert_path.as_deref()),
        identity: identity.map(|(certificate, key)| {
            (("clientCertPath", certificate.as_path()), ("clientKeyPath", key.as_path()))
        }),
    }
    .config()
}
