//! `docs/compatibility.md`: what stands between its markers is rendered, the rest is written by hand.

use std::fmt::Write as _;
use std::sync::Arc;

use warmroute_config::Mistake;
use warmroute_plugin::Registry;

use super::row::{Row, Verdict};
use super::{PARTS, checked, flags, plugin_types};

/// Notices about what the peer does in the same way.
const SAME_THERE: [&str; 2] = ["has no picker, so it gets", "there is no scheduling profile, so one called"];

/// The page with every part between markers rendered anew.
pub(super) fn rendered(page: &str, registry: &Arc<Registry>) -> String {
    let mut page = page.to_owned();
    for (part, rows) in PARTS {
        page = filled(&page, part, &configurations(rows));
    }
    page = filled(&page, "plugin types", &plugin_types::table(registry));
    page = filled(&page, "own plugin types", &plugin_types::own_table(registry));
    filled(&page, "flags", &flags::table())
}

fn filled(page: &str, part: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- rendered: {part} -->\n"), format!("<!-- end: {part} -->\n"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin} in the page"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end} in the page"));
    format!("{before}{begin}\n{text}\n{end}{after}")
}

/// A text in a cell.
pub(super) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn configurations(rows: &[Row]) -> String {
    let mut table =
        "| | Configuration | Here | How, why, what to do |\n| --- | --- | --- | --- |\n".to_owned();
    for (row, number) in rows.iter().zip(1..) {
        let (here, how) = outcome(row);
        let file = format!("[{}](../tests/data/configs/{})", cell(row.peer), row.file);
        // Writing to a String can't fail.
        let _ = writeln!(table, "| {number} | {file} | {here} | {} |", how.join("<br>"));
    }
    table
}

/// `works`, `differs`, `refused` or `not yet`, and what there is to say.
fn outcome(row: &Row) -> (&'static str, Vec<String>) {
    let mut how = Vec::new();
    let here = match (&row.verdict, checked(row)) {
        (Verdict::Works { differs, .. }, Ok(config)) => {
            how.extend(differs.iter().map(|text| cell(text)));
            let notices = config.notices.iter().map(|notice| notice.message.as_str());
            let told = notices.filter(|notice| !SAME_THERE.iter().any(|part| notice.contains(part)));
            for notice in told.map(cell) {
                if !how.contains(&notice) {
                    how.push(notice);
                }
            }
            if how.is_empty() { "works" } else { "differs" }
        }
        (Verdict::Refused { why, .. }, Ok(_)) => panic!("{} isn't refused: {why}", row.file),
        (verdict, Err(error)) => {
            if let Verdict::Refused { why, .. } = verdict {
                how.push((*why).to_owned());
            }
            how.extend(told(&error.mistakes));
            if matches!(verdict, Verdict::Works { .. }) { "not yet" } else { "refused" }
        }
    };
    (here, how)
}

/// Mistakes with what to do. Plugin types that get the same advice are told together.
pub(super) fn told(mistakes: &[Mistake]) -> Vec<String> {
    let mut told: Vec<(Vec<String>, String)> = Vec::new();
    for mistake in mistakes {
        let message = mistake.message.as_str();
        let plugin_type = message
            .strip_prefix("plugin type ")
            .and_then(|rest| rest.split_once(" is known, but not available"));
        let what = plugin_type.map_or_else(|| cell(message), |(plugin_type, _)| format!("`{plugin_type}`"));
        let hint = mistake.hint.as_deref().map(cell).unwrap_or_default();
        match told.iter_mut().find(|(_, other)| plugin_type.is_some() && *other == hint) {
            Some((whats, _)) if !whats.contains(&what) => whats.push(what),
            Some(_) => {}
            None => told.push((vec![what], hint)),
        }
    }
    let line = |(whats, hint): (Vec<String>, String)| match hint.as_str() {
        "" => whats.join(", "),
        hint => format!("{}: {hint}", whats.join(", ")),
    };
    told.into_iter().map(line).collect()
}
