//! A metrics page of vLLM to what picking needs, against a comparison of every line with every name.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use warmroute::scrape::PageReader;
use warmroute_config::{EngineMetricsSpec, RankSeries};

use crate::report::Report;
use crate::timing::{Effort, Side, Spread, compare, cpu_ns_per_call};

const NAMES: [&str; 4] = [
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
];

/// Cost of one page of 70 KB, recorded from vLLM 0.32 under load.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vllm/metrics/vllm-metrics-load-1.txt");
    let page = std::fs::read_to_string(path).context(path)?;
    let engines = EngineMetricsSpec::built_in();
    let vllm = engines.iter().find(|engine| engine.name == "vllm").context("vLLM is not built in")?;
    let reader = PageReader::new(vllm, RankSeries::default(), &Arc::default());
    let at = Instant::now();
    let read = reader.read(&page, at, None)?;
    ensure!(read.scrape.metrics.waiting_requests == 8 && read.missing.is_empty(), "the page isn't read");
    ensure!(by_comparing(&page) == [Some(8.0), Some(4.0)], "the baseline doesn't read the page");
    let ours = || {
        let _ = black_box(reader.read(black_box(&page), at, None));
    };
    let cost = cpu_ns_per_call(effort, ours);
    let scaled = |by: f64| Spread { median: cost.median / by, low: cost.low / by, high: cost.high / by };
    report.figure("scrape/vllm_page_70KB", scaled(1000.0), "us");
    let quick = Effort { per_figure: effort.per_figure / 4, ..effort };
    let ratio = compare(effort, |_, side| {
        Ok(match side {
            Side::Ours => cpu_ns_per_call(quick, ours).median,
            Side::Baseline => {
                let baseline = || {
                    let _ = black_box(by_comparing(black_box(&page)));
                };
                cpu_ns_per_call(quick, baseline).median
            }
        })
    })?;
    report.figure("scrape/vllm_page_70KB_vs_comparing", ratio.ratio, "ratio");
    Ok(())
}

/// Waiting and running requests, found the plain way: every line is compared with every name.
fn by_comparing(page: &str) -> [Option<f64>; 2] {
    let mut values = [None; NAMES.len()];
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        for (value, name) in values.iter_mut().zip(NAMES) {
            let Some(rest) = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' '])) else {
                continue;
            };
            let read = rest.rsplit(' ').next().and_then(|number| number.parse().ok());
            *value = value.or(read);
            break;
        }
    }
    [values[0], values[1]]
}
