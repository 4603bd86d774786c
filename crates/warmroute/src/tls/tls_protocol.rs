use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, DEFAULT_VERSIONS, SupportedCipherSuite, SupportedProtocolVersion};

use super::TlsError;

static ONLY_13: [&SupportedProtocolVersion; 1] = [&TLS13];

/// Versions and cipher suites that are served.
#[derive(Clone, Debug)]
pub struct TlsProtocol {
    /// The suites, with all that is needed for them.
    pub provider: Arc<CryptoProvider>,
    /// The versions, newest first.
    pub versions: &'static [&'static SupportedProtocolVersion],
}

impl Default for TlsProtocol {
    /// TLS 1.2 and 1.3 with every suite that rustls holds to be safe.
    fn default() -> Self {
        Self { provider: Arc::new(ring::default_provider()), versions: DEFAULT_VERSIONS }
    }
}

impl TlsProtocol {
    /// As the flags say: `min_version` is empty or a name of Go's `crypto/tls` as Kubernetes writes it, `suites` are names
    /// of Go's cipher suites.
    ///
    /// As in Go, naming suites of TLS 1.2 leaves those of TLS 1.3 as they are. Unlike there, naming some of TLS 1.3 leaves
    /// only these; if no other is named, TLS 1.2 isn't served.
    ///
    /// # Errors
    /// A name that isn't served.
    pub fn try_new(min_version: &str, suites: &[String]) -> Result<Self, TlsError> {
        let versions: &'static [_] = match min_version {
            "" | "VersionTLS12" => DEFAULT_VERSIONS,
            "VersionTLS13" => &ONLY_13,
            other => return Err(TlsError::UnknownVersion(other.to_owned())),
        };
        let mut provider = ring::default_provider();
        let named: Vec<&str> =
            suites.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
        if !named.is_empty() {
            provider.cipher_suites = chosen(&provider.cipher_suites, &named)?;
        }
        Ok(Self { provider: Arc::new(provider), versions })
    }

    /// What is served, for the log.
    pub fn describe(&self) -> String {
        let has_12 = self.provider.cipher_suites.iter().any(|suite| suite.version().version == TLS12.version);
        let versions = if self.versions.len() > 1 && has_12 { "TLS 1.2 and 1.3" } else { "TLS 1.3" };
        format!("{versions}, {} cipher suites", self.provider.cipher_suites.len())
    }
}

/// The named suites in rustls' order of preference, and those of TLS 1.3 if none of these is named.
fn chosen(all: &[SupportedCipherSuite], named: &[&str]) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    for name in named {
        if !all.iter().any(|suite| is_called(suite.suite(), name)) {
            let supported: Vec<&str> = all.iter().filter_map(|suite| go_name(suite.suite())).collect();
            return Err(TlsError::UnknownSuite { name: (*name).to_owned(), supported: supported.join(", ") });
        }
    }
    let is_13 = |suite: &SupportedCipherSuite| suite.version().version == TLS13.version;
    let is_named = |suite: &SupportedCipherSuite| named.iter().any(|name| is_called(suite.suite(), name));
    let keeps_13 = !all.iter().any(|suite| is_13(suite) && is_named(suite));
    Ok(all.iter().copied().filter(|suite| is_named(suite) || (is_13(suite) && keeps_13)).collect())
}

/// Go knows the two ChaCha20 suites of TLS 1.2 by an older name too.
fn is_called(suite: CipherSuite, name: &str) -> bool {
    let Some(known) = go_name(suite) else { return false };
    name == known
        || known.strip_suffix("_SHA256").is_some_and(|old| old == name && old.starts_with("TLS_ECDHE_"))
}

/// A suite's name in Go (`crypto/tls/cipher_suites.go`), which is IANA's.
fn go_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites(names: &[&str]) -> Result<Vec<&'static str>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let protocol = TlsProtocol::try_new("", &names).map_err(|error| error.to_string())?;
        Ok(protocol.provider.cipher_suites.iter().map(|suite| go_name(suite.suite()).unwrap()).collect())
    }

    const OF_13: [&str; 3] =
        ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"];

    #[test]
    fn suites_are_named_as_in_go() {
        assert_eq!(suites(&[]).unwrap().len(), 9);
        let one = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        assert_eq!(suites(&[one, " "]).unwrap(), [&OF_13[..], &[one]].concat());
        let old = suites(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"]).unwrap();
        assert_eq!(old[3..], ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
        assert_eq!(suites(&[OF_13[1]]).unwrap(), [OF_13[1]]);
        assert_eq!(suites(&[OF_13[1], one]).unwrap(), [OF_13[1], one]);
        for wrong in ["TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_CHACHA20_POLY1305", "TLS13_AES_128_GCM_SHA256"] {
            let error = suites(&[one, wrong]).unwrap_err();
            assert!(error.contains(&format!("{wrong:?} is not served")), "{error}");
            assert!(error.contains("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "), "{error}");
            assert!(error.contains("TLS_AES_128_GCM_SHA256"), "{error}");
        }
    }

    #[test]
    fn versions_are_named_as_in_kubernetes() {
        let of = |name| TlsProtocol::try_new(name, &[]).map(|protocol| protocol.describe());
        assert_eq!(of("").unwrap(), "TLS 1.2 and 1.3, 9 cipher suites");
        assert_eq!(of("VersionTLS12").unwrap(), of("").unwrap());
        assert_eq!(of("VersionTLS13").unwrap(), "TLS 1.3, 9 cipher suites");
        for wrong in ["VersionTLS10", "VersionTLS11", "TLS12", "1.2"] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("VersionTLS13"), "{error}");
        }
    }
}
