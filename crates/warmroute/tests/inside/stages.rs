//! Decisions with several profiles: what each stage picks and is charged, the headers that tell endpoints of each
//! other, and what the receipt says of it all.

use std::collections::BTreeMap;

use warmroute::explain::describe;
use warmroute::pool::DiscoveredEndpoint;
use warmroute::prompt::ReadRequest;
use warmroute::receipt::{Fallback, Receipt};
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, Picked, StreamLease};
use warmroute_plugin::{InFlight, InferenceRequest};
use warmroute_scheduler::Stage;

use crate::fixture::{Fixture, completion};

/// Decode endpoints prefer what they hold; prefill goes to the idlest.
fn config(handler: &str) -> String {
    format!(
        "
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
- {handler}
- type: prefix-based-pd-decider
  parameters: {{nonCachedTokens: 32}}
- type: always-disagg-multimodal-decider
- type: decode-filter
- type: prefill-filter
- type: encode-filter
- type: prefix-cache-scorer
- type: active-request-scorer
- type: max-score-picker
schedulingProfiles:
- name: decode
  plugins: [{{pluginRef: decode-filter}}, {{pluginRef: prefix-cache-scorer}}, {{pluginRef: max-score-picker}}]
- name: prefill
  plugins: [{{pluginRef: prefill-filter}}, {{pluginRef: active-request-scorer}}, {{pluginRef: max-score-picker}}]
- name: encode
  plugins: [{{pluginRef: encode-filter}}, {{pluginRef: active-request-scorer}}, {{pluginRef: max-score-picker}}]
"
    )
}

const STAGES: &str = "{type: disagg-profile-handler, name: stages, parameters: {deciders: \
                      {prefill: prefix-based-pd-decider, encode: always-disagg-multimodal-decider}}}";

/// A picker over endpoints of these roles, whose engines hold nothing.
fn fixture(config: &str, roles: &[&str]) -> Fixture {
    let fixture = Fixture::new(config, roles.len());
    let labelled = |(state, role): (&std::sync::Arc<warmroute::pool::EndpointState>, &&str)| {
        let labels = BTreeMap::from([("llm-d.ai/role".to_owned(), (*role).to_owned())]);
        DiscoveredEndpoint { labels, ..state.spec.clone().into() }
    };
    let endpoints: Vec<_> = fixture.pool.snapshot().states.iter().zip(roles).map(labelled).collect();
    fixture.pool.update(&endpoints);
    fixture.announce(0, &[9; 16]);
    fixture
}

fn header<'p>(picked: &'p Picked<warmroute::lease::Lease>, name: &str) -> Option<&'p str> {
    let found = picked.set_headers.iter().find(|(set, _)| set == name)?;
    Some(&found.1)
}

fn last(fixture: &Fixture) -> Receipt {
    (*fixture.receipts.find("last").unwrap()).clone()
}

fn in_flight(fixture: &Fixture, at: usize) -> (u32, u64) {
    let InFlight { requests, prompt_tokens } = fixture.pool.snapshot().states[at].load.in_flight();
    (requests, prompt_tokens)
}

#[tokio::test]
async fn prefill_and_decode_are_picked_charged_told_and_explained() {
    let fixture = fixture(&config(STAGES), &["prefill", "decode"]);
    let prompt: Vec<u32> = (0..100).collect();
    let mut picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(1)]);
    assert_eq!(header(&picked, "x-prefiller-host-port"), Some(fixture.address(0).as_str()));
    assert_eq!(header(&picked, "x-encoder-hosts-ports"), None);
    assert_eq!((in_flight(&fixture, 0), in_flight(&fixture, 1)), ((1, 100), (1, 0)));

    let receipt = last(&fixture);
    let handler = receipt.handler.as_ref().unwrap();
    assert_eq!((&*handler.name, handler.decision.as_str()), ("stages", "prefill-decode"));
    let verdicts: Vec<_> = handler.deciders.iter().map(|d| (d.stage.as_str(), d.disaggregates)).collect();
    assert_eq!(verdicts, [("encode", false), ("prefill", true)]);
    assert_eq!((&*receipt.profile, receipt.pick.as_deref()), ("decode", Some(fixture.address(1).as_str())));
    let [prefill] = receipt.other_profiles.as_slice() else { panic!("{receipt:?}") };
    assert_eq!((&*prefill.profile, prefill.pick.as_deref()), ("prefill", Some(fixture.address(0).as_str())));
    assert_eq!(prefill.candidates[1].filtered_by.as_deref(), Some("prefill-filter"));
    let text = describe(&receipt);
    let why = "prefill by prefix-based-pd-decider: yes: 100 prompt tokens, 0 of them cached, 100 left; from nonCachedTokens 32 on";
    assert!(text.contains(why), "{text}");

    // The answer begins: prefill is over.
    picked.lease.response_headers(Some(200), &HeaderList::default());
    assert_eq!((in_flight(&fixture, 0), in_flight(&fixture, 1)), ((0, 0), (1, 0)));
    drop(picked);
    fixture.assert_nothing_in_flight();

    // What decode holds needn't be computed elsewhere.
    fixture.announce(1, &prompt[..80]);
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(header(&picked, "x-prefiller-host-port"), None);
    assert_eq!((in_flight(&fixture, 0), in_flight(&fixture, 1).0), ((0, 0), 1));
    assert_eq!(last(&fixture).handler.unwrap().decision, "decode-only");

    let decided = fixture.metrics.requests.decisions_by_type();
    assert_eq!(decided, BTreeMap::from([("decode-only".to_owned(), 1), ("prefill-decode".to_owned(), 1)]));
    let page = fixture.metrics.page().unwrap();
    let line = "llm_d_epp_disagg_decision_total{decision_type=\"prefill-decode\",model_name=\"m\",plugin_name=\"stages\",plugin_type=\"disagg-profile-handler\"} 1";
    assert!(page.contains(line), "{page}");
    assert!(!page.contains("llm_d_epp_pd_decision_total{"), "that is for the old handler");
}

