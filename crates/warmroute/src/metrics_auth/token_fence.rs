use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use super::{AccessReviews, Verdict};
use crate::metrics::Metrics;
use crate::tls::LogRate;

/// Failed reviews are told at most this often.
const FAILURES_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Lets only those through whose token the Kubernetes API vouches for.
pub struct TokenFence {
    reviews: AccessReviews,
    metrics: Arc<Metrics>,
    failures: LogRate,
}

impl TokenFence {
    /// Asks these reviews.
    pub fn new(reviews: AccessReviews, metrics: Arc<Metrics>) -> Self {
        Self { reviews, metrics, failures: LogRate::new(FAILURES_TOLD_EVERY) }
    }

    /// Puts the fence around every path of a router, also those that it doesn't have.
    pub fn around(self: Arc<Self>, router: Router) -> Router {
        router.layer(from_fn_with_state(self, pass_or_refuse))
    }

    /// The answer instead of the page, in controller-runtime's words.
    async fn refusal(&self, token: Option<String>, verb: &str, path: &str) -> Option<Response> {
        let verdict = match &token {
            None => Ok(Verdict::Nobody),
            Some(token) => self.reviews.verdict(token, verb, path, Instant::now()).await,
        };
        let (outcome, refusal) = match verdict {
            Ok(Verdict::Granted) => ("granted", None),
            Ok(Verdict::Nobody) => {
                let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
                let answer = (StatusCode::UNAUTHORIZED, challenge, "Unauthorized\n").into_response();
                ("unauthorized", Some(answer))
            }
            Ok(Verdict::Denied { user }) => {
                let words = format!("Authorization denied for user {user}\n");
                ("denied", Some((StatusCode::FORBIDDEN, words).into_response()))
            }
            Err(error) => {
                if let Some(left_out) = self.failures.due(Instant::now()) {
                    tracing::error!(left_out, "a request to the metrics port can't be checked: {error}");
                }
                let words = "Authentication failed\n";
                ("failed", Some((StatusCode::INTERNAL_SERVER_ERROR, words).into_response()))
            }
        };
        self.metrics.metrics_port_requests.with_label_values(&[outcome]).inc();
        refusal
    }
}

async fn pass_or_refuse(State(fence): State<Arc<TokenFence>>, request: Request, next: Next) -> Response {
    let verb = request.method().as_str().to_ascii_lowercase();
    let path = request.uri().path().to_owned();
    let token = bearer_token(request.headers()).map(str::to_owned);
    match fence.refusal(token, &verb, &path).await {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// The token of an `authorization` header, whose scheme is read in any case (RFC 9110, section 11.1).
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_the_scheme() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            bearer_token(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        for none in ["Bearer", "Bearer ", "Basic abc", "abc", "Bearerabc"] {
            assert_eq!(of(none), None, "{none:?}");
        }
        assert_eq!(bearer_token(&HeaderMap::new()), None);
    }
}
