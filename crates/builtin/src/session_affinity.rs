//! What `session-affinity-scorer` and `session-affinity-filter` share: which endpoint a request's session is at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use warmroute_plugin::{BuildContext, BuildError, Candidates, InferenceRequest, Pick, PickHeaders};

use crate::session_bindings::{Eviction, SessionBindings};

const TOKEN_HEADER: &str = "x-session-token";
const SESSION_ID_HEADER: &str = "x-session-id";
const SESSION_ID: &str = "SessionID";
const SESSION_ID_PRODUCER: &str = "session-id-producer";
const TTL_SECONDS: f64 = 300.0;
const SWEEP_SECONDS: f64 = 10.0;
/// Longest token that is decoded, in bytes; a name has at most a few hundred.
const MAX_TOKEN_BYTES: usize = 1024;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Parameters {
    strategy: StrategyName,
    encoded_endpoint_header_config: HeaderConfig,
    session_id_config: SessionIdConfig,
    /// The profile whose pick counts; empty for the one that decides where the request goes.
    profile_name: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum StrategyName {
    #[default]
    EncodedEndpointHeader,
    SessionId,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HeaderConfig {
    /// Empty counts as the default, as at the peer.
    header: String,
}

impl Default for HeaderConfig {
    fn default() -> Self {
        Self { header: TOKEN_HEADER.to_owned() }
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SessionIdConfig {
    /// Tried in this order; none counts as the default, as at the peer.
    sources: Vec<SourceConfig>,
    /// 0 counts as the default, as at the peer.
    eviction_ttl_seconds: f64,
    /// 0 counts as the default, as at the peer.
    eviction_sweep_seconds: f64,
}

impl Default for SessionIdConfig {
    fn default() -> Self {
        let header = SourceConfig { header: SESSION_ID_HEADER.to_owned(), ..SourceConfig::default() };
        Self {
            sources: vec![header],
            eviction_ttl_seconds: TTL_SECONDS,
            eviction_sweep_seconds: SWEEP_SECONDS,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SourceConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    header: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    attribute: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    producer: String,
}

/// Where a request's session is.
#[derive(Debug)]
pub(crate) struct SessionAffinity {
    strategy: Strategy,
    profile: Option<String>,
}

#[derive(Debug)]
enum Strategy {
    /// The client holds the name of its endpoint, in base64, and sends it with every request.
    Token(HeaderName),
    /// The client sends an id of its own, and we remember its endpoint.
    SessionId { sources: Vec<Source>, eviction: Eviction, bindings: Arc<SessionBindings> },
}

#[derive(Clone, Debug, PartialEq)]
enum Source {
    Header(HeaderName),
    Attribute(Arc<str>),
}

impl SessionAffinity {
    pub(crate) fn build(parameters: Parameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let strategy = match parameters.strategy {
            StrategyName::EncodedEndpointHeader => {
                let header = &parameters.encoded_endpoint_header_config.header;
                let header = if header.trim().is_empty() { TOKEN_HEADER } else { header };
                Strategy::Token(header_name(header, "encodedEndpointHeaderConfig.header")?)
            }
            StrategyName::SessionId => {
                let SessionIdConfig { sources, eviction_ttl_seconds, eviction_sweep_seconds } =
                    parameters.session_id_config;
                let sources = if sources.is_empty() { SessionIdConfig::default().sources } else { sources };
                let sources = (0usize..)
                    .zip(&sources)
                    .map(|(at, source)| source.checked(&format!("sessionIdConfig.sources[{at}]"), context))
                    .collect::<Result<Vec<_>, _>>()?;
                let eviction = Eviction {
                    ttl: seconds(eviction_ttl_seconds, TTL_SECONDS, "sessionIdConfig.evictionTtlSeconds")?,
                    sweep: seconds(
                        eviction_sweep_seconds,
                        SWEEP_SECONDS,
                        "sessionIdConfig.evictionSweepSeconds",
                    )?,
                };
                // Ids of another source, or picks of another profile, mean something else.
                let key = format!("{sources:?} {:?}", parameters.profile_name);
                let bindings = context.shared(&key, SessionBindings::default);
                Strategy::SessionId { sources, eviction, bindings }
            }
        };
        let profile = Some(parameters.profile_name).filter(|profile| !profile.is_empty());
        Ok(Self { strategy, profile })
    }

    /// The row of the endpoint where the request's session is; `None` if the request has none, or none of the rows is
    /// that endpoint.
    pub(crate) fn row(&self, request: &InferenceRequest, candidates: &Candidates<'_>) -> Option<usize> {
        match &self.strategy {
            Strategy::Token(header) => {
                let token = request.headers.get(header)?.as_bytes().trim_ascii();
                if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
                    return None;
                }
                let name = STANDARD.decode(token).ok()?;
                candidates.endpoints().position(|endpoint| endpoint.name.as_bytes() == name)
            }
            Strategy::SessionId { sources, eviction, bindings } => {
                let session = session_id(sources, request)?;
                let bound = bindings.endpoint(session, *eviction, Instant::now())?;
                candidates.endpoints().position(|endpoint| endpoint.id == bound)
            }
        }
    }

    /// Hands out the token, or binds the session.
    pub(crate) fn picked(&self, request: &InferenceRequest, pick: &Pick<'_>, headers: &mut PickHeaders) {
        let is_ours = match &self.profile {
            Some(profile) => pick.profile() == profile,
            None => pick.is_primary(),
        };
        if !is_ours {
            return;
        }
        match &self.strategy {
            Strategy::Token(header) => {
                let token = STANDARD.encode(pick.endpoint().name.as_bytes());
                if let Ok(token) = HeaderValue::try_from(token) {
                    headers.response.insert(header.clone(), token);
                }
            }
            Strategy::SessionId { sources, eviction, bindings } => {
                let Some(session) = session_id(sources, request) else { return };
                let was_candidate =
                    |bound| pick.candidates().endpoints().any(|endpoint| endpoint.id == bound);
                bindings.note(session, pick.endpoint().id, was_candidate, *eviction, Instant::now());
            }
        }
    }
}

/// What the first source says that says anything.
fn session_id<'r>(sources: &[Source], request: &'r InferenceRequest) -> Option<&'r [u8]> {
    let ids = sources.iter().filter_map(|source| match source {
        Source::Header(header) => request.headers.get(header).map(HeaderValue::as_bytes),
        Source::Attribute(key) => request.attribute(key).map(str::as_bytes),
    });
    ids.map(<[u8]>::trim_ascii).find(|id| !id.is_empty())
}

impl SourceConfig {
    fn checked(&self, path: &str, context: &mut BuildContext<'_>) -> Result<Source, BuildError> {
        let Self { header, attribute, producer } = self;
        match (header.is_empty(), attribute.is_empty()) {
            (false, true) if !producer.is_empty() => {
                Err(BuildError::invalid(format!("{path}.producer"), "a header has no producer"))
            }
            (false, true) => header_name(header, &format!("{path}.header")).map(Source::Header),
            (true, false) => {
                let key = match (producer.as_str(), attribute.as_str()) {
                    ("", SESSION_ID) => format!("{SESSION_ID}/{SESSION_ID_PRODUCER}"),
                    ("", key) => key.to_owned(),
                    (producer, attribute) => format!("{attribute}/{producer}"),
                };
                Ok(Source::Attribute(context.request_attribute(&key)))
            }
            _ => Err(BuildError::invalid(path, "needs exactly one of header and attribute")),
        }
    }
}

fn header_name(name: &str, parameter: &str) -> Result<HeaderName, BuildError> {
    let mistake = |_| BuildError::invalid(parameter, "must be the name of a header, like x-session-id");
    HeaderName::try_from(name.trim()).map_err(mistake)
}

fn seconds(given: f64, default: f64, parameter: &str) -> Result<Duration, BuildError> {
    let given = if given == 0.0 { default } else { given };
    let duration = Duration::try_from_secs_f64(given).ok().filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| BuildError::invalid(parameter, "must be a number of seconds above 0"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use warmroute_plugin::testing::{CandidatesFixture, Row, request};
    use warmroute_plugin::{BuildContext, Needs, Plugin, Scorer, SharedStates};

    use crate::built;

    use super::*;

    const SCORER: &str = "session-affinity-scorer";
    const FILTER: &str = "session-affinity-filter";

    /// `default/engine-0-rank-0` and so on.
    fn table(rows: u32) -> CandidatesFixture {
        let name = |row| format!("default/engine-{row}-rank-0");
        CandidatesFixture::new((0..rows).map(|row| Row::never_scraped().named(name(row))))
    }

    fn with(header: &'static str, value: &str) -> InferenceRequest {
        let mut request = request();
        request.headers.insert(header, HeaderValue::try_from(value).unwrap());
        request
    }

    fn session(id: &str) -> InferenceRequest {
        with("x-session-id", id)
    }

    /// Tells `scorer` that the row was picked; gives the response headers that it wants.
    fn pick(
        scorer: &dyn Scorer,
        request: &InferenceRequest,
        table: &CandidatesFixture,
        (profile, is_primary): (&str, bool),
        row: u32,
    ) -> PickHeaders {
        let (order, mut headers) = ([row], PickHeaders::default());
        let pick = Pick::try_new(profile, table.candidates(), &order).unwrap().primary(is_primary);
        scorer.picked(request, &pick, &mut headers);
        headers
    }

    const PRIMARY: (&str, bool) = ("default", true);

    #[test]
    fn a_token_is_the_base64_of_the_endpoints_name_and_leads_back_to_it() {
        let (scorer, filter) = (built::scorer(SCORER, json!({})), built::filter(FILTER, json!({})));
        let table = table(3);
        let headers = pick(&*scorer, &request(), &table, PRIMARY, 1);
        let token = headers.response["x-session-token"].to_str().unwrap();
        // printf default/engine-1-rank-0 | base64
        assert_eq!(token, "ZGVmYXVsdC9lbmdpbmUtMS1yYW5rLTA=");
        assert!(headers.request.is_empty());
        let request = with("x-session-token", token);
        assert_eq!(built::scores(&*scorer, &request, &table), [0.0, 1.0, 0.0]);
        assert_eq!(built::kept(&*filter, &request, &table), [1]);
    }

    #[test]
    fn a_token_that_leads_nowhere_is_no_preference() {
        let (scorer, filter) = (built::scorer(SCORER, json!({})), built::filter(FILTER, json!({})));
        let long = STANDARD.encode([b'a'; 2000]);
        // No base64, no padding, another alphabet, an endpoint that is gone, an empty one, too long.
        let tokens =
            ["%%%", "ZGVmYXVsdC9lbmdpbmUtMS1yYW5rLTA", "_-_-", "ZGVmYXVsdC9nb25l", "", " ", long.as_str()];
        for token in tokens {
            let request = with("x-session-token", token);
            assert_eq!(built::scores(&*scorer, &request, &table(2)), [0.0; 2], "{token}");
            assert_eq!(built::kept(&*filter, &request, &table(2)), [0, 1], "{token}");
        }
        assert_eq!(built::kept(&*filter, &request(), &table(2)), [0, 1]);
    }

    #[test]
    fn the_tokens_header_and_profile_can_be_named() {
        let parameters = json!({
            "encodedEndpointHeaderConfig": {"header": " X-Session-Token-Prefill "}, "profileName": "prefill",
        });
        let scorer = built::scorer(SCORER, parameters);
        let table = table(2);
        assert!(pick(&*scorer, &request(), &table, PRIMARY, 1).response.is_empty());
        let headers = pick(&*scorer, &request(), &table, ("prefill", false), 1);
        assert_eq!(headers.response.len(), 1);
        let token = headers.response["x-session-token-prefill"].to_str().unwrap();
        let request = with("x-session-token-prefill", token);
        assert_eq!(built::scores(&*scorer, &request, &table), [0.0, 1.0]);
    }

    #[test]
    fn a_session_stays_where_it_was_picked_first() {
        let scorer = built::scorer(SCORER, json!({"strategy": "session_id"}));
        let (three, one) = (table(3), table(1));
        assert_eq!(built::scores(&*scorer, &session("s"), &three), [0.0; 3], "unbound");
        assert!(pick(&*scorer, &session("s"), &three, PRIMARY, 2).response.is_empty());
        assert_eq!(built::scores(&*scorer, &session(" s "), &three), [0.0, 0.0, 1.0]);
        assert_eq!(built::scores(&*scorer, &session("t"), &three), [0.0; 3]);
        pick(&*scorer, &session("s"), &three, PRIMARY, 0);
        assert_eq!(built::scores(&*scorer, &session("s"), &three), [0.0, 0.0, 1.0], "it was a candidate");
        pick(&*scorer, &session("s"), &one, PRIMARY, 0);
        assert_eq!(built::scores(&*scorer, &session("s"), &three), [1.0, 0.0, 0.0], "it was none");
        pick(&*scorer, &session("t"), &three, ("prefill", false), 1);
        assert_eq!(built::scores(&*scorer, &session("t"), &three), [0.0; 3], "not the profile that decides");
    }

    #[test]
    fn the_first_source_that_says_something_counts() {
        let sources = json!([
            {"header": "x-session-id"}, {"attribute": "SessionID"},
            {"attribute": "SessionID", "producer": "from-cookie"}, {"attribute": "Agent/by-name"},
        ]);
        let parameters = json!({"strategy": "session_id", "sessionIdConfig": {"sources": sources}});
        let mut needs = Needs::default();
        let mut context = BuildContext::new("affinity", &mut needs);
        let Ok(Plugin::Scorer(scorer)) = built::registry().build(SCORER, parameters, &mut context) else {
            panic!("a scorer");
        };
        let read = ["SessionID/session-id-producer", "SessionID/from-cookie", "Agent/by-name"];
        assert_eq!(needs.request_attributes(), read);
        let table = table(2);
        pick(&*scorer, &session("s"), &table, PRIMARY, 1);
        for (header, attributes, known) in [
            ("s", vec![("SessionID/session-id-producer", "other")], true),
            ("", vec![("SessionID/session-id-producer", "s")], true),
            (" ", vec![("SessionID/session-id-producer", ""), ("SessionID/from-cookie", "s")], true),
            ("", vec![("Agent/by-name", "s"), ("SessionID/another", "x")], true),
            ("", vec![("SessionID/another", "s")], false),
        ] {
            let mut request = session(header);
            request.attributes = attributes.iter().map(|&(key, id)| (key.into(), id.into())).collect();
            let expected = if known { [0.0, 1.0] } else { [0.0; 2] };
            assert_eq!(built::scores(&*scorer, &request, &table), expected, "{attributes:?}");
        }
    }

    #[test]
    fn sessions_outlive_a_reload_as_long_as_sources_and_profile_stay() {
        let states = SharedStates::default();
        let build = |name: &str, parameters: Value| {
            let mut needs = Needs::with_states(states.clone());
            let plugin =
                built::registry().build(SCORER, parameters, &mut BuildContext::new(name, &mut needs));
            match plugin.unwrap() {
                Plugin::Scorer(scorer) => scorer,
                other => panic!("{}", other.kind()),
            }
        };
        let table = table(2);
        let by_id = json!({"strategy": "session_id"});
        let old = build("affinity", by_id.clone());
        pick(&*old, &session("s"), &table, PRIMARY, 1);
        let knows = |scorer: &dyn Scorer| built::scores(scorer, &session("s"), &table) == [0.0, 1.0];
        let sooner = json!({"strategy": "session_id", "sessionIdConfig": {"evictionTtlSeconds": 60}});
        assert!(knows(&*build("affinity", by_id.clone())) && knows(&*build("affinity", sooner)));
        assert!(!knows(&*build("another", by_id.clone())));
        assert!(!knows(&*build("affinity", json!({"strategy": "session_id", "profileName": "decode"}))));
        drop(old);
        assert!(!knows(&*build("affinity", by_id)), "nobody held it");
    }

    #[test]
    fn parameters_are_checked() {
        let id = |config: Value| json!({"strategy": "session_id", "sessionIdConfig": config});
        let number = "must be a number of seconds above 0";
        let exactly = "sessionIdConfig.sources[1]: needs exactly one of header and attribute";
        let table = [
            (json!({"strategy": "cookie"}), "strategy: unknown variant `cookie`"),
            (json!({"header": "x"}), "header: unknown field"),
            (
                json!({"encodedEndpointHeaderConfig": {"header": "a b"}}),
                "encodedEndpointHeaderConfig.header: must be",
            ),
            (json!({"encodedEndpointHeaderConfig": {"header": ""}}), ""),
            (id(json!({})), ""),
            (id(json!({"sources": []})), ""),
            (id(json!({"evictionTtlSeconds": 0, "evictionSweepSeconds": 0})), ""),
            (id(json!({"evictionTtlSeconds": -1})), &format!("sessionIdConfig.evictionTtlSeconds: {number}")),
            (
                id(json!({"evictionTtlSeconds": 1e300})),
                &format!("sessionIdConfig.evictionTtlSeconds: {number}"),
            ),
            (
                id(json!({"evictionSweepSeconds": -0.5})),
                &format!("sessionIdConfig.evictionSweepSeconds: {number}"),
            ),
            (id(json!({"sources": [{"header": "x"}, {}]})), exactly),
            (id(json!({"sources": [{"header": "x"}, {"header": "x", "attribute": "y"}]})), exactly),
            (id(json!({"sources": [{"header": "é"}]})), "sessionIdConfig.sources[0].header: must be"),
            (
                id(json!({"sources": [{"header": "x", "producer": "y"}]})),
                "sessionIdConfig.sources[0].producer: a",
            ),
        ];
        for (parameters, expected) in table {
            for plugin_type in [SCORER, FILTER] {
                let got = built::mistake(plugin_type, parameters.clone());
                assert!(got.starts_with(expected), "{parameters}: {got}");
                assert_eq!(got.is_empty(), expected.is_empty(), "{parameters}: {got}");
            }
        }
    }
}
