//! In-flight accounting as ownership: a lease is the charge of one request, and dropping it is the only way to release.
//!
//! A lease points at an incarnation of an endpoint, not at its name: a request that outlives its endpoint releases what
//! it charged there, and never touches a successor under the same address.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use warmroute_ext_proc::{HeaderList, StreamEnd, StreamLease};
use warmroute_plugin::InFlight;

use crate::engine_events::Expectation;
use crate::response_watch::ResponseWatch;

/// What this picker has in flight at one incarnation of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointLoad {
    requests: AtomicU32,
    prompt_tokens: AtomicU64,
    was_used: AtomicBool,
}

impl EndpointLoad {
    /// Charges one request with the prompt tokens that the engine has to compute (0 if unknown).
    pub fn charge(self: &Arc<Self>, prompt_tokens: u64) -> Charge {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.prompt_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
        Charge { load: self.clone(), prompt_tokens }
    }

    /// Whether a request that was sent there has been answered, or has ended otherwise.
    pub fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Relaxed)
    }

    /// As of now.
    pub fn in_flight(&self) -> InFlight {
        InFlight {
            requests: self.requests.load(Ordering::Relaxed),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
        }
    }
}

/// One request's share of an endpoint's load. Dropping it takes the share back.
#[derive(Debug)]
pub struct Charge {
    load: Arc<EndpointLoad>,
    prompt_tokens: u64,
}

impl Charge {
    /// The prompt has been computed: its tokens are no load any more, the request still is.
    pub fn prefill_is_over(&mut self) {
        let tokens = std::mem::take(&mut self.prompt_tokens);
        self.load.was_used.store(true, Ordering::Relaxed);
        self.load.prompt_tokens.fetch_sub(tokens, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.prefill_is_over();
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Everything that one request in flight holds.
#[derive(Debug)]
pub struct Lease {
    charge: Charge,
    /// Blocks that the engine is expected to hold soon because of this request; withdrawn some time after the end.
    _expectation: Option<Expectation>,
    /// What it holds at endpoints that help the one that it goes to.
    helpers: Vec<HelperLease>,
    watch: ResponseWatch,
}

/// What one request holds at an endpoint that computes its prompt or encodes its media for another one.
#[derive(Debug)]
pub struct HelperLease {
    /// Given back as soon as the other endpoint answers: its work is done by then.
    charge: Option<Charge>,
    _expectation: Option<Expectation>,
}

impl HelperLease {
    /// Holds a charge, and an expectation if there is one.
    pub fn new(charge: Charge, expectation: Option<Expectation>) -> Self {
        Self { charge: Some(charge), _expectation: expectation }
    }
}

impl Lease {
    /// Holds a charge, an expectation if there is one, and the watch of the response.
    pub fn new(charge: Charge, expectation: Option<Expectation>, watch: ResponseWatch) -> Self {
        Self { charge, _expectation: expectation, helpers: Vec::new(), watch }
    }

    /// The same lease, which holds something at other endpoints too.
    #[must_use]
    pub fn with_helpers(self, helpers: Vec<HelperLease>) -> Self {
        Self { helpers, ..self }
    }
}

impl StreamLease for Lease {
    /// The engine answers when the prompt is computed.
    fn response_headers(&mut self, status: Option<u16>, headers: &HeaderList) {
        self.charge.prefill_is_over();
        for helper in &mut self.helpers {
            helper.charge = None;
        }
        self.watch.headers(status, headers);
    }

    fn response_chunk(&mut self, chunk: &[u8]) {
        self.watch.chunk(chunk);
    }

    fn ended(&mut self, end: StreamEnd) {
        self.watch.ended(end);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::metrics::Metrics;
    use crate::telemetry::RequestTrace;

    #[test]
    fn a_charge_releases_what_it_took_and_no_more() {
        let load = Arc::new(EndpointLoad::default());
        let mut first = load.charge(100);
        let second = load.charge(7);
        assert_eq!(load.in_flight(), InFlight { requests: 2, prompt_tokens: 107 });
        first.prefill_is_over();
        first.prefill_is_over();
        assert_eq!(load.in_flight(), InFlight { requests: 2, prompt_tokens: 7 });
        drop(first);
        drop(second);
        assert_eq!(load.in_flight(), InFlight::default());
    }

    #[test]
    fn a_helper_is_free_when_the_answer_begins_or_the_request_ends() {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let watch = || {
            let series = metrics.requests.series("m", "m", "default-flow", 0);
            ResponseWatch::new(metrics.clone(), series, Instant::now(), RequestTrace::default())
        };
        for answers in [true, false] {
            let [decode, prefill] = [(); 2].map(|()| Arc::new(EndpointLoad::default()));
            let helpers = vec![HelperLease::new(prefill.charge(100), None)];
            let mut lease = Lease::new(decode.charge(0), None, watch()).with_helpers(helpers);
            assert_eq!(prefill.in_flight(), InFlight { requests: 1, prompt_tokens: 100 });
            if answers {
                lease.response_headers(Some(200), &HeaderList::default());
                assert_eq!(prefill.in_flight(), InFlight::default());
                assert_eq!(decode.in_flight().requests, 1);
            }
            drop(lease);
            assert_eq!((prefill.in_flight(), decode.in_flight()), (InFlight::default(), InFlight::default()));
        }
    }
}