#[tokio::test]
async fn the_engine_that_prefills_is_expected_to_hold_the_prompt() {
    let fixture = fixture(&config(STAGES), &["prefill", "decode"]);
    let prompt: Vec<u32> = (0..100).collect();
    let _picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    let longer: Vec<u32> = (0..400).collect();
    let _second = fixture.picker.pick(completion(&longer)).await.unwrap();
    let receipt = last(&fixture);
    let expected: Vec<_> = receipt.other_profiles.iter().map(|p| p.expected_cached_tokens).collect();
    assert_eq!((expected.as_slice(), receipt.expected_cached_tokens), (&[96][..], 96));
    assert_eq!(in_flight(&fixture, 0), (2, 100 + 304));
}

#[tokio::test]
async fn media_are_encoded_elsewhere() {
    let fixture = fixture(&config(STAGES), &["encode", "decode"]);
    let mut request = InferenceRequest::new("r", "m");
    request.media_parts = 1;
    let decided = fixture.decider.decide(&request, &ReadRequest::default(), None).unwrap();
    let [helper] = decided.helpers.as_slice() else { panic!() };
    assert_eq!(
        (helper.stage, &*helper.profile, &*helper.endpoint.address),
        (Stage::Encode, "encode", fixture.address(0).as_str())
    );
    assert_eq!(decided.headers.request["x-encoder-hosts-ports"], fixture.address(0).as_str());
    assert_eq!(decided.explanation.handler.as_ref().unwrap().decision, "encode-decode");
    assert_eq!(in_flight(&fixture, 0), (1, 0));
    drop(decided);
    fixture.assert_nothing_in_flight();

    // The same from a body, whose tokens can only be estimated.
    let pairs = [(":method", "POST"), (":path", "/v1/chat/completions")];
    let body = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\
                \"image_url\":{\"url\":\"http://127.0.0.1/a.png\"}},{\"type\":\"text\",\"text\":\"What is it?\"}]}]}";
    let picked = fixture.picker.pick(HttpRequest::new(HeaderList::from_pairs(pairs), body)).await.unwrap();
    assert_eq!(header(&picked, "x-encoder-hosts-ports"), Some(fixture.address(0).as_str()));
    let text = describe(&last(&fixture));
    assert!(text.contains("encode by always-disagg-multimodal-decider: yes: 1 media parts"), "{text}");
    assert!(text.contains("prefill by prefix-based-pd-decider: yes: about "), "{text}");
}

