//! Fetches each engine's metrics page at a fixed interval and publishes what picking needs.

mod exposition;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::MissedTickBehavior;

pub use exposition::{MetricNames, MissingMetric, VLLM, read_page};

use crate::metrics::Metrics;
use crate::pool::{EndpointState, host_port};

/// Largest page read; a vLLM page has 50 to 70 KB.
const PAGE_LIMIT_BYTES: usize = 8 * 1024 * 1024;
/// Longest time for one fetch, as at the llm-d Router EPP.
const FETCH_DEADLINE: Duration = Duration::from_secs(1);
/// Shortest interval, as at the llm-d Router EPP.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);

/// Why one fetch gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// No whole answer in time.
    #[error("no answer within {}ms", FETCH_DEADLINE.as_millis())]
    Deadline,
    /// The connection failed.
    #[error("can't connect: {0}")]
    Connect(#[source] hyper_util::client::legacy::Error),
    /// An HTTP status other than 200.
    #[error("answered {0}")]
    Status(http::StatusCode),
    /// The page broke off or is over the limit.
    #[error("page not readable: {0}")]
    Body(String),
    /// The page is not text in UTF-8.
    #[error("page is not UTF-8")]
    NotText,
    /// A needed value is not on the page.
    #[error(transparent)]
    Missing(#[from] MissingMetric),
    /// The endpoint's address makes no URL.
    #[error("address makes no URL: {0}")]
    Url(#[from] http::uri::InvalidUri),
}

/// Scrapes engines; one for the process, so that connections are kept.
#[derive(Clone, Debug)]
pub struct Scraper {
    client: Client<HttpConnector, Empty<Bytes>>,
    page: MetricsPage,
    metrics: Arc<Metrics>,
}

/// Where engines show their metrics, and how often to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsPage {
    /// Path of the page.
    pub path: String,
    /// Its port; None for the endpoint's own.
    pub port: Option<u16>,
    /// How often it is fetched; [`SHORTEST_INTERVAL`] at least.
    pub interval: Duration,
}

impl Scraper {
    /// A scraper of that page at every endpoint.
    pub fn new(page: MetricsPage, metrics: Arc<Metrics>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(FETCH_DEADLINE));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { client, page, metrics }
    }

    /// Scrapes one endpoint until it leaves the pool. Says once when scraping begins to fail and once when it works
    /// again; every failure is counted.
    pub async fn run(self, endpoint: Arc<EndpointState>) {
        let gone = endpoint.gone.clone();
        gone.run_until_cancelled(self.scrape_forever(&endpoint)).await;
    }

    async fn scrape_forever(&self, endpoint: &EndpointState) {
        let interval = self.page.interval.max(SHORTEST_INTERVAL);
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        let address = host_port(&endpoint.spec.host, self.page.port.unwrap_or(endpoint.spec.port));
        loop {
            ticks.tick().await;
            match self.fetch(&address).await {
                Ok(metrics) => {
                    endpoint.scraped_every(interval, metrics, Instant::now());
                    if failing {
                        tracing::info!(endpoint = %endpoint.endpoint.address, "metrics are read again");
                    }
                    failing = false;
                }
                Err(error) => {
                    self.metrics.pool.scrape_errors.with_label_values(&["metrics-data-source"]).inc();
                    if !failing {
                        tracing::warn!(endpoint = %endpoint.endpoint.address, %error,
                            "metrics can't be read: the endpoint scores below every one whose metrics are fresh");
                    }
                    failing = true;
                }
            }
        }
    }

    async fn fetch(&self, address: &str) -> Result<warmroute_plugin::EndpointMetrics, ScrapeError> {
        let fetch = async {
            let uri = format!("http://{address}{}", self.page.path).parse()?;
            let response = self.client.get(uri).await.map_err(ScrapeError::Connect)?;
            if response.status() != http::StatusCode::OK {
                return Err(ScrapeError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), PAGE_LIMIT_BYTES).collect().await;
            let page = body.map_err(|error| ScrapeError::Body(error.to_string()))?.to_bytes();
            let text = std::str::from_utf8(&page).map_err(|_| ScrapeError::NotText)?;
            Ok(read_page(&VLLM, text)?)
        };
        tokio::time::timeout(FETCH_DEADLINE, fetch).await.map_err(|_| ScrapeError::Deadline)?
    }
}
