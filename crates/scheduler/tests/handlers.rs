//! Which profiles run, in which order, and what becomes of a request if one of them picks nothing.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use std::sync::{Arc, Mutex};

use http::{HeaderName, HeaderValue};
use serde_json::json;
use warmroute_plugin::testing::{CandidatesFixture, Row, request};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, Filter, InferenceRequest, NoParameters, Pick, PickHeaders, Registry,
};
use warmroute_scheduler::{
    Decider, Decision, Disaggregation, HelperStage, NamedDecider, OnFailure, ProfileHandler, Reason,
    ScheduleError, Scheduler, SchedulerBuilder, SchedulerError, Scratch, Stage, StageOrder,
};

/// Keeps every row; notes which peer it saw, and what it is told of picks.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Vec<String>>>);

impl Witness {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Filter for Witness {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, _: &mut [bool]) {
        let peer = candidates.peer().map_or("nobody", |peer| &peer.name);
        self.0.lock().unwrap().push(format!("after {peer}"));
    }

    fn picked(&self, _: &InferenceRequest, pick: &Pick<'_>, _: &mut PickHeaders) {
        let rank = if pick.is_primary() { "primary" } else { "helper" };
        let peer = pick.candidates().peer().map_or("nobody", |peer| &peer.name);
        let text = format!("{} {rank} {} after {peer}", pick.profile(), pick.endpoint().name);
        self.0.lock().unwrap().push(text);
    }
}

struct World {
    scheduler: Scheduler,
    witness: Witness,
    scratch: Scratch,
}

/// A decider for the builder's columns.
enum Asked {
    Nothing,
    Always,
    Media,
    Tokens(u32, u32),
}

fn stage(builder: &mut SchedulerBuilder<'_>, profile: &str, asked: &Asked) -> HelperStage {
    let decider = match *asked {
        Asked::Nothing => None,
        Asked::Always => Some(Decider::Always),
        Asked::Media => Some(Decider::Multimodal),
        Asked::Tokens(least_uncached_tokens, least_prompt_tokens) => {
            let prefix = builder.prefix_column("decider", "producer");
            Some(Decider::UncachedTokens { least_uncached_tokens, least_prompt_tokens, prefix })
        }
    };
    let decider = decider.map(|decider| NamedDecider { name: "decider".into(), decider });
    HelperStage { profile: profile.into(), decider, on_failure: OnFailure::Aggregate }
}

fn disaggregation(
    builder: &mut SchedulerBuilder<'_>,
    stage_order: StageOrder,
    prefill: &Asked,
    encode: &Asked,
) -> Disaggregation {
    Disaggregation {
        stage_order,
        decode: "decode".into(),
        prefill: Some(stage(builder, "prefill", prefill)),
        encode: Some(stage(builder, "encode", encode)),
        primary_port: None,
    }
}

impl World {
    fn new(handler: impl FnOnce(&mut SchedulerBuilder<'_>) -> ProfileHandler) -> Self {
        let mut registry = Registry::default();
        warmroute_builtin::register(&mut registry).unwrap();
        let witness = Witness::default();
        let shared = witness.clone();
        let build = move |_: NoParameters, _: &mut BuildContext<'_>| Ok::<_, BuildError>(shared.clone());
        registry.filter("witness", "notes what it sees", build).unwrap();
        let mut builder = SchedulerBuilder::new(&registry);
        let filters = ["decode-filter", "prefill-filter", "encode-filter"];
        for plugin in filters.into_iter().chain(["witness", "queue-scorer", "max-score-picker"]) {
            builder.plugin(plugin, plugin, json!({})).unwrap();
        }
        for (profile, filter) in ["decode", "prefill", "encode"].into_iter().zip(filters) {
            let plugins = [filter, "witness", "queue-scorer", "max-score-picker"].map(|plugin| (plugin, 1.0));
            builder.profile(profile, plugins).unwrap();
        }
        let handler = handler(&mut builder);
        builder.handler(handler);
        Self { scheduler: builder.build().unwrap().scheduler, witness, scratch: Scratch::new() }
    }

    fn disaggregated(order: StageOrder, prefill: &Asked, encode: &Asked) -> Self {
        Self::new(|builder| ProfileHandler::Disaggregated(disaggregation(builder, order, prefill, encode)))
    }

    fn decide<'a>(
        &'a mut self,
        request: &InferenceRequest,
        pool: &'a CandidatesFixture,
    ) -> Result<Decision<'a>, ScheduleError> {
        self.scheduler.decide(request, &pool.candidates(), &mut self.scratch)
    }
}

