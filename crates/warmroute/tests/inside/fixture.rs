//! A picker over endpoints that need no network, with a real index that tests write through events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warmroute::decision::Decider;
use warmroute::engine_events::Expectations;
use warmroute::metrics::Metrics;
use warmroute::model_rewrites::ModelRewrites;
use warmroute::objectives::{Objectives, objective_arg};
use warmroute::picker::Picker;
use warmroute::policy::Policy;
use warmroute::pool::{EndpointSpec, Pool};
use warmroute::profile::read_config;
use warmroute::prompt::{AdapterNames, PromptReader, TokenSource};
use warmroute::receipt::ReceiptRing;
use warmroute::tasks::Tasks;
use warmroute::telemetry::Telemetry;
use warmroute_ext_proc::{HeaderList, HttpRequest};
use warmroute_kv_events::{
    BlocksStored, EngineHash, EventBatch, KvEvent, Medium, SkippedEvents, Trust, TrustReason, TrustState,
};
use warmroute_kv_index::{EngineView, IndexLimits, KvIndex};
use warmroute_plugin::{EndpointMetrics, InFlight, Registry};

pub(crate) const ACTIVE_REQUESTS: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: active-request-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: active-request-scorer
  - pluginRef: max-score-picker
";

pub(crate) const PREFIX_ONLY: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
- type: prefix-cache-scorer
  parameters:
    prefixMatchInfoProducerName: precise-prefix-cache-producer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
  - pluginRef: max-score-picker
";

/// Prefill for every request, where there is an endpoint for it.
pub(crate) const PREFILL_DECODE: &str = "
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: disagg-profile-handler
  parameters: {deciders: {prefill: always-disagg-pd-decider}}
- type: always-disagg-pd-decider
- type: decode-filter
- type: prefill-filter
- type: prefix-cache-scorer
- type: max-score-picker
schedulingProfiles:
- name: decode
  plugins: [{pluginRef: decode-filter}, {pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]
";

/// Block size that the fixture's engines announce.
pub(crate) const BLOCK_TOKENS: u32 = 16;

pub(crate) struct Fixture {
    pub(crate) picker: Arc<Picker>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) receipts: Arc<ReceiptRing>,
    pub(crate) decider: Arc<Decider>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tasks: Tasks,
    pub(crate) index: Arc<KvIndex>,
    pub(crate) expectations: Arc<Expectations>,
    pub(crate) objectives: Arc<Objectives>,
    pub(crate) rewrites: Arc<ModelRewrites>,
    engines: Vec<parking_lot::Mutex<Option<EngineView>>>,
}

fn spec(at: usize) -> EndpointSpec {
    EndpointSpec::new(format!("engine-{at}"), format!("127.0.0.{}", at + 2), 8000)
}

/// The command line's options with a configuration as text.
pub(crate) fn options(config: &str) -> warmroute::cli::ServeOptions {
    use clap::Parser;
    let cli = warmroute::cli::Cli::parse_from(["warmroute", "--config-text", config]);
    cli.serve
}

pub(crate) fn registry() -> Registry {
    warmroute::Warmroute::new().registry().unwrap()
}

impl Fixture {
    pub(crate) fn new(config: &str, endpoints: usize) -> Self {
        Self::with_tokens(config, endpoints, TokenSource::default())
    }

    /// The same with something that makes tokens of texts.
    pub(crate) fn with_tokens(config: &str, endpoints: usize, tokens: TokenSource) -> Self {
        Self::build(config, endpoints, tokens, Metrics::try_new().unwrap(), Telemetry::off())
    }

    /// The same with other metrics and traces than the default.
    pub(crate) fn with(config: &str, endpoints: usize, metrics: Metrics, telemetry: Telemetry) -> Self {
        Self::build(config, endpoints, TokenSource::default(), metrics, telemetry)
    }

