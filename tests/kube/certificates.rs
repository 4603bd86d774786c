//! [`Certificates`]: the authority of the API server, what it shows and what its administrator shows it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// Files in PEM form.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    /// The authority's certificate.
    pub(crate) authority: PathBuf,
    /// Of the API server, for 127.0.0.1.
    pub(crate) server: PathBuf,
    pub(crate) server_key: PathBuf,
    /// Of a member of `system:masters`, who may do everything.
    pub(crate) administrator: PathBuf,
    pub(crate) administrator_key: PathBuf,
    /// Signs the tokens of service accounts.
    pub(crate) token_key: PathBuf,
    /// Verifies them.
    pub(crate) token_public_key: PathBuf,
}

impl Certificates {
    /// Makes everything anew in `folder`.
    ///
    /// # Errors
    /// A certificate can't be made, or a file not written.
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut params = named("warmroute-tests", None)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let server_key = KeyPair::generate()?;
        let mut server = named("kube-apiserver", None)?;
        server.subject_alt_names =
            CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?.subject_alt_names;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];

        let administrator_key = KeyPair::generate()?;
        let mut administrator = named("administrator", Some("system:masters"))?;
        administrator.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];

        let token_key = KeyPair::generate()?;
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            anyhow::Ok(file)
        };
        Ok(Self {
            authority: write("authority.crt", authority.pem())?,
            server: write("server.crt", server.signed_by(&server_key, &authority)?.pem())?,
            server_key: write("server.key", server_key.serialize_pem())?,
            administrator: write(
                "administrator.crt",
                administrator.signed_by(&administrator_key, &authority)?.pem(),
            )?,
            administrator_key: write("administrator.key", administrator_key.serialize_pem())?,
            token_key: write("tokens.key", token_key.serialize_pem())?,
            token_public_key: write("tokens.pub", token_key.public_key_pem())?,
        })
    }
}

/// What a certificate says of its owner: Kubernetes reads the organisation as a group.
fn named(name: &str, organisation: Option<&str>) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    Ok(params)
}
