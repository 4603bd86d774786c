//! [`TrustHistory`]: how far the picker trusted its view of each engine, over time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use warmroute_demo::harness::HttpClient;

use crate::stack::endpoints;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One change, or something that was done.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HistoryLine {
    /// Milliseconds since the Unix epoch.
    pub(crate) at_unix_ms: u64,
    /// The engine's address; empty for what was done.
    pub(crate) engine: String,
    /// The trust and its reason, or what was done.
    pub(crate) what: String,
}

/// What was seen and done so far. Copies share it.
#[derive(Debug, Clone)]
pub(crate) struct TrustHistory {
    lines: Arc<Mutex<Vec<HistoryLine>>>,
    /// The picker's admin page; none while there is no picker.
    admin: Arc<Mutex<Option<SocketAddr>>>,
    begun_unix_ms: u64,
}

impl Default for TrustHistory {
    fn default() -> Self {
        Self { lines: Arc::default(), admin: Arc::default(), begun_unix_ms: unix_ms() }
    }
}

impl TrustHistory {
    /// Says which picker is to be watched from now on.
    pub(crate) fn watch_picker(&self, admin: Option<SocketAddr>) {
        *self.admin.lock() = admin;
    }

    /// Something was done that may change trust.
    pub(crate) fn note(&self, what: impl Into<String>) {
        let line = HistoryLine { at_unix_ms: unix_ms(), engine: String::new(), what: what.into() };
        self.lines.lock().push(line);
    }

    /// Everything, oldest first.
    pub(crate) fn lines(&self) -> Vec<HistoryLine> {
        let mut lines = self.lines.lock().clone();
        lines.sort_by_key(|line| line.at_unix_ms);
        lines
    }

    /// Seconds from the beginning to a time.
    pub(crate) fn seconds(&self, at_unix_ms: u64) -> f64 {
        at_unix_ms.saturating_sub(self.begun_unix_ms) as f64 / 1e3
    }

    /// Looks at the status page again and again.
    pub(crate) async fn watch(&self, http: &HttpClient) -> Infallible {
        let (mut last, mut watched) = (BTreeMap::new(), None);
        loop {
            let admin = *self.admin.lock();
            if admin != watched {
                // Another picker: all of its words are news.
                watched = admin;
                last.clear();
            }
            if let Some(admin) = admin
                && let Ok(page) = http.get_ok(admin, "/status").await
                && let Ok(status) = serde_json::from_slice::<Value>(&page.body)
            {
                for (engine, endpoint) in endpoints(&status) {
                    self.look_at(engine, &endpoint["kv_events"], &mut last);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look_at(&self, engine: String, events: &Value, last: &mut BTreeMap<String, String>) {
        let what = trust_words(events);
        if last.get(&engine) != Some(&what) {
            last.insert(engine.clone(), what.clone());
            let at_unix_ms =
                events["trust_since_unix_ms"].as_u64().filter(|since| *since > 0).unwrap_or_else(unix_ms);
            self.lines.lock().push(HistoryLine { at_unix_ms, engine, what });
        }
    }
}

/// Trust and reason of an endpoint's `kv_events`.
pub(crate) fn trust_words(events: &Value) -> String {
    let word = |name: &str| events[name].as_str().unwrap_or("unknown").to_owned();
    format!("{} ({})", word("trust"), word("trust_reason"))
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
