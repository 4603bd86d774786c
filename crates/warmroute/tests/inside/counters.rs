//! Predicted against delivered where the gateway hides answers: the engines' own counters tell it. Each way in which
//! the two can differ leaves the finding that it leaves where answers are seen.

use std::cell::RefCell;
use std::time::Instant;

use warmroute::delivered::{Cause, CounterVerdict, Diagnosis, Finding, PrefixCounters};
use warmroute::pool::Scrape;
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, StreamEnd, StreamLease};
use warmroute_kv_events::{Trust, TrustReason, TrustState};
use warmroute_plugin::EndpointMetrics;

use crate::fixture::{BLOCK_TOKENS, Fixture, PREFIX_ONLY, completion};

/// Requests within which a finding must be there.
const REQUESTS: u32 = 100;

/// Eight blocks and one token, so that all blocks can be reused.
fn prompt() -> Vec<u32> {
    (0..8 * BLOCK_TOKENS + 1).collect()
}

/// A picker of which no answer is seen, and the engines' counters.
struct Hidden {
    fixture: Fixture,
    counters: RefCell<Vec<PrefixCounters>>,
    metrics_block_tokens: u32,
}

impl Hidden {
    /// Engine 1 holds [`prompt`].
    fn new() -> Self {
        let fixture = Fixture::new(PREFIX_ONLY, 2);
        fixture.announce(1, &prompt()[..8 * BLOCK_TOKENS as usize]);
        Self::over(fixture)
    }

    fn over(fixture: Fixture) -> Self {
        let counters = vec![PrefixCounters::default(); fixture.pool.snapshot().states.len()].into();
        let hidden = Self { fixture, counters, metrics_block_tokens: BLOCK_TOKENS };
        hidden.scrape();
        hidden
    }

    /// One request through to its end, of which the engine finds `hits` tokens in its cache.
    async fn ask(&self, request: HttpRequest, tokens: u64, hits: u64) {
        let mut picked = self.fixture.picker.pick(request).await.unwrap();
        let address = picked.destinations[0].clone();
        let at = (0..self.counters.borrow().len()).find(|at| self.fixture.address(*at) == address).unwrap();
        self.look_up(at, tokens, hits);
        picked.lease.ended(StreamEnd::GatewayClosed);
    }

    fn look_up(&self, at: usize, tokens: u64, hits: u64) {
        let counters = &mut self.counters.borrow_mut()[at];
        counters.queried_tokens += tokens;
        counters.hit_tokens += hits;
    }

    /// Reads every engine's metrics as often as it takes to be sure of what has ended.
    fn scrape(&self) {
        for _ in 0..2 {
            for (state, counters) in self.fixture.pool.snapshot().states.iter().zip(&*self.counters.borrow())
            {
                let metrics = EndpointMetrics::default().with_cache(self.metrics_block_tokens, 1000);
                let scrape = Scrape::new(metrics, Instant::now());
                state.publish_scrape(Scrape { prefix_counters: Some(*counters), ..scrape });
            }
        }
    }

    async fn ask_often(&self, hits: u64) {
        for at in 0..REQUESTS {
            self.ask(completion(&prompt()), 129, hits).await;
            if at % 3 == 0 {
                self.scrape();
            }
        }
        self.scrape();
    }

    fn findings(&self) -> Vec<Finding> {
        let Fixture { pool, decider, metrics, .. } = &self.fixture;
        Diagnosis::new(pool.clone(), decider.clone(), std::sync::Arc::default(), metrics.clone()).refresh()
    }

    fn causes(&self) -> Vec<Cause> {
        self.findings().into_iter().map(|finding| finding.cause).collect()
    }

    fn requests(&self, at: usize, verdict: CounterVerdict) -> u64 {
        let verdicts = self.fixture.pool.snapshot().states[at].deliveries.counter_verdicts();
        verdicts.into_iter().find(|(known, _)| *known == verdict).unwrap().1
    }
}

