//! `warmroute-demo`: the main job, live.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod console;
mod up;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use warmroute_demo::DemoError;
use warmroute_demo::harness::{EnvoyConfig, PickerTransport, Recipe, Tools};
use warmroute_demo::machine;
use warmroute_demo::policy::Policy;
use warmroute_demo::report::{ExpectationReport, Report, ScenarioReport, table};
use warmroute_demo::run::PreparedScenario;
use warmroute_demo::running::Running;
use warmroute_demo::scenario::{Scenario, ScenarioFile};
use warmroute_tokenize::ModelTokenizer;

use crate::console::{Console, try_it};

/// Warmroute, a real Envoy and simulated engines on this machine, under load.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every scenario under every policy; ends with a table, report.json and report.html.
    Run(RunOptions),
    /// Start engines, picker and Envoy, leave them running, and say how to try them.
    Up(UpOptions),
    /// Stop what `up` left running.
    Down,
    /// Print an Envoy configuration for pickers of yours.
    EnvoyConfig(EnvoyOptions),
}

#[derive(Args)]
struct RunOptions {
    /// Only this scenario; may be given several times.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only this policy; may be given several times. Any file in deploy/demo/policies.
    #[arg(long, value_name = "NAME")]
    policy: Vec<String>,
    /// Where report.json and report.html go.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
    /// Leave the last scenario's processes running under the last policy, as `up` does.
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct UpOptions {
    /// The scenario whose engines are started.
    #[arg(long, value_name = "NAME", default_value_t = Self::default().scenario)]
    scenario: String,
    /// The policy.
    #[arg(long, value_name = "NAME", default_value_t = Self::default().policy)]
    policy: String,
    /// The gateway's port.
    #[arg(long, value_name = "PORT", default_value_t = Self::default().port)]
    port: u16,
    /// The picker's metrics and debug port, if it is free.
    #[arg(long, value_name = "PORT", default_value_t = Self::default().metrics_port)]
    metrics_port: u16,
    /// How many replicas of the picker.
    #[arg(long, value_name = "N", default_value_t = Self::default().replicas)]
    replicas: usize,
    /// Stay, and stop everything on Ctrl-C.
    #[arg(long)]
    foreground: bool,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            scenario: "repeat".to_owned(),
            policy: "precise".to_owned(),
            port: 8080,
            metrics_port: 9090,
            replicas: 1,
            foreground: false,
        }
    }
}

