//! [`PickerPod`]: a replica of the picker as a process, on an address of its own, with a service account's token.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use warmroute_demo::DemoError;
use warmroute_demo::harness::{
    FreePorts, HttpClient, Process, READY_WITHIN, Tools, health_status, wait_until_ready,
};
use warmroute_demo::scrape::MetricsText;

/// How many replicas may run at once, each in a slot of its own.
pub(crate) const SLOTS: u8 = 4;

/// How long something may take that a picker does by itself.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// The name under which the charts' probes ask for health.
pub(crate) const PROBED: &str = "inference-extension";

/// What the replicas of one deployment have in common.
#[derive(Debug, Clone)]
pub(crate) struct PickerSite {
    pub(crate) tools: Tools,
    pub(crate) namespace: String,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) config_file: PathBuf,
    /// What selects the engines, and whatever else a scenario adds.
    pub(crate) args: Vec<String>,
    pub(crate) ports: PickerPorts,
    /// Begins the names of logs.
    pub(crate) label: String,
}

/// Ports of every replica, each on its own address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PickerPorts {
    grpc: u16,
    health: u16,
    metrics: u16,
    replica: u16,
}

/// A running replica.
pub(crate) struct PickerPod {
    pub(crate) process: Process,
    pub(crate) slot: u8,
    pub(crate) name: String,
    /// Where Envoy asks it.
    pub(crate) grpc: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) metrics: SocketAddr,
    http: HttpClient,
}

impl PickerPorts {
    /// Ports that are free in every slot.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn free() -> anyhow::Result<Self> {
        let hosts: Vec<IpAddr> = (0..SLOTS).map(host).collect();
        let mut ports = FreePorts::default();
        let mut free = || ports.on_all(&hosts);
        Ok(Self { grpc: free()?, health: free()?, metrics: free()?, replica: free()? })
    }

    /// Where Envoy reaches the replicas of all slots.
    pub(crate) fn grpc_addresses(self) -> Vec<SocketAddr> {
        (0..SLOTS).map(|slot| (host(slot), self.grpc).into()).collect()
    }

    /// Where replicas of all slots answer each other.
    fn replica_addresses(self) -> Vec<String> {
        (0..SLOTS).map(|slot| SocketAddr::new(host(slot), self.replica).to_string()).collect()
    }
}

fn host(slot: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 3, slot + 1).into()
}

impl PickerSite {
    /// Starts a replica in a slot; it needn't be ready when this returns.
    ///
    /// # Errors
    /// The process can't be started.
    pub(crate) fn spawn(&self, slot: u8, name: &str) -> anyhow::Result<PickerPod> {
        let (host, ports) = (host(slot), self.ports);
        let mut command = Command::new(&self.tools.picker);
        command
            .arg(format!("--bind-address={host}"))
            .arg(format!("--grpc-port={}", ports.grpc))
            .arg(format!("--grpc-health-port={}", ports.health))
            .arg(format!("--metrics-port={}", ports.metrics))
            .arg(format!("--replica-port={}", ports.replica))
            .arg(format!("--replica-peers={}", ports.replica_addresses().join(",")))
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--config-file")
            .arg(&self.config_file)
            .args(&self.args)
            .env("NAMESPACE", &self.namespace)
            .env("POD_NAME", name)
            .env("POD_IP", host.to_string());
        let process = Process::spawn(&format!("{}-{name}", self.label), command, &self.tools.logs)?;
        Ok(PickerPod {
            process,
            slot,
            name: name.to_owned(),
            grpc: (host, ports.grpc).into(),
            health: (host, ports.health).into(),
            metrics: (host, ports.metrics).into(),
            http: HttpClient::default(),
        })
    }
}

impl PickerPod {
    /// Waits until its probe succeeds.
    ///
    /// # Errors
    /// It ends, or isn't ready in time.
    pub(crate) async fn until_ready(&mut self) -> anyhow::Result<()> {
        self.until_health(PROBED, "SERVING").await
    }

    /// Waits until it says this of a service.
    ///
    /// # Errors
    /// It ends, or doesn't in time.
    pub(crate) async fn until_health(&mut self, service: &str, wanted: &str) -> anyhow::Result<()> {
        let address = self.health;
        wait_until_ready(&mut self.process, READY_WITHIN, || async {
            match health_status(address, service).await? {
                status if status == wanted => Ok(()),
                status => Err(format!("{service:?} is {status}")),
            }
        })
        .await?;
        Ok(())
    }

    /// What it says of a service now; empty if it says nothing.
    pub(crate) async fn health_is(&self, service: &str) -> &'static str {
        health_status(self.health, service).await.unwrap_or_default()
    }

    /// Its status page.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn status(&self) -> anyhow::Result<Value> {
        let page = self.http.get_ok(self.metrics, "/status").await?;
        Ok(serde_json::from_slice(&page.body)?)
    }

    /// The addresses that it picks from.
    ///
    /// # Errors
    /// There is no status page.
    pub(crate) async fn endpoints(&self) -> anyhow::Result<Vec<String>> {
        let status = self.status().await?;
        let lines = status["endpoints"].as_array().into_iter().flatten();
        let mut addresses: Vec<String> =
            lines.filter_map(|line| Some(line["address"].as_str()?.to_owned())).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Waits until its status page is as wanted.
    ///
    /// # Errors
    /// It isn't in time; with the page.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let started = Instant::now();
        loop {
            let status = self.status().await?;
            if is_so(&status) {
                return Ok(status);
            }
            if started.elapsed() > WITHIN {
                bail!("{}: no {what} within {WITHIN:?}; its status: {status}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it picks from exactly these addresses.
    ///
    /// # Errors
    /// It doesn't in time.
    pub(crate) async fn until_endpoints(&self, wanted: &[SocketAddr]) -> anyhow::Result<()> {
        let mut wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        wanted.sort();
        let started = Instant::now();
        loop {
            let endpoints = self.endpoints().await?;
            if endpoints == wanted {
                return Ok(());
            }
            if started.elapsed() > WITHIN {
                bail!("{} picks from {endpoints:?} instead of {wanted:?} after {WITHIN:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A counter of its metrics page by the values of one label; empty where there is no such counter.
    ///
    /// # Errors
    /// There is no metrics page.
    pub(crate) async fn counts(&self, metric: &str, label: &str) -> anyhow::Result<BTreeMap<String, f64>> {
        let page = MetricsText::parse(&self.http.get_ok(self.metrics, "/metrics").await?.text())?;
        let mut counts = BTreeMap::new();
        for sample in page.samples.iter().filter(|sample| sample.name == metric) {
            *counts.entry(sample.label(label).unwrap_or_default().to_owned()).or_insert(0.0) += sample.value;
        }
        Ok(counts)
    }

    /// Asks it to end (SIGTERM), as Kubernetes does.
    ///
    /// # Errors
    /// It has ended before.
    pub(crate) fn terminate(&mut self) -> anyhow::Result<()> {
        self.process.check()?;
        let pid = i32::try_from(self.process.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        Ok(())
    }

    /// Waits for its end after [`PickerPod::terminate`]; returns how long it took.
    ///
    /// # Errors
    /// It doesn't end in time, or not with 0.
    pub(crate) async fn until_ended(mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        loop {
            match self.process.check() {
                Ok(()) if started.elapsed() > WITHIN => {
                    bail!("{} still runs {WITHIN:?} after SIGTERM", self.name)
                }
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(DemoError::EndedEarly { status, .. }) if status == "exit status: 0" => {
                    return Ok(started.elapsed());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
