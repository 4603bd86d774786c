//! `warmroute doctor`: asks a running picker what it knows of its engines, and what is wrong.

mod cluster_lines;
mod loss_table;

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::DoctorOptions;
use crate::delivered::{CounterVerdict, Finding, LossReport};
use crate::kubernetes::KubernetesReport;
use loss_table::LossTable;

/// What a picker said, as far as the doctor looks at it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Examination {
    /// The findings; empty if nothing is wrong.
    pub findings: Vec<Finding>,
    /// Where cached tokens are lost.
    #[serde(default)]
    pub loss: LossReport,
    /// What is known of the cluster that the endpoints come from, if they come from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesReport>,
    /// The endpoints as the status page shows them.
    pub endpoints: Vec<Value>,
}

/// Asks the picker.
///
/// # Errors
/// The picker can't be reached, or isn't one that has findings; the error says what to do.
pub async fn examine(options: &DoctorOptions) -> anyhow::Result<Examination> {
    let (status, body) = options.picker.get("/status").await?;
    if status != http::StatusCode::OK {
        bail!("{}/status answered {status}", options.picker.base());
    }
    serde_json::from_slice(&body)
        .context("that is no status with findings: is this a Warmroute picker of this version?")
}

impl Examination {
    /// 1 if there are findings, or something is wrong with what the cluster tells.
    pub fn exit_code(&self) -> ExitCode {
        let is_cluster_fine = !self.kubernetes.as_ref().is_some_and(cluster_lines::has_problem);
        if self.findings.is_empty() && is_cluster_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Everything as JSON.
    ///
    /// # Errors
    /// It can't be written as JSON: a mistake in this program.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(format!("{}\n", serde_json::to_string_pretty(self)?))
    }

    /// Everything in words: the cluster, each engine, where cached tokens are lost, then the findings.
    pub fn text(&self) -> String {
        let mut text = self.kubernetes.as_ref().map(cluster_lines::text).unwrap_or_default();
        self.endpoints.iter().for_each(|endpoint| endpoint_lines(&mut text, endpoint));
        let compares =
            |endpoint: &Value| list(endpoint, "deliveries").iter().any(|model| count(model, "requests") > 0);
        if !self.endpoints.is_empty() && !self.endpoints.iter().any(compares) {
            line(
                &mut text,
                "nothing could be compared yet: that needs answers that pass through the picker and tell their usage, or \
                 engines whose counters tell it (docs/operations.md, \"Predicted against delivered\")\n",
            );
        }
        text.push_str(&LossTable::of(&self.loss).text());
        match self.findings.len() {
            0 => line(&mut text, "no findings"),
            1 => line(&mut text, "1 finding"),
            more => line(&mut text, &format!("{more} findings")),
        }
        self.findings.iter().for_each(|finding| finding_lines(&mut text, finding));
        text
    }
}

fn finding_lines(text: &mut String, finding: &Finding) {
    let Finding { cause, model, endpoints, seen, likely, advice } = finding;
    line(text, &format!("\n{}: model {model:?} at {}", cause.as_str(), endpoints.join(", ")));
    line(text, &format!("  seen    {seen}"));
    line(text, &format!("  likely  {likely}"));
    line(text, &format!("  do      {advice}"));
}

fn endpoint_lines(text: &mut String, endpoint: &Value) {
    let rank = endpoint["rank"].as_u64().map_or(String::new(), |rank| format!(" rank {rank}"));
    line(text, &format!("{}{rank}", word(endpoint, "address")));
    let age = endpoint["metrics_age_ms"].as_u64().map_or(String::new(), |age| format!(", {age} ms old"));
    line(text, &format!("  metrics {}{age}", word(endpoint, "metrics")));
    let events = &endpoint["kv_events"];
    let connected = if events["connected"] == true { "connected" } else { "not connected" };
    let size = events["block_size_tokens"]
        .as_u64()
        .map_or("unknown size".to_owned(), |size| format!("{size} tokens"));
    line(
        text,
        &format!(
            "  KV events {connected}: {} blocks of {size} known, {} batches, {} missed, {} restarts, {} events not applied",
            count(events, "blocks"),
            count(events, "batches"),
            count(events, "missed_batches"),
            count(events, "restarts"),
            count(events, "skipped_events"),
        ),
    );
    if let Some(trust) = events["trust"].as_str() {
        line(text, &format!("  trust {trust} ({})", word(events, "trust_reason")));
    }
    if let Some(problem) = events["problem"].as_str() {
        line(text, &format!("  {problem}"));
    }
    for model in list(endpoint, "deliveries") {
        let bias =
            model["bias"].as_f64().map_or("bias unknown".to_owned(), |bias| format!("bias {bias:+.2}"));
        line(
            text,
            &format!(
                "  model {:?}: {} requests compared: {} cached tokens predicted, {} delivered ({} less, {} more than expected), {bias}",
                word(model, "model"),
                count(model, "requests"),
                count(model, "predicted_tokens"),
                count(model, "delivered_tokens"),
                count(model, "over_tokens"),
                count(model, "under_tokens"),
            ),
        );
        let unreported = count(model, "unreported");
        if unreported > 0 {
            line(
                text,
                &format!(
                    "    {unreported} answers without cached tokens (vLLM tells them with --enable-prompt-tokens-details, \
                     and in a stream if the client asks for stream_options.include_usage)"
                ),
            );
        }
    }
    counter_lines(text, &endpoint["counter_requests"]);
    text.push('\n');
}

