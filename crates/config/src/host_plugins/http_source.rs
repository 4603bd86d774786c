//! `metrics-data-source` and `models-data-source`, which take the same parameters.

use std::path::PathBuf;
use std::time::Duration;

use super::PORT;
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;
use crate::yaml::shown;
use crate::{HttpSourceSpec, SourceTlsSpec};

impl HttpSourceSpec {
    /// `metrics-data-source` with the peer's defaults.
    pub(crate) fn metrics(name: impl Into<String>) -> Self {
        Self { name: name.into(), path: "/metrics".to_owned(), port: None, interval: None, tls: None }
    }

    /// `models-data-source` with the peer's defaults.
    pub fn models(name: impl Into<String>) -> Self {
        Self { path: "/v1/models".to_owned(), ..Self::metrics(name) }
    }

    /// Where engines tell of their KV events: on the port on which they serve, with the TLS of their metrics.
    pub fn kv_event_sources(metrics: Option<&Self>) -> Self {
        let tls = metrics.and_then(|metrics| metrics.tls.clone());
        Self { path: "/kv_event_sources".to_owned(), tls, ..Self::metrics("kv-event-sources") }
    }

    /// The same with the parameters that are given.
    pub(crate) fn read(mut self, declared: &Declared<'_>, mistakes: &mut Mistakes) -> Self {
        let Some(node) = declared.parameters else { return self };
        let mut fields = Fields::of(node, &declared.name, mistakes);
        if let Some((path, place)) = fields.text("path", mistakes) {
            if !path.starts_with('/') {
                let hint = format!("write {:?}", format!("/{path}"));
                mistakes.hinted(place, "path must begin with /", hint);
            }
            self.path = path.to_owned();
        }
        if let Some((port, _)) = fields.whole("port", PORT, mistakes) {
            self.port = u16::try_from(port).ok();
        }
        if let Some((interval, place)) = fields.duration("interval", mistakes) {
            self.interval = Some(interval);
            if interval < Duration::from_millis(1) {
                mistakes.at(place, "interval must be at least 1ms");
            }
        }
        self.tls = tls(&mut fields, mistakes);
        fields.finish(mistakes);
        self
    }
}

fn tls(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<SourceTlsSpec> {
    let https = match fields.text("scheme", mistakes) {
        None | Some(("http", _)) => false,
        Some(("https", _)) => true,
        Some((scheme, place)) => {
            mistakes.at(place, format!("scheme must be http or https, not {}", shown(scheme)));
            true
        }
    };
    let skip = fields.boolean("insecureSkipVerify", mistakes).map(|(skip, _)| skip);
    let mut path = |name| fields.text(name, mistakes).filter(|(path, _)| !path.is_empty());
    let (ca, cert, key) = (path("caCertPath"), path("clientCertPath"), path("clientKeyPath"));
    if !https {
        for (name, given) in [("caCertPath", ca), ("clientCertPath", cert), ("clientKeyPath", key)] {
            if let Some((_, place)) = given {
                mistakes.hinted(place, format!("{name} means nothing without https"), "add `scheme: https`");
            }
        }
        return None;
    }
    let insecure_skip_verify = skip.unwrap_or(true);
    if let (true, Some((_, place))) = (insecure_skip_verify, ca) {
        mistakes.notice(
            place,
            "caCertPath isn't used, since certificates aren't verified: add `insecureSkipVerify: false`",
        );
    }
    let client_identity = match (cert, key) {
        (Some((cert, _)), Some((key, _))) => Some((PathBuf::from(cert), PathBuf::from(key))),
        (Some((_, place)), None) => {
            mistakes.hinted(place, "clientCertPath needs its key", "add `clientKeyPath: …`");
            None
        }
        (None, Some((_, place))) => {
            mistakes.hinted(place, "clientKeyPath needs its certificate", "add `clientCertPath: …`");
            None
        }
        (None, None) => None,
    };
    let ca_cert_path = ca.map(|(path, _)| PathBuf::from(path));
    Some(SourceTlsSpec { insecure_skip_verify, ca_cert_path, client_identity })
}
