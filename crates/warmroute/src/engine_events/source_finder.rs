//! Asks engines where they publish KV events.

use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, Uri};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warmroute_config::HttpSourceSpec;

use super::KnownRanks;
use super::event_sources::{EventSources, NoSources};
use super::event_target::{GivenPorts, Told};
use crate::metrics::Metrics;
use crate::pool::{EndpointSpec, EndpointState};
use crate::scrape::{FetchError, HttpSource};
use crate::tls::ClientTlsError;

/// First and longest pause between questions to one engine; doubled each time, with jitter.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An answer that held for this long starts the pauses anew.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Longest wait for the first answer; after it the configured port is followed.
const FIRST_ANSWER: Duration = Duration::from_secs(2);
/// Engines that are asked at the same time.
const QUESTIONS_AT_ONCE: usize = 32;

/// Asks engines for `GET /kv_event_sources`, on the port on which they serve.
#[derive(Clone, Debug)]
pub struct SourceFinder {
    source: HttpSource,
    given: GivenPorts,
    ranks: Arc<KnownRanks>,
    at_once: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl SourceFinder {
    /// A finder that speaks with engines as the source of metrics does.
    ///
    /// # Errors
    /// A certificate or key file isn't usable.
    pub fn try_new(
        metrics_source: Option<&HttpSourceSpec>,
        given: GivenPorts,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientTlsError> {
        let source = HttpSource::try_new(&HttpSourceSpec::kv_event_sources(metrics_source))?;
        let at_once = Arc::new(Semaphore::new(QUESTIONS_AT_ONCE));
        Ok(Self { source, given, ranks: Arc::default(), at_once, metrics })
    }

    /// The ranks that engines list.
    pub fn ranks(&self) -> Arc<KnownRanks> {
        self.ranks.clone()
    }

    /// A question for the engine at an endpoint's address, and what will be known of the answer.
    pub fn question(&self, endpoint: &EndpointState) -> (SourceWatch, SourceQuestion) {
        let (told, receiver) = watch::channel(Told::NotAsked);
        let ask_again = Arc::new(Notify::new());
        let watch = SourceWatch { told: receiver, ask_again: ask_again.clone(), given: self.given };
        let (spec, gone) = (endpoint.spec.clone(), endpoint.gone.clone());
        (watch, SourceQuestion { finder: self.clone(), spec, gone, told, ask_again })
    }
}

/// What an engine says of its publishers, now and later.
#[derive(Clone, Debug)]
pub struct SourceWatch {
    told: watch::Receiver<Told>,
    ask_again: Arc<Notify>,
    pub(super) given: GivenPorts,
}

impl SourceWatch {
    /// What is known, after the first answer or a while.
    pub(super) async fn first(&mut self) -> Told {
        let asked = self.told.wait_for(|told| *told != Told::NotAsked);
        match tokio::time::timeout(FIRST_ANSWER, asked).await {
            Ok(Ok(told)) => told.clone(),
            _ => Told::Nothing,
        }
    }

    /// The next thing that it says. Never comes once nobody asks any more.
    pub(super) async fn next(&mut self) -> Told {
        if self.told.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.told.borrow_and_update().clone()
    }

    /// Who has it asked again: a connection that ended is a sign of another engine.
    pub(super) fn ask_again(&self) -> Arc<Notify> {
        self.ask_again.clone()
    }
}

/// The question to one engine, asked for as long as its endpoint is in the pool.
#[derive(Debug)]
pub struct SourceQuestion {
    finder: SourceFinder,
    spec: EndpointSpec,
    gone: CancellationToken,
    told: watch::Sender<Told>,
    ask_again: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum QuestionError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    NoSources(#[from] NoSources),
}

impl QuestionError {
    /// The `outcome` label of the metric.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Fetch(FetchError::Status(StatusCode::NOT_FOUND)) => "absent",
            Self::Fetch(FetchError::Status(_)) => "refused",
            Self::Fetch(_) => "failed",
            Self::NoSources(_) => "not-understood",
        }
    }

    /// Whether the engine has answered, so that asking again gives the same.
    fn is_answer(&self) -> bool {
        match self {
            Self::Fetch(FetchError::Status(status)) => status.is_client_error(),
            Self::Fetch(_) => false,
            Self::NoSources(_) => true,
        }
    }
}

impl SourceQuestion {
    /// Asks at once, again until there is an answer, and again when a connection to the engine's publisher ends.
    pub async fn run(self) {
        self.gone.run_until_cancelled(self.ask_forever()).await;
    }

    async fn ask_forever(&self) {
        let uri = match self.finder.source.uri(&self.spec) {
            Ok(uri) => uri,
            Err(error) => {
                self.note(Err(error.into()));
                return;
            }
        };
        let mut pause = FIRST_PAUSE;
        loop {
            // Closed never; if it were, questions would be asked without a limit.
            let permit = self.finder.at_once.acquire().await.ok();
            let answer = self.ask(&uri).await;
            drop(permit);
            let asked = Instant::now();
            if self.note(answer) {
                self.ask_again.notified().await;
            }
            if asked.elapsed() > STABLE_AFTER {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn ask(&self, uri: &Uri) -> Result<EventSources, QuestionError> {
        Ok(EventSources::read(&self.finder.source.fetch(uri).await?)?)
    }

    /// Tells what came of it, and returns whether it is an answer. A question that fails changes nothing that is known.
    fn note(&self, answer: Result<EventSources, QuestionError>) -> bool {
        let count = |outcome| self.finder.metrics.events.source_questions.with_label_values(&[outcome]).inc();
        let address = self.spec.address();
        match answer {
            Ok(sources) => {
                count("answered");
                let ranks = sources.ranks();
                let is_new = self.tell(Told::Sources(sources));
                if is_new {
                    tracing::info!(endpoint = %address, ?ranks, "the engine says where it publishes KV events");
                }
                self.finder.ranks.tell(&self.spec.host, self.spec.port, ranks);
                true
            }
            Err(error) => {
                count(error.outcome());
                tracing::debug!(endpoint = %address, %error, "the engine doesn't say where it publishes KV events");
                if error.is_answer() {
                    self.tell(Told::Nothing);
                    self.finder.ranks.tell(&self.spec.host, self.spec.port, Vec::new());
                } else if *self.told.borrow() == Told::NotAsked {
                    self.tell(Told::Nothing);
                }
                error.is_answer()
            }
        }
    }

    /// Returns whether it is new.
    fn tell(&self, now: Told) -> bool {
        self.told.send_if_modified(|told| {
            let is_new = *told != now;
            *told = now;
            is_new
        })
    }
}
