//! What expressions mean, what is refused at load and where, and that nothing panics.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use proptest::{collection, prop_assert, proptest, sample};
use serde_json::json;
use warmroute_expression::{Expression, Fault};
use warmroute_plugin::testing::{CandidatesFixture, Row, build_filter, build_scorer, kept, request, scores};
use warmroute_plugin::{
    AdapterState, BuildContext, Endpoint, EndpointId, InferenceRequest, Needs, Plugin, Registry,
};

fn registry() -> Registry {
    let mut registry = Registry::default();
    warmroute_expression::register(&mut registry).unwrap();
    registry
}

/// Two rows that differ in everything that an expression can read; columns in the order of `NEEDS`.
fn table() -> CandidatesFixture {
    CandidatesFixture::new([
        Row::fresh(3, 5, 0.25)
            .named("default/a-rank-0")
            .label("zone", "eu")
            .label("tier", "gold")
            .requests_in_flight(4)
            .prompt_tokens_in_flight(1000)
            .prefix_match(2, 8, 16)
            .attribute(7.5)
            .adapter(AdapterState::Active),
        Row::stale(1, 2, 0.5).label("zone", "us").prefix_match(0, 8, 16),
    ])
    .after(Endpoint::new(EndpointId(9), "default/peer-rank-0", "10.1.1.1:80").with_label("zone", "us"))
}

/// A request with a header, an attribute and a prompt length.
fn the_request() -> InferenceRequest {
    let mut request = InferenceRequest::new("1", "model");
    request.target_model = "adapter".into();
    request.headers.insert("x-tier", "gold".parse().unwrap());
    request.headers.insert("x-count", " 12 ".parse().unwrap());
    request.attributes.push(("SessionID/by-header".into(), "abc".into()));
    request.prompt_tokens = Some(100);
    request.priority = -1;
    request.stream = true;
    request
}

fn evaluate(source: &str) -> Vec<Result<f64, Fault>> {
    let mut needs = Needs::default();
    let mut context = BuildContext::new("expression", &mut needs);
    let expression =
        Expression::number(source, &mut context).unwrap_or_else(|error| panic!("{source}: {error}"));
    let (table, mut results) = (table(), Vec::new());
    expression.evaluate(&the_request(), &table.candidates(), |_, result| results.push(result));
    results
}

fn first(source: &str) -> Result<f64, Fault> {
    evaluate(source)[0]
}

fn mistake(source: &str) -> String {
    let mut needs = Needs::default();
    let error = Expression::number(source, &mut BuildContext::new("expression", &mut needs)).unwrap_err();
    error.to_string().replace("line ", "").replace(", column ", ":").replace(" of the expression", "")
}