#[tokio::test]
async fn a_healthy_engine_has_no_findings_and_every_request_is_compared() {
    let hidden = Hidden::new();
    hidden.fixture.metrics.show_pool(&hidden.fixture.pool).unwrap();
    hidden.ask_often(128).await;
    assert_eq!(hidden.findings(), []);
    assert_eq!(hidden.requests(1, CounterVerdict::Compared), u64::from(REQUESTS));
    let totals = hidden.fixture.pool.snapshot().states[1].deliveries.models()["m"].totals;
    assert_eq!((totals.requests, totals.hidden, totals.unreported), (100, 100, 0));
    assert_eq!((totals.predicted_tokens, totals.delivered_tokens), (12_800, 12_800));
    let page = hidden.fixture.metrics.page().unwrap();
    for line in [
        "warmroute_counter_requests_total{endpoint_name=\"engine-1\",namespace=\"\",verdict=\"compared\"} 100",
        "warmroute_prediction_bias{endpoint_name=\"engine-1\",model_name=\"m\",namespace=\"\"} 0",
        "warmroute_prefix_tokens_total{step=\"delivered\"} 12800",
        "warmroute_prefix_tokens_total{step=\"prompt\"} 12900",
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line} is not in:\n{page}");
    }
}

#[tokio::test]
async fn other_tokens_are_found_and_the_engine_is_trusted_less() {
    let hidden = Hidden::new();
    hidden.ask_often(0).await;
    let found = hidden.findings();
    assert_eq!(found[0].cause, Cause::TokensDiffer);
    assert_eq!(found[0].seen, "0 cached tokens delivered and 12800 predicted in 100 requests");
    let engine = &hidden.fixture.pool.snapshot().states[1].engine;
    assert_eq!(engine.trust_state().reason, TrustReason::DeliversLess);
    hidden.ask_often(128).await;
    assert_eq!(hidden.findings(), []);
    assert_eq!(engine.trust_state().trust, Trust::Exact);
}

#[tokio::test]
async fn hits_that_nobody_predicted_are_other_tokens() {
    let fixture = Fixture::new(PREFIX_ONLY, 1);
    fixture.announce(0, &(7000..7128).collect::<Vec<_>>());
    let hidden = Hidden::over(fixture);
    hidden.ask_often(128).await;
    assert_eq!(hidden.causes(), [Cause::TokensDiffer]);
}

#[tokio::test]
async fn an_adapter_alone_that_is_off_is_named() {
    let hidden = Hidden::new();
    let adapter = || {
        let path = [(":method", "POST"), (":path", "/v1/completions")];
        HttpRequest::new(
            HeaderList::from_pairs(path),
            format!("{{\"model\":\"tuned\",\"prompt\":{:?}}}", prompt()),
        )
    };
    for _ in 0..REQUESTS / 2 {
        hidden.ask(completion(&prompt()), 129, 128).await;
        hidden.scrape();
        hidden.ask(adapter(), 129, 0).await;
        hidden.scrape();
    }
    let found = hidden.findings();
    assert_eq!((found[0].cause, found[0].model.as_str(), found.len()), (Cause::Adapter, "tuned", 1));
    assert_eq!(hidden.fixture.pool.snapshot().states[1].engine.trust(), Trust::Exact);
    // In one interval they can't be told apart.
    hidden.ask(completion(&prompt()), 129, 128).await;
    hidden.ask(adapter(), 129, 0).await;
    hidden.scrape();
    assert_eq!(hidden.requests(1, CounterVerdict::SeveralModels), 2);
}

#[tokio::test]
async fn two_block_sizes_and_blocks_from_elsewhere_are_named() {
    let mut hidden = Hidden::new();
    hidden.metrics_block_tokens = 4 * BLOCK_TOKENS;
    hidden.ask_often(64).await;
    assert_eq!(hidden.causes(), [Cause::BlockSize]);

    let hidden = Hidden::new();
    let evicted: Vec<u32> = prompt()[..64].iter().copied().chain(9000..9065).collect();
    for at in 0..REQUESTS {
        // The first blocks are in GPU memory, of the others no events tell.
        let request = if at % 3 == 0 { completion(&prompt()) } else { completion(&evicted) };
        hidden.ask(request, 129, 128).await;
        hidden.scrape();
    }
    assert_eq!(hidden.causes(), [Cause::OtherTiers]);
}

