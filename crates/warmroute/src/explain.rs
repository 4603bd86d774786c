//! `warmroute explain`: fetches a receipt from a running picker and prints it for people.

use std::fmt::Write;

use anyhow::{Context, bail};

use crate::cli::ExplainOptions;
use crate::receipt::{AdmissionLine, CandidateLine, HandlerLine, ProfileLine, Receipt};

/// Fetches the receipt and gives the text to print.
///
/// # Errors
/// The picker can't be reached or doesn't have that receipt; the error says what to do.
pub async fn explain(options: &ExplainOptions) -> anyhow::Result<String> {
    let path = format!("/debug/decisions/{}", options.id);
    let (status, body) = options.picker.get(&path).await?;
    let base = options.picker.base();
    if status == http::StatusCode::NOT_FOUND {
        bail!("no decision {:?} there: the newest ones are listed at {base}/debug/decisions", options.id);
    }
    if status != http::StatusCode::OK {
        bail!("{base}{path} answered {status}");
    }
    if options.json {
        return Ok(String::from_utf8_lossy(&body).into_owned());
    }
    let receipt: Receipt =
        serde_json::from_slice(&body).context("that is no receipt: is this a Warmroute picker?")?;
    Ok(describe(&receipt))
}

/// A receipt in words and a table.
pub fn describe(receipt: &Receipt) -> String {
    let mut text = String::new();
    let pick = match (&receipt.pick, &receipt.refusal) {
        (Some(pick), _) => format!("sent to {pick}"),
        (None, Some(refusal)) => format!("refused: {refusal}"),
        (None, None) => "not decided".to_owned(),
    };
    line(&mut text, format_args!("decision {} (request {}): {pick}", receipt.id, receipt.request_id));
    request_line(&mut text, receipt);
    if !receipt.target_model.is_empty() {
        let by = match receipt.model_rewrite.as_str() {
            "" => "a header".to_owned(),
            rewrite => format!("InferenceModelRewrite {rewrite}"),
        };
        line(&mut text, format_args!("  the engine is asked for model {:?}, by {by}", receipt.target_model));
    }
    if !receipt.objective.is_empty() || receipt.priority != 0 {
        line(&mut text, format_args!("  objective {:?}: priority {}", receipt.objective, receipt.priority));
    }
    if let Some(admission) = &receipt.admission {
        line(&mut text, format_args!("  {}", admission_words(admission)));
    }
    if receipt.pick.is_some() {
        line(
            &mut text,
            format_args!(
                "  predicted to be served from its KV cache: {} tokens ({} with what is expected there soon)",
                receipt.predicted_cached_tokens, receipt.expected_cached_tokens
            ),
        );
    }
    delivered_line(&mut text, receipt);
    prefix_producer_line(&mut text, receipt);
    if receipt.asked_for_report {
        line(&mut text, format_args!("  the engine was asked to announce again what it holds of the prompt"));
    }
    if let Some(runner_up) = &receipt.runner_up {
        line(&mut text, format_args!("  runner-up {runner_up}"));
    }
    let steps = &receipt.steps;
    line(
        &mut text,
        format_args!(
            "  time: {} µs receiving, {} µs prompt to block keys, {} µs deciding",
            steps.receive_us, steps.prompt_us, steps.decide_us
        ),
    );
    if let Some(handler) = &receipt.handler {
        handler_lines(&mut text, handler, receipt);
    }
    fallback_lines(&mut text, receipt);
    if !receipt.candidates.is_empty() {
        text.push('\n');
        candidate_table(&mut text, &receipt.candidates, receipt.pick.as_deref());
    }
    omitted_line(&mut text, receipt.candidates_considered, receipt.candidates.len());
    for profile in &receipt.other_profiles {
        text.push('\n');
        profile_lines(&mut text, profile, receipt.candidates_considered);
    }
    text
}

