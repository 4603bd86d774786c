//! The table for the terminal.

use super::{PolicyReport, Report};

const HEADER: [&str; 10] = [
    "policy",
    "requests",
    "errors",
    "hit ratio",
    "of ceiling",
    "TTFT p50",
    "TTFT p90",
    "TTFT p99",
    "spread",
    "picker p50/p99",
];

/// One block of lines per scenario, columns aligned.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for scenario in &report.scenarios {
        text.push_str(&format!("\n{}\n", scenario.name));
        let rows: Vec<[String; 10]> =
            std::iter::once(HEADER.map(str::to_owned)).chain(scenario.policies.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
        for row in &rows {
            let mut line = String::from(" ");
            for (cell, width) in row.iter().zip(&widths) {
                // Names to the left, numbers to the right.
                let gap = " ".repeat(width - cell.chars().count());
                let name = line.len() == 1;
                line.push_str(&if name { format!(" {cell}{gap}") } else { format!("  {gap}{cell}") });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let busy = |policy: &&PolicyReport| policy.is_crowded();
        let crowded: Vec<&str> =
            scenario.policies.iter().filter(busy).map(|policy| policy.name.as_str()).collect();
        if !crowded.is_empty() {
            text.push_str(&format!(
                "  The machine was over 70 % busy during {}: times contain waiting for a processor.\n",
                crowded.join(", "),
            ));
        }
        for expectation in &scenario.expectations {
            let mark = if expectation.is_met { "as expected" } else { "NOT AS EXPECTED" };
            text.push_str(&format!("  {mark}: {}\n", expectation.text));
        }
        for policy in &scenario.policies {
            for failure in &policy.failures {
                text.push_str(&format!("  {}: {} × {}\n", policy.name, failure.count, failure.reason));
            }
        }
    }
    text
}

fn row(policy: &PolicyReport) -> [String; 10] {
    let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0} ms"));
    let fine = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
    let ceiling = if policy.ceiling_tokens == 0 {
        "–".to_owned()
    } else {
        format!("{:.1} %", 100.0 * policy.cached_tokens as f64 / policy.ceiling_tokens as f64)
    };
    [
        policy.name.clone(),
        policy.requests.to_string(),
        policy.errors.to_string(),
        format!("{:.1} %", policy.hit_ratio * 100.0),
        ceiling,
        ms(policy.ttft_ms.p50),
        ms(policy.ttft_ms.p90),
        ms(policy.ttft_ms.p99),
        format!("{:.2}", policy.spread),
        format!("{} / {} ms", fine(policy.picker_ms.p50), fine(policy.picker_ms.p99)),
    ]
}
