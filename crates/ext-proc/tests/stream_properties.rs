//! Properties of the state machine over arbitrary chunkings and arbitrary message orders.

#![allow(clippy::unwrap_used, reason = "a test file, in its helper functions too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyResponse, HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest, ProtocolConfiguration,
    StreamedBodyResponse, body_mutation::Mutation,
};
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use warmroute_ext_proc::stream::{Action, Stream, StreamLimits};
use warmroute_ext_proc::{MAX_CHUNK_BYTES, Picked, Refusal, StreamEnd, StreamLease};

/// Counts how many leases are alive and how many were told of their end.
#[derive(Clone, Default)]
struct Ledger {
    alive: Arc<AtomicI64>,
    ended: Arc<AtomicI64>,
    made: Arc<AtomicI64>,
}

struct CountedLease(Ledger);

impl CountedLease {
    fn new(ledger: &Ledger) -> Self {
        ledger.alive.fetch_add(1, Ordering::Relaxed);
        ledger.made.fetch_add(1, Ordering::Relaxed);
        Self(ledger.clone())
    }
}

impl StreamLease for CountedLease {
    fn ended(&mut self, _end: StreamEnd) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for CountedLease {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

fn message(request: Option<Request>, modes: Option<(i32, i32)>) -> ProcessingRequest {
    let protocol_config = modes.map(|(request_body_mode, response_body_mode)| ProtocolConfiguration {
        request_body_mode,
        response_body_mode,
        ..ProtocolConfiguration::default()
    });
    ProcessingRequest { request, protocol_config, ..ProcessingRequest::default() }
}

fn body(body: Vec<u8>, end_of_stream: bool) -> HttpBody {
    HttpBody { body, end_of_stream, ..HttpBody::default() }
}

fn headers(end_of_stream: bool) -> HttpHeaders {
    HttpHeaders { end_of_stream, ..HttpHeaders::default() }
}

fn streamed(reply: BodyResponse) -> Option<StreamedBodyResponse> {
    match reply.response?.body_mutation?.mutation? {
        Mutation::StreamedResponse(chunk) => Some(chunk),
        Mutation::Body(_) | Mutation::ClearBody(_) => None,
    }
}

/// A body as lengths of its chunks: small ones, empty ones, and some around the limit.
fn chunking() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let len = prop_oneof![
        Just(0usize),
        1..200usize,
        MAX_CHUNK_BYTES - 1..MAX_CHUNK_BYTES + 2,
        1..4 * MAX_CHUNK_BYTES,
    ];
    let chunk =
        (len, any::<u8>()).prop_map(|(len, first)| (0..len).map(|at| first.wrapping_add(at as u8)).collect());
    vec(chunk, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_chunking_comes_back_as_it_was(chunks in chunking(), with_trailers: bool, on_last: bool) {
        let mut stream = Stream::<()>::new(StreamLimits::default(), Instant::now());
        stream.on_message(message(Some(Request::RequestHeaders(headers(false))), Some((4, 4))));
        let whole = chunks.concat();
        let count = chunks.len();
        for (at, chunk) in chunks.into_iter().enumerate() {
            let eos = !with_trailers && on_last && at + 1 == count;
            stream.on_message(message(Some(Request::RequestBody(body(chunk, eos))), None));
        }
        if with_trailers {
            stream.on_message(message(Some(Request::RequestTrailers(HttpTrailers::default())), None));
        } else if !on_last || count == 0 {
            stream.on_message(message(Some(Request::RequestBody(body(vec![], true))), None));
        }
        let Some(Action::Pick(request)) = stream.next_action() else { panic!("no pick") };
        prop_assert!(request.body.is_complete());
        prop_assert_eq!(request.body.contiguous().as_ref(), &whole[..]);
        drop(request);
        prop_assert!(stream.next_action().is_none(), "an answer before the pick");
        stream.on_pick(Ok(Picked::new("a:1", ())));
        let mut back = Vec::new();
        let mut ended = false;
        let mut trailers = 0;
        while let Some(action) = stream.next_action() {
            let Action::Send(sent) = action else { panic!("{action:?}") };
            match sent.response.unwrap() {
                Response::RequestHeaders(_) => prop_assert!(back.is_empty() && !ended),
                Response::RequestBody(reply) => {
                    prop_assert!(!ended, "a chunk after the end");
                    let chunk = streamed(reply).unwrap();
                    prop_assert!(chunk.body.len() <= MAX_CHUNK_BYTES);
                    back.extend(chunk.body);
                    ended = chunk.end_of_stream;
                }
                Response::RequestTrailers(_) => trailers += 1,
                other => panic!("{other:?}"),
            }
        }
        prop_assert_eq!(&back, &whole);
        prop_assert_eq!(ended, !with_trailers);
        prop_assert_eq!(trailers, i32::from(with_trailers));
    }

    #[test]
    fn response_chunks_come_back_as_they_were(chunks in chunking()) {
        let mut stream = Stream::<()>::new(StreamLimits::default(), Instant::now());
        stream.on_message(message(Some(Request::ResponseHeaders(headers(false))), None));
        let mut back = Vec::new();
        let whole = chunks.concat();
        for chunk in chunks {
            stream.on_message(message(Some(Request::ResponseBody(body(chunk, false))), None));
            while let Some(action) = stream.next_action() {
                let Action::Send(sent) = action else { panic!("{action:?}") };
                if let Some(Response::ResponseBody(reply)) = sent.response {
                    back.extend(streamed(reply).unwrap().body);
                }
            }
            prop_assert!(whole.starts_with(&back));
        }
        prop_assert_eq!(back, whole);
    }

    #[test]
    fn any_order_of_events_is_survived(
        modes in prop_oneof![Just(None), (0..7i32, 0..7i32).prop_map(Some)],
        events in vec(event(), 0..30),
    ) {
        let ledger = Ledger::default();
        let check = run(modes, events, &ledger);
        check?;
        prop_assert_eq!(ledger.alive.load(Ordering::Relaxed), 0, "a lease is left");
        prop_assert!(ledger.ended.load(Ordering::Relaxed) <= ledger.made.load(Ordering::Relaxed));
    }
}

#[derive(Clone, Debug)]
enum Event {
    RequestHeaders(bool),
    RequestBody(usize, bool),
    RequestTrailers,
    ResponseHeaders(bool),
    ResponseBody(usize, bool),
    ResponseTrailers,
    Nothing,
    Picked,
    Rewritten,
    NobodyPicked,
    Refused,
    PickPanicked,
    Drain,
    DrainDeadline,
    BodyTimeout,
    GatewayEnd,
    Unreadable(bool),
    Broken,
    /// Take this many actions.
    Act(usize),
}

fn event() -> impl Strategy<Value = Event> {
    use Event::{Act, RequestBody, RequestHeaders, ResponseBody, ResponseHeaders, Unreadable};
    prop_oneof![
        4 => any::<bool>().prop_map(RequestHeaders),
        6 => (0..3usize, any::<bool>()).prop_map(|(size, eos)| RequestBody(size * 50_000, eos)),
        2 => Just(Event::RequestTrailers),
        2 => any::<bool>().prop_map(ResponseHeaders),
        3 => (0..3usize, any::<bool>()).prop_map(|(size, eos)| ResponseBody(size * 50_000, eos)),
        1 => Just(Event::ResponseTrailers),
        1 => Just(Event::Nothing),
        6 => Just(Event::Picked),
        1 => Just(Event::Rewritten),
        1 => Just(Event::NobodyPicked),
        1 => Just(Event::Refused),
        1 => Just(Event::PickPanicked),
        1 => Just(Event::Drain),
        1 => Just(Event::DrainDeadline),
        1 => Just(Event::BodyTimeout),
        1 => Just(Event::GatewayEnd),
        1 => any::<bool>().prop_map(Unreadable),
        1 => Just(Event::Broken),
        6 => (0..5usize).prop_map(Act),
    ]
}

/// What came in and went out, by kind of message.
#[derive(Default)]
struct Account {
    request: [usize; 3],
    response: [usize; 3],
    request_replies: [usize; 3],
    response_replies: [usize; 3],
    request_ended: bool,
    response_ended: bool,
    immediate: usize,
    over: bool,
    picks: usize,
    destinations: usize,
}

type Check = Result<(), proptest::test_runner::TestCaseError>;

fn run(mut modes: Option<(i32, i32)>, events: Vec<Event>, ledger: &Ledger) -> Check {
    let mode = modes.unwrap_or((4, 4));
    let mut stream = Stream::new(
        StreamLimits { max_body_bytes: 400_000, max_body_chunks: 9, ..StreamLimits::default() },
        Instant::now(),
    );
    let mut account = Account::default();
    let mut feed =
        |stream: &mut Stream<CountedLease>, request| stream.on_message(message(request, modes.take()));
    for event in events {
        let picked = || Picked::new("a:1", CountedLease::new(ledger));
        match event {
            Event::RequestHeaders(eos) => {
                account.request[0] += 1;
                feed(&mut stream, Some(Request::RequestHeaders(headers(eos))));
            }
            Event::RequestBody(len, eos) => {
                account.request[1] += 1;
                feed(&mut stream, Some(Request::RequestBody(body(vec![1; len], eos))));
            }
            Event::RequestTrailers => {
                account.request[2] += 1;
                feed(&mut stream, Some(Request::RequestTrailers(HttpTrailers::default())));
            }
            Event::ResponseHeaders(eos) => {
                account.response[0] += 1;
                feed(&mut stream, Some(Request::ResponseHeaders(headers(eos))));
            }
            Event::ResponseBody(len, eos) => {
                account.response[1] += 1;
                feed(&mut stream, Some(Request::ResponseBody(body(vec![2; len], eos))));
            }
            Event::ResponseTrailers => {
                account.response[2] += 1;
                feed(&mut stream, Some(Request::ResponseTrailers(HttpTrailers::default())));
            }
            Event::Nothing => feed(&mut stream, None),
            Event::Picked => stream.on_pick(Ok(picked())),
            Event::Rewritten => stream.on_pick(Ok(Picked { body: Some(vec![3; 70_000].into()), ..picked() })),
            Event::NobodyPicked => stream.on_pick(Ok(Picked { destinations: vec![], ..picked() })),
            Event::Refused => stream.on_pick(Err(Refusal::inner_failure())),
            Event::PickPanicked => stream.on_inner_failure(),
            Event::Drain => stream.on_drain(),
            Event::DrainDeadline => stream.on_drain_deadline(),
            Event::BodyTimeout => stream.on_body_timeout(),
            Event::GatewayEnd => stream.on_gateway_end(),
            Event::Unreadable(too_large) => stream.on_unreadable(too_large.then_some(500_000)),
            Event::Broken => stream.on_broken(),
            Event::Act(count) => {
                for action in std::iter::from_fn(|| stream.next_action()).take(count) {
                    account.note(action, mode)?;
                }
            }
        }
    }
    while let Some(action) = stream.next_action() {
        account.note(action, mode)?;
    }
    prop_assert!(ledger.alive.load(Ordering::Relaxed) <= 1);
    prop_assert_eq!(stream.holds_lease(), ledger.alive.load(Ordering::Relaxed) == 1);
    Ok(())
}

impl Account {
    fn note(&mut self, action: Action, (request_mode, response_mode): (i32, i32)) -> Check {
        prop_assert!(!self.over, "an action after the end: {action:?}");
        let sent = match action {
            Action::Send(sent) => sent,
            Action::Pick(_) => {
                self.picks += 1;
                prop_assert_eq!(self.picks, 1, "two picks");
                return Ok(());
            }
            Action::PickByLoad(_) | Action::AbandonPick => return Ok(()),
            Action::Close(_) | Action::Abort(_) => {
                self.over = true;
                return Ok(());
            }
        };
        prop_assert_eq!(self.immediate, 0, "a message after the refusal");
        self.destinations += usize::from(sent.dynamic_metadata.is_some());
        prop_assert!(self.destinations <= 1, "two answers");
        match sent.response.unwrap() {
            Response::RequestHeaders(_) => self.request_replies[0] += 1,
            Response::RequestTrailers(_) => self.request_replies[2] += 1,
            Response::RequestBody(reply) => {
                self.request_replies[1] += 1;
                prop_assert!(!self.request_ended, "request chunk after its end");
                self.request_ended = streamed(reply).is_some_and(|chunk| chunk.end_of_stream);
            }
            Response::ResponseHeaders(_) => self.response_replies[0] += 1,
            Response::ResponseTrailers(_) => self.response_replies[2] += 1,
            Response::ResponseBody(reply) => {
                self.response_replies[1] += 1;
                prop_assert!(!self.response_ended, "response chunk after its end");
                self.response_ended = streamed(reply).is_some_and(|chunk| chunk.end_of_stream);
            }
            Response::ImmediateResponse(_) => {
                self.immediate += 1;
                prop_assert_eq!(self.response_replies, [0; 3], "a refusal after the response began");
            }
            Response::StreamedImmediateResponse(_) => panic!("never sent"),
        }
        // Headers and trailers are answered at most once; bodies one for one, but in full duplex.
        for kind in [0, 2] {
            prop_assert!(self.request_replies[kind] <= self.request[kind].min(1));
            prop_assert!(self.response_replies[kind] <= self.response[kind].min(1));
        }
        prop_assert!(request_mode == 4 || self.request_replies[1] <= self.request[1]);
        prop_assert!(response_mode == 4 || self.response_replies[1] <= self.response[1]);
        Ok(())
    }
}
