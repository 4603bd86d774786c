//! One decision over a table of endpoints: prefix, queue and KV-cache scorers, the best total wins.

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use warmroute_plugin::Registry;
use warmroute_plugin::testing::{CandidatesFixture, Row, request};
use warmroute_scheduler::{Scheduler, SchedulerBuilder, Scratch};

use crate::corpus::Numbers;
use crate::report::Report;
use crate::timing::{Effort, Spread, cpu_ns_per_call};

/// Cost of a decision and per endpoint, for three sizes of pool.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let scheduler = scheduler()?;
    let request = request();
    for endpoints in [10, 100, 1_000] {
        let table = table(endpoints);
        let candidates = table.candidates();
        let mut scratch = Scratch::default();
        ensure!(scheduler.decide(&request, &candidates, &mut scratch).is_ok(), "nothing is picked");
        let cost = cpu_ns_per_call(effort, || {
            let decided = scheduler.decide(black_box(&request), black_box(&candidates), &mut scratch);
            let _ = black_box(decided.map(|decision| decision.table_row()));
        });
        let mut timed = Scratch::timed(clock);
        let with_times = cpu_ns_per_call(effort, || {
            let decided = scheduler.decide(black_box(&request), black_box(&candidates), &mut timed);
            let _ = black_box(decided.map(|decision| decision.primary().plugin_times().count()));
        });
        let scaled = |by: f64| Spread { median: cost.median / by, low: cost.low / by, high: cost.high / by };
        report.figure(format!("decision/{endpoints}_endpoints"), scaled(1000.0), "us");
        report.figure(
            format!("decision/{endpoints}_endpoints_each"),
            scaled(f64::from(endpoints)),
            "ns/endpoint",
        );
        // What `llm_d_epp_plugin_duration_seconds` costs in the scheduler.
        let share = |with: f64, without: f64| 100.0 * (with / without - 1.0);
        report.figure(
            format!("decision/{endpoints}_endpoints_timing_plugins"),
            Spread {
                median: share(with_times.median, cost.median),
                low: share(with_times.low, cost.low),
                high: share(with_times.high, cost.high),
            },
            "% more",
        );
    }
    Ok(())
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// As the picker lends it.
fn clock() -> Duration {
    START.elapsed()
}

fn scheduler() -> anyhow::Result<Scheduler> {
    let mut registry = Registry::default();
    warmroute_builtin::register(&mut registry)?;
    let mut builder = SchedulerBuilder::new(&registry);
    let plugins = [
        ("prefix-cache-scorer", 3.0),
        ("queue-scorer", 2.0),
        ("kv-cache-utilization-scorer", 2.0),
        ("max-score-picker", 1.0),
    ];
    for (plugin, _) in plugins {
        builder.plugin(plugin, plugin, json!({}))?;
    }
    builder.profile("default", plugins)?;
    Ok(builder.build()?.scheduler)
}

/// Endpoints of different load that hold between nothing and all of a prompt of 512 blocks.
fn table(endpoints: u32) -> CandidatesFixture {
    let mut numbers = Numbers(7);
    let mut below = |limit: u64| (numbers.draw() % limit) as u32;
    CandidatesFixture::new((0..endpoints).map(|_| {
        let (waiting, running, used) = (below(20), below(100), below(100));
        Row::fresh(waiting, running, f64::from(used) / 100.0).prefix_match(below(513), 512, 16)
    }))
}
