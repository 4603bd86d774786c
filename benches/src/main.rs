//! `warmroute-bench`: what each step costs, as ratios to bare baselines where there are any.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use clap::Parser;
use warmroute_benches::report::{Report, say};
use warmroute_benches::steps::ALL;
use warmroute_benches::timing::Effort;

/// Measures what each step of a request's path costs. See benches/README.md.
#[derive(Debug, Parser)]
#[command(name = "warmroute-bench", version)]
struct Options {
    /// Only the benches whose name contains this.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Fewer repetitions: to see that all runs, not to quote.
    #[arg(long)]
    quick: bool,
    /// Where the figures go.
    #[arg(long, value_name = "FILE", default_value_os_t = summary_path())]
    summary: PathBuf,
}

fn summary_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/summary.json")
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    let wanted = |name: &str| options.only.as_ref().is_none_or(|pattern| name.contains(pattern.as_str()));
    if !ALL.iter().any(|(name, ..)| wanted(name)) {
        let names: Vec<&str> = ALL.iter().map(|(name, ..)| *name).collect();
        bail!("no bench is called like that; there are {}", names.join(", "));
    }
    if cfg!(debug_assertions) {
        say("This is a build without optimisation: the figures mean nothing. Use --profile quick.");
    }
    let mut report = Report::default();
    let started = Instant::now();
    for (name, about, run) in ALL.iter().filter(|(name, ..)| wanted(name)) {
        say(&format!("{name}: {about}"));
        let bench_started = Instant::now();
        run(effort, &mut report)?;
        say(&format!("  ({:.1} s)", bench_started.elapsed().as_secs_f64()));
    }
    report.write(&options.summary)?;
    let misses: Vec<String> = report.misses().map(|figure| figure.name.clone()).collect();
    let verdict = if misses.is_empty() {
        "every bar is met".to_owned()
    } else {
        format!("missed: {}", misses.join(", "))
    };
    say(&format!(
        "{} figures in {:.0} s, {verdict}; written to {}",
        report.figures().len(),
        started.elapsed().as_secs_f64(),
        options.summary.display()
    ));
    Ok(())
}
