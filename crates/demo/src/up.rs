//! `warmroute-demo up`.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use warmroute_demo::harness::{Process, READY_WITHIN, Stack, StackOptions, Tools, wait_until_ready};
use warmroute_demo::policy::Policy;
use warmroute_demo::run::PreparedScenario;
use warmroute_demo::running::Running;

use crate::console::try_it;
use crate::{UpOptions, refuse_if_up, scenarios};

/// How often the processes are looked after.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// Starts a stack and leaves it running, or stays with it.
pub(crate) async fn up(options: UpOptions) -> anyhow::Result<()> {
    let tools = Tools::locate()?;
    refuse_if_up(&tools)?;
    let file = scenarios(&tools)?;
    let scenario = file.get(&options.scenario)?;
    let policy = Policy::load(&tools.root, &options.policy)?;
    let gateway = SocketAddr::from(([127, 0, 0, 1], options.port));
    TcpListener::bind(gateway)
        .with_context(|| format!("port {} is taken; choose another with --port", options.port))?;
    let mut stack = PreparedScenario::stack(scenario, &file.model, &policy);
    stack.label = format!("up-{}", stack.label);
    stack.gateway_port = Some(options.port);
    stack.picker.metrics_port = Some(options.metrics_port);
    stack.picker_replicas = options.replicas.max(1);
    if options.foreground {
        return stay(&tools, &stack, &file.model).await;
    }
    println!("starting {} engines, {} picker(s) and Envoy …", scenario.engines.count, stack.picker_replicas);
    let running = leave(&tools, &options).await?;
    announce(&tools, &running, &file.model);
    Ok(())
}

/// Starts this program once more, to stay, and waits until it has everything running.
async fn leave(tools: &Tools, options: &UpOptions) -> anyhow::Result<Running> {
    let path = Running::path(&tools.root);
    if path.exists() {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["up", "--foreground", "--scenario", &options.scenario, "--policy", &options.policy]);
    for (flag, value) in [
        ("--port", options.port.to_string()),
        ("--metrics-port", options.metrics_port.to_string()),
        ("--replicas", options.replicas.to_string()),
    ] {
        command.args([flag, &value]);
    }
    let mut keeper = Process::spawn("up", command, &tools.logs)?;
    let is_up = || async {
        let running = Running::load(&path).map_err(|error| error.to_string())?;
        if running.processes.is_empty() { Err("still starting".to_owned()) } else { Ok(()) }
    };
    wait_until_ready(&mut keeper, 3 * READY_WITHIN, is_up).await?;
    keeper.detach();
    Ok(Running::load(&path)?)
}

/// Starts the stack and stays with it until a signal comes, or until one of its processes ends.
async fn stay(tools: &Tools, options: &StackOptions, model: &str) -> anyhow::Result<()> {
    let mut stack = Stack::start(tools, options).await?;
    let running = Running::of(&stack);
    running.save(&Running::path(&tools.root))?;
    announce(tools, &running, model);
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        stack.check()?;
    }
}

fn announce(tools: &Tools, running: &Running, model: &str) {
    let picker = tools.picker.display().to_string();
    println!("\nup, with engines {}", running.engines.join(" "));
    println!(
        "gateway http://{}   picker http://{}   logs {}\n",
        running.gateway,
        running.metrics,
        tools.logs.display()
    );
    println!("{}", try_it(model, &running.gateway, &running.metrics, &picker));
}
