//! The metrics port asks for tokens: the API server says whose they are and what they may.

use anyhow::Context;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use warmroute_demo::harness::READY_WITHIN;

use crate::stage::{Rig, Stage, StageOptions, token_of};
use crate::transcript::Row;

pub(crate) async fn run(rig: &mut Rig, row: &mut Row) -> anyhow::Result<()> {
    let options =
        StageOptions { values: "metrics-auth", engines: 1, pickers: 1, ..StageOptions::new("metrics-auth") };
    let mut stage = Stage::open(rig, options).await?;
    stage.pickers[0].until_ready().await?;
    let accounts = stage.manifests.names_of("ServiceAccount");
    let reader =
        accounts.iter().find(|name| name.contains("metrics")).context("the chart makes no scraper")?;
    let picker =
        accounts.iter().find(|name| !name.contains("metrics")).context("the chart makes no picker")?;
    let reader = token_of(&stage.client, &stage.namespace, reader).await?;
    let picker = token_of(&stage.client, &stage.namespace, picker).await?;
    for (who, token, path, wanted) in [
        ("the chart's scraper", Some(reader.as_str()), "/metrics", 200),
        ("the chart's scraper", Some(reader.as_str()), "/status", 403),
        ("another service account", Some(picker.as_str()), "/metrics", 403),
        ("a token that stands for nobody", Some("nonsense"), "/metrics", 401),
        ("no token", None, "/metrics", 401),
    ] {
        let url = format!("http://{}{path}", stage.pickers[0].metrics);
        let status = get(&url, token).await?;
        row.check(status == wanted, format!("{who} gets {status} for {path}, and should get {wanted}"));
    }
    stage.close().await
}

async fn get(url: &str, token: Option<&str>) -> anyhow::Result<u16> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut request = http::Request::get(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Empty::<bytes::Bytes>::new())?;
    let answer = tokio::time::timeout(READY_WITHIN, client.request(request)).await??;
    let status = answer.status().as_u16();
    answer.into_body().collect().await?;
    Ok(status)
}
