//! The certificate of the ext-proc port: from files, or made at start.

use std::path::Path;

use anyhow::Context;
use tonic::transport::{Identity, ServerTlsConfig};

/// TLS with the certificate in `cert_path` (`tls.crt`, `tls.key`), or with a self-signed one. Gateways don't verify it:
/// the inference extension's own recipes turn verification off.
///
/// # Errors
/// A file is missing or unreadable, or no certificate can be made.
pub fn server_tls(cert_path: Option<&Path>) -> anyhow::Result<ServerTlsConfig> {
    let (certificate, key) = match cert_path {
        Some(dir) => (read(&dir.join("tls.crt"))?, read(&dir.join("tls.key"))?),
        None => self_signed().context("can't make a self-signed certificate")?,
    };
    Ok(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!("can't read {}: --cert-path needs a directory with tls.crt and tls.key", path.display())
    })
}

fn self_signed() -> anyhow::Result<(String, String)> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}
