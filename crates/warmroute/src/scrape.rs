//! Fetches each engine's metrics page at a fixed interval and publishes what picking needs; asks for its models too.

mod exposition;
mod extractor;
mod http_source;
mod models_poller;
mod page_reader;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use tokio::time::MissedTickBehavior;

pub use extractor::Extractor;
pub use http_source::{FetchError, HttpSource};
pub use models_poller::{MODELS_INTERVAL, ModelsPoller};
pub use page_reader::{NoLoad, PageContent, PageReader};

use crate::metrics::Metrics;
use crate::pool::EndpointState;

/// Shortest interval, as at the llm-d Router EPP.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

const SOURCE: &str = "metrics-data-source";
const EXTRACTOR: &str = "core-metrics-extractor";

/// Why one scrape gave nothing.
#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("page is not UTF-8")]
    NotText,
    #[error(transparent)]
    NoLoad(#[from] NoLoad),
}

/// Scrapes engines; one for the process, so that connections are kept.
#[derive(Clone, Debug)]
pub struct Scraper {
    source: HttpSource,
    interval: Duration,
    extractor: Arc<Extractor>,
    metrics: Arc<Metrics>,
}

impl Scraper {
    /// A scraper of that page at every endpoint, every `interval` or [`SHORTEST_INTERVAL`].
    pub fn new(source: HttpSource, interval: Duration, extractor: Extractor, metrics: Arc<Metrics>) -> Self {
        Self { source, interval: interval.max(SHORTEST_INTERVAL), extractor: Arc::new(extractor), metrics }
    }

    /// Scrapes one endpoint until it leaves the pool. Says once when scraping begins to fail and once when it works
    /// again; every failure is counted.
    pub async fn run(self, endpoint: Arc<EndpointState>) {
        self.run_rows(vec![endpoint]).await;
    }

    /// The same for the ranks of one address, whose page has them all: it is fetched once. They leave together.
    pub async fn run_rows(self, rows: Vec<Arc<EndpointState>>) {
        let Some(first) = rows.first() else { return };
        first.gone.run_until_cancelled(self.scrape_forever(first, &rows)).await;
    }

    async fn scrape_forever(&self, endpoint: &EndpointState, rows: &[Arc<EndpointState>]) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let address = &endpoint.endpoint.address;
        let uri = match self.source.uri(&endpoint.spec) {
            Ok(uri) => uri,
            Err(error) => {
                // Without a URL there is nothing to try again.
                self.metrics.pool.scrape_errors.with_label_values(&[SOURCE]).inc();
                tracing::warn!(endpoint = %address, %error, "metrics are never read");
                return;
            }
        };
        let mut labelled = endpoint.labelled();
        let mut reader = self.extractor.reader(&labelled.labels);
        let mut failing = false;
        let mut missing = Vec::new();
        loop {
            ticks.tick().await;
            let now = endpoint.labelled();
            if !Arc::ptr_eq(&labelled, &now) {
                reader = self.extractor.reader(&now.labels);
                labelled = now;
            }
            match self.scrape(rows, reader, &uri).await {
                Ok(now_missing) => {
                    if failing {
                        tracing::info!(endpoint = %address, "metrics are read again");
                    }
                    failing = false;
                    if !now_missing.is_empty() {
                        self.count_extract_error();
                    }
                    if missing != now_missing {
                        missing = now_missing;
                        say_missing(address, &missing);
                    }
                }
                Err(error) => {
                    match error {
                        ScrapeError::Fetch(_) => {
                            self.metrics.pool.scrape_errors.with_label_values(&[SOURCE]).inc();
                        }
                        ScrapeError::NotText | ScrapeError::NoLoad(_) => self.count_extract_error(),
                    }
                    if !failing {
                        tracing::warn!(endpoint = %address, %error,
                            "metrics can't be read: the endpoint scores below every one whose metrics are fresh");
                    }
                    failing = true;
                }
            }
        }
    }

    fn count_extract_error(&self) {
        self.metrics.pool.extract_errors.with_label_values(&[SOURCE, EXTRACTOR]).inc();
    }

    /// Publishes what the page says of each row, and returns what it lacks of any.
    async fn scrape(
        &self,
        rows: &[Arc<EndpointState>],
        reader: &PageReader,
        uri: &Uri,
    ) -> Result<Vec<String>, ScrapeError> {
        let page = self.source.fetch(uri).await?;
        let text = std::str::from_utf8(&page).map_err(|_| ScrapeError::NotText)?;
        let (at, mut missing, mut failed) = (Instant::now(), Vec::new(), None);
        for row in rows {
            match reader.read_ranks(text, at, row.last_scrape().as_deref(), row.spec.ranks) {
                Ok(content) => {
                    row.publish_scrape(content.scrape.followed_after(self.interval));
                    missing = if missing.is_empty() { content.missing } else { missing };
                }
                // The others' numbers are none the worse for it.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(missing), |error| Err(error.into()))
    }
}

fn say_missing(address: &str, missing: &[String]) {
    if missing.is_empty() {
        tracing::info!(endpoint = %address, "the metrics page has all that is read again");
    } else {
        tracing::warn!(endpoint = %address, missing = missing.join(", "),
            "the metrics page lacks some of what is read: the last values stay, or 0 without any");
    }
}
