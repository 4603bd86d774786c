//! Asks the metrics port of a running picker, for commands.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest answer.
const LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// The page at `path` of the picker at `base`, a URL.
///
/// # Errors
/// The picker can't be reached, or its answer not read; the error says what to do.
pub(crate) async fn get(base: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let base = base.trim_end_matches('/');
    let url = format!("{base}{path}");
    let uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = tokio::time::timeout(ANSWER_WITHIN, client.get(uri)).await;
    let response =
        response.with_context(|| format!("no answer from {base} within 10 seconds"))?.with_context(|| {
            format!("can't reach {base}: is the picker running? --address names its metrics port")
        })?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIMIT_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("answer of {url} not readable: {error}"))?;
    Ok((status, body.to_bytes()))
}