#[test]
fn every_variable_is_read() {
    let missing = Err(Fault::NoValue);
    for (source, expected) in [
        ("request.model == 'model'", [Ok(1.0), Ok(1.0)]),
        ("request.target_model == 'adapter'", [Ok(1.0), Ok(1.0)]),
        ("request.stream", [Ok(1.0), Ok(1.0)]),
        ("request.priority", [Ok(-1.0), Ok(-1.0)]),
        ("request.prompt_tokens", [Ok(100.0), Ok(100.0)]),
        ("request.prompt_tokens_estimated", [Ok(0.0), Ok(0.0)]),
        ("request.max_tokens", [missing, missing]),
        ("request.media_parts", [Ok(0.0), Ok(0.0)]),
        ("request.headers['X-Tier'] == 'gold'", [Ok(1.0), Ok(1.0)]),
        ("request.headers.missing == 'gold'", [missing, missing]),
        ("request.attributes['SessionID/by-header'] == 'abc'", [Ok(1.0), Ok(1.0)]),
        ("endpoint.name == 'default/a-rank-0'", [Ok(1.0), Ok(0.0)]),
        ("endpoint.address == '10.0.0.1:8000'", [Ok(0.0), Ok(1.0)]),
        ("endpoint.labels.zone == 'eu'", [Ok(1.0), Ok(0.0)]),
        ("endpoint.labels['tier'] == request.headers['x-tier']", [Ok(1.0), missing]),
        ("endpoint.labels.zone == peer.labels.zone", [Ok(0.0), Ok(1.0)]),
        ("peer.name == 'default/peer-rank-0' && peer.address == '10.1.1.1:80'", [Ok(1.0), Ok(1.0)]),
        ("metrics.waiting_requests", [Ok(3.0), missing]),
        ("last_metrics.waiting_requests", [Ok(3.0), Ok(1.0)]),
        ("metrics.running_requests", [Ok(5.0), missing]),
        ("last_metrics.kv_cache_utilization", [Ok(0.25), Ok(0.5)]),
        ("metrics.block_size_tokens + metrics.num_gpu_blocks", [Ok(0.0), missing]),
        ("metrics.fresh", [Ok(1.0), Ok(0.0)]),
        ("metrics.stale", [Ok(0.0), Ok(1.0)]),
        ("metrics.never_scraped", [Ok(0.0), Ok(0.0)]),
        ("in_flight.requests", [Ok(4.0), Ok(0.0)]),
        ("in_flight.prompt_tokens", [Ok(1000.0), Ok(0.0)]),
        ("prefix['exact'].matched_ratio", [Ok(0.25), Ok(0.0)]),
        ("prefix['exact'].matched_blocks", [Ok(2.0), Ok(0.0)]),
        ("prefix.exact.matched_tokens", [Ok(32.0), Ok(0.0)]),
        ("prefix.exact.total_blocks * prefix.exact.block_size_tokens", [Ok(128.0), Ok(128.0)]),
        ("attributes['gpu/dcgm']", [Ok(7.5), missing]),
        ("adapter == 'active'", [Ok(1.0), Ok(0.0)]),
        ("adapter == 'unknown'", [Ok(0.0), Ok(1.0)]),
        ("has(metrics.waiting_requests)", [Ok(1.0), Ok(0.0)]),
        ("has(endpoint.labels.tier) ? 2 : 3", [Ok(2.0), Ok(3.0)]),
        ("'tier' in endpoint.labels", [Ok(1.0), Ok(0.0)]),
        ("'gpu/dcgm' in attributes", [Ok(1.0), Ok(0.0)]),
        ("'x-other' in request.headers", [Ok(0.0), Ok(0.0)]),
        ("has(request.max_tokens) || has(request.prompt_tokens)", [Ok(1.0), Ok(1.0)]),
        ("has(request.stream)", [Ok(1.0), Ok(1.0)]),
    ] {
        assert_eq!(evaluate(source), expected, "{source}");
    }
}

#[test]
fn operators_and_functions_are_cels() {
    for (source, expected) in [
        ("1 + 2 * 3 - 4", 3.0),
        ("-7 / 2", -3.0),
        ("-7 % 3", -1.0),
        ("7u / 2u", 3.0),
        ("7 / 2.0", 3.5),
        ("1 + 0.5", 1.5),
        ("1.0 / 0.0", f64::INFINITY),
        ("true ? 1 : 2.5", 1.0),
        ("!true || 1 < 2 && 2 <= 2", 1.0),
        ("1 == 1.0", 1.0),
        ("'a' < 'b' && 'a' != 'b'", 1.0),
        ("true != false", 1.0),
        ("request.priority in [1, -1]", 1.0),
        ("request.model in ['x', 'model']", 1.0),
        ("1 in []", 0.0),
        ("'gold-eu'.startsWith('gold') && 'gold-eu'.endsWith('eu')", 1.0),
        ("request.model.contains('ode')", 1.0),
        ("request.model.matches('^m.d')", 1.0),
        ("matches(request.model, '^d')", 0.0),
        ("size('äöü') + 'ab'.size()", 5.0),
        ("int(2.9) + int('3') + int(-2.9)", 3.0),
        ("double(request.headers['x-count']) / 8", 1.5),
        ("math.greatest(1, 2.5, -3)", 2.5),
        ("math.least(1, 2.5, -3)", -3.0),
        ("math.abs(-2) + math.ceil(0.1) + math.floor(1.9) + math.round(0.5) + math.trunc(-1.5)", 4.0),
        ("math.sqrt(16) * math.sign(-3)", -4.0),
        ("math.isNaN(0.0 / 0.0) && math.isInf(1.0 / 0.0) && math.isFinite(1)", 1.0),
        ("9223372036854775807 == 9223372036854775806", 0.0),
    ] {
        assert_eq!(first(source), Ok(expected), "{source}");
    }
}

