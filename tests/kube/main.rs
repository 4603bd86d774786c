//! `kube-truth`: pickers with the chart's service account beside a real API server, real Envoy in front, simulated engines
//! as pods, and requests at a steady rate while all of that changes. Not one request may fail, and every pick must be a
//! pod that was ready.
//!
//! `make test-kube` sets up what it needs and runs it. The exit code is 1 if anything is not as it must be.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod certificates;
mod chart;
mod control_plane;
mod engine_pod;
mod gateway;
mod load;
mod manifests;
mod open_kinds;
mod picker_pod;
mod ready_log;
mod scenarios;
mod stage;
mod transcript;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use warmroute_demo::harness::Tools;
use warmroute_demo::machine;

use crate::chart::Chart;
use crate::control_plane::ControlPlane;
use crate::manifests::Manifests;
use crate::stage::Rig;
use crate::transcript::Transcript;

/// Pickers, a real API server and real Envoy, while everything changes.
#[derive(Parser)]
struct Options {
    /// The folder that deploy/setup/kube.sh prints.
    #[arg(long, value_name = "DIR")]
    kube: PathBuf,
    /// Only these scenarios.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Requests per second.
    #[arg(long, value_name = "N", default_value_t = 200)]
    rate: u32,
    /// How long the API server is away.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    outage: u64,
    /// Another build of the picker.
    #[arg(long, value_name = "FILE")]
    picker: Option<PathBuf>,
    /// The chart.
    #[arg(long, value_name = "DIR")]
    chart: Option<PathBuf>,
    /// Where transcript.md, transcript.json and logs go.
    #[arg(long, value_name = "DIR", default_value = "target/kube")]
    out: PathBuf,
}

/// A progress line, with the seconds since the start.
pub(crate) fn say(text: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    println!("[{:6.1} s] {text}", START.get_or_init(Instant::now).elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() -> ExitCode {
    // On a signal the work is dropped, and with it every process that it started.
    let result = tokio::select! {
        result = work(Options::parse()) => result,
        name = interrupted() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-truth: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work(options: Options) -> anyhow::Result<()> {
    let names: Vec<&'static str> = scenarios::NAMES
        .into_iter()
        .filter(|name| options.only.is_empty() || options.only.iter().any(|only| only == name))
        .collect();
    if names.is_empty() {
        bail!("there are only the scenarios {}", scenarios::NAMES.join(", "));
    }
    let mut rig = rig(&options).await?;
    let mut transcript = Transcript::default();
    transcript
        .about
        .push(format!("{} requests per second through real Envoy to simulated engines", options.rate));
    let about = machine::describe(&rig.tools);
    transcript.about.push(about.hardware);
    transcript.about.extend(about.versions.into_iter().filter(|line| !line.contains("engine-sim")));
    for name in names {
        let row = scenarios::run(name, &mut rig).await;
        transcript.rows.push(row);
        // Written each time, so that something is there if the run is cut short.
        transcript.write(&options.out)?;
    }
    println!("\n{}", transcript.table());
    say(&format!(
        "transcript: {}; logs: {}",
        options.out.join("transcript.md").display(),
        rig.tools.logs.display()
    ));
    match transcript.mistakes() {
        0 => Ok(()),
        mistakes => bail!("{mistakes} things are not as they must be: see the transcript"),
    }
}

/// Starts the API server and gives it the definitions of what pickers and the chart speak of.
async fn rig(options: &Options) -> anyhow::Result<Rig> {
    let kube =
        options.kube.canonicalize().with_context(|| format!("there is no {}", options.kube.display()))?;
    let (folder, tools) = (options.out.join("run"), tools(options)?);
    let _ = std::fs::remove_dir_all(&folder);
    let _ = std::fs::remove_dir_all(&tools.logs);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    say("starting etcd and the API server");
    let mut plane = ControlPlane::start(kube.join("bin"), folder.clone(), tools.logs.clone()).await?;
    let client = plane.client().await?;
    let crds = kube.join("crds");
    let mut definitions = Manifests::default();
    for part in ["inference", "llm-d", "gateways", "monitoring"] {
        definitions.append(Manifests::read(&crds.join(part))?);
    }
    definitions.append(open_kinds::definitions(&definitions)?);
    definitions.apply(&client, "").await?;
    definitions.until_established(&client).await?;
    plane.check()?;
    say("the API server is ready and has the definitions of custom resources");
    let chart = Chart {
        helm: kube.join("../helm/helm"),
        folder: options.chart.clone().unwrap_or_else(|| tools.root.join("charts/warmroute")),
        values: tools.root.join("tests/kube/values"),
    };
    let outage = Duration::from_secs(options.outage);
    Ok(Rig { tools, plane, client, chart, crds, folder, per_second: options.rate, outage })
}

fn tools(options: &Options) -> anyhow::Result<Tools> {
    let folder = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let picker = options.picker.clone().unwrap_or_else(|| folder.join("warmroute-under-test"));
    if !picker.is_file() {
        bail!("there is no {}: build it with `cargo build -p warmroute-tests --bins`", picker.display());
    }
    Ok(Tools {
        root: Tools::root(),
        picker,
        engine_sim: PathBuf::new(),
        envoy: Tools::locate_envoy()?,
        tokenizer: Path::new("").to_owned(),
        logs: options.out.join("logs"),
    })
}

/// Waits for SIGINT, SIGTERM or SIGHUP.
async fn interrupted() -> &'static str {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    }
}
