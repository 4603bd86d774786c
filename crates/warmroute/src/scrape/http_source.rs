//! Fetches one page from every endpoint, over HTTP or HTTPS, on connections that are kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use warmroute_config::{HttpSourceSpec, SourceTlsSpec};

use crate::pool::{EndpointSpec, host_port};

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

/// Why TLS to endpoints can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SourceTlsError {
    /// A certificate or key can't be read.
    #[error("{what} {}: {reason}", path.display())]
    Pem {
        /// The parameter.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: pem::Error,
    },
    /// A file without a certificate.
    #[error("{what} {} has no certificate in it", path.display())]
    NoCertificate {
        /// The parameter.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// There are no trusted certificates on this system.
    #[error("the system has no trusted certificates: name some with caCertPath")]
    NoRoots,
    /// A certificate or key isn't taken.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
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
    pub fn try_new(spec: &HttpSourceSpec) -> Result<Self, SourceTlsError> {
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

/// For plain HTTP, where nothing of it is used.
fn without_roots() -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn client_config(tls: &SourceTlsSpec) -> Result<ClientConfig, SourceTlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots(tls.ca_cert_path.as_deref())?)
    };
    Ok(match &tls.client_identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (what, path) = ("clientKeyPath", key);
            let key = PrivateKeyDer::from_pem_file(key).map_err(|reason| SourceTlsError::Pem {
                what,
                path: path.clone(),
                reason,
            })?;
            builder.with_client_auth_cert(certificates("clientCertPath", certificate)?, key)?
        }
    })
}

fn roots(path: Option<&Path>) -> Result<RootCertStore, SourceTlsError> {
    let mut roots = RootCertStore::empty();
    match path {
        Some(path) => {
            for certificate in certificates("caCertPath", path)? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(SourceTlsError::NoRoots);
            }
        }
    }
    Ok(roots)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceTlsError> {
    let unreadable = |reason| SourceTlsError::Pem { what, path: path.to_owned(), reason };
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let read = read.map_err(unreadable)?;
    if read.is_empty() {
        return Err(SourceTlsError::NoCertificate { what, path: path.to_owned() });
    }
    Ok(read)
}

/// Takes any certificate (`insecureSkipVerify`), but no broken handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