#[tokio::test]
async fn requests_that_cannot_be_matched_are_named_without_any_counter() {
    let fixture = Fixture::new(PREFIX_ONLY, 1);
    let reason = TrustReason::NeverConnected;
    fixture.pool.snapshot().states[0].engine.set_trust(TrustState {
        trust: Trust::Blind,
        reason,
        since_ms: 0,
    });
    let hidden = Hidden::over(fixture);
    hidden.ask_often(128).await;
    assert_eq!(hidden.causes(), [Cause::EventsNotSeen]);

    let hidden = Hidden::new();
    for _ in 0..REQUESTS {
        let path = [(":method", "POST"), (":path", "/v1/completions")];
        let body = "{\"model\":\"m\",\"prompt\":\"some text that nobody here can turn into tokens\"}";
        hidden.ask(HttpRequest::new(HeaderList::from_pairs(path), body), 20, 0).await;
    }
    hidden.scrape();
    let causes = hidden.causes();
    assert!(!causes.is_empty() && causes.iter().all(|cause| *cause == Cause::NoExactTokens), "{causes:?}");
    let unknown = [0, 1].map(|at| hidden.requests(at, CounterVerdict::UnknownTokens));
    assert_eq!(unknown[0] + unknown[1], u64::from(REQUESTS));
}

#[tokio::test]
async fn where_others_send_too_the_counters_say_nothing_and_that_is_told() {
    let hidden = Hidden::new();
    for _ in 0..REQUESTS {
        hidden.ask(completion(&prompt()), 129, 0).await;
        hidden.look_up(1, 400, 400);
        hidden.scrape();
    }
    assert_eq!(hidden.findings(), []);
    assert_eq!(hidden.requests(1, CounterVerdict::OtherTraffic), u64::from(REQUESTS));
    assert_eq!(hidden.requests(1, CounterVerdict::Compared), 0);
}

#[tokio::test]
async fn where_answers_tell_the_usage_the_counters_are_not_counted_again() {
    let hidden = Hidden::new();
    for _ in 0..REQUESTS {
        let mut picked = hidden.fixture.picker.pick(completion(&prompt())).await.unwrap();
        hidden.look_up(1, 129, 128);
        picked.lease.response_headers(Some(200), &HeaderList::default());
        let usage = "{\"prompt_tokens\":129,\"completion_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":128}}";
        picked.lease.response_chunk(format!("{{\"usage\":{usage}}}").as_bytes());
        picked.lease.ended(StreamEnd::ResponseComplete);
        drop(picked);
        hidden.scrape();
    }
    let totals = hidden.fixture.pool.snapshot().states[1].deliveries.models()["m"].totals;
    assert_eq!((totals.requests, totals.delivered_tokens), (100, 12_800));
    let sums = hidden.fixture.pool.loss.report(Instant::now()).all;
    assert_eq!((sums.promised_tokens, sums.compared_tokens, sums.delivered_tokens), (12_800, 12_800, 12_800));
}

#[tokio::test]
async fn each_step_of_the_loss_is_counted_where_it_happens() {
    let hidden = Hidden::new();
    let new: Vec<u32> = (5000..5129).collect();
    // New to everybody.
    hidden.ask(completion(&new), 129, 0).await;
    let sums = |hidden: &Hidden| hidden.fixture.pool.loss.report(Instant::now()).all;
    let first = sums(&hidden);
    assert_eq!((first.prompt_tokens, first.seen_tokens, first.held_tokens), (129, 0, 0));
    // Held by engine 1, and never seen here.
    hidden.ask(completion(&prompt()), 129, 128).await;
    let second = sums(&hidden);
    assert_eq!((second.seen_tokens, second.held_tokens, second.promised_tokens), (0, 128, 128));
    // Held by engine 1, and the gateway allows engine 0 alone.
    let mut elsewhere = completion(&prompt());
    elsewhere.subset = Some(vec![hidden.fixture.address(0)]);
    hidden.ask(elsewhere, 129, 0).await;
    let third = sums(&hidden);
    assert_eq!((third.seen_tokens, third.held_tokens), (128, 128), "of those that the gateway allows");
    assert_eq!((third.requests, third.unknown_requests, third.prompt_tokens), (3, 0, 387));
    hidden.scrape();
    assert_eq!(sums(&hidden).delivered_tokens, 128);
}
