//! What can go wrong while the demo runs.

use std::path::PathBuf;
use std::time::Duration;

/// An error of the demo, its harness or its load generator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A tool that the harness needs is not where it is looked for.
    #[error("{what} not found at {}: {hint}", path.display())]
    ToolMissing {
        /// The tool.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// Something that a scenario expects did not come out.
    #[error("not as expected: {}", missed.join("; "))]
    Missed {
        /// Each expectation that was missed, in words.
        missed: Vec<String>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A process could not be started.
    #[error("cannot start {name}")]
    Start {
        /// The process, as its log is named.
        name: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A process ended that should still be running.
    #[error("{name} ended early ({status}); the end of {}:\n{tail}", log.display())]
    EndedEarly {
        /// The process.
        name: String,
        /// Its exit status, in words.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of that log.
        tail: String,
    },
    /// A process runs but did not become ready.
    #[error("{name} was not ready after {waited:?} (last answer: {last}); the end of {}:\n{tail}", log.display())]
    NotReady {
        /// The process.
        name: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the last probe said.
        last: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of that log.
        tail: String,
    },
    /// No port was free on all addresses.
    #[error("no port between {low} and {high} is free on {address} and its neighbours")]
    NoFreePort {
        /// The lowest port tried.
        low: u16,
        /// The highest port tried.
        high: u16,
        /// The first address it had to be free on.
        address: String,
    },
    /// An HTTP request of the harness itself failed.
    #[error("GET {url}: {reason}")]
    Http {
        /// The URL.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// A metrics page could not be understood.
    #[error("line {line} of the metrics page is no sample: {text:?}")]
    MetricsText {
        /// The line, counted from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// A metric that the report needs is not on the page.
    #[error("the metrics page of {source_name} has no {metric}")]
    MetricMissing {
        /// Whose page.
        source_name: String,
        /// The metric.
        metric: &'static str,
    },
    /// The scenario file is wrong.
    #[error("{}: {reason}", path.display())]
    Scenario {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A scenario or policy was asked for that does not exist.
    #[error("there is no {kind} {name:?}; there are {}", known.join(", "))]
    Unknown {
        /// "scenario" or "policy".
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A prompt could not be tokenised, so that its ceiling is unknown.
    #[error("cannot tokenise a request of scenario {scenario}: {reason}")]
    Tokens {
        /// The scenario.
        scenario: String,
        /// What the tokenizer said.
        reason: String,
    },
}

impl DemoError {
    /// For `map_err`: wraps an IO error with what was tried on which file.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
