//! The real picker, set up as `serve` does with the built-in configuration, without scraping and subscriptions: the
//! engines' metrics and events are given once, by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use warmroute::Warmroute;
use warmroute::decision::Decider;
use warmroute::engine_events::Expectations;
use warmroute::grpc::ext_proc_service;
use warmroute::metrics::Metrics;
use warmroute::picker::Picker;
use warmroute::policy::Policy;
use warmroute::pool::{EndpointSpec, Pool};
use warmroute::profile::known_types;
use warmroute::prompt::{AdapterNames, PromptReader};
use warmroute::receipt::ReceiptRing;
use warmroute::tasks::Tasks;
use warmroute_config::built_in;
use warmroute_ext_proc::ExtProcService;
use warmroute_kv_events::{Trust, TrustState};
use warmroute_kv_index::EngineView;
use warmroute_plugin::EndpointMetrics;

use super::events::BLOCK_SIZE_TOKENS;
use super::index::Filled;

const ENDPOINTS: usize = 8;
/// Nothing may be left out because the machine is busy.
const NO_HURRY: Duration = Duration::from_secs(3600);
const RECEIPTS: usize = 1024;
const MAX_BODY_BYTES: usize = 32 << 20;
const EXPECTED_FOR: Duration = Duration::from_secs(2);

/// A picker over eight endpoints whose engines hold 200,000 blocks of other prompts.
pub(super) struct WholePicker {
    pub(super) service: ExtProcService<Picker>,
    metrics: Arc<Metrics>,
    expectations: Arc<Expectations>,
    /// Dropping them would empty the index.
    _views: Vec<EngineView>,
}

impl WholePicker {
    /// With or without counting the blocks of prompts that were just sent as held (`speculativeIndexing`).
    pub(super) fn new(expects: bool) -> anyhow::Result<Self> {
        let registry = Arc::new(Warmroute::new().registry()?);
        let config = built_in(&known_types(&registry))?;
        let (tasks, _ends) = Tasks::new();
        let policy = Policy::try_new(&config, &registry, &tasks)?;
        ensure!(
            !policy.scheduler.prefix_producers().is_empty(),
            "the built-in configuration looks up no prefix"
        );
        let policy = policy.expecting_for(expects.then_some(EXPECTED_FOR)).shared();
        let filled = Filled::new(512, ENDPOINTS)?;
        let pool = pool(&filled)?;
        let metrics = Arc::new(Metrics::try_new()?);
        let expectations = Arc::new(Expectations::new(filled.index.clone()));
        let decider = Arc::new(Decider::new(
            pool,
            policy,
            filled.index,
            expectations.clone(),
            NO_HURRY,
            metrics.clone(),
        ));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let reader = PromptReader::new(None, Arc::new(AdapterNames::default()), cores, NO_HURRY);
        let receipts = Arc::new(ReceiptRing::new(RECEIPTS));
        let picker = Picker::new(reader, decider, receipts, metrics.clone());
        let service = ext_proc_service(Arc::new(picker), MAX_BODY_BYTES, 0);
        Ok(Self { service, metrics, expectations, _views: filled.views })
    }

    /// What ends the expectations of finished requests, as a task of the picker does every 100 ms; here at once.
    pub(super) fn withdrawals(&self) -> impl FnOnce() + Send + 'static {
        let expectations = self.expectations.clone();
        move || expectations.withdraw_due(Instant::now() + NO_HURRY)
    }

    /// Whether all the work was done for so many requests: a look-up each and no fallback.
    ///
    /// # Errors
    /// It wasn't.
    pub(super) fn check_work(&self, requests: u64) -> anyhow::Result<()> {
        let lookups = self.metrics.index.lookups.get();
        ensure!(lookups == requests, "{lookups} look-ups for {requests} requests");
        let text = self.metrics.page().context("the picker's metrics")?;
        let fallback = text.lines().find(|line| line.starts_with("warmroute_fallbacks_total{"));
        ensure!(
            fallback.is_none(),
            "requests were decided with less than the profile asks for: {fallback:?}"
        );
        Ok(())
    }
}

/// Fresh metrics and a place in the index for every endpoint.
fn pool(filled: &Filled) -> anyhow::Result<Arc<Pool>> {
    let pool = Pool::new("bench");
    let spec =
        |number: usize| EndpointSpec::new(format!("engine-{number}"), format!("10.0.0.{}", number + 1), 8000);
    let specs: Vec<EndpointSpec> = (0..ENDPOINTS).map(spec).collect();
    pool.update(&specs);
    for (state, view) in pool.snapshot().states.iter().zip(&filled.views) {
        state.engine.set_slot(view.slot());
        let metrics = EndpointMetrics::new(0, 8, 0.5).with_cache(BLOCK_SIZE_TOKENS, 20_000);
        state.scraped(metrics, Instant::now());
        // Its events are seen, so what is sent there needn't be counted.
        state.engine.set_block_size_tokens(BLOCK_SIZE_TOKENS);
        state.engine.count_batch(1);
        state.engine.set_trust(TrustState { trust: Trust::Exact, ..TrustState::default() });
    }
    Ok(Arc::new(pool))
}