#[derive(Args)]
struct EnvoyOptions {
    /// buffered or full-duplex.
    #[arg(long, default_value = "buffered")]
    recipe: String,
    /// Where Envoy listens.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Envoy's admin page, on loopback.
    #[arg(long, value_name = "PORT", default_value_t = 19000)]
    admin_port: u16,
    /// A picker's ext-proc address; may be given several times.
    #[arg(long = "picker", value_name = "IP:PORT", required = true)]
    pickers: Vec<SocketAddr>,
    /// Speak TLS to the pickers, accepting any certificate.
    #[arg(long)]
    tls: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let work = async {
        match Cli::parse().command {
            Command::Run(options) => run(options).await,
            Command::Up(options) => up::up(options).await,
            Command::Down => down().await,
            Command::EnvoyConfig(options) => envoy_config(&options),
        }
    };
    // On a signal the work is dropped, and with it every process that it started.
    let result = tokio::select! {
        result = work => result,
        name = interrupted() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warmroute-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> &'static str {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

fn scenarios(tools: &Tools) -> anyhow::Result<ScenarioFile> {
    Ok(ScenarioFile::load(&tools.root.join("deploy/demo/scenarios.yaml"))?)
}

async fn run(options: RunOptions) -> anyhow::Result<()> {
    let tools = Tools::locate()?;
    refuse_if_up(&tools)?;
    let file = scenarios(&tools)?;
    let chosen = |asked: &[String], all: Vec<String>| if asked.is_empty() { all } else { asked.to_vec() };
    let all = file.scenarios.iter().map(|scenario| scenario.name.clone()).collect();
    let scenario_names = chosen(&options.scenario, all);
    // Every name is looked up before anything is started.
    let scenarios: Vec<_> = scenario_names.iter().map(|name| file.get(name)).collect::<Result<_, _>>()?;
    let policies_of = |scenario: &Scenario| {
        let names = chosen(&options.policy, scenario.policies(&file).to_vec());
        names.iter().map(|name| Policy::load(&tools.root, name)).collect::<Result<Vec<_>, _>>()
    };
    let runs: Vec<(&Scenario, Vec<Policy>)> = scenarios
        .into_iter()
        .map(|scenario| Ok((scenario, policies_of(scenario)?)))
        .collect::<Result<_, DemoError>>()?;
    let last = runs
        .last()
        .and_then(|(scenario, policies)| Some((scenario.name.clone(), policies.last()?.name.clone())));
    let tokenizer = load_tokenizer(&tools).await?;

    let mut report = Report { scenarios: Vec::new(), machine: machine::describe(&tools) };
    for (scenario, policies) in runs {
        let (scenario, model, tokenizer) = (scenario.clone(), file.model.clone(), tokenizer.clone());
        let prepared =
            tokio::task::spawn_blocking(move || PreparedScenario::new(&scenario, &model, &tokenizer))
                .await??;
        println!("\n{}: {}", prepared.scenario.name, prepared.scenario.description);
        let mut results = Vec::with_capacity(policies.len());
        for policy in &policies {
            let mut console = Console::new(&prepared.scenario.name, &policy.name);
            results.push(prepared.run(&tools, policy, |event| console.show(event)).await?.report);
        }
        report.scenarios.push(ScenarioReport {
            expectations: ExpectationReport::of(&prepared.scenario.expect, &results),
            name: prepared.scenario.name.clone(),
            policies: results,
            description: prepared.scenario.description.clone(),
            setup: prepared.setup(),
        });
    }
    println!("{}", table(&report));
    let [json, html] = report.write(&options.out)?;
    println!("Report: {}\n        {}\nLogs:   {}", html.display(), json.display(), tools.logs.display());
    report.refuse_missed()?;
    match last {
        Some((scenario, policy)) if options.keep => {
            up::up(UpOptions { scenario, policy, ..UpOptions::default() }).await
        }
        _ => {
            println!("\nTo try it by hand: make demo-up. It leaves everything running, and then:");
            let picker = tools.picker.display().to_string();
            println!("{}", try_it(&file.model, "127.0.0.1:8080", "127.0.0.1:9090", &picker));
            Ok(())
        }
    }
}

async fn load_tokenizer(tools: &Tools) -> anyhow::Result<Arc<ModelTokenizer>> {
    let folder = tools.tokenizer.clone();
    let loaded = tokio::task::spawn_blocking(move || ModelTokenizer::load(&folder)).await?;
    Ok(Arc::new(loaded.context("the tokenizer cannot be loaded")?))
}

fn refuse_if_up(tools: &Tools) -> anyhow::Result<()> {
    let running = Running::load(&Running::path(&tools.root))?;
    if running.processes.is_empty() {
        return Ok(());
    }
    bail!(
        "{} processes of `make demo-up` are still running; stop them first: make demo-down",
        running.processes.len()
    )
}

async fn down() -> anyhow::Result<()> {
    let path = Running::path(&Tools::root());
    let stopped = Running::load(&path)?.stop().await;
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", path.display()));
    }
    println!(
        "{}",
        if stopped == 0 { "nothing was running".to_owned() } else { format!("stopped {stopped} processes") }
    );
    Ok(())
}

fn envoy_config(options: &EnvoyOptions) -> anyhow::Result<()> {
    let known = Recipe::ALL.map(Recipe::name).join(", ");
    let recipe = Recipe::ALL.into_iter().find(|recipe| recipe.name() == options.recipe);
    let config = EnvoyConfig {
        recipe: recipe
            .with_context(|| format!("there is no recipe {:?}; there are {known}", options.recipe))?,
        listener: options.listen,
        admin_port: options.admin_port,
        pickers: options.pickers.clone(),
        transport: if options.tls { PickerTransport::Tls } else { PickerTransport::Plaintext },
    };
    print!("{}", config.render(&Tools::root())?);
    Ok(())
}