/// Two endpoints per role, of which the first is idler. The decode ones hold 4 and 8 blocks of 16 tokens.
fn pool(roles: &[&str]) -> CandidatesFixture {
    let row = |role: &str, at: u32| {
        let row = Row::fresh(at, 0, 0.0).named(format!("{role}-{at}")).label("llm-d.ai/role", role);
        row.prefix_match(4 * (at + 1), 100, 16)
    };
    CandidatesFixture::new(roles.iter().flat_map(|role| [row(role, 0), row(role, 1)]))
}

fn prompt(tokens: u32, media_parts: u32) -> InferenceRequest {
    let mut request = request();
    request.prompt_tokens = Some(tokens);
    request.media_parts = media_parts;
    request
}

/// Per stage: which, and where it went.
fn picks(decision: &Decision<'_>) -> Vec<(Stage, Option<String>)> {
    let name = |run: warmroute_scheduler::ProfileRun<'_>| run.pick().map(|p| p.endpoint().name.to_string());
    decision.stages().map(|stage| (stage.stage, name(stage.run))).collect()
}

fn at(name: &str) -> Option<String> {
    Some(name.to_owned())
}

const ROLES: [&str; 3] = ["encode", "prefill", "decode"];

#[test]
fn decode_first_picks_the_others_after_it() {
    let mut world = World::disaggregated(StageOrder::DecodeFirst, &Asked::Always, &Asked::Media);
    let (pool, witness) = (pool(&ROLES), world.witness.clone());
    let request = prompt(100, 2);
    let decision = world.decide(&request, &pool).unwrap();
    let expected = [
        (Stage::Primary, at("decode-0")),
        (Stage::Encode, at("encode-0")),
        (Stage::Prefill, at("prefill-0")),
    ];
    assert_eq!(picks(&decision), expected);
    assert_eq!(decision.decision_type(), Some("encode-prefill-decode"));
    assert_eq!(decision.table_rows().collect::<Vec<_>>(), [4]);
    assert_eq!(&**decision.primary().name(), "decode");
    assert_eq!(
        decision.helpers().map(|helper| helper.run.kept().to_vec()).collect::<Vec<_>>(),
        [[0, 1], [2, 3]]
    );
    assert_eq!(witness.take(), ["after nobody", "after decode-0", "after decode-0"]);
    decision.report_picked(&request, &mut PickHeaders::default());
    let told = [
        "decode primary decode-0 after nobody",
        "encode helper encode-0 after decode-0",
        "prefill helper prefill-0 after decode-0",
    ];
    assert_eq!(witness.take(), told);

    // The next request finds nothing of this one in the scratch.
    let mut world = World { witness, ..world };
    let decision = world.decide(&prompt(100, 0), &pool).unwrap();
    let encode = decision.stages().nth(1).unwrap();
    assert_eq!((encode.has_picked(), encode.run.kept().len(), encode.run.scorers().count()), (false, 0, 1));
    assert_eq!(encode.verdict.unwrap().to_string(), "no: 0 media parts");
    assert_eq!(decision.decision_type(), Some("prefill-decode"));
}

#[test]
fn prefill_first_is_the_peer_of_decode() {
    let mut world = World::disaggregated(StageOrder::PrefillFirst, &Asked::Nothing, &Asked::Media);
    let (pool, witness) = (pool(&ROLES), world.witness.clone());
    let decision = world.decide(&prompt(10, 1), &pool).unwrap();
    assert_eq!(decision.decision_type(), Some("encode-prefill-decode"));
    assert_eq!(decision.table_row(), 4);
    assert_eq!(witness.take(), ["after nobody", "after prefill-0", "after prefill-0"]);
}

