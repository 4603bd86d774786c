//! Running parts that depend on the options and the configuration alone.

use std::sync::Arc;

use anyhow::Context;
use warmroute_config::{CheckedConfig, HttpSourceSpec};
use warmroute_ext_proc::ExtProcService;

use crate::cli::ServeOptions;
use crate::engine_events::{EventSettings, GivenPorts, SourceFinder};
use crate::grpc::ext_proc_service;
use crate::metrics::{Metrics, MetricsOptions};
use crate::picker::Picker;
use crate::prompt::{AdapterNames, PromptReader, TokenSource};
use crate::scrape::{Extractor, HttpSource, MODELS_INTERVAL, ModelsPoller, Scraper};
use crate::telemetry::{Telemetry, TraceExporter, TraceSettings};

/// Where vLLM and SGLang publish unless they are told otherwise.
const DEFAULT_EVENTS_PORT: u16 = 5557;

pub(super) fn shown_metrics(options: &ServeOptions) -> MetricsOptions {
    MetricsOptions {
        deprecated: options.deprecated_metrics,
        ext_proc_streams: options.peer.enable_grpc_stream_metrics,
    }
}

/// Traces as the environment asks for them, unless the flag turns them off.
pub(super) fn telemetry(options: &ServeOptions) -> anyhow::Result<Telemetry> {
    if options.peer.tracing == Some(false) {
        return Ok(Telemetry::off());
    }
    let Some(settings) = TraceSettings::read(|name| std::env::var(name).ok())? else {
        return Ok(Telemetry::off());
    };
    let telemetry = Telemetry::try_new(&settings)?;
    let exporter = match &settings.exporter {
        TraceExporter::Otlp { endpoint } => endpoint,
        TraceExporter::Console => "the log",
    };
    tracing::info!(exporter, ratio = settings.sampler.ratio, "requests are traced");
    Ok(telemetry)
}

pub(super) fn event_settings(options: &ServeOptions, config: &CheckedConfig) -> EventSettings {
    match config.kv_events() {
        Some(events) => EventSettings {
            listen: events.listen,
            port: match events.discover_pods {
                true => events.socket_port.or(options.kv_events_port).unwrap_or(DEFAULT_EVENTS_PORT),
                false => 0,
            },
            replay_port: events.replay_socket_port.or(options.kv_replay_port).unwrap_or(0),
            topic_filter: events.topic_filter,
            shards: events.concurrency as usize,
        },
        // Nobody asks for exact prefix matches, so engines aren't followed.
        None => {
            EventSettings { listen: None, port: 0, replay_port: 0, topic_filter: String::new(), shards: 1 }
        }
    }
}

/// What reads prompts, by default as many at a time as there are cores.
pub(super) fn prompt_reader(
    options: &ServeOptions,
    tokens: TokenSource,
    adapters: &Arc<AdapterNames>,
) -> PromptReader {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let concurrency = options.tokenize_concurrency.unwrap_or(cores);
    PromptReader::with_source(tokens, adapters.clone(), concurrency, options.tokenize_deadline)
}

/// What asks engines where they publish, if anybody wants to know.
pub(super) fn source_finder(
    options: &ServeOptions,
    config: &CheckedConfig,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<SourceFinder>> {
    let Some(events) = config.kv_events().filter(|_| options.kv_event_sources) else { return Ok(None) };
    let settings = event_settings(options, config);
    if settings.port == 0 && settings.listen.is_none() {
        return Ok(None);
    }
    let given = GivenPorts {
        events: events.socket_port.or(options.kv_events_port).is_some(),
        replay: events.replay_socket_port.or(options.kv_replay_port).is_some(),
    };
    let finder = SourceFinder::try_new(config.metrics_source.as_ref(), given, metrics.clone());
    Ok(Some(finder.context("asking engines where they publish KV events")?))
}

/// What scrapes metrics, if the configuration wants that.
pub(super) fn scraper(
    options: &ServeOptions,
    config: &CheckedConfig,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<Scraper>> {
    let Some(spec) = &config.metrics_source else { return Ok(None) };
    let source = HttpSource::try_new(spec).with_context(|| spec.name.clone())?;
    let interval = spec.interval.unwrap_or(options.refresh_metrics_interval);
    Ok(Some(Scraper::new(source, interval, Extractor::new(&config.metrics_extractor), metrics.clone())))
}

/// What asks endpoints for their models, if the configuration wants that, or else for the names of their adapters, if
/// exact prefix matches are wanted.
pub(super) fn models_poller(
    options: &ServeOptions,
    config: &CheckedConfig,
    metrics: &Arc<Metrics>,
    adapters: &Arc<AdapterNames>,
) -> anyhow::Result<Option<ModelsPoller>> {
    if let Some(spec) = &config.models_source {
        let source = HttpSource::try_new(spec).with_context(|| spec.name.clone())?;
        let poller = ModelsPoller::new(source, spec.interval.unwrap_or(MODELS_INTERVAL), metrics.clone());
        return Ok(Some(poller.telling(adapters.clone())));
    }
    if event_settings(options, config).port == 0 {
        return Ok(None);
    }
    let mut spec = HttpSourceSpec::models("adapter names");
    // The API is served as the metrics page is.
    spec.tls = config.metrics_source.as_ref().and_then(|metrics| metrics.tls.clone());
    let source = HttpSource::try_new(&spec).with_context(|| spec.name.clone())?;
    let poller = ModelsPoller::new(source, MODELS_INTERVAL, metrics.clone());
    Ok(Some(poller.telling(adapters.clone()).names_only()))
}

/// The ext-proc service over a picker, which heeds what the options say of requests.
pub(super) fn service(options: &ServeOptions, picker: Picker) -> ExtProcService<Picker> {
    let picker = picker.ignoring_subsets(options.disable_endpoint_subset_filter);
    let message_bytes = options.peer.grpc_max_recv_msg_size;
    ext_proc_service(Arc::new(picker), options.max_request_body_bytes, message_bytes)
}
