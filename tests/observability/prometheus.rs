//! [`Prometheus`]: a real one, as a process, that scrapes what it is told to.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use warmroute_demo::harness::{FreePorts, HttpClient, Process, READY_WITHIN, wait_until_ready};

/// How often pickers are scraped and rules evaluated.
const INTERVAL: &str = "1s";

/// The labels that Kubernetes service discovery gives a target, as a ServiceMonitor or PodMonitor names them.
pub(crate) const NAMESPACE: &str = "inference";
const JOB: &str = "inference/warmroute";

/// Prometheus, ended with its owner.
pub(crate) struct Prometheus {
    pub(crate) process: Process,
    address: SocketAddr,
    http: HttpClient,
}

/// One series of an answer: its labels, and its newest value.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Series {
    pub(crate) metric: std::collections::BTreeMap<String, String>,
    value: (f64, String),
}

impl Series {
    /// Whether the value is a number.
    pub(crate) fn is_number(&self) -> bool {
        self.value.1.parse::<f64>().is_ok_and(f64::is_finite)
    }
}

/// Of an alert: its name, its state and what it is about.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ActiveAlert {
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    pub(crate) state: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct QueryData {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct AlertData {
    alerts: Vec<ActiveAlert>,
}

#[derive(Deserialize)]
struct RuleData {
    groups: Vec<GroupState>,
}

#[derive(Deserialize)]
struct GroupState {
    rules: Vec<RuleState>,
}

#[derive(Deserialize)]
struct RuleState {
    name: String,
    health: String,
    #[serde(rename = "lastError")]
    last_error: Option<String>,
}

impl Prometheus {
    /// Starts one that scrapes `pickers` and evaluates `rules`, and waits until it is ready.
    pub(crate) async fn start(
        program: &Path,
        work: &Path,
        logs: &Path,
        rules: &Path,
        pickers: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        if work.exists() {
            std::fs::remove_dir_all(work)?;
        }
        std::fs::create_dir_all(work)?;
        let config = work.join("prometheus.yaml");
        std::fs::write(&config, configuration(&std::path::absolute(rules)?, pickers))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FreePorts::default().on_loopback()?));
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", work.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        let http = HttpClient::default();
        let mut process = Process::spawn("prometheus", command, logs)?;
        wait_until_ready(&mut process, READY_WITHIN, || async {
            http.get_ok(address, "/-/ready").await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(Self { process, address, http })
    }

    /// The series of an expression at this moment.
    pub(crate) async fn query(&self, expr: &str) -> anyhow::Result<Vec<Series>> {
        let data: QueryData = self.ask(&format!("/api/v1/query?query={}", percent_encoded(expr))).await?;
        Ok(data.result)
    }

    /// Every label that any series of a metric had in the last hour.
    pub(crate) async fn labels_of(&self, metric: &str) -> anyhow::Result<Vec<String>> {
        self.ask(&format!("/api/v1/labels?match[]={}", percent_encoded(metric))).await
    }

    /// Alerts that are pending or firing.
    pub(crate) async fn alerts(&self) -> anyhow::Result<Vec<ActiveAlert>> {
        let data: AlertData = self.ask("/api/v1/alerts").await?;
        Ok(data.alerts)
    }

    /// Rules that were never evaluated, or with an error.
    pub(crate) async fn broken_rules(&self) -> anyhow::Result<Vec<String>> {
        let data: RuleData = self.ask("/api/v1/rules").await?;
        let rules = data.groups.into_iter().flat_map(|group| group.rules);
        let broken = rules.filter(|rule| rule.health != "ok");
        Ok(broken
            .map(|rule| format!("{} is {}: {}", rule.name, rule.health, rule.last_error.unwrap_or_default()))
            .collect())
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.http.get(self.address, path).await?;
        let parsed: Answer<T> = serde_json::from_slice(&answer.body)
            .with_context(|| format!("Prometheus answers {}: {}", answer.status, answer.text()))?;
        match (parsed.data, parsed.error) {
            (Some(data), None) => Ok(data),
            (_, error) => bail!("{}", error.unwrap_or_else(|| "Prometheus answers nothing".to_owned())),
        }
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.process.stop(Duration::from_secs(3)).await;
    }
}

fn configuration(rules: &Path, pickers: &[SocketAddr]) -> String {
    let mut text = format!(
        "global: {{scrape_interval: {INTERVAL}, evaluation_interval: {INTERVAL}}}\n\
         rule_files: [{:?}]\nscrape_configs:\n- job_name: {JOB}\n  static_configs:\n",
        rules.display().to_string()
    );
    for (number, picker) in pickers.iter().enumerate() {
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "  - targets: [{:?}]\n    labels: {{namespace: {NAMESPACE}, pod: warmroute-{number}, container: warmroute, \
             endpoint: metrics}}",
            picker.to_string()
        );
    }
    text
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// What promtool says of `arguments`.
///
/// # Errors
/// Its own words, if it isn't content.
pub(crate) fn promtool(folder: &Path, arguments: &[&str], file: &Path) -> anyhow::Result<()> {
    let output = Command::new(folder.join("promtool")).args(arguments).arg(file).output();
    let output = output.with_context(|| format!("cannot run {}", folder.join("promtool").display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    bail!("promtool {} {}:\n{}", arguments.join(" "), file.display(), String::from_utf8_lossy(&said))
}

/// The folder with prometheus and promtool: `WARMROUTE_PROMETHEUS`, else what `deploy/setup/prometheus.sh` made.
pub(crate) fn locate(root: &Path) -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("WARMROUTE_PROMETHEUS")
        .map_or_else(|| root.join("target/tools/prometheus"), PathBuf::from);
    if !folder.join("prometheus").is_file() {
        bail!("there is no {}/prometheus: run deploy/setup/prometheus.sh", folder.display());
    }
    Ok(folder)
}