/// What was asked.
fn request_line(text: &mut String, receipt: &Receipt) {
    let tokens = match (receipt.prompt_tokens, receipt.prompt_tokens_estimated) {
        (Some(tokens), false) => tokens.to_string(),
        (Some(tokens), true) => format!("about {tokens} (estimated)"),
        (None, _) => "unknown".to_owned(),
    };
    line(
        text,
        format_args!(
            "  model {:?}, {}{}, {} body bytes, {tokens} prompt tokens in {} blocks",
            receipt.model,
            receipt.api,
            if receipt.stream { ", streamed" } else { "" },
            receipt.body_bytes,
            receipt.prompt_blocks
        ),
    );
}

/// What the engine said of it when it was done.
fn delivered_line(text: &mut String, receipt: &Receipt) {
    if let Some(delivered) = receipt.delivered_cached_tokens.get() {
        let known = i64::from(receipt.predicted_cached_tokens);
        let expected = i64::from(receipt.expected_cached_tokens).max(known);
        let verdict = match i64::from(delivered) {
            less if less < known => format!("{} less than predicted", known - less),
            more if more > expected => format!("{} more than predicted", more - expected),
            _ => "as predicted".to_owned(),
        };
        line(text, format_args!("  delivered: {delivered} tokens from the cache, {verdict}"));
    }
    let (engine, ours) = (receipt.engine_prompt_tokens.get(), receipt.prompt_tokens);
    if let (Some(engine), Some(ours), false) = (engine, ours, receipt.prompt_tokens_estimated)
        && engine != ours
    {
        line(text, format_args!("  the engine counted {engine} prompt tokens: it sees other tokens"));
    }
}

/// Whose view of the engines' caches is shown.
fn prefix_producer_line(text: &mut String, receipt: &Receipt) {
    let Some(producer) = &receipt.prefix_producer else { return };
    let sent = receipt.candidates.iter().filter(|candidate| candidate.blocks_are_approximate).count();
    let origin = match sent {
        0 => "by the engines' KV events".to_owned(),
        all if all == receipt.candidates.len() => "by what was sent there".to_owned(),
        some => format!("by the engines' KV events, of {some} listed here (≈) by what was sent there"),
    };
    line(text, format_args!("  blocks held as {producer} sees them: {origin}"));
}

fn fallback_lines(text: &mut String, receipt: &Receipt) {
    for fallback in &receipt.fallbacks {
        let detail =
            if fallback.detail.is_empty() { String::new() } else { format!(": {}", fallback.detail) };
        line(text, format_args!("  fallback {}{detail}", fallback.kind.as_str()));
    }
}

/// What the handler decided, and why.
fn handler_lines(text: &mut String, handler: &HandlerLine, receipt: &Receipt) {
    let others = receipt
        .other_profiles
        .iter()
        .filter_map(|profile| Some(format!(", {} at {}", profile.stage, profile.pick.as_deref()?)));
    let others: String = others.collect();
    let profile = &receipt.profile;
    line(text, format_args!("  {} ({}): profile {profile} decides{others}", handler.decision, handler.name));
    for decider in &handler.deciders {
        line(text, format_args!("    {} by {}: {}", decider.stage, decider.decider, decider.verdict));
    }
}

/// What a profile said that helps the one that decides.
fn profile_lines(text: &mut String, profile: &ProfileLine, considered: usize) {
    let outcome = match (&profile.pick, &profile.failure) {
        (Some(pick), _) => format!("picked {pick}"),
        (None, Some(failure)) => format!("nothing: {failure}"),
        (None, None) => "nothing".to_owned(),
    };
    let runner_up = profile.runner_up.as_ref().map_or_else(String::new, |name| format!(", runner-up {name}"));
    line(
        text,
        format_args!(
            "  {} by profile {}: {outcome}; {} of {considered} kept{runner_up}",
            profile.stage, profile.profile, profile.kept
        ),
    );
    if profile.pick.is_some() {
        let (known, expected) = (profile.predicted_cached_tokens, profile.expected_cached_tokens);
        line(
            text,
            format_args!(
                "  predicted to be served from its KV cache: {known} tokens ({expected} with what is expected there soon)"
            ),
        );
    }
    candidate_table(text, &profile.candidates, profile.pick.as_deref());
    omitted_line(text, considered, profile.candidates.len());
}

