//! Expressions in a running picker: mistakes have places, and what has no result is told.

use std::sync::Arc;

use warmroute::profile::read_config;
use warmroute::receipt::Fallback;
use warmroute_ext_proc::EndpointPicker;

use crate::fixture::{Fixture, completion, options, registry};

fn config(plugin: &str) -> String {
    format!(
        "
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- name: mine
{plugin}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: mine
  - pluginRef: max-score-picker
"
    )
}

fn scorer(expression: &str) -> String {
    config(&format!(
        "  type: expression-scorer\n  parameters:\n    onError: 0.5\n    expression: {expression}"
    ))
}

#[tokio::test]
async fn the_best_by_expression_is_picked() {
    let fixture = Fixture::new(&scorer("endpoint.name == 'engine-2'"), 4);
    let picked = fixture.picker.pick(completion(&[1; 40])).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(2)]);
    assert!(
        fixture.receipts.find("last").unwrap().fallbacks.iter().all(|note| note.kind != Fallback::Plugin)
    );
}

#[tokio::test]
async fn rows_without_a_result_are_in_the_receipt_and_in_the_metric() {
    let fixture = Fixture::new(&scorer("1 - metrics.kv_cache_utilization"), 4);
    fixture.picker.pick(completion(&[1; 40])).await.unwrap();
    let receipt = fixture.receipts.find("last").unwrap();
    let note = receipt.fallbacks.iter().find(|note| note.kind == Fallback::Plugin).unwrap();
    assert_eq!(note.detail, "mine: a value that the expression reads is missing (4×)");
    assert_eq!(receipt.candidates[0].scores[0].score, 0.5);
    let counted = || fixture.metrics.requests.fallbacks.with_label_values(&["plugin"]).get();
    assert_eq!(counted(), 1);
}

#[tokio::test]
async fn a_refused_request_counts_them_too() {
    let filter = "  type: expression-filter\n  parameters:\n    onError: drop\n    expression: metrics.waiting_requests < 5";
    let fixture = Fixture::new(&config(filter), 4);
    let refusal = fixture.picker.pick(completion(&[1; 40])).await.err().unwrap();
    assert_eq!(refusal.status, 429);
    assert_eq!(fixture.metrics.requests.fallbacks.with_label_values(&["plugin"]).get(), 1);
}

#[test]
fn a_mistake_has_its_place_in_the_file_and_in_the_expression() {
    let text = scorer("\n      0.5 *\n      metrics.waiting");
    let error = read_config(&options(&text), &Arc::new(registry())).unwrap_err().to_string();
    assert!(error.contains(":9:"), "{error}");
    assert!(error.contains("metrics has no field waiting; there are waiting_requests"), "{error}");
}
