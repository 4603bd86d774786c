use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{Error, RootCertStore, ServerConfig};

use super::{TlsError, TlsProtocol};

/// Largest file read: a chain has a few kilobytes, a bundle of all public authorities 200.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Where certificates come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFiles {
    /// A flag, and the directory with `tls.crt` and `tls.key` that it names; None for a pair of our own.
    pub pair: Option<(&'static str, PathBuf)>,
    /// A flag, and the file that it names, of the authorities whose clients may connect; None for everybody.
    pub client_ca: Option<(&'static str, PathBuf)>,
}

/// What the files held at one moment.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct CertificateBytes {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// A certificate ready to be served.
#[derive(Clone, Debug)]
pub(super) struct LoadedCertificate {
    pub(super) config: Arc<ServerConfig>,
    /// When the certificate begins and ceases to be valid, in Unix seconds.
    pub(super) valid: (i64, i64),
}

impl CertificateFiles {
    /// Reads the files; `own` is what stands in where no pair is given.
    pub(super) fn read(&self, own: Option<&CertificateBytes>) -> Result<CertificateBytes, TlsError> {
        let (certificate, key) = match (&self.pair, own) {
            (Some((flag, dir)), _) => {
                (read_bounded(flag, &dir.join("tls.crt"))?, read_bounded(flag, &dir.join("tls.key"))?)
            }
            (None, Some(own)) => (own.certificate.clone(), own.key.clone()),
            (None, None) => self_signed()?,
        };
        let client_ca = self.client_ca.as_ref().map(|(flag, path)| read_bounded(flag, path)).transpose()?;
        Ok(CertificateBytes { certificate, key, client_ca })
    }

    /// Makes of them what is served.
    pub(super) fn load(
        &self,
        bytes: &CertificateBytes,
        protocol: &TlsProtocol,
        alpn: &[u8],
    ) -> Result<LoadedCertificate, TlsError> {
        let (flag, dir) = match &self.pair {
            Some((flag, dir)) => (*flag, dir.clone()),
            None => ("self-signed", PathBuf::new()),
        };
        let (certificate_path, key_path) = (dir.join("tls.crt"), dir.join("tls.key"));
        let chain = certificates(flag, &certificate_path, &bytes.certificate)?;
        let valid = validity(flag, &chain)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes.key)
            .map_err(|error| not_pem(flag, &key_path, "private key", &error))?;
        let builder = ServerConfig::builder_with_provider(protocol.provider.clone())
            .with_protocol_versions(protocol.versions)?;
        let builder = match (&self.client_ca, &bytes.client_ca) {
            (Some((flag, path)), Some(pem)) => {
                let verifier = client_verifier(flag, &certificates(flag, path, pem)?, protocol)?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            Error::InconsistentKeys(_) => TlsError::Mismatch { flag, path: dir },
            other => TlsError::Tls(other),
        })?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(LoadedCertificate { config: Arc::new(config), valid })
    }
}

fn read_bounded(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut content)?;
        match content.len() as u64 > FILE_LIMIT_BYTES {
            true => Err(io::Error::other("it is over 1 MiB")),
            false => Ok(content),
        }
    };
    read().map_err(|source| TlsError::Unreadable { flag, path: path.to_owned(), source })
}

fn certificates(
    flag: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| not_pem(flag, path, "certificate", &error))?;
    if read.is_empty() {
        return Err(not_pem(flag, path, "certificate", &pem::Error::NoItemsFound));
    }
    Ok(read)
}

fn not_pem(flag: &'static str, path: &Path, what: &str, error: &pem::Error) -> TlsError {
    let why = match error {
        pem::Error::NoItemsFound => format!("has no {what} in it"),
        other => format!("isn't PEM: {other}"),
    };
    TlsError::NotPem { flag, path: path.to_owned(), why }
}

/// When the first certificate is valid, in Unix seconds.
fn validity(flag: &'static str, chain: &[CertificateDer<'_>]) -> Result<(i64, i64), TlsError> {
    let first = chain.first().map(|certificate| certificate.as_ref()).unwrap_or_default();
    let (_, certificate) = x509_parser::parse_x509_certificate(first)
        .map_err(|error| TlsError::NotX509 { flag, why: error.to_string() })?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn client_verifier(
    flag: &'static str,
    authorities: &[CertificateDer<'static>],
    protocol: &TlsProtocol,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let unusable = |error: &dyn std::fmt::Display| TlsError::ClientTrust { flag, why: error.to_string() };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| unusable(&error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), protocol.provider.clone())
        .build()
        .map_err(|error| unusable(&error))
}

/// Gateways don't verify it: the inference extension's own recipes turn verification off.
fn self_signed() -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    Ok((made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes()))
}