fn omitted_line(text: &mut String, considered: usize, listed: usize) {
    let omitted = considered.saturating_sub(listed);
    if omitted > 0 {
        line(text, format_args!("  … and {omitted} more candidates"));
    }
}

fn admission_words(admission: &AdmissionLine) -> String {
    let AdmissionLine { detector, saturation, unknown_endpoints, admitted } = admission;
    let value = saturation.map_or("unknown".to_owned(), |value| format!("{value:.3}"));
    let unknown = match unknown_endpoints {
        0 => String::new(),
        count => format!(", {count} endpoints without recent metrics"),
    };
    let outcome = if *admitted { "let in" } else { "refused" };
    format!("{outcome} at a saturation of {value} ({detector}{unknown})")
}

fn candidate_table(text: &mut String, candidates: &[CandidateLine], pick: Option<&str>) {
    let scorers: Vec<&str> = candidates
        .iter()
        .find(|candidate| !candidate.scores.is_empty())
        .map(|candidate| candidate.scores.iter().map(|score| &*score.scorer).collect())
        .unwrap_or_default();
    let mut header = vec!["endpoint".to_owned(), "total".to_owned()];
    header.extend(scorers.iter().map(|scorer| (*scorer).to_owned()));
    header.extend(["blocks held", "waiting", "running", "kv", "in flight", "metrics"].map(str::to_owned));
    let mut rows = vec![header];
    for candidate in candidates {
        let picked = pick == Some(&*candidate.endpoint);
        rows.push(candidate_row(candidate, scorers.len(), picked));
    }
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(text, format_args!("  {}", cells.join("  ").trim_end()));
    }
}

