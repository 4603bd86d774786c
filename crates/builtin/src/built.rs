//! For unit tests: plugins built by their names, as the host does.

use std::sync::Arc;

use serde_json::Value;
use warmroute_plugin::testing::{self, CandidatesFixture};
use warmroute_plugin::{Filter, InferenceRequest, Picker, Plugin, Registry, Scorer};

pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    crate::register(&mut registry).unwrap();
    registry
}

pub(crate) fn scorer(plugin_type: &str, parameters: Value) -> Arc<dyn Scorer> {
    testing::build_scorer(&registry(), plugin_type, parameters).unwrap()
}

pub(crate) fn filter(plugin_type: &str, parameters: Value) -> Arc<dyn Filter> {
    match testing::build(&registry(), plugin_type, parameters).unwrap() {
        Plugin::Filter(filter) => filter,
        other => panic!("{plugin_type} is a {}", other.kind()),
    }
}

pub(crate) fn picker(plugin_type: &str, parameters: Value) -> Arc<dyn Picker> {
    match testing::build(&registry(), plugin_type, parameters).unwrap() {
        Plugin::Picker(picker) => picker,
        other => panic!("{plugin_type} is a {}", other.kind()),
    }
}

/// What is wrong with the parameters; empty if nothing is.
pub(crate) fn mistake(plugin_type: &str, parameters: Value) -> String {
    testing::build(&registry(), plugin_type, parameters).err().map_or(String::new(), |e| e.to_string())
}

/// What `scorer` says of every row for this request.
pub(crate) fn scores(scorer: &dyn Scorer, request: &InferenceRequest, table: &CandidatesFixture) -> Vec<f64> {
    let candidates = table.candidates();
    let mut scores = vec![0.0; candidates.len()];
    scorer.score(request, &candidates, &mut scores);
    scores
}

/// The rows that `filter` keeps for this request.
pub(crate) fn kept(filter: &dyn Filter, request: &InferenceRequest, table: &CandidatesFixture) -> Vec<usize> {
    let candidates = table.candidates();
    let mut keep = vec![true; candidates.len()];
    filter.filter(request, &candidates, &mut keep);
    (0..keep.len()).filter(|&row| keep[row]).collect()
}

/// A request whose prompt has this many tokens.
pub(crate) fn prompt_of(tokens: u32) -> InferenceRequest {
    let mut request = testing::request();
    request.prompt_tokens = Some(tokens);
    request
}
