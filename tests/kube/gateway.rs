//! [`Gateway`]: real Envoy with a recipe of `deploy/envoy`, in front of all slots of pickers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use warmroute_demo::harness::{
    EnvoyConfig, FreePorts, HttpClient, PickerTransport, Process, READY_WITHIN, Recipe, Tools,
    wait_until_ready,
};

/// How Envoy knows of pickers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PickerList {
    /// It knows every slot and finds out by health checks which ones can be asked. Slots are empty most of the time, so
    /// that few healthy ones are no reason to ask the others.
    Slots,
    /// It is told which pickers there are, as Kubernetes tells a gateway of pods: [`Gateway::list`]. As the recipes have it,
    /// all of them are asked where less than half are healthy.
    Told,
}

/// How often Envoy looks whether a picker is ready; the recipes' seconds would make tests long.
const INTERVAL: &str = "0.25s";

/// The recipes' clients: each answer says which engine it is from.
const CLIENTS: (&str, &str) = (
    "domains: [\"*\"]",
    "domains: [\"*\"]\n              response_headers_to_add: [{header: {key: x-served-by, value: \"%UPSTREAM_REMOTE_ADDRESS%\"}}]",
);

/// The recipes' cluster of pickers.
const CLUSTER: &str = "    type: STATIC\n    lb_policy: LEAST_REQUEST\n";

/// A running Envoy.
pub(crate) struct Gateway {
    pub(crate) listener: SocketAddr,
    process: Process,
    admin: SocketAddr,
    http: HttpClient,
    /// Where it is told which pickers there are.
    list: PathBuf,
}

impl Gateway {
    /// Starts it and waits until it takes requests.
    ///
    /// # Errors
    /// It doesn't start.
    pub(crate) async fn start(
        tools: &Tools,
        name: &str,
        recipe: Recipe,
        pickers: Vec<SocketAddr>,
        list: PickerList,
    ) -> anyhow::Result<Self> {
        let mut ports = FreePorts::default();
        let listener = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.on_loopback()?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.on_loopback()?));
        let transport = PickerTransport::Tls;
        let config = EnvoyConfig { recipe, listener, admin_port: admin.port(), pickers, transport };
        let mut text = config.render(&tools.root)?;
        std::fs::create_dir_all(&tools.logs)?;
        let (file, told) =
            (tools.logs.join(format!("{name}.yaml")), tools.logs.join(format!("{name}-pickers.json")));
        let cluster = match list {
            PickerList::Slots => {
                format!("{CLUSTER}    common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}\n")
            }
            PickerList::Told => format!(
                "    type: EDS\n    lb_policy: LEAST_REQUEST\n    ignore_health_on_host_removal: true\n    \
                 eds_cluster_config: {{eds_config: {{path_config_source: {{path: {}}}}}}}\n",
                told.display()
            ),
        };
        for (from, to) in [CLIENTS, (CLUSTER, cluster.as_str())] {
            if !text.contains(from) {
                bail!("{} has no {from:?} any more", recipe.path(&tools.root).display());
            }
            text = text.replace(from, to);
        }
        text = with_interval(&text);
        if list == PickerList::Told {
            text = without_assignment(&text)
                .context("the recipe's cluster of pickers has no load_assignment")?;
            tell(&told, &[])?;
        }
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(&tools.envoy);
        command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]);
        command.args(["--service-node", name, "--service-cluster", "gateway"]);
        command.args(["--drain-strategy", "immediate", "-c"]).arg(&file);
        let mut process = Process::spawn(name, command, &tools.logs)?;
        let http = HttpClient::default();
        wait_until_ready(&mut process, READY_WITHIN, || async {
            http.get_ok(admin, "/ready").await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self { listener, process, admin, http, list: told })
    }

    /// Tells it which pickers there are, and waits until it knows.
    ///
    /// # Errors
    /// It doesn't take them in time.
    pub(crate) async fn list(&mut self, pickers: &[SocketAddr]) -> anyhow::Result<()> {
        tell(&self.list, pickers)?;
        self.until_members("total", pickers.len()).await
    }

    /// Waits until it sends requests to so many pickers.
    ///
    /// # Errors
    /// It doesn't in time.
    pub(crate) async fn until_pickers(&mut self, wanted: usize) -> anyhow::Result<()> {
        self.until_members("healthy", wanted).await
    }

    async fn until_members(&mut self, kind: &str, wanted: usize) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            self.process.check()?;
            let known = self.members(kind).await?;
            if known == wanted {
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                bail!("Envoy has {known} {kind} pickers instead of {wanted} after {READY_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn members(&self, kind: &str) -> anyhow::Result<usize> {
        let name = format!("cluster.picker.membership_{kind}");
        let page = self.http.get_ok(self.admin, &format!("/stats?filter={name}")).await?.text();
        let value = page.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
        Ok(value.with_context(|| format!("Envoy tells no {name}"))?.trim().parse()?)
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.process.stop(Duration::from_secs(5)).await;
    }
}

/// Writes the list that Envoy watches: beside its place first, since Envoy looks when a file is moved there.
fn tell(list: &Path, pickers: &[SocketAddr]) -> anyhow::Result<()> {
    let endpoint = |picker: &SocketAddr| {
        let address = json!({"address": picker.ip().to_string(), "port_value": picker.port()});
        json!({"endpoint": {"address": {"socket_address": address}}})
    };
    let endpoints: Vec<_> = pickers.iter().map(endpoint).collect();
    let answer = json!({"resources": [{
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "picker",
        "endpoints": [{"lb_endpoints": endpoints}],
    }]});
    let beside = list.with_extension("new");
    std::fs::write(&beside, answer.to_string())?;
    std::fs::rename(&beside, list).with_context(|| format!("cannot write {}", list.display()))
}

/// The configuration without the pickers that it names.
fn without_assignment(text: &str) -> Option<String> {
    let begin = text.find("    load_assignment:\n      cluster_name: picker\n")?;
    let rest = &text[begin..];
    let end = rest.find("\n    # Takes a replica")?;
    Some(format!("{}{}", &text[..begin], &rest[end + 1..]))
}

/// The configuration with [`INTERVAL`] between health checks.
fn with_interval(text: &str) -> String {
    let line = |line: &str| match line.split_once("interval: ") {
        Some((before, _)) if before.trim_matches(' ').is_empty() || before.ends_with("no_traffic_") => {
            format!("{before}interval: {INTERVAL}\n")
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}