#[tokio::test]
async fn without_a_prefill_endpoint_decode_does_it_or_the_request_is_refused() {
    let prompt: Vec<u32> = (0..100).collect();
    let aggregates = fixture(&config(STAGES), &["decode", "decode"]);
    let picked = aggregates.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(header(&picked, "x-prefiller-host-port"), None);
    let receipt = last(&aggregates);
    assert_eq!(receipt.handler.as_ref().unwrap().decision, "decode-only");
    assert_eq!(
        receipt.fallbacks.iter().map(|note| note.kind).collect::<Vec<_>>(),
        [Fallback::NoPrefillEndpoint]
    );
    let failure = "filter prefill-filter of profile prefill left no endpoint";
    assert_eq!(receipt.other_profiles[0].failure.as_deref(), Some(failure));
    let charged: u64 = (0..2).map(|at| in_flight(&aggregates, at).1).sum();
    assert_eq!(charged, 100, "decode computes the prompt then");

    let refuse = STAGES.replace("parameters: {", "parameters: {onPrefillFailure: refuse, ");
    let refuses = fixture(&config(&refuse), &["decode", "decode"]);
    let refusal = refuses.picker.pick(completion(&prompt)).await.unwrap_err();
    assert_eq!((refusal.status, refusal.reason), (429, Some("rejected-saturated")));
    assert!(refusal.message.starts_with("the prefill stage found no endpoint"), "{}", refusal.message);
    refuses.assert_nothing_in_flight();

    // Without a decode endpoint nothing helps.
    let prefills = fixture(&config(STAGES), &["prefill"]);
    let refusal = prefills.picker.pick(completion(&prompt)).await.unwrap_err();
    assert_eq!(refusal.message, "no endpoints available for the given request");
    prefills.assert_nothing_in_flight();
}

#[tokio::test]
async fn the_old_handler_counts_under_its_old_name_and_sends_to_the_primary_port() {
    let handler = "{type: pd-profile-handler, parameters: {primaryPort: 7000}}";
    let fixture = fixture(&config(handler), &["prefill", "decode"]);
    let prompt: Vec<u32> = (0..100).collect();
    let picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(1).replace(":8000", ":7000")]);
    assert_eq!(header(&picked, "x-data-parallel-host-port"), Some(fixture.address(1).as_str()));
    assert_eq!(header(&picked, "x-prefiller-host-port"), Some(fixture.address(0).as_str()));
    let page = fixture.metrics.page().unwrap();
    assert!(page.contains("llm_d_epp_pd_decision_total{decision_type=\"prefill-decode\""), "{page}");
}

#[tokio::test]
async fn ranks_and_profiles_by_header() {
    let one = |handler: &str| {
        let text = config(handler);
        let first = text.find("- name: prefill").unwrap();
        text[..first].to_owned()
    };
    let ranks =
        fixture(&one("{type: data-parallel-profile-handler, parameters: {primaryPort: 7000}}"), &["decode"]);
    let picked = ranks.picker.pick(completion(&[1; 8])).await.unwrap();
    assert_eq!(picked.destinations, [ranks.address(0).replace(":8000", ":7000")]);
    assert_eq!(header(&picked, "x-data-parallel-host-port"), Some(ranks.address(0).as_str()));
    let receipt = last(&ranks);
    assert_eq!((receipt.pick.as_deref(), receipt.handler), (Some(ranks.address(0).as_str()), None));

    let named = fixture(&config("{type: header-profile-handler}"), &["prefill", "decode"]);
    let pick = async |profile: &str| {
        let pairs = [(":method", "POST"), (":path", "/v1/completions"), ("epp-profile", profile)];
        let request =
            HttpRequest::new(HeaderList::from_pairs(pairs), "{\"model\":\"m\",\"prompt\":[1]}".to_owned());
        named.picker.pick(request).await.map(|picked| picked.destinations)
    };
    assert_eq!(pick("prefill").await, Ok(vec![named.address(0)]));
    assert_eq!(pick("").await, Ok(vec![named.address(1)]));
    let refusal = pick("other").await.unwrap_err();
    assert_eq!((refusal.status, refusal.reason), (429, None));
    assert!(
        refusal
            .message
            .ends_with("header epp-profile names no scheduling profile; there are decode, prefill, encode"),
        "{}",
        refusal.message
    );
}

#[tokio::test]
async fn a_request_may_want_to_be_served_only_where_its_prompt_is() {
    let fixture = fixture(&config(STAGES), &["prefill", "decode"]);
    let prompt: Vec<u32> = (0..64).collect();
    let request = || {
        let pairs = [(":method", "POST"), (":path", "/v1/completions"), ("prefer", "if-available")];
        HttpRequest::new(HeaderList::from_pairs(pairs), format!("{{\"model\":\"m\",\"prompt\":{prompt:?}}}"))
    };
    let refusal = fixture.picker.pick(request()).await.unwrap_err();
    assert_eq!((refusal.status, refusal.code, refusal.reason), (412, "PreconditionFailed", None));
    fixture.assert_nothing_in_flight();
    fixture.announce(1, &prompt[..16]);
    assert_eq!(fixture.picker.pick(request()).await.unwrap().destinations, [fixture.address(1)]);
}
