//! `observability`: dashboards and alert rules, made and checked.
//!
//! `make dashboards` writes the JSON of the dashboards and a table of the docs from their sources. `make
//! test-observability` lets a real Prometheus scrape two pickers with simulated engines behind real Envoy, under load and
//! in trouble, and asks it every expression.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod check;
mod dashboard;
mod expression;
mod grafana;
mod live;
mod peers;
mod prometheus;
mod rules;
mod running_pool;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use warmroute_demo::harness::Tools;

use crate::dashboard::{DashboardFile, folder};
use crate::peers::PeerFile;

/// Dashboards and alert rules, made and checked.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write what is made from the sources: the dashboards, and the table of other projects' expressions in the docs.
    Make,
    /// Ask a real Prometheus, which scrapes running pickers, every expression.
    Test {
        /// Where the report, logs and Prometheus' data go.
        #[arg(long, value_name = "DIR", default_value = "target/observability")]
        out: PathBuf,
    },
}

/// A progress line, with the seconds since the start.
pub(crate) fn say(text: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    println!("[{:5.1} s] {text}", START.get_or_init(Instant::now).elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() -> ExitCode {
    let work = async {
        match Options::parse().command {
            Command::Make => make(),
            Command::Test { out } => live::test(&out).await,
        }
    };
    // On a signal the work is dropped, and with it every process that it started.
    let result = tokio::select! {
        result = work => result,
        () = interrupted() => Err(anyhow::anyhow!("stopped by a signal")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("observability: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn make() -> anyhow::Result<()> {
    let root = Tools::root();
    let dashboards = folder(&root).join("dashboards");
    std::fs::create_dir_all(&dashboards)?;
    for dashboard in &DashboardFile::load(&root)?.dashboards {
        let path = dashboards.join(format!("{}.json", dashboard.file));
        std::fs::write(&path, grafana::dashboard_json(dashboard))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let page = root.join(peers::PAGE);
    let text = std::fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    std::fs::write(&page, PeerFile::load(&root)?.page_with_table(&text)?)?;
    Ok(())
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
}
