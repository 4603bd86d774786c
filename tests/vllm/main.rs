//! `vllm-truth`: two real vLLM engines on the CPU behind real Envoy and Warmroute. Lays what was predicted of each
//! request beside what its engine delivered, restarts engine and picker, and says how trust in the engines' views went.
//!
//! `make test-vllm` installs what it needs and runs it. The exit code is 1 if anything is not as it must be.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod comparison;
mod conversation;
mod driver;
mod gateway_client;
mod phases;
mod stack;
mod trust_history;
mod truth_report;
mod vllm_engine;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use warmroute_demo::harness::{HttpClient, Tools};
use warmroute_demo::machine;

use crate::driver::Driver;
use crate::stack::Stack;
use crate::trust_history::TrustHistory;
use crate::truth_report::TruthReport;
use crate::vllm_engine::ModelKind;

/// Two real vLLM engines behind Envoy and Warmroute: predicted against delivered.
#[derive(Parser)]
struct Options {
    /// The folder that deploy/setup/vllm.sh prints.
    #[arg(long, value_name = "DIR")]
    vllm: PathBuf,
    /// What the engines serve.
    #[arg(long, value_enum, default_value = "plain")]
    model: ModelKind,
    /// Where report.md, report.json and logs go.
    #[arg(long, value_name = "DIR", default_value = "target/vllm")]
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
            eprintln!("vllm-truth: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn work(options: Options) -> anyhow::Result<()> {
    let vllm =
        options.vllm.canonicalize().with_context(|| format!("there is no {}", options.vllm.display()))?;
    let tools = tools(&options)?;
    let version = std::fs::read_to_string(vllm.join(".version")).unwrap_or_default();
    let mut versions = vec![format!(
        "vLLM {} on CPU, a toy model with random weights ({:?})",
        version.trim(),
        options.model
    )];
    let about = machine::describe(&tools);
    versions.push(about.hardware);
    versions.extend(about.versions.into_iter().filter(|line| !line.contains("engine-sim")));
    say("starting two vLLM engines; this takes a minute, or several on a busy machine");
    let history = TrustHistory::default();
    let watch = history.clone();
    let run = async {
        let stack = Stack::start(tools, vllm, options.model, history).await?;
        let mut driver = Driver::new(stack, options.model, version.trim());
        let result = phases::run(&mut driver).await;
        let report = TruthReport::of(&driver, versions);
        let file = report.write(&options.out)?;
        println!("\n{}", report.markdown());
        say(&format!("report: {}; logs: {}", file.display(), options.out.join("logs").display()));
        driver.stack.stop().await?;
        result?;
        match report.mistakes() {
            0 => Ok(()),
            mistakes => bail!("{mistakes} things are not as they must be: see the report"),
        }
    };
    let http = HttpClient::default();
    tokio::select! {
        result = run => result,
        never = watch.watch(&http) => match never {},
    }
}

fn tools(options: &Options) -> anyhow::Result<Tools> {
    let folder = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let picker = folder.join("warmroute-under-test");
    if !picker.is_file() {
        bail!("there is no {}: build it with `cargo build -p warmroute-tests --bins`", picker.display());
    }
    Ok(Tools {
        root: Tools::root(),
        picker,
        engine_sim: PathBuf::new(),
        envoy: Tools::locate_envoy()?,
        tokenizer: Tools::locate_tokenizer()?,
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