    fn build(
        config: &str,
        endpoints: usize,
        tokens: TokenSource,
        metrics: Metrics,
        telemetry: Telemetry,
    ) -> Self {
        let registry = Arc::new(registry());
        let config = read_config(&options(config), &registry).unwrap();
        let (tasks, _ends) = Tasks::new();
        let policy = Policy::try_new(&config, &registry, &tasks).unwrap().shared();
        let (pool, index) = (Arc::new(Pool::new("test")), KvIndex::new(IndexLimits::default()));
        let metrics = Arc::new(metrics);
        let receipts = Arc::new(ReceiptRing::new(16));
        let expectations = Arc::new(Expectations::new(index.clone()));
        let stale_after = Duration::from_secs(3600);
        let decider = Decider::new(
            pool.clone(),
            policy,
            index.clone(),
            expectations.clone(),
            stale_after,
            metrics.clone(),
        );
        let decider = Arc::new(decider.timing_every(1).telling_scores(true));
        let reader =
            PromptReader::with_source(tokens, Arc::new(AdapterNames::default()), 2, Duration::from_secs(5));
        let objectives = ["batch=-1", "chat=3"].map(|text| objective_arg(text).unwrap());
        let objectives = Arc::new(Objectives::try_new(&objectives).unwrap());
        let picker =
            Picker::new(reader, decider.clone(), receipts.clone(), metrics.clone()).traced(telemetry);
        let rewrites = Arc::new(ModelRewrites::default());
        let picker = picker.with_objectives(objectives.clone()).with_rewrites(rewrites.clone());
        let picker = Arc::new(picker);
        pool.update(&(0..endpoints).map(spec).collect::<Vec<_>>());
        let snapshot = pool.snapshot();
        let engines = snapshot.states.iter().map(|state| {
            let view = index.add_engine().unwrap();
            state.engine.set_slot(view.slot());
            parking_lot::Mutex::new(Some(view))
        });
        let engines = engines.collect();
        Self {
            picker,
            pool,
            receipts,
            decider,
            metrics,
            tasks,
            index,
            expectations,
            objectives,
            rewrites,
            engines,
        }
    }

    pub(crate) fn address(&self, at: usize) -> String {
        spec(at).address()
    }

    /// The engine tells that it holds these tokens' blocks.
    pub(crate) fn announce(&self, at: usize, tokens: &[u32]) {
        let blocks = tokens.len() as u64 / u64::from(BLOCK_TOKENS);
        // Other blocks have other hashes.
        let first_hash = (u64::from(tokens[0]) << 20) + 1000 * (at as u64 + 1);
        let stored = BlocksStored {
            hashes: (0..blocks).map(|block| EngineHash::from_u64(first_hash + block)).collect(),
            parent: None,
            token_ids: tokens.to_vec(),
            block_size_tokens: BLOCK_TOKENS,
            lora_name: None,
            lora_id: None,
            medium: Medium::Gpu,
            group: None,
            spec_kind: None,
            sliding_window_tokens: None,
            extra_keys: Vec::new(),
            cache_salt: None,
            ..BlocksStored::default()
        };
        let batch = EventBatch {
            ts: 0.0,
            events: vec![KvEvent::Stored(stored)],
            data_parallel_rank: Some(0),
            skipped: SkippedEvents::default(),
        };
        self.engines[at].lock().as_mut().unwrap().apply(&batch);
        let engine = &self.pool.snapshot().states[at].engine;
        engine.set_block_size_tokens(BLOCK_TOKENS);
        engine.count_batch(0);
        // Engines tell their block size in metrics too; here every one has the same.
        for state in &self.pool.snapshot().states {
            state.scraped(EndpointMetrics::default().with_cache(BLOCK_TOKENS, 1000), Instant::now());
            let reason = TrustReason::FollowedFromStart;
            let change = state.engine.set_trust(TrustState { trust: Trust::Exact, reason, since_ms: 0 });
            change.tell(&state.endpoint.address, &state.engine, &self.metrics.events);
        }
    }

    /// The engine starts anew: nothing that it held is there any more.
    pub(crate) fn restart(&self, at: usize) {
        self.engines[at].lock().as_mut().unwrap().clear();
        self.pool.snapshot().states[at].engine.begin_generation();
    }

    /// The endpoint leaves the pool, and its engine the index.
    pub(crate) fn remove(&mut self, at: usize) {
        let left: Vec<EndpointSpec> = self
            .pool
            .snapshot()
            .states
            .iter()
            .map(|state| state.spec.clone())
            .filter(|other| *other != spec(at))
            .collect();
        self.pool.update(&left);
        self.engines[at].lock().take();
    }

    pub(crate) fn assert_nothing_in_flight(&self) {
        for state in &self.pool.snapshot().states {
            assert_eq!(state.load.in_flight(), InFlight::default(), "{}", state.endpoint.address);
        }
    }
}

/// A completion request with more headers.
pub(crate) fn completion_with(headers: &[(&str, &str)], subset: Option<Vec<String>>) -> HttpRequest {
    let path = [(":method", "POST"), (":path", "/v1/completions")];
    let headers = HeaderList::from_pairs(path.into_iter().chain(headers.iter().copied()));
    let mut request = HttpRequest::new(headers, "{\"model\":\"m\",\"prompt\":[1,2,3]}");
    request.subset = subset;
    request
}

/// A completion request with a token-id prompt.
pub(crate) fn completion(tokens: &[u32]) -> HttpRequest {
    let headers = HeaderList::from_pairs([(":method", "POST"), (":path", "/v1/completions")]);
    HttpRequest::new(headers, format!("{{\"model\":\"m\",\"prompt\":{tokens:?}}}"))
}

/// Any POST.
pub(crate) fn post(path: &str, body: &str) -> HttpRequest {
    HttpRequest::new(HeaderList::from_pairs([(":method", "POST"), (":path", path)]), body.to_owned())
}
