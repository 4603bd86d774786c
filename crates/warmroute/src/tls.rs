//! TLS of the ports that this picker serves: which certificate, who may connect, and what becomes of changed files.
//!
//! [`TlsFlags`] become [`TlsSettings`] per port, these a [`ServingTls`], which a [`TlsListener`] accepts connections
//! with. A [`CertificateWatch`] swaps what changed files hold into it; connections that are open stay as they are.

mod certificate_files;
mod certificate_watch;
mod client_tls;
mod handshake_failure;
mod log_rate;
mod served_tls;
mod serving_tls;
mod tls_flags;
mod tls_listener;
mod tls_protocol;

use std::path::PathBuf;

pub use certificate_files::CertificateFiles;
pub use certificate_watch::{CertificateWatch, Look};
pub use client_tls::{ClientTls, ClientTlsError, NamedFile, without_roots};
pub use handshake_failure::HandshakeFailure;
pub use log_rate::LogRate;
pub use served_tls::ServedTls;
pub use serving_tls::{ServingTls, TlsSettings};
pub use tls_flags::TlsFlags;
pub use tls_listener::{HandshakeLimits, TlsListener};
pub use tls_protocol::TlsProtocol;

/// TLS can't be served as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `--tls-min-version` names no version that is served.
    #[error("--tls-min-version={0} is not served: write VersionTLS12 (also the default) or VersionTLS13")]
    UnknownVersion(String),
    /// `--tls-cipher-suites` names a suite that isn't served.
    #[error("--tls-cipher-suites: {name:?} is not served; there are {supported}")]
    UnknownSuite {
        /// The name as given.
        name: String,
        /// All names that are served, with commas between.
        supported: String,
    },
    /// A flag that needs another one.
    #[error("{flag} needs {needs}: {why}")]
    Needs {
        /// The flag that was given.
        flag: &'static str,
        /// The one that is missing or says otherwise.
        needs: &'static str,
        /// What for.
        why: &'static str,
    },
    /// A file can't be read.
    #[error("{flag}: can't read {}: {source}", path.display())]
    Unreadable {
        /// The flag that names it or its directory.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file isn't PEM, or has nothing of the kind in it.
    #[error("{flag}: {} {why}", path.display())]
    NotPem {
        /// The flag that names it or its directory.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is missing or malformed.
        why: String,
    },
    /// The key is another certificate's.
    #[error(
        "{flag}: tls.key isn't the key of the first certificate in tls.crt of {}: write both of one pair",
        path.display()
    )]
    Mismatch {
        /// The flag that names the directory.
        flag: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// A certificate whose dates can't be read.
    #[error("{flag}: the first certificate isn't X.509: {why}")]
    NotX509 {
        /// The flag that names it.
        flag: &'static str,
        /// What the parser says.
        why: String,
    },
    /// What clients are verified with isn't usable.
    #[error("{flag}: client certificates can't be verified with it: {why}")]
    ClientTrust {
        /// The flag that names it.
        flag: &'static str,
        /// Why not.
        why: String,
    },
    /// No certificate of our own can be made.
    #[error("can't make a self-signed certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
    /// rustls doesn't take what it was given.
    #[error("TLS can't be served so: {0}")]
    Tls(#[from] rustls::Error),
}
