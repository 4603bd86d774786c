//! The policy: everything of a configuration that can be swapped while requests are served.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::{CancellationToken, DropGuard};
use warmroute_builtin::SaturationDetector;
use warmroute_config::{CheckedConfig, Parser};
use warmroute_inference_api::{ApiParser, ParserList};
use warmroute_plugin::{Registry, SharedStates};
use warmroute_scheduler::Scheduler;

use crate::attributes::Attribute;
use crate::plugin_names::PluginNames;
use crate::prefix_plan::PrefixPlan;
use crate::profile::build_scheduler_with;
use crate::session_ids::SessionIdProducer;
use crate::tasks::Tasks;

/// What the inference extension's conformance tests read: `conformance/tests` in
/// github.com/kubernetes-sigs/gateway-api-inference-extension.
const SERVED_HEADER: &str = "x-conformance-test-served-endpoint";

/// How requests are decided. Immutable; a changed configuration makes a new one.
#[derive(Debug)]
pub struct Policy {
    /// The profiles with their plugins.
    pub scheduler: Scheduler,
    /// Name of the profile handler.
    pub handler_name: Arc<str>,
    /// Its type.
    pub handler_type: Arc<str>,
    /// Where the attributes are found that the scheduler reads, in its order.
    pub attributes: Vec<Attribute>,
    /// Whose prefix matches it needs.
    pub prefix: PrefixPlan,
    /// How long at least what was just picked is expected at its engine; None turns expectation off.
    pub expects_for: Option<Duration>,
    /// What tells how full the pool is.
    pub saturation_detector: SaturationDetector,
    /// Name of that in the configuration.
    pub saturation_detector_name: Arc<str>,
    /// Which bodies are read, and how.
    pub parsers: ParserList,
    /// What its plugins are called.
    pub plugins: Arc<PluginNames>,
    /// What finds session ids in requests; usually none.
    pub session_ids: Vec<SessionIdProducer>,
    /// Response header that tells which endpoint served; usually none.
    pub served_header: Option<&'static str>,
    /// The configuration in words.
    pub summary: String,
    /// What the plugins remember, for those of the next policy.
    states: SharedStates,
    /// Ends the plugins' tasks when the last decision by this policy is over.
    _plugin_tasks: DropGuard,
}

impl Policy {
    /// Builds the plugins and starts their tasks.
    ///
    /// # Errors
    /// See [`build_scheduler`](crate::profile::build_scheduler); or the saturation detector can't be built.
    pub fn try_new(config: &CheckedConfig, registry: &Registry, tasks: &Tasks) -> anyhow::Result<Self> {
        Self::with_states(config, registry, tasks, SharedStates::default())
    }

    /// The policy that comes after this one: plugins that stay find what they remember.
    ///
    /// # Errors
    /// See [`build_scheduler`](crate::profile::build_scheduler).
    pub fn successor(
        &self,
        config: &CheckedConfig,
        registry: &Registry,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        Self::with_states(config, registry, tasks, self.states.clone())
    }

    fn with_states(
        config: &CheckedConfig,
        registry: &Registry,
        tasks: &Tasks,
        states: SharedStates,
    ) -> anyhow::Result<Self> {
        let built = build_scheduler_with(config, registry, states.clone())?;
        let stop = CancellationToken::new();
        for (_, task) in built.tasks {
            let stop = stop.clone();
            tasks.spawn("plugin", async move {
                stop.run_until_cancelled(task).await;
            });
        }
        let detector = &config.saturation_detector;
        let saturation_detector =
            SaturationDetector::try_new(&detector.plugin_type, detector.parameters.clone())
                .with_context(|| format!("saturation detector {}", detector.name))?;
        let events = config.kv_events().filter(|events| events.speculative_indexing);
        Ok(Self {
            prefix: PrefixPlan::try_new(config, built.scheduler.prefix_producers())?,
            attributes: Attribute::find_all(built.scheduler.attributes(), config)?,
            scheduler: built.scheduler,
            handler_name: config.handler.name.as_str().into(),
            handler_type: config.handler.plugin_type.as_str().into(),
            expects_for: events.map(|events| events.speculative_ttl),
            saturation_detector,
            saturation_detector_name: detector.name.as_str().into(),
            parsers: config.parsers.iter().filter_map(|parser| api_parser(*parser)).collect(),
            plugins: Arc::new(PluginNames::of(config)),
            session_ids: config.session_id_producers.iter().filter_map(SessionIdProducer::new).collect(),
            served_header: config.reports_served_endpoint.then_some(SERVED_HEADER),
            summary: config.summary(),
            states,
            _plugin_tasks: stop.drop_guard(),
        })
    }

    /// The same policy with or without expectations, for tests and benches.
    #[must_use]
    pub fn expecting_for(self, expects_for: Option<Duration>) -> Self {
        Self { expects_for, ..self }
    }

    /// Shared, as deciders take it.
    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }
}

/// The parser that a configuration names.
fn api_parser(parser: Parser) -> Option<ApiParser> {
    Some(match parser {
        Parser::OpenAi => ApiParser::OpenAi,
        Parser::Anthropic => ApiParser::Anthropic,
        Parser::VllmHttp => ApiParser::VllmHttp,
        Parser::SglangHttp => ApiParser::SglangHttp,
        Parser::Passthrough => ApiParser::Passthrough,
        _ => return None,
    })
}
