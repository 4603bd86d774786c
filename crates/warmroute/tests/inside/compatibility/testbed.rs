//! Endpoints with roles, load, metrics and caches, made so that the outcome of a chain can be computed by hand.

use std::collections::BTreeMap;
use std::time::Instant;

use warmroute::lease::Charge;
use warmroute::pool::DiscoveredEndpoint;
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, Picked};
use warmroute_kv_events::{Trust, TrustState};
use warmroute_plugin::EndpointMetrics;

use super::row::{PoolKind, Prompt};
use crate::fixture::{BLOCK_TOKENS, Fixture, completion};

/// An endpoint as every decision finds it.
struct Seat {
    name: &'static str,
    role: Option<&'static str>,
    host: &'static str,
    /// Prompt lengths that it is for, in tokens.
    lengths: Option<&'static str>,
    waiting: u32,
    kv: f64,
    /// Leading tokens of the warm prompt in its cache.
    holds: usize,
    /// Requests in flight, of which the first one has all the tokens.
    requests: u32,
    tokens: u64,
}

const fn seat(name: &'static str, waiting: u32, kv: f64, holds: usize, requests: u32, tokens: u64) -> Seat {
    Seat { name, role: None, host: name, lengths: None, waiting, kv, holds, requests, tokens }
}

impl Seat {
    const fn role(self, role: &'static str) -> Self {
        Self { role: Some(role), ..self }
    }

    const fn for_lengths(self, lengths: &'static str) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    const fn on(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

/// Name, waiting, KV use, tokens held, requests in flight, their tokens.
const UNIFIED: &[Seat] = &[
    seat("u0", 0, 0.1, 0, 0, 0),
    seat("u1", 4, 0.5, 896, 1, 4096),
    seat("u2", 2, 0.8, 512, 2, 600),
    seat("u3", 8, 0.3, 0, 4, 16_384),
];

const ROLES: &[Seat] = &[
    seat("p0", 0, 0.1, 0, 1, 0).role("prefill").for_lengths("0-512"),
    seat("p1", 4, 0.5, 896, 2, 4096).role("prefill").on("shared"),
    seat("d0", 6, 0.6, 896, 3, 4096).role("decode").on("shared"),
    seat("d1", 2, 0.2, 0, 1, 0).role("decode"),
    seat("d2", 0, 0.9, 0, 4, 2048),
    seat("e0", 0, 0.0, 0, 0, 0).role("encode"),
    seat("e1", 3, 0.0, 0, 0, 0).role("encode"),
];

/// What was asked before, by which caches and memories became what they are: leading tokens of the warm prompt, and
/// who may get it. Every picked endpoint then holds them.
const UNIFIED_PAST: &[(usize, &[&str])] = &[(896, &["u1"]), (512, &["u2"])];
const ROLES_PAST: &[(usize, &[&str])] = &[(896, &["p1", "d0"])];

pub(super) struct Testbed {
    pub(super) fixture: Fixture,
    seats: &'static [Seat],
    charges: Vec<Charge>,
}

pub(super) fn warm_prompt() -> Vec<u32> {
    (0..1024).collect()
}

impl Testbed {
    pub(super) async fn new(config: &str, pool: PoolKind, prompt: Prompt) -> Self {
        let (seats, past) = match pool {
            PoolKind::Unified => (UNIFIED, UNIFIED_PAST),
            PoolKind::Roles => (ROLES, ROLES_PAST),
        };
        let fixture = Fixture::new(config, seats.len());
        let mut testbed = Self { fixture, seats, charges: Vec::new() };
        testbed.label();
        // Engines tell their block size before the first request.
        testbed.scrape();
        for (tokens, allowed) in past {
            let mut request = completion(&warm_prompt()[..*tokens]);
            request.subset = Some(allowed.iter().map(|name| testbed.address(name)).collect());
            testbed.fixture.picker.pick(request).await.unwrap();
        }
        for (at, seat) in seats.iter().enumerate().filter(|(_, seat)| seat.holds > 0) {
            testbed.fixture.announce(at, &warm_prompt()[..seat.holds]);
        }
        testbed.scrape();
        testbed.charge(prompt);
        testbed
    }

    fn label(&self) {
        let states = self.fixture.pool.snapshot().states.clone();
        let labelled = states.iter().zip(self.seats).map(|(state, seat)| {
            let host = ("kubernetes.io/hostname".to_owned(), seat.host.to_owned());
            let role = seat.role.map(|role| ("llm-d.ai/role".to_owned(), role.to_owned()));
            let lengths =
                seat.lengths.map(|range| ("llm-d.ai/context-length-range".to_owned(), range.to_owned()));
            let labels: BTreeMap<_, _> = std::iter::once(host).chain(role).chain(lengths).collect();
            DiscoveredEndpoint { labels, ..state.spec.clone().into() }
        });
        self.fixture.pool.update(&labelled.collect::<Vec<_>>());
    }

    fn scrape(&self) {
        for (state, seat) in self.fixture.pool.snapshot().states.iter().zip(self.seats) {
            let metrics = EndpointMetrics::new(seat.waiting, 0, seat.kv).with_cache(BLOCK_TOKENS, 10_000);
            state.scraped(metrics, Instant::now());
            state.engine.set_trust(TrustState { trust: Trust::Exact, ..TrustState::default() });
        }
    }

    fn charge(&mut self, prompt: Prompt) {
        for (state, seat) in self.fixture.pool.snapshot().states.iter().zip(self.seats) {
            for request in 0..seat.requests {
                let tokens = if request == 0 { seat.tokens } else { 0 };
                self.charges.push(state.load.charge(tokens));
            }
            if prompt == Prompt::WarmButBusy && seat.holds == 896 {
                self.charges.push(state.load.charge(1_000_000));
            }
        }
    }

    /// Asks for the prompt.
    pub(super) async fn pick(&self, prompt: Prompt) -> Picked<warmroute::lease::Lease> {
        let cold: Vec<u32> = (50_000..51_024).collect();
        let request = match prompt {
            Prompt::Warm | Prompt::WarmButBusy => completion(&warm_prompt()),
            Prompt::Held => completion(&warm_prompt()[..896]),
            Prompt::Cold => completion(&cold),
            Prompt::Session => self.of_session(&cold).await,
        };
        self.fixture.picker.pick(request).await.unwrap()
    }

    /// A request with the token that the answer to one at u1 carried.
    async fn of_session(&self, prompt: &[u32]) -> HttpRequest {
        const TOKEN: &str = "x-session-token";
        let mut first = completion(&[1; 40]);
        first.subset = Some(vec![self.address("u1")]);
        let picked = self.fixture.picker.pick(first).await.unwrap();
        let token = picked.response_headers.iter().find(|(name, _)| name == TOKEN);
        let (_, token) = token.expect("the answer carries a session token");
        let headers = [(":method", "POST"), (":path", "/v1/completions"), (TOKEN, token.as_str())];
        HttpRequest::new(HeaderList::from_pairs(headers), completion(prompt).body.contiguous().clone())
    }

    pub(super) fn address(&self, name: &str) -> String {
        let at = self.seats.iter().position(|seat| seat.name == name);
        self.fixture.address(at.unwrap_or_else(|| panic!("there is no endpoint {name}")))
    }

    /// Our name of an endpoint.
    pub(super) fn name(&self, address: &str) -> &'static str {
        let seat = self.seats.iter().find(|seat| self.address(seat.name) == address);
        seat.unwrap_or_else(|| panic!("nobody is at {address}")).name
    }
}