#[test]
fn the_decider_counts_what_is_left_to_compute_at_the_decode_endpoint() {
    // The decode endpoint holds 64 tokens.
    let of = |asked: Asked, tokens: Option<u32>| {
        let mut world = World::disaggregated(StageOrder::DecodeFirst, &asked, &Asked::Media);
        let mut request = prompt(0, 0);
        request.prompt_tokens = tokens;
        let pool = pool(&ROLES);
        let decision = world.decide(&request, &pool).unwrap();
        let verdict = decision.stages().nth(2).unwrap().verdict.unwrap();
        assert_eq!(decision.helpers().count(), usize::from(verdict.runs));
        assert_eq!(decision.decision_type() == Some("prefill-decode"), verdict.runs);
        (verdict.runs, verdict.to_string())
    };
    let table = [
        (
            Asked::Tokens(16, 0),
            Some(80),
            true,
            "yes: 80 prompt tokens, 64 of them cached, 16 left; from nonCachedTokens 16 on",
        ),
        (
            Asked::Tokens(16, 0),
            Some(79),
            false,
            "no: 79 prompt tokens, 64 of them cached, 15 left; from nonCachedTokens 16 on",
        ),
        (Asked::Tokens(16, 0), Some(20), false, "no: 20 prompt tokens, 64 of them cached, 0 left; from"),
        (
            Asked::Tokens(16, 500),
            Some(499),
            false,
            "no: 499 prompt tokens, 64 of them cached, 435 left; from nonCachedTokens 16 on, for prompts from promptTokens 500 on",
        ),
        (Asked::Tokens(16, 500), Some(500), true, "yes: 500"),
        (Asked::Tokens(0, 0), Some(500), false, "no: nonCachedTokens is 0"),
        (Asked::Tokens(16, 0), None, false, "no: the length of the prompt isn't known"),
        (Asked::Always, None, true, "yes: always"),
    ];
    for (asked, tokens, runs, text) in table {
        let (got, words) = of(asked, tokens);
        assert!(got == runs && words.starts_with(text), "{tokens:?}: {words}");
    }
}

#[test]
fn a_helper_that_fails_leaves_the_request_to_the_others_or_refuses_it() {
    let pool = pool(&["decode"]);
    for order in [StageOrder::DecodeFirst, StageOrder::PrefillFirst] {
        let mut world = World::disaggregated(order, &Asked::Nothing, &Asked::Media);
        let decision = world.decide(&prompt(10, 1), &pool).unwrap();
        assert_eq!((decision.table_row(), decision.decision_type()), (0, Some("decode-only")));
        let failures: Vec<_> = decision.stages().filter_map(|s| Some((s.stage, s.failure?))).collect();
        let out =
            |profile: &str, by: &str| ScheduleError::FilteredOut { profile: profile.into(), by: by.into() };
        assert!(failures.contains(&(Stage::Prefill, out("prefill", "prefill-filter"))));
        assert!(failures.contains(&(Stage::Encode, out("encode", "encode-filter"))));
        let prefill = decision.stages().find(|stage| stage.stage == Stage::Prefill).unwrap();
        assert_eq!((prefill.run.filtered().count(), prefill.run.totals().len()), (2, 0));

        let mut world = World::new(|builder| {
            let mut stages = disaggregation(builder, order, &Asked::Nothing, &Asked::Media);
            stages.prefill.as_mut().unwrap().on_failure = OnFailure::Refuse;
            ProfileHandler::Disaggregated(stages)
        });
        let error = world.decide(&prompt(10, 0), &pool).map(|_| ()).unwrap_err();
        let why = Box::new(out("prefill", "prefill-filter"));
        assert_eq!(error, ScheduleError::StageFailed { stage: Stage::Prefill, why });
    }
}

#[test]
fn a_primary_that_fails_refuses_the_request() {
    let mut world = World::disaggregated(StageOrder::PrefillFirst, &Asked::Nothing, &Asked::Media);
    let error = world.decide(&prompt(10, 1), &pool(&["prefill"])).map(|_| ()).unwrap_err();
    let expected = ScheduleError::FilteredOut { profile: "decode".into(), by: "decode-filter".into() };
    assert_eq!(error, expected);
}

