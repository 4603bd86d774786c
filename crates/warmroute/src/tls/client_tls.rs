//! TLS as a client: whom to trust, and what to show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// TLS to a server can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
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
    #[error("the system has no trusted certificates: name some with {0}")]
    NoRoots(&'static str),
    /// A certificate or key isn't taken.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A file, and the parameter that names it.
pub type NamedFile<'a> = (&'static str, &'a Path);

/// Whom a client trusts, and what it shows.
#[derive(Clone, Debug)]
pub struct ClientTls<'a> {
    /// Takes any server's certificate.
    pub insecure_skip_verify: bool,
    /// Roots; those of the system if there is no file. The name is said where neither has any.
    pub roots: (&'static str, Option<&'a Path>),
    /// The client's own certificate and its key.
    pub identity: Option<(NamedFile<'a>, NamedFile<'a>)>,
}

impl ClientTls<'_> {
    /// Reads the files.
    ///
    /// # Errors
    /// A file isn't usable.
    pub fn config(&self) -> Result<ClientConfig, ClientTlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if self.insecure_skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            builder.with_root_certificates(roots(self.roots)?)
        };
        Ok(match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, (what, path))) => {
                let unreadable = |reason| ClientTlsError::Pem { what, path: (*path).to_owned(), reason };
                let key = PrivateKeyDer::from_pem_file(path).map_err(unreadable)?;
                builder.with_client_auth_cert(certificates(*certificate)?, key)?
            }
        })
    }
}

/// For plain HTTP, where nothing of it is used.
///
/// # Errors
/// rustls has no protocol version: a mistake in this program.
pub fn without_roots() -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn certificates((what, path): NamedFile<'_>) -> Result<Vec<CertificateDer<'static>>, ClientTlsError> {
    let unreadable = |reason| ClientTlsError::Pem { what, path: path.to_owned(), reason };
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let read = read.map_err(unreadable)?;
    if read.is_empty() {
        return Err(ClientTlsError::NoCertificate { what, path: path.to_owned() });
    }
    Ok(read)
}

fn roots((what, path): (&'static str, Option<&Path>)) -> Result<RootCertStore, ClientTlsError> {
    let mut roots = RootCertStore::empty();
    match path {
        Some(path) => {
            for certificate in certificates((what, path))? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(ClientTlsError::NoRoots(what));
            }
        }
    }
    Ok(roots)
}

/// Takes any server's certificate, but no broken handshake.
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