#[test]
fn a_fault_counts_only_if_it_decides() {
    for (source, expected) in [
        ("false && request.max_tokens > 1", Ok(0.0)),
        ("request.max_tokens > 1 && false", Ok(0.0)),
        ("request.max_tokens > 1 || true", Ok(1.0)),
        ("request.max_tokens > 1 || false", Err(Fault::NoValue)),
        ("request.max_tokens > 1 && true", Err(Fault::NoValue)),
        ("request.headers.nope in ['a', 'b']", Err(Fault::NoValue)),
        ("'gold' in [request.headers.nope, 'gold']", Ok(1.0)),
        ("'silver' in [request.headers.nope, 'gold']", Err(Fault::NoValue)),
        ("1 / 0", Err(Fault::Arithmetic)),
        ("1 % 0", Err(Fault::Arithmetic)),
        ("9223372036854775807 + 1", Err(Fault::Arithmetic)),
        ("-(-9223372036854775807 - 1)", Err(Fault::Arithmetic)),
        ("(-9223372036854775807 - 1) / -1", Err(Fault::Arithmetic)),
        ("(-9223372036854775807 - 1) % -1", Err(Fault::Arithmetic)),
        ("int(1e30)", Err(Fault::Arithmetic)),
        ("int(0.0 / 0.0)", Err(Fault::Arithmetic)),
        ("double(request.model)", Err(Fault::Arithmetic)),
        ("0.0 / 0.0", Err(Fault::Arithmetic)),
    ] {
        assert_eq!(first(source), expected, "{source}");
    }
}