fn candidate_row(candidate: &CandidateLine, scorers: usize, picked: bool) -> Vec<String> {
    let mark = if picked { "→ " } else { "  " };
    let mut row = vec![format!("{mark}{}", candidate.endpoint)];
    match &candidate.filtered_by {
        Some(filter) => {
            row.push(format!("filtered by {filter}"));
            row.extend(std::iter::repeat_n(String::new(), scorers));
        }
        None => {
            row.push(format!("{:.3}", candidate.total));
            let shown = candidate.scores.iter().map(|s| format!("{:.3} × {}", s.score, s.weight));
            row.extend(shown.chain(std::iter::repeat_n(String::new(), scorers)).take(scorers));
        }
    }
    let expected = candidate.expected_blocks.saturating_sub(candidate.known_blocks);
    let plus = if expected > 0 { format!(" (+{expected} expected)") } else { String::new() };
    let about = if candidate.blocks_are_approximate { "≈ " } else { "" };
    let trust = candidate.trust.map(|note| format!(" {}: {}", note.trust.as_str(), note.reason.as_str()));
    let offloaded = candidate.offloaded_blocks.map(|blocks| blocks.to_string()).unwrap_or_default();
    let known = candidate.known_blocks;
    row.push(format!("{about}{known}{offloaded}{plus}{}", trust.unwrap_or_default()));
    row.push(candidate.waiting_requests.to_string());
    row.push(candidate.running_requests.to_string());
    row.push(format!("{:.0}%", candidate.kv_cache_utilization * 100.0));
    row.push(candidate.in_flight_requests.to_string());
    row.push(candidate.metrics.as_str().to_owned());
    row
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::{Fallback, FallbackNote, ScorerLine};

    #[test]
    fn a_receipt_reads_as_a_table() {
        let scores =
            vec![ScorerLine { scorer: "queue-scorer".into(), score: 0.5, weight: 2.0, weighted: 1.0 }];
        let candidate = CandidateLine {
            endpoint: "127.0.0.2:8000".into(),
            scores,
            total: 1.0,
            known_blocks: 7,
            expected_blocks: 9,
            offloaded_blocks: Some(crate::receipt::OffloadedLine { cpu: 2, storage: 1, other: 0 }),
            metrics: crate::receipt::Freshness::Fresh,
            ..CandidateLine::default()
        };
        let receipt = Receipt {
            id: 17,
            request_id: "r-1".into(),
            pick: Some("127.0.0.2:8000".into()),
            candidates_considered: 3,
            candidates: vec![candidate],
            objective: "batch".to_owned(),
            priority: -2,
            prompt_tokens: Some(118),
            predicted_cached_tokens: 112,
            expected_cached_tokens: 112,
            admission: Some(AdmissionLine {
                detector: "ours".into(),
                saturation: Some(0.25),
                unknown_endpoints: 2,
                admitted: true,
            }),
            fallbacks: vec![FallbackNote { kind: Fallback::TokenizeDeadline, detail: "over 200 ms".into() }],
            ..Receipt::default()
        };
        receipt.delivered_cached_tokens.set(96);
        receipt.engine_prompt_tokens.set(120);
        let text = describe(&receipt);
        assert!(text.contains("  delivered: 96 tokens from the cache, 16 less than predicted\n"), "{text}");
        assert!(text.contains("  the engine counted 120 prompt tokens: it sees other tokens\n"), "{text}");
        assert!(text.contains("decision 17 (request r-1): sent to 127.0.0.2:8000"), "{text}");
        assert!(text.contains("→ 127.0.0.2:8000  1.000  0.500 × 2"), "{text}");
        assert!(text.contains("7, 2 in cpu, 1 in storage (+2 expected)"), "{text}");
        assert!(text.contains("  objective \"batch\": priority -2\n"), "{text}");
        let admission = "let in at a saturation of 0.250 (ours, 2 endpoints without recent metrics)";
        assert!(text.contains(admission), "{text}");
        assert!(text.contains("fallback tokenize-deadline: over 200 ms"), "{text}");
        assert!(text.contains("… and 2 more candidates"), "{text}");
        assert!(!text.contains("profile"), "one profile needs no word: {text}");
    }

    #[test]
    fn a_receipt_of_several_profiles_says_what_each_picked_and_why() {
        let decider = crate::receipt::DeciderLine {
            stage: "prefill".to_owned(),
            decider: "pd".into(),
            disaggregates: true,
            verdict: "yes: always".to_owned(),
        };
        let handler = HandlerLine {
            name: "h".into(),
            plugin_type: "disagg-profile-handler".into(),
            decision: "prefill-decode".to_owned(),
            deciders: vec![decider],
        };
        let candidate =
            |endpoint: &str| CandidateLine { endpoint: endpoint.into(), ..CandidateLine::default() };
        let prefill = ProfileLine {
            profile: "p".into(),
            stage: "prefill".to_owned(),
            pick: Some("127.0.0.3:8000".into()),
            kept: 1,
            candidates: vec![candidate("127.0.0.3:8000")],
            ..ProfileLine::default()
        };
        let encode = ProfileLine {
            profile: "e".into(),
            stage: "encode".to_owned(),
            failure: Some("filter f of profile e left no endpoint".to_owned()),
            ..ProfileLine::default()
        };
        let receipt = Receipt {
            pick: Some("127.0.0.2:8000".into()),
            profile: "d".into(),
            candidates_considered: 2,
            candidates: vec![candidate("127.0.0.2:8000")],
            handler: Some(handler),
            other_profiles: vec![prefill, encode],
            ..Receipt::default()
        };
        let text = describe(&receipt);
        for part in [
            "prefill-decode (h): profile d decides, prefill at 127.0.0.3:8000\n    prefill by pd: yes: always\n",
            "\n  prefill by profile p: picked 127.0.0.3:8000; 1 of 2 kept\n",
            "→ 127.0.0.3:8000",
            "encode by profile e: nothing: filter f of profile e left no endpoint; 0 of 2 kept\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
