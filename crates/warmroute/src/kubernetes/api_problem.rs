//! Why an API server doesn't tell what it is asked for.

use std::time::Duration;

/// Longest wait that a server may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// What kind of failure it is, as in the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiCause {
    /// 401: the credentials aren't accepted.
    Unauthorized,
    /// 403: the service account has no such right.
    Forbidden,
    /// 404: the server knows no such kind.
    NotInstalled,
    /// 410: the resource version isn't kept any more. That is usual, and everything is listed anew.
    Expired,
    /// A watch ended before its time. That is usual where an API server is replaced, and everything is listed anew.
    EndedEarly,
    /// 429: the server has too much to do.
    Overloaded,
    /// 5xx.
    ServerError,
    /// No answer in time.
    NoAnswer,
    /// No connection, or one that broke.
    Unreachable,
    /// Something else.
    Other,
}

impl ApiCause {
    /// The word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotInstalled => "not-installed",
            Self::Expired => "expired",
            Self::EndedEarly => "ended-early",
            Self::Overloaded => "overloaded",
            Self::ServerError => "server-error",
            Self::NoAnswer => "no-answer",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
        }
    }

    /// Whether it is no outage, unless it happens again and again.
    pub(super) fn is_usual(self) -> bool {
        matches!(self, Self::Expired | Self::EndedEarly)
    }

    /// Whether it lasts until somebody does something.
    pub(super) fn is_denial(self) -> bool {
        matches!(self, Self::Unauthorized | Self::Forbidden | Self::NotInstalled)
    }
}

/// A failure.
#[derive(Clone, Debug)]
pub(super) struct ApiProblem {
    /// Its kind.
    pub(super) cause: ApiCause,
    /// What was seen.
    pub(super) detail: String,
    /// Before this the server doesn't want to be asked again.
    pub(super) retry_after: Duration,
}

impl ApiProblem {
    /// What an error means.
    pub(super) fn of(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else {
            let cause = match &error {
                kube::Error::Service(_) | kube::Error::HyperError(_) | kube::Error::ReadEvents(_) => {
                    ApiCause::Unreachable
                }
                _ => ApiCause::Other,
            };
            return Self { cause, detail: chain(&error), retry_after: Duration::ZERO };
        };
        let cause = match status.code {
            401 => ApiCause::Unauthorized,
            403 => ApiCause::Forbidden,
            404 => ApiCause::NotInstalled,
            410 => ApiCause::Expired,
            429 => ApiCause::Overloaded,
            500.. => ApiCause::ServerError,
            _ => ApiCause::Other,
        };
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        Self {
            cause,
            detail: format!("{} {}", status.code, status.message.trim()),
            retry_after: Duration::from_secs(seconds.into()).min(LONGEST_RETRY_AFTER),
        }
    }

    /// Nothing came in this time.
    pub(super) fn no_answer(waited: Duration) -> Self {
        let detail = format!("no answer within {:.1} s", waited.as_secs_f64());
        Self { cause: ApiCause::NoAnswer, detail, retry_after: Duration::ZERO }
    }

    /// The server ended a watch before its time.
    pub(super) fn ended_early() -> Self {
        let detail = "the API server ends watches before their time".to_owned();
        Self { cause: ApiCause::EndedEarly, detail, retry_after: Duration::ZERO }
    }

    /// A list has no resource version to go on from.
    pub(super) fn no_version() -> Self {
        let detail = "the list has no resourceVersion".to_owned();
        Self { cause: ApiCause::Other, detail, retry_after: Duration::ZERO }
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
