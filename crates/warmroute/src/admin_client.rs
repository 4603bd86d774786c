//! Asks the metrics port of a running picker, for commands.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;

use crate::tls::{ClientTls, without_roots};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest answer.
const LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// Where a running picker is, and how to be let in.
#[derive(Clone, Debug, Args)]
pub struct PickerAccess {
    /// Base URL of the running picker's metrics port; https:// where it has --metrics-cert-dir.
    #[arg(long, default_value = "http://127.0.0.1:9090", value_name = "URL")]
    pub address: String,
    /// Bearer token, where the port asks for one; --token-file keeps it out of the list of processes.
    #[arg(
        long,
        env = "WARMROUTE_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file",
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// File with the bearer token, for example a service account's.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the authorities that the port's certificate is trusted by; those of the system if absent.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Take any certificate of the port.
    #[arg(long, conflicts_with = "ca_file")]
    pub insecure_skip_verify: bool,
    /// File with the client certificate to show, where the port has --metrics-client-ca-file.
    #[arg(long, requires = "client_key", value_name = "FILE")]
    pub client_cert: Option<PathBuf>,
    /// File with its key.
    #[arg(long, requires = "client_cert", value_name = "FILE")]
    pub client_key: Option<PathBuf>,
}

impl PickerAccess {
    /// The base URL without a slash at its end.
    pub(crate) fn base(&self) -> &str {
        self.address.trim_end_matches('/')
    }

    /// The page at `path`.
    ///
    /// # Errors
    /// The picker can't be reached, lets nobody in with that token, or its answer can't be read; the error says what to
    /// do.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// What POSTing JSON to `path` gives.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn post(&self, path: &str, json: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send(Method::POST, path, json).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let base = self.base();
        let url = format!("{base}{path}");
        let verb = method.as_str().to_ascii_lowercase();
        let mut request =
            Request::builder().method(method).uri(&url).header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = self.bearer_token()? {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body)).with_context(|| format!("{url} is not a URL"))?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new().with_tls_config(self.tls()?).https_or_http();
        let connector = connector.enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
        let response = tokio::time::timeout(ANSWER_WITHIN, client.request(request)).await;
        let response =
            response.with_context(|| format!("no answer from {base} within 10 seconds"))?.with_context(
                || format!("can't reach {base}: is the picker running? --address names its metrics port"),
            )?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LIMIT_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("answer of {url} not readable: {error}"))?;
        let body = body.to_bytes();
        match status {
            StatusCode::UNAUTHORIZED => bail!(
                "{base} lets nobody in without a token that its cluster knows: give --token-file or --token"
            ),
            StatusCode::FORBIDDEN => bail!(
                "{}: its user needs a ClusterRole with verb {verb} on the nonResourceURL {path}",
                String::from_utf8_lossy(&body).trim()
            ),
            _ => Ok((status, body)),
        }
    }

    fn bearer_token(&self) -> anyhow::Result<Option<HeaderValue>> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .with_context(|| format!("can't read --token-file {}", file.display()))?,
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .context("the token isn't one that a header can hold")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn tls(&self) -> anyhow::Result<ClientConfig> {
        if !self.address.starts_with("https://") {
            let is_set = self.insecure_skip_verify || self.ca_file.is_some() || self.client_cert.is_some();
            ensure!(!is_set, "--address {} isn't https://, so there are no certificates", self.address);
            return Ok(without_roots()?);
        }
        let identity = self.client_cert.as_deref().zip(self.client_key.as_deref());
        let tls = ClientTls {
            insecure_skip_verify: self.insecure_skip_verify,
            roots: ("--ca-file", self.ca_file.as_deref()),
            identity: identity
                .map(|(certificate, key)| (("--client-cert", certificate), ("--client-key", key))),
        };
        tls.config().context("no TLS to the picker")
    }
}