#[test]
fn what_is_wrong_is_refused_at_its_place() {
    let mut wrong = Vec::new();
    for (source, expected) in [
        ("0.5 +\n  metric.waiting_requests", "2:9: there is no variable metric; there are request, endpoint"),
        ("metrics.wating", "1:8: metrics has no field wating; there are waiting_requests, running_requests"),
        ("metrics", "1:1: metrics is no value; name a field of it"),
        ("request.user", "1:8: request has no field user; there are model"),
        ("request.model.x", "1:14: request.model has no such field"),
        ("request.headers['a b']", "1:16: \"a b\" can't be the name of a header"),
        ("request.headers[request.model]", "1:24: the key must be a text in quotes"),
        ("prefix['x']", "1:7: a prefix match is no value; it has the fields matched_ratio"),
        ("prefix.x.matched", "1:9: a prefix match has no field matched; there are"),
        ("'x' in prefix", "1:8: a prefix producer is there or"),
        ("(1 + 2).x", "1:4: only variables have fields"),
        ("request.model", "1:8: the result must be a number, or true or false, not a text"),
        ("1 + 'a'", "1:3: a whole number and a text can't be calculated with"),
        ("'a' + 'b'", "1:5: texts can't be joined"),
        ("1.5 % 2", "1:5: % is for whole numbers"),
        ("request.model > 1", "1:15: a text and a whole number can't be compared"),
        ("true < false", "1:6: true and false have no order"),
        ("1 && true", "1:1: must be true or false, not a whole number"),
        ("!1", "1:2: must be true or false, not a whole number"),
        ("-'a'", "1:2: must be a number, not a text"),
        ("true ? 1 : 'a'", "1:6: both outcomes must be of one type, not a whole number and a text"),
        ("1 in ['a']", "1:7: must be a number, not a text"),
        ("request.priority in 5", "1:21: `in` needs a list in brackets"),
        ("min(1, 2)", "1:4: there is no function min of this form; use math.least"),
        ("math.pow(1, 2)", "1:9: there is no function math.pow of this form; there are size"),
        ("math.least()", "1:11: math.least needs a number"),
        ("size(1)", "1:6: must be a text, not a whole number"),
        ("request.model.matches('(')", "1:23: not a regular expression: unclosed group"),
        (
            "request.model.matches('a{1000}{1000}')",
            "1:23: not a regular expression: Compiled regex exceeds size",
        ),
        ("request.model.matches(request.model)", "1:30: the pattern must be a text in quotes"),
        ("[1, 2].exists(x, x > 1)", "1:14: all, exists, exists_one, map and filter aren't available"),
        ("[1]", "1:1: a list can only be on the right-hand side of `in`"),
        ("{'a': 1}", "1:1: maps can't be written here"),
        ("null", "1:1: there are numbers, texts, true and false"),
        ("b'a'", "1:1: there are numbers, texts, true and false"),
        ("has(endpoint.labels['a'])", "1:20: has() takes no key in quotes; write `'key' in"),
        ("dyn(1)", "1:4: there is no function dyn"),
    ] {
        let found = mistake(source);
        if !found.starts_with(expected) {
            wrong.push(format!("{source}: {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(mistake(&format!("{}1", "1+".repeat(600))).contains("nested too deeply"));
    assert!(mistake(&format!("1 in [{}1]", "1,".repeat(600))).contains("at most 500 steps"));
    let tests = (0..40).map(|at| format!("request.model == '{at}'")).collect::<Vec<_>>();
    assert!(mistake(&tests.join(" || ")).contains("at most 32 tests of the request"));
}

#[test]
fn only_columns_that_are_read_are_asked_for() {
    let mut needs = Needs::default();
    let mut context = BuildContext::new("expression", &mut needs);
    Expression::number("metrics.waiting_requests", &mut context).unwrap();
    assert!(!context_needs_anything(&needs));
    let source = "adapter == 'full' ? 0.0 : prefix['b'].matched_ratio + prefix.a.matched_ratio + attributes['x/y'] + \
                  ('SessionID/s' in request.attributes ? 1 : 0)";
    Expression::number(source, &mut BuildContext::new("expression", &mut needs)).unwrap();
    assert_eq!(needs.prefix_producers(), ["b", "a"]);
    assert_eq!(needs.attributes(), ["x/y"]);
    assert_eq!(needs.request_attributes(), ["SessionID/s"]);
    assert!(needs.adapters());
}

fn context_needs_anything(needs: &Needs) -> bool {
    !needs.prefix_producers().is_empty() || !needs.attributes().is_empty() || needs.adapters()
}

#[test]
fn a_scorer_gives_results_or_their_place_among_the_candidates() {
    let rows = || [Row::fresh(4, 0, 0.5), Row::never_scraped(), Row::fresh(0, 0, 0.1), Row::fresh(1, 0, 0.0)];
    let of = |parameters| {
        let scorer = build_scorer(&registry(), "expression-scorer", parameters).unwrap();
        scores(&*scorer, &CandidatesFixture::new(rows()))
    };
    let free = "1 - metrics.kv_cache_utilization";
    assert_eq!(of(json!({"expression": free})), [0.5, 0.0, 0.9, 1.0]);
    assert_eq!(of(json!({"expression": free, "onError": 0.25})), [0.5, 0.25, 0.9, 1.0]);
    assert_eq!(of(json!({"expression": "metrics.fresh"})), [1.0, 0.0, 1.0, 1.0]);
    let waiting = |normalize: &str| {
        of(json!({"expression": "metrics.waiting_requests", "normalize": normalize, "onError": 0.1}))
    };
    assert_eq!(waiting("lower-is-better"), [0.0, 0.1, 1.0, 0.75]);
    assert_eq!(waiting("higher-is-better"), [1.0, 0.1, 0.0, 0.25]);
    assert_eq!(of(json!({"expression": "1.0/0.0", "normalize": "higher-is-better"})), [1.0; 4]);
    let infinite =
        of(json!({"expression": "1.0 / metrics.waiting_requests", "normalize": "higher-is-better"}));
    assert_eq!((infinite[1], infinite[2]), (0.0, 1.0));
    assert!(infinite.iter().all(|score| (0.0..=1.0).contains(score)), "{infinite:?}");
}

#[test]
fn a_filter_keeps_what_it_cannot_judge_unless_told_otherwise() {
    let table = CandidatesFixture::new([Row::fresh(9, 0, 0.0), Row::never_scraped(), Row::fresh(0, 0, 0.0)]);
    let of = |parameters| kept(&*build_filter(&registry(), "expression-filter", parameters).unwrap(), &table);
    let expression = "metrics.waiting_requests < 5";
    assert_eq!(of(json!({"expression": expression})), [1, 2]);
    assert_eq!(of(json!({"expression": expression, "onError": "drop"})), [2]);
    let none = "metrics.waiting_requests < 0";
    assert_eq!(of(json!({"expression": none, "onError": "drop"})), [0usize; 0]);
    assert_eq!(of(json!({"expression": none, "onError": "drop", "fallbackOnEmpty": true})), [0, 1, 2]);
}

#[test]
fn rows_without_a_result_are_counted() {
    let mut needs = Needs::default();
    let mut context = BuildContext::new("mine", &mut needs);
    let parameters = json!({"expression": "metrics.waiting_requests > 0 ? 1.0 : double('x')"});
    let Ok(Plugin::Scorer(scorer)) = registry().build("expression-scorer", parameters, &mut context) else {
        panic!("a scorer");
    };
    scores(
        &*scorer,
        &CandidatesFixture::new([Row::never_scraped(), Row::stale(1, 0, 0.0), Row::fresh(0, 0, 0.0)]),
    );
    let counted: Vec<_> =
        needs.fallbacks().iter().map(|fallback| (&*fallback.plugin, fallback.counter.take())).collect();
    assert_eq!(counted, [("mine", 2), ("mine", 1)]);
}

#[test]
fn parameters_are_checked() {
    let of = |plugin_type, parameters| {
        let error = warmroute_plugin::testing::build(&registry(), plugin_type, parameters).unwrap_err();
        (error.path().to_owned(), error.to_string())
    };
    let (path, text) = of("expression-scorer", json!({"expression": "1 +\n foo"}));
    assert_eq!(path, "expression");
    assert!(
        text.starts_with("expression: line 2, column 2 of the expression: there is no variable foo"),
        "{text}"
    );
    assert_eq!(of("expression-scorer", json!({"expression": "1", "onError": 2})).0, "onError");
    assert!(of("expression-scorer", json!({})).1.contains("missing field `expression`"));
    assert!(
        of("expression-filter", json!({"expression": "1"}))
            .1
            .contains("must be true or false, not a whole number")
    );
    assert!(of("expression-filter", json!({"expression": "true", "onError": 0})).0 == "onError");
    let unknown = of("expression-filter", json!({"expression": "true", "on_error": "keep"}));
    assert!(unknown.1.contains("unknown field"), "{unknown:?}");
}

#[test]
fn evaluating_allocates_nothing() {
    let source = "request.headers['x-tier'].matches('^go+ld$') && endpoint.labels.zone in ['eu', 'us'] \
                  ? 0.5 * prefix.exact.matched_ratio + 0.3 / (1 + in_flight.requests) + double('0.1') \
                  : math.least(last_metrics.waiting_requests, attributes['gpu/dcgm'], 3)";
    let mut needs = Needs::default();
    let expression = Expression::number(source, &mut BuildContext::new("expression", &mut needs)).unwrap();
    let (table, request) = (table(), the_request());
    let candidates = table.candidates();
    let mut sum = 0.0;
    let mut evaluate =
        || expression.evaluate(&request, &candidates, |_, result| sum += result.unwrap_or(0.0));
    // The regular expression makes its tables at the first use.
    evaluate();
    assert_eq!(allocation_counter::measure(&mut evaluate).count_total, 0);
    assert!(sum > 0.0);
}

const TOKENS: [&str; 44] = [
    "request.model",
    "metrics.waiting_requests",
    "prefix['x'].matched_ratio",
    "has(",
    "endpoint.labels.a",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "?",
    " + ",
    "-",
    "*",
    "/",
    " % ",
    "&&",
    "||",
    "!",
    "==",
    " in ",
    "<",
    "'x'",
    "\"",
    "1",
    "1.5",
    "2u",
    "1e400",
    "true",
    "null",
    ".size()",
    ".matches('a')",
    "int(",
    "double(",
    "math.least(",
    "é",
    "\\",
    "\n",
    "// x\n",
    "9999999999999999999",
    "@",
];

proptest! {
    #[test]
    fn nothing_panics_whatever_is_written(parts in collection::vec(sample::select(&TOKENS[..]), 0..30)) {
        let source = parts.concat();
        let mut needs = Needs::default();
        let mut context = BuildContext::new("expression", &mut needs);
        match Expression::number(&source, &mut context) {
            Ok(expression) => {
                expression.evaluate(&request(), &table().candidates(), |_, result| {
                    assert!(result.is_err() || !result.unwrap().is_nan());
                });
            }
            Err(error) => {
                prop_assert!(error.line >= 1 && error.line <= source.matches('\n').count() + 2, "{source:?}: {error}");
                prop_assert!(!error.message.contains("the parser failed"), "{source:?}");
            }
        }
    }

    #[test]
    fn nothing_panics_on_any_text(source in ".{0,60}") {
        let mut needs = Needs::default();
        let error = Expression::truth(&source, &mut BuildContext::new("expression", &mut needs)).err();
        prop_assert!(!error.is_some_and(|error| error.message.contains("the parser failed")), "{source:?}");
    }
}
