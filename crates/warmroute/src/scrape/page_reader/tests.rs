use std::time::Duration;

use warmroute_config::{KnownTypes, MetricsExtractorSpec};

use super::*;

fn recorded(path: &str) -> String {
    let path = format!("{}/../../tests/data/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The readers that these parameters of `core-metrics-extractor` describe, by name of the engine.
fn readers(parameters: &str) -> Vec<PageReader> {
    let text = format!(
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: core-metrics-extractor\n  parameters: \
         {parameters}\n- type: max-score-picker\nschedulingProfiles:\n- name: p\n  plugins: [{{pluginRef: \
         max-score-picker}}]\n"
    );
    let known = KnownTypes::new([("max-score-picker", warmroute_config::SchedulingKind::Picker)]);
    let spec: MetricsExtractorSpec =
        warmroute_config::check("t", text.as_bytes(), &known).unwrap().metrics_extractor;
    let keys: Arc<[String]> = spec.attribute_keys().into_iter().map(str::to_owned).collect();
    spec.engines.iter().map(|engine| PageReader::new(engine, spec.rank_series, &keys)).collect()
}

fn reader(parameters: &str, engine: &str) -> PageReader {
    readers(parameters).into_iter().find(|reader| **reader.engine() == *engine).unwrap()
}

fn read(engine: &str, page: &str) -> PageContent {
    reader("{}", engine).read(page, Instant::now(), None).unwrap()
}

fn numbers(metrics: &EndpointMetrics) -> (u32, u32, f64, u32, u32) {
    (
        metrics.waiting_requests,
        metrics.running_requests,
        metrics.kv_cache_utilization,
        metrics.block_size_tokens,
        metrics.num_gpu_blocks,
    )
}

#[test]
fn a_rank_that_shares_its_address_has_its_own_series() {
    let (reader, page) = (reader("{}", "vllm"), recorded("engines/vllm-ranks-lora.txt"));
    let of_rank = |rank, page: &str| {
        let content =
            reader.read_ranks(page, Instant::now(), None, Ranks::Pinned { rank, header: rank, of: 2 });
        content.map(|content| numbers(&content.scrape.metrics))
    };
    // The blocks of both ranks are in the label.
    assert_eq!(of_rank(0, &page), Ok((0, 4, 0.25, 16, 1024)));
    assert_eq!(of_rank(1, &page), Ok((6, 1, 0.75, 16, 1024)));
    assert!(of_rank(2, &page).is_err(), "no rank of the page is this one");
    assert_eq!(of_rank(1, "vllm:num_requests_waiting 3\n"), Ok((3, 0, 0.0, 0, 0)));
    // The engine itself chooses: it is as busy as its ranks together.
    let both = reader.read_ranks(&page, Instant::now(), None, Ranks::Unpinned { first: 0, of: 2 }).unwrap();
    assert_eq!(numbers(&both.scrape.metrics), (6, 5, 0.5, 16, 2048));
}

#[test]
fn every_built_in_engine_has_its_page_read() {
    for (engine, page, expected) in [
        ("sglang", "engines/sglang.txt", (7, 5, 0.375, 64, 1024)),
        ("trtllm-serve", "engines/trtllm-serve.txt", (2, 3, 0.625, 32, 4096)),
        ("triton-tensorrt-llm", "engines/triton-tensorrt-llm.txt", (4, 6, 0.8125, 64, 1024)),
        ("triton", "engines/triton.txt", (8, 21, 0.0, 0, 0)),
        ("vllm", "engines/vllm-ranks-lora.txt", (6, 5, 0.5, 16, 2048)),
    ] {
        let content = read(engine, &recorded(page));
        assert_eq!(numbers(&content.scrape.metrics), expected, "{engine}");
        assert!(content.missing.is_empty(), "{engine}: {:?}", content.missing);
        assert_eq!(&*content.scrape.engine, engine);
    }
}

#[test]
fn reads_recorded_pages_of_vllm() {
    let content = read("vllm", &recorded("vllm/metrics/vllm-metrics-load-1.txt"));
    let (waiting, running, used, block_size, blocks) = numbers(&content.scrape.metrics);
    assert_eq!((waiting, running, block_size, blocks), (8, 4, 32, 32));
    assert!(used > 0.0 && used < 1.0);
    assert!(content.missing.is_empty() && content.scrape.adapters.is_none());
    let idle = read("vllm", &recorded("vllm/metrics/vllm-metrics-idle.txt"));
    assert_eq!(numbers(&idle.scrape.metrics), (0, 0, 0.0, 32, 32));
    assert_eq!(idle.scrape.prefix_counters, Some(PrefixCounters::default()));
}

#[test]
fn counters_of_the_prefix_cache_are_added_up_over_ranks_and_tiers() {
    let vllm = "vllm:num_requests_running{engine=\"0\"} 1\n\
                vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"m\"} 1.29e+02\n\
                vllm:prefix_cache_queries_total{engine=\"1\",model_name=\"m\"} 71\n\
                vllm:prefix_cache_queries_created{engine=\"0\"} 1.79e+09\n\
                vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 64\n";
    let counted = read("vllm", vllm).scrape.prefix_counters;
    assert_eq!(counted, Some(PrefixCounters { queried_tokens: 200, hit_tokens: 64 }));
    let sglang = "sglang:num_running_reqs 1\n\
                  sglang:prompt_tokens_total{is_streaming=\"true\"} 100\n\
                  sglang:cached_tokens_total{cache_source=\"device\"} 40\n\
                  sglang:cached_tokens_total{cache_source=\"host\"} 8\n";
    let counted = read("sglang", sglang).scrape.prefix_counters;
    assert_eq!(counted, Some(PrefixCounters { queried_tokens: 100, hit_tokens: 48 }));
    // One without the other says nothing, and neither is missed.
    let half = read("vllm", "vllm:num_requests_running 1\nvllm:prefix_cache_hits_total 5\n");
    assert_eq!(half.scrape.prefix_counters, None);
    assert!(!half.missing.iter().any(|name| name.contains("prefix_cache")), "{:?}", half.missing);
}

#[test]
fn ranks_are_combined_unless_the_first_alone_is_wanted() {
    let page = recorded("engines/vllm-ranks-lora.txt");
    let first = reader("{rankSeries: first}", "vllm").read(&page, Instant::now(), None).unwrap();
    assert_eq!(numbers(&first.scrape.metrics), (0, 4, 0.25, 16, 2048));
    // The newest series of each rank counts, the first one without timestamps.
    let page = "vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 1\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"b\"} 2\n\
                vllm:num_requests_running{engine=\"1\"} 4 100\n\
                vllm:num_requests_running{engine=\"1\"} 8 300\n\
                vllm:num_requests_running{engine=\"1\"} 16 200\n";
    assert_eq!(read("vllm", page).scrape.metrics.running_requests, 9);
    let first = reader("{rankSeries: first}", "vllm").read(page, Instant::now(), None).unwrap();
    assert_eq!(first.scrape.metrics.running_requests, 8);
}

#[test]
fn the_newest_list_of_adapters_counts() {
    let content = read("vllm", &recorded("engines/vllm-ranks-lora.txt"));
    let adapters = content.scrape.adapters.clone().unwrap();
    assert_eq!(adapters.running.iter().map(|name| &**name).collect::<Vec<_>>(), ["chat", "sql"]);
    assert_eq!(adapters.waiting.iter().map(|name| &**name).collect::<Vec<_>>(), ["law"]);
    assert_eq!(adapters.max, 4);
    // The same list isn't kept twice, and a page without one says nothing of adapters.
    let vllm = reader("{}", "vllm");
    let page = recorded("engines/vllm-ranks-lora.txt");
    let again = vllm.read(&page, Instant::now(), Some(&content.scrape)).unwrap();
    assert!(Arc::ptr_eq(&adapters, again.scrape.adapters.as_ref().unwrap()));
    let without = vllm.read("vllm:num_requests_running 1\n", Instant::now(), Some(&content.scrape)).unwrap();
    assert!(without.scrape.adapters.is_none());
}

#[test]
fn what_a_page_lacks_keeps_its_value_and_is_named() {
    let vllm = reader("{}", "vllm");
    let at = Instant::now();
    let first = vllm.read(&recorded("engines/vllm-ranks-lora.txt"), at, None).unwrap().scrape;
    let later = at + Duration::from_secs(1);
    let content = vllm.read("vllm:num_requests_waiting 9\n", later, Some(&first)).unwrap();
    assert_eq!(numbers(&content.scrape.metrics), (9, 5, 0.5, 16, 2048));
    assert_eq!(content.scrape.at, later);
    assert_eq!(
        content.missing,
        ["vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"]
    );
    // What another kind of engine said doesn't count.
    let sglang = reader("{}", "sglang");
    let other = sglang.read("sglang:num_queue_reqs 1\n", later, Some(&first)).unwrap();
    assert_eq!(numbers(&other.scrape.metrics), (1, 0, 0.0, 0, 0));
}

#[test]
fn a_page_of_another_engine_is_refused_with_what_to_do() {
    let error = reader("{}", "vllm").read(&recorded("engines/sglang.txt"), Instant::now(), None).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("vllm:num_requests_running") && text.contains("label the endpoint"), "{text}");
    // Attributes alone say nothing of load.
    let custom = "{engineConfigs: [{name: e, queuedRequestsSpec: q, customMetrics: [{attributeKey: a, metricSpec: m}]}]}";
    assert!(reader(custom, "e").read("m 1\n", Instant::now(), None).is_err());
}

#[test]
fn configured_engines_and_custom_metrics_are_read() {
    let parameters = "{engineConfigs: [\
        {name: vllm, runningRequestsSpec: 'vllm:num_requests_running{engine=1}', customMetrics: [\
            {attributeKey: preemptions, metricSpec: 'vllm:num_preemptions_total{model_name=\"m\"}'}, \
            {attributeKey: lag, metricSpec: lag}]}, \
        {name: own, cacheInfoSpec: info, cacheNumBlocksLabelName: pages, customMetrics: [\
            {attributeKey: lag, metricSpec: own_lag}]}]}";
    let page = "vllm:num_requests_running{engine=\"0\"} 1\nvllm:num_requests_running{engine=\"1\"} 2\n\
                vllm:num_requests_waiting 5\nlag{a=\"b\"} 0.5\nlag 0.75\n\
                vllm:num_preemptions_total{model_name=\"other\"} 3\nvllm:num_preemptions_total{model_name=\"m\"} 4\n";
    let content = reader(parameters, "vllm").read(page, Instant::now(), None).unwrap();
    // The entry replaces the built-in one as a whole: waiting requests aren't read.
    assert_eq!(numbers(&content.scrape.metrics), (0, 2, 0.0, 0, 0));
    assert_eq!(*content.scrape.attribute_keys, ["preemptions".to_owned(), "lag".to_owned()]);
    assert_eq!(*content.scrape.attributes, [Some(4.0), Some(0.5)]);
    let own = "info{block_size=\"8\",pages=\"100\"} 1\nown_lag -2.5\n";
    let content = reader(parameters, "own").read(own, Instant::now(), None).unwrap();
    assert_eq!(numbers(&content.scrape.metrics), (0, 0, 0.0, 8, 100));
    assert_eq!(*content.scrape.attributes, [None, Some(-2.5)]);
    let kept = reader(parameters, "own").read("", Instant::now(), Some(&content.scrape)).unwrap();
    assert_eq!(*kept.scrape.attributes, [None, Some(-2.5)]);
    assert_eq!(kept.missing, ["info", "own_lag"]);
}

#[test]
fn odd_values_are_bounded() {
    let page = "vllm:num_requests_waiting -3\nvllm:num_requests_running 1e300\nvllm:kv_cache_usage_perc 1.5\n\
                vllm:cache_config_info{block_size=\"None\",num_gpu_blocks=\"99999999999\"} 1\n";
    assert_eq!(numbers(&read("vllm", page).scrape.metrics), (0, u32::MAX, 1.0, 0, 0));
    let ranks: String = (0..MAX_RANKS + 9)
        .map(|rank| format!("vllm:num_requests_running{{engine=\"{rank}\"}} 1\n"))
        .collect();
    assert_eq!(read("vllm", &ranks).scrape.metrics.running_requests, MAX_RANKS as u32);
}

/// Recorded from vLLM 0.32 with `--data-parallel-size 2`, which runs two API processes: of a rank without requests.
#[test]
fn an_engine_that_tells_its_cache_and_no_load_yet_is_idle() {
    let page = "# TYPE vllm:engine_sleep_state gauge\n\
                vllm:engine_sleep_state{engine=\"1\",model_name=\"toy\",sleep_state=\"awake\"} 1.0\n\
                vllm:cache_config_info{block_size=\"32\",engine=\"1\",num_gpu_blocks=\"96\"} 1.0\n";
    let content = read("vllm", page);
    assert_eq!(numbers(&content.scrape.metrics), (0, 0, 0.0, 32, 96));
    assert_eq!(content.missing.len(), 3, "{:?}", content.missing);
    assert!(reader("{}", "sglang").read(page, Instant::now(), None).is_err());
}
