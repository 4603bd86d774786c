//! [`Gateway`]: real Envoy with a recipe of `deploy/envoy`, in front of all slots of pickers.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use warmroute_demo::harness::{
    EnvoyConfig, FreePorts, HttpClient, PickerTransport, Process, READY_WITHIN, Recipe, Tools,
    wait_until_ready,
};

/// What a recipe says, and what stands there instead: slots are empty most of the time, so that health is looked at more
/// often, and few healthy replicas are no reason to ask the others. Each answer says which engine it is from.
const CHANGES: [(&str, &str); 3] = [
    ("interval: 10s", "interval: 0.25s"),
    (
        "lb_policy: LEAST_REQUEST",
        "lb_policy: LEAST_REQUEST\n    common_lb_config: {healthy_panic_threshold: {value: 0}}",
    ),
    (
        "domains: [\"*\"]",
        "domains: [\"*\"]\n              response_headers_to_add: [{header: {key: x-served-by, value: \"%UPSTREAM_REMOTE_ADDRESS%\"}}]",
    ),
];

/// A running Envoy.
pub(crate) struct Gateway {
    pub(crate) listener: SocketAddr,
    process: Process,
    admin: SocketAddr,
    http: HttpClient,
}

impl Gateway {
    /// Starts it and waits until it takes requests. If it `panics`, as Envoy does unless told otherwise, it asks any picker
    /// where few are healthy.
    ///
    /// # Errors
    /// It doesn't start.
    pub(crate) async fn start(
        tools: &Tools,
        name: &str,
        recipe: Recipe,
        pickers: Vec<SocketAddr>,
        panics: bool,
    ) -> anyhow::Result<Self> {
        let mut ports = FreePorts::default();
        let listener = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.on_loopback()?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.on_loopback()?));
        let transport = PickerTransport::Tls;
        let config = EnvoyConfig { recipe, listener, admin_port: admin.port(), pickers, transport };
        let mut text = config.render(&tools.root)?;
        for (from, to) in CHANGES.into_iter().filter(|(_, to)| !(panics && to.contains("panic"))) {
            if !text.contains(from) {
                bail!("{} has no {from:?} any more", recipe.path(&tools.root).display());
            }
            text = text.replace(from, to);
        }
        let file = tools.logs.join(format!("{name}.yaml"));
        std::fs::create_dir_all(&tools.logs)?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(&tools.envoy);
        command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]);
        command.args(["--drain-strategy", "immediate", "-c"]).arg(&file);
        let mut process = Process::spawn(name, command, &tools.logs)?;
        let http = HttpClient::default();
        wait_until_ready(&mut process, READY_WITHIN, || async {
            http.get_ok(admin, "/ready").await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self { listener, process, admin, http })
    }

    /// Waits until it sends requests to so many pickers.
    ///
    /// # Errors
    /// It doesn't in time.
    pub(crate) async fn until_pickers(&mut self, wanted: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            self.process.check()?;
            let healthy = self.healthy_pickers().await?;
            if healthy == wanted {
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                bail!("Envoy takes {healthy} pickers for healthy instead of {wanted} after {READY_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn healthy_pickers(&self) -> anyhow::Result<usize> {
        let page =
            self.http.get_ok(self.admin, "/stats?filter=cluster.picker.membership_healthy").await?.text();
        let value = page.lines().find_map(|line| line.strip_prefix("cluster.picker.membership_healthy: "));
        Ok(value.context("Envoy tells no membership_healthy")?.trim().parse()?)
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.process.stop(Duration::from_secs(5)).await;
    }
}
