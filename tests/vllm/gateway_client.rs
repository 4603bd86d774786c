//! [`GatewayClient`]: sends a request under an id and reads the whole answer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Far more than an answer of a few tokens takes on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);

/// A client of any address.
#[derive(Debug, Clone)]
pub(crate) struct GatewayClient(Client<HttpConnector, Full<Bytes>>);

/// An answer that isn't 200.
#[derive(Debug, thiserror::Error)]
#[error("status {status}: {text}")]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Default for GatewayClient {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }
}

impl GatewayClient {
    /// POSTs JSON under a request id and returns the body of a 200: of a stream, its last event with usage.
    ///
    /// # Errors
    /// [`Refused`] for another status; no answer, a broken one, or one that is no JSON.
    pub(crate) async fn post(
        &self,
        address: SocketAddr,
        path: &str,
        request_id: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let request = http::Request::post(format!("http://{address}{path}"))
            .header("content-type", "application/json")
            .header("x-request-id", request_id)
            .body(Full::new(Bytes::from(body.to_string())))?;
        let exchange = async {
            let (head, answer) = self.0.request(request).await?.into_parts();
            anyhow::Ok((head.status.as_u16(), answer.collect().await?.to_bytes()))
        };
        let (status, answer) = tokio::time::timeout(ANSWER_LIMIT, exchange)
            .await
            .with_context(|| format!("{request_id}: no answer within {ANSWER_LIMIT:?}"))?
            .with_context(|| format!("{request_id}: no answer"))?;
        if status != 200 {
            bail!(Refused { status, text: String::from_utf8_lossy(&answer).chars().take(300).collect() });
        }
        let text = String::from_utf8_lossy(&answer);
        if body["stream"] == true {
            last_usage(&text)
        } else {
            serde_json::from_str(&text).map_err(Into::into)
        }
        .with_context(|| format!("{request_id}: the answer can't be read"))
    }
}

/// The last event of a stream that has usage.
fn last_usage(stream: &str) -> anyhow::Result<Value> {
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let mut events = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    events.rfind(|event| event["usage"].is_object()).context("the stream has no usage")
}
