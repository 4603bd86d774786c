//! Reload: a changed configuration file is checked, built aside and swapped in whole; a bad one is refused loudly and
//! the last good one stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use parking_lot::Mutex;
use serde::Serialize;
use warmroute_config::{CheckedConfig, EstimateSpec, HttpSourceSpec, TokenBackend, check};
use warmroute_plugin::Registry;

use crate::decision::Decider;
use crate::metrics::Metrics;
use crate::profile::known_types;
use crate::tasks::Tasks;

/// How often the file is looked at. It is read whole: a few kilobytes, and neither the time stamp nor the inode tells
/// reliably of a swapped symbolic link.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Largest file read; a configuration has a few kilobytes.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// What became of changes since the start, for the status page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReloadStatus {
    /// Changes taken.
    pub taken: u64,
    /// Changes refused.
    pub refused: u64,
    /// Why the newest change was refused; absent if it was taken.
    pub refusal: Option<String>,
}

/// Watches the configuration file.
pub struct ConfigWatch {
    /// The file.
    pub path: PathBuf,
    /// What is linked.
    pub registry: Arc<Registry>,
    /// Where new policies go.
    pub decider: Arc<Decider>,
    /// Runs the plugins' tasks.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is shown.
    pub status: Arc<Mutex<ReloadStatus>>,
}

impl ConfigWatch {
    /// Watches until cancelled. `running` is the configuration that the process started with, `text` its file's content.
    pub async fn run(self, mut running: CheckedConfig, mut text: Vec<u8>) {
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        let mut unreadable = false;
        loop {
            ticks.tick().await;
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || read_bounded(&path)).await;
            let content = match read {
                Ok(Ok(content)) => content,
                Ok(Err(error)) => {
                    if !unreadable {
                        tracing::error!(file = %self.path.display(), %error, "configuration can't be read any more: the last good one stays");
                    }
                    unreadable = true;
                    continue;
                }
                Err(_) => continue,
            };
            unreadable = false;
            if content != text {
                self.change(&mut running, &content);
                text = content;
            }
        }
    }

    /// Takes a change or refuses it.
    pub fn change(&self, running: &mut CheckedConfig, content: &[u8]) {
        match self.take(running, content) {
            Ok(config) => {
                tracing::info!("configuration changed, now in effect: {}", config.summary().trim_end());
                for notice in config.notice_lines() {
                    tracing::warn!("{notice}");
                }
                *running = config;
                let mut status = self.status.lock();
                status.taken += 1;
                status.refusal = None;
                self.metrics.requests.reloads.with_label_values(&["taken"]).inc();
            }
            Err(error) => {
                tracing::error!(
                    "changed configuration refused, the last good one stays in effect: {error:#}"
                );
                let mut status = self.status.lock();
                status.refused += 1;
                status.refusal = Some(format!("{error:#}"));
                self.metrics.requests.reloads.with_label_values(&["refused"]).inc();
            }
        }
    }

    fn take(&self, running: &CheckedConfig, content: &[u8]) -> anyhow::Result<CheckedConfig> {
        let config = check(&self.path.display().to_string(), content, &known_types(&self.registry))?;
        if let Some(part) = needs_restart(running, &config) {
            bail!("{part} can't change while running: restart to change it, or put it back");
        }
        let policy = self.decider.policy().successor(&config, &self.registry, &self.tasks)?;
        self.decider.swap(policy.shared());
        Ok(config)
    }
}

/// The part of a configuration that differs and is set up once, at start.
fn needs_restart(running: &CheckedConfig, changed: &CheckedConfig) -> Option<&'static str> {
    let events = |config: &CheckedConfig| {
        config.kv_events().map(|events| {
            let ports = (events.listen, events.discover_pods, events.socket_port, events.replay_socket_port);
            (ports, events.topic_filter, events.concurrency)
        })
    };
    // Where no events are read nothing is looked up; engines that are followed already may go on being followed.
    if changed.kv_events().is_some() && events(running) != events(changed) {
        return Some("what is followed of the engines' KV events (precise-prefix-cache-producer)");
    }
    let backend = |config: &CheckedConfig| {
        let given = config.token_producer.as_ref().map(|producer| producer.backend.clone());
        given.unwrap_or(TokenBackend::Estimate(EstimateSpec::default()))
    };
    if backend(running) != backend(changed) {
        return Some("the tokenizer (token-producer)");
    }
    if running.discovery != changed.discovery {
        return Some("where endpoints come from (dataLayer.discovery)");
    }
    let fetched = |source: &Option<HttpSourceSpec>| {
        source.as_ref().map(|source| (source.path.clone(), source.port, source.interval, source.tls.clone()))
    };
    if fetched(&running.models_source) != fetched(&changed.models_source) {
        return Some("what is asked of models (models-data-source)");
    }
    if fetched(&running.metrics_source) != fetched(&changed.metrics_source) {
        return Some("what is scraped (metrics-data-source)");
    }
    // The name is only how plugins refer to it.
    let renamed = running.metrics_extractor.clone().renamed(&changed.metrics_extractor.name);
    (renamed != changed.metrics_extractor).then_some("what is read of metrics pages (core-metrics-extractor)")
}

/// Reads a configuration file, up to the limit.
///
/// # Errors
/// It can't be read, or is too large.
pub fn read_bounded(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_LIMIT_BYTES {
        return Err(std::io::Error::other("the file is over 1 MiB, which no configuration is"));
    }
    Ok(content)
}
