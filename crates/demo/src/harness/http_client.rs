//! [`HttpClient`]: small HTTP/1.1 requests of the harness itself.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::DemoError;

/// More than any page that the harness reads.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Longer than any page should take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP answer, read to its end.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

impl HttpAnswer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client for health, metrics and admin pages.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http() }
    }
}

impl HttpClient {
    /// GET, whatever the status.
    ///
    /// # Errors
    /// [`DemoError::Http`] where there is no answer.
    pub async fn get(&self, address: SocketAddr, path: &str) -> Result<HttpAnswer, DemoError> {
        self.send(http::Method::GET, address, path, Bytes::new()).await
    }

    /// GET, where anything but a 200 is an error.
    ///
    /// # Errors
    /// [`DemoError::Http`].
    pub async fn get_ok(&self, address: SocketAddr, path: &str) -> Result<HttpAnswer, DemoError> {
        let answer = self.get(address, path).await?;
        if answer.status == 200 {
            Ok(answer)
        } else {
            Err(DemoError::Http {
                url: format!("http://{address}{path}"),
                reason: format!("status {}", answer.status),
            })
        }
    }

    /// POST of a JSON body, whatever the status.
    ///
    /// # Errors
    /// [`DemoError::Http`] where there is no answer.
    pub async fn post(&self, address: SocketAddr, path: &str, body: Bytes) -> Result<HttpAnswer, DemoError> {
        self.send(http::Method::POST, address, path, body).await
    }

    async fn send(
        &self,
        method: http::Method,
        address: SocketAddr,
        path: &str,
        body: Bytes,
    ) -> Result<HttpAnswer, DemoError> {
        let url = format!("http://{address}{path}");
        let failed = |reason: String| DemoError::Http { url: url.clone(), reason };
        let request = http::Request::builder()
            .method(method)
            .uri(&url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| failed(error.to_string()))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| failed(error.to_string()))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
            Ok(HttpAnswer { status, body })
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(|_| failed(format!("no answer within {} s", TIMEOUT.as_secs())))?
    }
}
