//! A configuration that has been checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::place::Source;
use crate::{
    ConfigError, MetricsExtractorSpec, Mistake, Notice, Place, PrefixProducerSpec, ProfileHandlerSpec,
    TokenProducerSpec,
};

/// A configuration without mistakes, with every default filled in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckedConfig {
    /// The text that it was read from.
    pub source: Source,
    /// The filters, scorers and pickers to build, in the order of the file; injected ones come last.
    pub plugins: Vec<PluginSpec>,
    /// The scheduling profiles; at least one, and more only if the handler chooses.
    pub profiles: Vec<ProfileSpec>,
    /// What chooses among them.
    pub handler: ProfileHandlerSpec,
    /// The producers of prefix matches, in the order of the file, the exact one first; an injected one comes last.
    pub prefix_producers: Vec<PrefixProducerSpec>,
    /// Whose prefix matches say how much of a request its engine has to compute; `None` if the file doesn't say.
    pub in_flight_prefix_producer: Option<String>,
    /// Where token ids come from; `None` if the configuration doesn't say, which leaves an estimate.
    pub token_producer: Option<TokenProducerSpec>,
    /// How metrics are scraped; `None` if `dataLayer.injectDefaults` is false and there is no source.
    pub metrics_source: Option<HttpSourceSpec>,
    /// What is read out of metrics pages.
    pub metrics_extractor: MetricsExtractorSpec,
    /// Where endpoints are asked which models they serve; `None` if they aren't.
    pub models_source: Option<HttpSourceSpec>,
    /// The file that endpoints come from; `None` if they come from elsewhere.
    pub discovery: Option<FileDiscoverySpec>,
    /// Where session ids are found in requests, in the order of the file.
    pub session_id_producers: Vec<SessionIdProducerSpec>,
    /// Whether responses tell which endpoint served them, as the gateway says: `destination-endpoint-served-verifier`.
    pub reports_served_endpoint: bool,
    /// The parsers in the order in which they are tried.
    pub parsers: Vec<Parser>,
    /// What tells how full the pool is, so that requests of negative priority can be refused. It is one of
    /// [`plugins`](Self::plugins) if the file declares it.
    pub saturation_detector: PluginSpec,
    /// What an operator should know, in the order of the text; what isn't about a place comes first.
    pub notices: Vec<Notice>,
}

impl CheckedConfig {
    /// The notices as lines for a log: `file:line:column: message`.
    pub fn notice_lines(&self) -> impl Iterator<Item = String> {
        self.notices.iter().map(|notice| match notice.place {
            Some(place) => format!("{}:{place}: {}", self.source.name(), notice.message),
            None => format!("{}: {}", self.source.name(), notice.message),
        })
    }

    /// The error for mistakes that only showed when plugins were built; see
    /// [`PluginSpec::mistake`].
    pub fn refuse(&self, mistakes: Vec<Mistake>) -> ConfigError {
        ConfigError::new(self.source.clone(), mistakes)
    }
}

/// Types whose parameters the llm-d EPP takes without looking at them.
const PEER_IGNORES_PARAMETERS: [&str; 2] = ["queue-scorer", "kv-cache-utilization-scorer"];

/// A filter, scorer or picker to build.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// Its name; its type if the file gives none.
    pub name: String,
    /// Its type, as registered.
    pub plugin_type: String,
    /// Its parameters: an object.
    pub parameters: Value,
    /// Where it stands; `None` if it was injected.
    pub place: Option<Place>,
    /// Where each of its parameters stands, by path like `a.b[2].c`.
    pub parameter_places: BTreeMap<String, Place>,
}

impl PluginSpec {
    /// A mistake in the parameters, found when the plugin was built: at the path that the plugin names
    /// (`a.b[2].c`, empty for all of them), or as near to it as the file goes.
    pub fn mistake(&self, path: &str, message: impl Into<String>) -> Mistake {
        let mut near = path;
        let place = loop {
            if let Some(place) = self.parameter_places.get(near) {
                break *place;
            }
            match near.rfind(['.', '[']) {
                Some(end) => near = &near[..end],
                None if !near.is_empty() => near = "",
                None => break self.place.unwrap_or(Place::START),
            }
        };
        let message = message.into();
        let mistake = Mistake::new(place, format!("plugin {}: {message}", self.name));
        if message.contains("unknown field") && PEER_IGNORES_PARAMETERS.contains(&self.plugin_type.as_str()) {
            return mistake.with_hint(
                "remove it; the llm-d EPP ignores parameters of this type, here nothing is ignored",
            );
        }
        mistake
    }
}

/// A scheduling profile.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileSpec {
    /// Its name.
    pub name: String,
    /// Its plugins in order; every one is in [`CheckedConfig::plugins`], and exactly one is a picker.
    pub plugins: Vec<PluginRef>,
    /// Where it stands; `None` if it was injected.
    pub place: Option<Place>,
}

/// A plugin in a profile.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginRef {
    /// The plugin's name.
    pub plugin_ref: String,
    /// What a scorer's scores are multiplied by; finite. Means nothing for filters and pickers.
    pub weight: f64,
}

/// A page that is fetched from every endpoint again and again: metrics, or models.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HttpSourceSpec {
    /// Its name.
    pub name: String,
    /// Path of the page.
    pub path: String,
    /// Its port; `None` for the endpoint's own.
    pub port: Option<u16>,
    /// How often; `None` for the host's default.
    pub interval: Option<Duration>,
    /// How TLS is spoken; `None` for plain HTTP.
    pub tls: Option<SourceTlsSpec>,
}

/// How TLS is spoken with endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceTlsSpec {
    /// Whether any certificate is taken.
    pub insecure_skip_verify: bool,
    /// PEM file with the certificates that are trusted; `None` for the system's.
    pub ca_cert_path: Option<PathBuf>,
    /// PEM files with the certificate that is shown to endpoints, and its key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
}

/// The file that endpoints come from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FileDiscoverySpec {
    /// Name of the plugin.
    pub name: String,
    /// The file; a relative path starts at the working directory of the process.
    pub path: PathBuf,
    /// Whether changes of the file are followed; otherwise it is read once.
    pub watch_file: bool,
}

/// Where a session id is found in requests. Plugins read it as the request's attribute `SessionID/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionIdProducerSpec {
    /// Its name.
    pub name: String,
    /// Where the id is.
    pub source: SessionIdSource,
}

/// A place in a request's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionIdSource {
    /// The header with this lower-case name.
    Header(String),
    /// The cookie with this name.
    Cookie(String),
}

/// A parser of request bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parser {
    /// The OpenAI API.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// vLLM's own generate API.
    VllmHttp,
    /// SGLang's own generate API.
    SglangHttp,
    /// Whatever no parser before it takes, unread.
    Passthrough,
}
