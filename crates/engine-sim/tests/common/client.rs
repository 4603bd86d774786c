//! A plain HTTP/1.1 client for the engine's API.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// One engine's API.
#[derive(Clone)]
pub(crate) struct ApiClient {
    base: String,
    client: Client<HttpConnector, Full<bytes::Bytes>>,
}

impl ApiClient {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { base: format!("http://{address}"), client: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: String,
    ) -> http::Response<hyper::body::Incoming> {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap();
        self.client.request(request).await.unwrap()
    }

    /// POSTs JSON to one data-parallel rank.
    pub(crate) async fn post_to_rank(&self, path: &str, rank: &str, body: Value) -> (u16, Value) {
        let request = http::Request::post(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .header("X-data-parallel-rank", rank)
            .body(Full::from(body.to_string()))
            .unwrap();
        let response = self.client.request(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    pub(crate) async fn text(&self, method: &str, path: &str, body: String) -> (u16, String) {
        let response = self.send(method, path, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.text("GET", path, String::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.text("POST", path, body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The value of the first sample whose line starts so.
    pub(crate) async fn metric(&self, start: &str) -> f64 {
        let (_, page) = self.get("/metrics").await;
        let line = page.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}
