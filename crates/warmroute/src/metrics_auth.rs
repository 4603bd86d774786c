//! Who may read the metrics port: bearer tokens that the Kubernetes API vouches for.
//!
//! As at the llm-d Router EPP, which takes it from controller-runtime (`pkg/metrics/filters/filters.go` in
//! github.com/kubernetes-sigs/controller-runtime): a TokenReview says whose the token is, a SubjectAccessReview whether
//! they may do what the HTTP method says (in lower case) at that path.

mod access_reviews;
mod timed_cache;
mod token_fence;

use std::path::Path;
use std::sync::Arc;

pub use access_reviews::{AccessReviews, ReviewError, Verdict};
pub use token_fence::TokenFence;

use crate::kubernetes::{KubernetesError, connect};
use crate::metrics::Metrics;

/// The fence that `--metrics-endpoint-auth` asks for: none if it is false; none if it isn't given and nothing else
/// needs the Kubernetes API, so that a picker outside of a cluster needs no flag. `client` is what the process has.
///
/// # Errors
/// It is asked for, and no API server is known.
pub async fn metrics_fence(
    asked: Option<bool>,
    client: Option<kube::Client>,
    kubeconfig: Option<&Path>,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<TokenFence>>, KubernetesError> {
    let client = match (asked, client) {
        (Some(false), _) => return Ok(None),
        (_, Some(client)) => client,
        (Some(true), None) => connect(kubeconfig).await?,
        (None, None) => {
            tracing::info!(
                "the metrics port asks nobody for a token, since nothing here needs the Kubernetes API: \
                 --metrics-endpoint-auth=true makes it ask, =false says that this is meant"
            );
            return Ok(None);
        }
    };
    Ok(Some(Arc::new(TokenFence::new(AccessReviews::new(client), metrics.clone()))))
}
