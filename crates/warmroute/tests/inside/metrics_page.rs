//! The metrics page of a picker at work, and the table of `docs/operations.md` that explains it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use warmroute::metrics::{Metrics, MetricsOptions};
use warmroute::telemetry::Telemetry;
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, StreamEnd, StreamLease};

use crate::fixture::{Fixture, PREFIX_ONLY, completion};

fn operations() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    std::fs::read_to_string(path).unwrap()
}

/// The names in the first cells of the page's tables, labels left out, with the text of their rows.
fn documented(page: &str) -> Vec<(String, &str)> {
    const PREFIXES: [&str; 4] = ["| `llm_d_epp_", "| `warmroute_", "| `leader_election_", "| `process_"];
    let rows = page.lines().filter(|line| PREFIXES.iter().any(|prefix| line.starts_with(prefix)));
    rows.flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let quoted: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        quoted.into_iter().map(move |name| (name.split('{').next().unwrap_or(name).to_owned(), row))
    })
    .collect()
}

fn families(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_table_names_every_metric_once_and_no_other() {
    let page = operations();
    let mut listed: Vec<String> = documented(&page).into_iter().map(|(name, _)| name).collect();
    listed.sort_unstable();
    let all = MetricsOptions { deprecated: true, ext_proc_streams: true };
    let mut names: Vec<String> =
        Metrics::try_with(all).unwrap().names().into_iter().map(str::to_owned).collect();
    names.sort_unstable();
    assert_eq!(listed, names);
}

/// A picker that has seen a streamed response, a hidden one, a refusal and a pool.
async fn page_at_work() -> String {
    let all = MetricsOptions { deprecated: true, ext_proc_streams: true };
    let fixture = Fixture::with(PREFIX_ONLY, 3, Metrics::try_with(all).unwrap(), Telemetry::off());
    fixture.metrics.show_pool(&fixture.pool).unwrap();
    let prompt: Vec<u32> = (0..64).collect();
    fixture.announce(1, &prompt);
    let mut picked = fixture.picker.pick(completion(&prompt)).await.unwrap();
    assert_eq!(picked.destinations, [fixture.address(1)]);
    let headers = HeaderList::from_pairs([("content-type", "text/event-stream")]);
    picked.lease.response_headers(Some(200), &headers);
    for piece in [
        "data: {\"choices\":[]}\n\n",
        "data: {\"usage\":{\"prompt_tokens\":64,\"completion_tokens\":5,\
         \"prompt_tokens_details\":{\"cached_tokens\":48}}}\n\n",
    ] {
        picked.lease.response_chunk(piece.as_bytes());
    }
    picked.lease.ended(StreamEnd::ResponseComplete);
    drop(picked);
    let mut hidden = fixture.picker.pick(completion(&prompt)).await.unwrap();
    hidden.lease.ended(StreamEnd::GatewayClosed);
    let bad = HttpRequest::new(
        HeaderList::from_pairs([(":method", "POST"), (":path", "/v1/completions")]),
        "no JSON",
    );
    fixture.picker.pick(bad).await.unwrap_err();
    fixture.picker.stream_ended(Duration::from_secs(1), "OK");
    fixture.metrics.pool.observe(&fixture.pool, Instant::now(), Duration::from_secs(3600));
    let page = fixture.metrics.page().unwrap();
    // The second is still held.
    assert!(page.contains("model_name=\"m\",priority=\"0\",target_model_name=\"m\"} 1"), "{page}");
    page
}

#[tokio::test]
async fn a_picker_at_work_shows_what_the_table_explains() {
    let operations = operations();
    let documented = documented(&operations);
    let page = page_at_work().await;
    for family in families(&page) {
        let is_listed =
            documented.iter().any(|(name, row)| *name == family || row.contains(&format!("`{family}`")));
        assert!(is_listed, "{family} is on the page and not in docs/operations.md");
    }
    for line in [
        "llm_d_epp_request_input_tokens_sum{fairness_id=\"default-flow\",model_name=\"m\",priority=\"0\",target_model_name=\"m\"} 128",
        "llm_d_epp_request_cached_tokens_sum{fairness_id=\"default-flow\",model_name=\"m\",priority=\"0\",target_model_name=\"m\"} 48",
        "llm_d_epp_request_duration_seconds_count{fairness_id=\"default-flow\",model_name=\"m\",priority=\"0\",target_model_name=\"m\"} 2",
        "llm_d_epp_request_error_total{error_code=\"BadRequest\",fairness_id=\"default-flow\",model_name=\"\",priority=\"0\",target_model_name=\"\"} 1",
        "llm_d_epp_scheduler_attempts_total{endpoint_name=\"engine-1\",namespace=\"\",port=\"8000\",status=\"success\",target_model_name=\"m\"} 2",
        "llm_d_epp_plugin_duration_seconds_count{extension_point=\"Scorer\",plugin_name=\"prefix-cache-scorer\",plugin_type=\"prefix-cache-scorer\"} 2",
        "llm_d_epp_plugin_duration_seconds_count{extension_point=\"DataProducer\",plugin_name=\"precise-prefix-cache-producer\",plugin_type=\"precise-prefix-cache-producer\"} 2",
        "llm_d_epp_prefix_indexer_hit_bytes_sum{plugin_name=\"precise-prefix-cache-producer\",plugin_type=\"precise-prefix-cache-producer\"} 512",
        "llm_d_epp_kv_cache_index_max_pod_hit_count_total 8",
        "llm_d_epp_ready_endpoints{name=\"test\"} 3",
        "inference_objective_input_tokens_sum{model_name=\"m\",target_model_name=\"m\"} 128",
        "inference_extension_prefix_indexer_hit_ratio_count 2",
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line} is not in:\n{page}");
    }
}
