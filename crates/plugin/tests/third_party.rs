//! A scorer crate as a stranger would write it: if this no longer compiles, theirs doesn't either.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use serde_json::json;
use warmroute_plugin::testing::{CandidatesFixture, Row, build, build_scorer, kept, picked, request, scores};
use warmroute_plugin::{
    BuildContext, BuildError, Candidates, DuplicateType, Endpoint, EndpointId, Filter, InferenceRequest,
    Needs, NoParameters, Pick, PickHeaders, Picker, PluginKind, PrefixColumn, Registry, Scorer,
};

fn register(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.scorer("acme-scorer", "half prefix, half memory", AcmeScorer::build)?;
    registry.filter("acme-filter", "one zone", |parameters: ZoneParameters, _: &mut BuildContext<'_>| {
        Ok(ZoneFilter { zone: parameters.zone })
    })?;
    registry.picker("acme-picker", "the last one", |_: NoParameters, _: &mut BuildContext<'_>| Ok(LastPicker))
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AcmeParameters {
    producer_name: String,
    bonus: f64,
}

impl Default for AcmeParameters {
    fn default() -> Self {
        Self { producer_name: "precise-prefix-cache-producer".to_owned(), bonus: 0.5 }
    }
}

struct AcmeScorer {
    column: PrefixColumn,
    bonus: f64,
    last: Mutex<Option<EndpointId>>,
}

impl AcmeScorer {
    fn build(parameters: AcmeParameters, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if !(0.0..=1.0).contains(&parameters.bonus) {
            return Err(BuildError::invalid("bonus", "must be from 0 to 1"));
        }
        context.spawn(async {});
        let column = context.prefix_match(&parameters.producer_name);
        Ok(Self { column, bonus: parameters.bonus, last: Mutex::new(None) })
    }
}

impl Scorer for AcmeScorer {
    fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
        let last = *self.last.lock().unwrap();
        let rows = candidates.endpoints().zip(candidates.prefix_match(self.column));
        for (score, (endpoint, matched)) in scores.iter_mut().zip(rows) {
            let bonus = if last == Some(endpoint.id) { self.bonus } else { 0.0 };
            *score = matched.ratio() * (1.0 - self.bonus) + bonus;
        }
    }

    fn picked(&self, _: &InferenceRequest, pick: &Pick<'_>, _: &mut PickHeaders) {
        *self.last.lock().unwrap() = Some(pick.endpoint().id);
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ZoneParameters {
    zone: String,
}

struct ZoneFilter {
    zone: String,
}

impl Filter for ZoneFilter {
    fn filter(&self, _: &InferenceRequest, candidates: &Candidates<'_>, keep: &mut [bool]) {
        for (keep, endpoint) in keep.iter_mut().zip(candidates.endpoints()) {
            *keep = endpoint.labels.get("zone") == Some(&self.zone);
        }
    }
}

struct LastPicker;

impl Picker for LastPicker {
    fn pick(&self, _: &InferenceRequest, _: &Candidates<'_>, totals: &[f64], order: &mut Vec<u32>) {
        order.extend(totals.len().checked_sub(1).map(|row| row as u32));
    }
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry).unwrap();
    registry
}

#[test]
fn a_scorer_reads_its_column_and_remembers_its_picks() {
    let scorer = build_scorer(&registry(), "acme-scorer", json!({})).unwrap();
    let table = CandidatesFixture::new([
        Row::never_scraped().prefix_match(2, 4, 16),
        Row::fresh(0, 0, 0.0).named("default/b-rank-0").prefix_match(4, 4, 16),
    ]);
    assert_eq!(scores(&*scorer, &table), [0.25, 0.5]);
    let pick = Pick::try_new("default", table.candidates(), &[1, 0]).unwrap();
    assert_eq!((&*pick.endpoint().name, pick.endpoints().len()), ("default/b-rank-0", 2));
    scorer.picked(&request(), &pick, &mut PickHeaders::default());
    assert_eq!(scores(&*scorer, &table), [0.25, 1.0]);
    assert!(Pick::try_new("default", table.candidates(), &[2]).is_none());
    assert!(Pick::try_new("default", table.candidates(), &[]).is_none());
}

#[test]
fn filters_and_pickers_work_on_the_same_table() {
    let zone = |zone| Row::never_scraped().label("zone", zone);
    let table = CandidatesFixture::new([zone("a"), zone("b"), Row::never_scraped(), zone("a")]);
    assert_eq!(kept(&ZoneFilter { zone: "a".into() }, &table), [0, 3]);
    assert_eq!(picked(&LastPicker, &table, &[0.0; 4]), [3]);
    let endpoint = Endpoint::new(EndpointId(7), "a", "[::1]:8000").with_label("zone", "a");
    assert_eq!((endpoint.labels.len(), &*endpoint.address), (1, "[::1]:8000"));
}

#[test]
fn what_a_plugin_needs_is_handed_over() {
    let mut needs = Needs::default();
    registry().build("acme-scorer", json!({}), &mut BuildContext::new("mine", &mut needs)).unwrap();
    assert_eq!(needs.prefix_producers(), ["precise-prefix-cache-producer"]);
    let names: Vec<String> = needs.take_tasks().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["mine"]);
    assert!(needs.take_tasks().is_empty());
}

#[test]
fn a_type_has_one_owner_and_is_listed_with_its_parameters() {
    let mut registry = registry();
    assert_eq!(register(&mut registry), Err(DuplicateType { name: "acme-scorer" }));
    let types: Vec<_> = registry.types().map(|t| (t.name(), t.kind(), t.description())).collect();
    let expected = [
        ("acme-filter", PluginKind::Filter, "one zone"),
        ("acme-picker", PluginKind::Picker, "the last one"),
        ("acme-scorer", PluginKind::Scorer, "half prefix, half memory"),
    ];
    assert_eq!(types, expected);
    let defaults = registry.get("acme-scorer").unwrap().parameters().iter();
    let defaults: Vec<_> =
        defaults.map(|parameter| (parameter.name.as_str(), parameter.default.clone())).collect();
    let producer = json!("precise-prefix-cache-producer");
    assert_eq!(defaults, [("producerName", Some(producer)), ("bonus", Some(json!(0.5)))]);
    assert_eq!(registry.get("acme-filter").unwrap().parameters()[0].default, None);
}

#[test]
fn what_cannot_be_built_says_why_and_where() {
    let of = |plugin_type, parameters| build(&registry(), plugin_type, parameters).unwrap_err();
    let invalid = of("acme-scorer", json!({"bonus": 2}));
    assert_eq!((invalid.path(), invalid.to_string().as_str()), ("bonus", "bonus: must be from 0 to 1"));
    let missing = of("acme-filter", json!({}));
    assert_eq!((missing.path(), missing.to_string().as_str()), ("", "missing field `zone`"));
    let unknown = of("acme-filter", json!({"zone": "a", "zoen": "b"}));
    assert_eq!(unknown.path(), "zoen");
    let nobody = of("acme", json!({}));
    let text = "plugin type \"acme\" is not linked; there are acme-filter, acme-picker, acme-scorer";
    assert_eq!(nobody.to_string(), text);
}