#[test]
fn a_header_names_the_profile() {
    let header = HeaderName::from_static("epp-profile");
    let named = header.clone();
    let mut world = World::new(move |_| ProfileHandler::ByHeader { header: named, default: "decode".into() });
    let pool = pool(&ROLES);
    let mut of = |value: Option<&'static str>| {
        let mut request = request();
        if let Some(value) = value {
            request.headers.insert(header.clone(), HeaderValue::from_static(value));
        }
        let decision = world.decide(&request, &pool)?;
        assert_eq!((decision.stages().len(), decision.decision_type()), (1, None));
        Ok(decision.primary().name().to_string())
    };
    for (value, profile) in [
        (None, "decode"),
        (Some(""), "decode"),
        (Some("  "), "decode"),
        (Some(" prefill "), "prefill"),
        (Some("encode"), "encode"),
    ] {
        assert_eq!(of(value), Ok(profile.to_owned()), "{value:?}");
    }
    let error: ScheduleError = of(Some("Prefill")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "header epp-profile names no scheduling profile; there are decode, prefill, encode"
    );
}

#[test]
fn what_a_handler_runs_must_be_there() {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry).unwrap();
    let error = |profiles: &[&str], handler: ProfileHandler| {
        let mut builder = SchedulerBuilder::new(&registry);
        builder.plugin("max-score-picker", "max-score-picker", json!({})).unwrap();
        for profile in profiles {
            builder.profile(profile, [("max-score-picker", 1.0)]).unwrap();
        }
        builder.handler(handler);
        builder.build().err()
    };
    let by_header = |default: &str| ProfileHandler::ByHeader {
        header: HeaderName::from_static("x"),
        default: default.into(),
    };
    let unknown = |profile: &str| Some(SchedulerError::UnknownProfile { profile: profile.into() });
    assert_eq!(error(&["a", "b"], by_header("c")), unknown("c"));
    assert_eq!(error(&["a"], by_header("c")), None);
    let several = Some(SchedulerError::SeveralProfiles { count: 2 });
    assert_eq!(error(&["a", "b"], ProfileHandler::Single), several);
    assert_eq!(error(&["a", "b"], ProfileHandler::DataParallel { primary_port: 1 }), several);
    let prefill = HelperStage { profile: "p".into(), decider: None, on_failure: OnFailure::Aggregate };
    let stages = Disaggregation {
        stage_order: StageOrder::DecodeFirst,
        decode: "a".into(),
        prefill: Some(prefill),
        encode: None,
        primary_port: Some(8000),
    };
    assert_eq!(ProfileHandler::Disaggregated(stages.clone()).primary_port(), Some(8000));
    assert_eq!(error(&["a", "b"], ProfileHandler::Disaggregated(stages.clone())), unknown("p"));
    assert_eq!(error(&["a", "p", "unused"], ProfileHandler::Disaggregated(stages)), None);
}

/// One profile may serve two stages.
#[test]
fn stages_that_share_a_profile_have_a_run_each() {
    let mut world = World::new(|builder| {
        let mut stages =
            disaggregation(builder, StageOrder::DecodeFirst, &Asked::Tokens(1, 0), &Asked::Media);
        stages.prefill.as_mut().unwrap().profile = "decode".into();
        ProfileHandler::Disaggregated(stages)
    });
    let pool = pool(&ROLES);
    let decision = world.decide(&prompt(1000, 0), &pool).unwrap();
    let reasons: Vec<_> = decision.stages().filter_map(|stage| Some(stage.verdict?.reason)).collect();
    let tokens = Reason::Tokens {
        prompt_tokens: Some(1000),
        estimated: false,
        cached_tokens: 64,
        least_uncached_tokens: 1,
        least_prompt_tokens: 0,
    };
    assert_eq!(reasons, [Reason::MediaParts(0), tokens]);
    let peers: Vec<_> = decision.stages().map(|stage| stage.run.candidates().peer().is_some()).collect();
    assert_eq!(peers, [false, false, true]);
}
