use std::path::PathBuf;

use clap::Args;

use super::{CertificateFiles, TlsError, TlsProtocol, TlsSettings};

const CERT_PATH: &str = "--cert-path";
const CLIENT_CA_FILE: &str = "--client-ca-file";
const METRICS_CERT_DIR: &str = "--metrics-cert-dir";
const METRICS_CLIENT_CA_FILE: &str = "--metrics-client-ca-file";

/// What is served over TLS, and to whom. The flags are the llm-d Router EPP's (`pkg/epp/server/options.go` in
/// github.com/llm-d/llm-d-router), except `--client-ca-file`.
#[derive(Clone, Debug, Args)]
pub struct TlsFlags {
    /// Serve ext-proc over TLS; with a self-signed certificate unless --cert-path is given.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub secure_serving: bool,
    /// Directory with tls.crt and tls.key.
    #[arg(long, default_value = "", value_name = "DIR")]
    pub cert_path: String,
    /// Take changed files of --cert-path and --client-ca-file while serving; unusable ones are refused and the last good
    /// ones stay. Those of the metrics port are always taken.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub enable_cert_reload: bool,
    /// Oldest version served on either port: VersionTLS12 (also the default) or VersionTLS13.
    #[arg(long, default_value = "", value_name = "VERSION")]
    pub tls_min_version: String,
    /// Cipher suites served on either port, by Go's names; by default all that are safe. If none of TLS 1.3 is named,
    /// these stay as they are.
    #[arg(long, value_delimiter = ',', value_name = "SUITE,…")]
    pub tls_cipher_suites: Vec<String>,
    /// File with the authorities of the clients that may connect to ext-proc: a client certificate is required then.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub client_ca_file: String,
    /// Directory with tls.crt and tls.key of the metrics port; without it the port is plaintext.
    #[arg(long, default_value = "", value_name = "DIR")]
    pub metrics_cert_dir: String,
    /// File with the authorities of the clients that may connect to the metrics port; needs --metrics-cert-dir.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub metrics_client_ca_file: String,
    /// Ask for a bearer token on the metrics port and the Kubernetes API whether it may pass (TokenReview,
    /// SubjectAccessReview). By default where endpoints come from Kubernetes.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub metrics_endpoint_auth: Option<bool>,
}

impl TlsFlags {
    /// TLS of the ext-proc port, if it has any.
    ///
    /// # Errors
    /// A name isn't known, or clients are to be verified without TLS.
    pub fn ext_proc(&self) -> Result<Option<TlsSettings>, TlsError> {
        if !self.secure_serving {
            return match self.client_ca_file.as_str() {
                "" => Ok(None),
                _ => Err(TlsError::Needs {
                    flag: CLIENT_CA_FILE,
                    needs: "--secure-serving",
                    why: "in plaintext no client shows a certificate",
                }),
            };
        }
        let files = CertificateFiles {
            pair: named(CERT_PATH, &self.cert_path),
            client_ca: named(CLIENT_CA_FILE, &self.client_ca_file),
        };
        let (protocol, reload) = (self.protocol()?, self.enable_cert_reload);
        Ok(Some(TlsSettings { port: "grpc", alpn: b"h2", files, reload, protocol }))
    }

    /// TLS of the metrics port, if it has any.
    ///
    /// # Errors
    /// A name isn't known, or clients are to be verified without TLS.
    pub fn metrics(&self) -> Result<Option<TlsSettings>, TlsError> {
        let files = CertificateFiles {
            pair: named(METRICS_CERT_DIR, &self.metrics_cert_dir),
            client_ca: named(METRICS_CLIENT_CA_FILE, &self.metrics_client_ca_file),
        };
        match (&files.pair, &files.client_ca) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(TlsError::Needs {
                flag: METRICS_CLIENT_CA_FILE,
                needs: METRICS_CERT_DIR,
                why: "in plaintext no client shows a certificate",
            }),
            (Some(_), _) => {
                let protocol = self.protocol()?;
                Ok(Some(TlsSettings { port: "metrics", alpn: b"http/1.1", files, reload: true, protocol }))
            }
        }
    }

    fn protocol(&self) -> Result<TlsProtocol, TlsError> {
        TlsProtocol::try_new(&self.tls_min_version, &self.tls_cipher_suites)
    }
}

/// An empty name is the default, as at the peer.
fn named(flag: &'static str, path: &str) -> Option<(&'static str, PathBuf)> {
    (!path.is_empty()).then(|| (flag, PathBuf::from(path)))
}
