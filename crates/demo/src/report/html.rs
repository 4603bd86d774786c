//! The page: one file, no script, nothing loaded from anywhere.

use super::chart::{colour, engine_spread, escape, hit_ratios, ttft_distribution};
use super::{ExpectationReport, PolicyReport, Report, ScenarioReport};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub fn html(report: &Report) -> String {
    let scenarios: String = report.scenarios.iter().map(scenario).collect();
    let versions: String =
        report.machine.versions.iter().map(|version| format!("<li>{}</li>", escape(version))).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Warmroute demo</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>Warmroute demo</h1>\n<p>The same requests, sent through Envoy to the same simulated engines, \
         under different policies. Engines, Envoy and picker start afresh for every policy.</p>\n</header>\n\
         {scenarios}{HOW}\
         <section>\n<h2>Where it ran</h2>\n<p>{}</p>\n<ul>{versions}</ul>\n</section>\n</main>\n</body>\n</html>\n",
        escape(&report.machine.hardware),
    )
}

const HOW: &str = "<section>\n<h2>How to read it</h2>\n<dl>\n\
<dt>Hit ratio</dt><dd>Prompt tokens that the engines found in their prefix caches, divided by all prompt tokens: \
<code>vllm:prefix_cache_hits_total</code> over <code>vllm:prefix_cache_queries_total</code>. The engines count, not the \
picker. The warm-up is left out.</dd>\n\
<dt>Ceiling</dt><dd>What one engine with an unlimited cache would have found if it had got every request, warm-up \
included: the longest run of whole blocks known from earlier prompts, at most up to the last token but one. No policy can \
exceed it.</dd>\n\
<dt>TTFT</dt><dd>Time to first token: from the moment at which a request was due to the first generated text at the \
client. Where arrivals are random, they are fixed beforehand, and a request does not wait for the one before it.</dd>\n\
<dt>Spread</dt><dd>Prompt tokens of the busiest engine as a multiple of the mean: 1 is even. Repeats of one prompt belong \
on one engine; many different ones do not.</dd>\n\
<dt>Picker</dt><dd>Time of the picker's own decision, from its histogram; the resolution is that of the buckets.</dd>\n\
<dt>Machine</dt><dd>Share of this machine's processor time that was in use, by whatever program. Above 70 % the times \
are not to be trusted.</dd>\n\
<dt>Simulated</dt><dd>Engines are simulations of vLLM: real API, real prefix cache with eviction, real KV events, and a \
clock instead of a GPU. Times compare policies with each other; they say nothing about a GPU of yours.</dd>\n\
</dl>\n</section>\n";

fn scenario(scenario: &ScenarioReport) -> String {
    let policies = &scenario.policies;
    let expectation = |one: &ExpectationReport| {
        format!("{}: {}", if one.is_met { "as expected" } else { "not as expected" }, one.text)
    };
    let lines = scenario.setup.iter().cloned().chain(scenario.expectations.iter().map(expectation));
    let setup: String = lines.map(|line| format!("<li>{}</li>", escape(&line))).collect();
    format!(
        "<section>\n<h2>{}</h2>\n<p>{}</p>\n<ul class=\"setup\">{setup}</ul>\n{}{}\
         <figure>\n<figcaption>Hit ratio <small>the mark is the ceiling</small></figcaption>\n{}</figure>\n\
         <figure>\n<figcaption>Time to first token <small>share of requests answered within</small></figcaption>\n{}{}</figure>\n\
         <figure>\n<figcaption>Prompt tokens per engine <small>filled: cached; pale: computed</small></figcaption>\n{}</figure>\n\
         </section>\n",
        escape(&scenario.name),
        escape(&scenario.description),
        legend(policies),
        numbers(policies),
        hit_ratios(policies),
        keys(policies),
        ttft_distribution(policies),
        engine_spread(policies),
    )
}

fn swatch(index: usize) -> String {
    format!(
        "<svg class=\"swatch\" viewBox=\"0 0 10 10\" aria-hidden=\"true\"><rect class=\"{}\" width=\"10\" height=\"10\" rx=\"2\"/></svg>",
        colour(index)
    )
}

/// What each policy does, in a sentence.
fn legend(policies: &[PolicyReport]) -> String {
    let entry = |(index, policy): (usize, &PolicyReport)| {
        let (name, description) = (escape(&policy.name), escape(&policy.description));
        format!("<li>{}<b>{name}</b> {description}</li>", swatch(index))
    };
    format!("<ul class=\"legend\">{}</ul>\n", policies.iter().enumerate().map(entry).collect::<String>())
}

/// Names and colours alone, beside a chart that has no room for names.
fn keys(policies: &[PolicyReport]) -> String {
    let entry = |(index, policy): (usize, &PolicyReport)| {
        format!("<span>{}{}</span>", swatch(index), escape(&policy.name))
    };
    format!("<p class=\"keys\">{}</p>\n", policies.iter().enumerate().map(entry).collect::<String>())
}

fn numbers(policies: &[PolicyReport]) -> String {
    let rows: String = policies.iter().map(numbers_row).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead><tr><td colspan=\"5\"></td><td colspan=\"3\">TTFT in ms</td>\
         <td></td><td colspan=\"2\">picker in ms</td><td></td></tr>\n<tr><th>policy</th><th>requests</th><th>errors</th>\
         <th>hit ratio</th><th>ceiling</th><th>p50</th><th>p90</th><th>p99</th><th>spread</th><th>p50</th><th>p99</th>\
         <th>machine</th></tr></thead>\n<tbody>{rows}</tbody>\n</table></div>\n{}",
        busy_note(policies),
    )
}

/// Measurements on a machine without room to spare are not the engines' times.
fn busy_note(policies: &[PolicyReport]) -> String {
    let Some(most) =
        policies.iter().filter(|policy| policy.is_crowded()).filter_map(|p| p.machine_busy).reduce(f64::max)
    else {
        return String::new();
    };
    format!(
        "<p class=\"warning\">The machine was up to {:.0} % busy while this ran, so the times contain waiting for a \
         processor. Hit ratios are counts and hardly change.</p>\n",
        most * 100.0,
    )
}

fn numbers_row(policy: &PolicyReport) -> String {
    let ms = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let cells = [
        policy.requests.to_string(),
        policy.errors.to_string(),
        format!("{:.1} %", policy.hit_ratio * 100.0),
        format!("{:.1} %", policy.ceiling_ratio() * 100.0),
        ms(policy.ttft_ms.p50, 0),
        ms(policy.ttft_ms.p90, 0),
        ms(policy.ttft_ms.p99, 0),
        format!("{:.2}", policy.spread),
        ms(policy.picker_ms.p50, 2),
        ms(policy.picker_ms.p99, 2),
        policy.machine_busy.map_or_else(|| "–".to_owned(), |busy| format!("{:.0} %", busy * 100.0)),
    ];
    let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    let failed: String = policy
        .failures
        .iter()
        .map(|failure| {
            let (count, reason) = (failure.count, escape(&failure.reason));
            format!("<tr class=\"failed\"><td colspan=\"11\">{count} × {reason}</td></tr>")
        })
        .collect();
    format!("<tr><th>{}</th>{cells}</tr>{failed}\n", escape(&policy.name))
}
