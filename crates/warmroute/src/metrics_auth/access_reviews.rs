use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::timed_cache::{Digest, TimedCache};

/// Longest time for all questions of one request, as at controller-runtime.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a token stands for its user, as there.
const USER_FOR: Duration = Duration::from_secs(60);
/// How long a token that stands for nobody isn't asked for again.
const NOBODY_FOR: Duration = Duration::from_secs(10);
/// How long a permission holds, as at controller-runtime.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
/// How long a refusal holds, as there.
const DENIED_FOR: Duration = Duration::from_secs(30);
/// Answers kept of each kind.
const KEPT: usize = 1024;
/// Requests that ask the API server at the same time; strangers can make them up.
const AT_ONCE: usize = 8;
/// Longest token; a service account's has about 1 KiB.
const LONGEST_TOKEN_BYTES: usize = 16 * 1024;

/// What the Kubernetes API says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go ahead.
    Granted,
    /// The token stands for nobody.
    Nobody,
    /// Its user may not.
    Denied {
        /// Their name.
        user: Arc<str>,
    },
}

/// The Kubernetes API gave no verdict.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It refused to answer, or couldn't.
    #[error("a {kind} failed: {source}")]
    Api {
        /// The kind of object that was created.
        kind: &'static str,
        /// Why.
        source: Box<kube::Error>,
    },
    /// This picker itself may not ask.
    #[error(
        "this picker may not create {kind}s: bind its service account to a ClusterRole that may create tokenreviews \
         (authentication.k8s.io) and subjectaccessreviews (authorization.k8s.io), or give --metrics-endpoint-auth=false"
    )]
    Forbidden {
        /// The kind of object.
        kind: &'static str,
    },
    /// The answer has no status.
    #[error("a {kind} came back without a status")]
    NoStatus {
        /// The kind of object.
        kind: &'static str,
    },
    /// No answer in time.
    #[error("no answer of the Kubernetes API within {} s", ANSWER_WITHIN.as_secs())]
    Deadline,
}

impl ReviewError {
    fn of(kind: &'static str) -> impl Fn(kube::Error) -> Self {
        move |error| match error {
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden { kind },
            other => Self::Api { kind, source: Box::new(other) },
        }
    }
}

/// Asks the Kubernetes API whose a token is and what they may, and remembers the answers for a while.
pub struct AccessReviews {
    client: kube::Client,
    slots: Semaphore,
    users: TimedCache<Option<Arc<UserInfo>>>,
    permissions: TimedCache<bool>,
}

impl AccessReviews {
    /// Asks by this client.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            slots: Semaphore::new(AT_ONCE),
            users: TimedCache::new(KEPT),
            permissions: TimedCache::new(KEPT),
        }
    }

    /// Whether who has this token may do `verb` at `path`.
    ///
    /// # Errors
    /// There is no answer within 10 s.
    pub async fn verdict(
        &self,
        token: &str,
        verb: &str,
        path: &str,
        now: Instant,
    ) -> Result<Verdict, ReviewError> {
        if token.len() > LONGEST_TOKEN_BYTES {
            return Ok(Verdict::Nobody);
        }
        let asked = self.ask(token, verb, path, now);
        tokio::time::timeout(ANSWER_WITHIN, asked).await.map_err(|_| ReviewError::Deadline)?
    }

    async fn ask(&self, token: &str, verb: &str, path: &str, now: Instant) -> Result<Verdict, ReviewError> {
        let token_digest: Digest = Sha256::digest(token).into();
        let user = match self.users.get(&token_digest, now) {
            Some(user) => user,
            None => {
                let user = self.user_of(token).await?.map(Arc::new);
                let hold = if user.is_some() { USER_FOR } else { NOBODY_FOR };
                self.users.put(token_digest, user.clone(), now + hold);
                user
            }
        };
        let Some(user) = user else { return Ok(Verdict::Nobody) };
        let mut digest = Sha256::new_with_prefix(token_digest);
        // A verb has no line break, so no two pairs look the same.
        digest.update(verb);
        digest.update("\n");
        digest.update(path);
        let request: Digest = digest.finalize().into();
        let allowed = match self.permissions.get(&request, now) {
            Some(allowed) => allowed,
            None => {
                let allowed = self.may(&user, verb, path).await?;
                self.permissions.put(request, allowed, now + if allowed { ALLOWED_FOR } else { DENIED_FOR });
                allowed
            }
        };
        let name = || user.username.as_deref().unwrap_or_default().into();
        Ok(if allowed { Verdict::Granted } else { Verdict::Denied { user: name() } })
    }

    async fn user_of(&self, token: &str) -> Result<Option<UserInfo>, ReviewError> {
        const KIND: &str = "TokenReview";
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(ReviewError::of(KIND))?;
        let status = answer.status.ok_or(ReviewError::NoStatus { kind: KIND })?;
        if let Some(error) = &status.error {
            tracing::debug!(error, "the Kubernetes API couldn't check a token");
        }
        Ok(if status.authenticated == Some(true) { Some(status.user.unwrap_or_default()) } else { None })
    }

    async fn may(&self, user: &UserInfo, verb: &str, path: &str) -> Result<bool, ReviewError> {
        const KIND: &str = "SubjectAccessReview";
        let spec = SubjectAccessReviewSpec {
            user: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(path.to_owned()),
                verb: Some(verb.to_owned()),
            }),
            resource_attributes: None,
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let _slot = self.slots.acquire().await;
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(ReviewError::of(KIND))?;
        let status = answer.status.ok_or(ReviewError::NoStatus { kind: KIND })?;
        Ok(status.allowed && status.denied != Some(true))
    }
}