/// Why the engine's own counters tell nothing of some requests.
fn counter_lines(text: &mut String, requests: &Value) {
    for verdict in CounterVerdict::ALL {
        let (count, why) = (
            count(requests, verdict.as_str()),
            match verdict {
                CounterVerdict::Compared => "compared by the engine's own counters",
                CounterVerdict::OtherTraffic => {
                    "not compared by counters: the engine looked up more tokens than were sent from here, so others send \
                 to it too"
                }
                CounterVerdict::FewerTokens => {
                    "not compared by counters: the engine looked up fewer tokens than were sent; requests were refused or \
                 broken off, or it sees other tokens"
                }
                CounterVerdict::UnknownTokens => {
                    "not compared by counters: requests of which the tokens aren't known were among them"
                }
                CounterVerdict::SeveralModels => {
                    "not compared by counters: they are of several models, which counters don't tell apart"
                }
            },
        );
        if count > 0 {
            line(text, &format!("  {count} requests {why}"));
        }
    }
}

fn word<'a>(of: &'a Value, name: &str) -> &'a str {
    of[name].as_str().unwrap_or("unknown")
}

fn count(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or(0)
}

fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of[name].as_array().map_or(&[], Vec::as_slice)
}

fn line(text: &mut String, words: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::delivered::Cause;

    fn endpoint(deliveries: Value) -> Value {
        json!({"address": "10.0.0.1:8000", "metrics": "fresh", "metrics_age_ms": 7, "deliveries": deliveries,
            "kv_events": {"connected": true, "block_size_tokens": 16, "blocks": 3, "batches": 2,
                "missed_batches": 1, "trust": "doubtful", "trust_reason": "gap"},
            "counter_requests": {"other-traffic": 12}})
    }

    fn examination(deliveries: Value) -> Examination {
        Examination {
            findings: Vec::new(),
            loss: LossReport::default(),
            kubernetes: None,
            endpoints: vec![endpoint(deliveries)],
        }
    }

    #[test]
    fn engines_and_findings_are_told() {
        let deliveries = json!([{"model": "m", "requests": 40, "unreported": 2, "predicted_tokens": 640,
            "delivered_tokens": 0, "over_tokens": 640, "under_tokens": 0, "bias": -1.0}]);
        let finding = Finding {
            cause: Cause::TokensDiffer,
            model: "m".to_owned(),
            endpoints: vec!["10.0.0.1:8000".to_owned(), "10.0.0.2:8000".to_owned()],
            seen: "this".to_owned(),
            likely: "that".to_owned(),
            advice: "so".to_owned(),
        };
        let examination = Examination { findings: vec![finding], ..examination(deliveries) };
        let text = examination.text();
        for part in [
            "10.0.0.1:8000\n  metrics fresh, 7 ms old\n",
            "KV events connected: 3 blocks of 16 tokens known, 2 batches, 1 missed",
            "  trust doubtful (gap)\n",
            "model \"m\": 40 requests compared: 640 cached tokens predicted, 0 delivered (640 less, 0 more than expected), bias -1.00",
            "    2 answers without cached tokens",
            "  12 requests not compared by counters: the engine looked up more tokens",
            "1 finding\n\ntokens-differ: model \"m\" at 10.0.0.1:8000, 10.0.0.2:8000\n  seen    this\n  likely  that\n  do      so\n",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert_eq!(examination.exit_code(), ExitCode::FAILURE);
    }

    #[test]
    fn a_healthy_pool_and_one_that_shows_no_answers() {
        let examination = examination(json!([]));
        let text = examination.text();
        assert!(text.contains("nothing could be compared yet") && text.ends_with("no findings\n"), "{text}");
        assert_eq!(examination.exit_code(), ExitCode::SUCCESS);
    }
}
