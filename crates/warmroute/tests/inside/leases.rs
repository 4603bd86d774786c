//! Whatever happens to requests and endpoints, what was charged is released, once.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use proptest::prelude::*;
use warmroute::lease::Lease;
use warmroute::pool::{DiscoveredEndpoint, EndpointSpec, EndpointState};
use warmroute_ext_proc::{EndpointPicker, HeaderList, Picked, StreamEnd, StreamLease};

use crate::fixture::{ACTIVE_REQUESTS, Fixture, PREFILL_DECODE, PREFIX_ONLY, completion};

#[derive(Clone, Debug)]
enum Step {
    /// A request is picked and stays in flight.
    Pick { tokens: u32 },
    /// A request is dropped while its pick is under way, if the pick waits at all.
    CancelDuringPick,
    /// The response headers of some request in flight arrive.
    ResponseHeaders { which: usize },
    /// Some request ends, in order or by disconnect.
    End { which: usize, how: StreamEnd },
    /// The task that owns some request panics.
    Panic { which: usize },
    /// The endpoints are now these.
    Endpoints { present: [bool; 4] },
}

fn step() -> impl Strategy<Value = Step> {
    let ends = prop_oneof![
        Just(StreamEnd::ResponseComplete),
        Just(StreamEnd::GatewayClosed),
        Just(StreamEnd::Cancelled),
        Just(StreamEnd::Drained),
    ];
    prop_oneof![
        4 => (0u32..200).prop_map(|tokens| Step::Pick { tokens }),
        1 => Just(Step::CancelDuringPick),
        2 => any::<usize>().prop_map(|which| Step::ResponseHeaders { which }),
        3 => (any::<usize>(), ends).prop_map(|(which, how)| Step::End { which, how }),
        1 => any::<usize>().prop_map(|which| Step::Panic { which }),
        1 => any::<[bool; 4]>().prop_map(|present| Step::Endpoints { present }),
    ]
}

struct World {
    fixture: Fixture,
    in_flight: Vec<Picked<Lease>>,
    /// Every incarnation of an endpoint that ever was.
    ever: Vec<Arc<EndpointState>>,
    /// Most endpoints that one request is charged at.
    picks: usize,
}

impl World {
    fn new(config: &str) -> Self {
        let fixture = Fixture::new(config, 4);
        let ever = fixture.pool.snapshot().states.clone();
        let picks = if config == PREFILL_DECODE { 2 } else { 1 };
        Self { fixture, in_flight: Vec::new(), ever, picks }
    }

    fn take(&mut self, which: usize) -> Option<Picked<Lease>> {
        (!self.in_flight.is_empty()).then(|| self.in_flight.swap_remove(which % self.in_flight.len()))
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Pick { tokens } => {
                let request = completion(&(0..tokens.max(1)).collect::<Vec<_>>());
                self.in_flight.extend(self.fixture.picker.pick(request).await.ok());
            }
            Step::CancelDuringPick => {
                // Long enough a body that the pick waits for another thread; polled once, then dropped.
                let mut pick = Box::pin(self.fixture.picker.pick(completion(&[5; 2000])));
                let _ = futures::poll!(pick.as_mut());
            }
            Step::ResponseHeaders { which } => {
                let len = self.in_flight.len().max(1);
                if let Some(picked) = self.in_flight.get_mut(which % len) {
                    picked.lease.response_headers(Some(200), &HeaderList::default());
                }
            }
            Step::End { which, how } => {
                if let Some(mut picked) = self.take(which) {
                    picked.lease.ended(how);
                }
            }
            Step::Panic { which } => {
                if let Some(picked) = self.take(which) {
                    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
                        let _held = picked;
                        std::panic::resume_unwind(Box::new("a task that owns a lease dies"));
                    }));
                    assert!(panicked.is_err());
                }
            }
            Step::Endpoints { present } => self.endpoints(present),
        }
    }

    fn endpoints(&mut self, present: [bool; 4]) {
        let spec = |at: usize| EndpointSpec::new(format!("e{at}"), format!("127.0.1.{at}"), 1);
        // Half of them prefill.
        let labelled = |at: usize| {
            let role = if at.is_multiple_of(2) { "prefill" } else { "decode" };
            let labels = BTreeMap::from([("llm-d.ai/role".to_owned(), role.to_owned())]);
            DiscoveredEndpoint { labels, ..spec(at).into() }
        };
        let endpoints: Vec<_> = (0..4).filter(|at| present[*at]).map(labelled).collect();
        self.ever.extend(self.fixture.pool.update(&endpoints).added);
    }

    /// Counters equal what is in flight (with several stages, between once and once per stage), so they can't have gone below zero either.
    fn check(&self) {
        let counted: u32 = self.ever.iter().map(|state| state.load.in_flight().requests).sum();
        let requests = self.in_flight.len();
        assert!((requests..=requests * self.picks).contains(&(counted as usize)), "{counted} of {requests}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_ends_at_zero_and_never_goes_below(
        steps in proptest::collection::vec(step(), 1..80),
        config in prop_oneof![Just(ACTIVE_REQUESTS), Just(PREFIX_ONLY), Just(PREFILL_DECODE)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut world = World::new(config);
        for step in steps {
            runtime.block_on(world.step(step));
            world.check();
        }
        world.in_flight.clear();
        for state in &world.ever {
            let left = state.load.in_flight();
            prop_assert_eq!((left.requests, left.prompt_tokens), (0, 0));
        }
    }
}
