//! The table of configurations of the llm-d Router EPP and its guides: what becomes of each, and
//! `docs/compatibility.md`, which says it.
//!
//! Every row is checked against the linked plugins; one that works is built and decides about endpoints whose scores
//! were computed by hand. `WARMROUTE_WRITE_DOCS=1` rewrites the page.

mod deploy;
mod flags;
mod guides;
mod page;
mod plugin_types;
mod row;
mod shared;
mod testbed;
mod well_known;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use warmroute::profile::{build_scheduler, known_types};
use warmroute_config::{CheckedConfig, ConfigError};

use crate::fixture::registry;
use row::{Decision, ENDPOINT_HEADERS, PoolKind, Row, Verdict, follows_from, refuses};
use testbed::Testbed;

/// The three parts of the table, with the folder of their files.
const PARTS: [(&str, &[Row]); 3] =
    [("deploy", deploy::ROWS), ("well-known", well_known::ROWS), ("guides", guides::ROWS)];

fn rows() -> impl Iterator<Item = &'static Row> {
    PARTS.iter().flat_map(|(_, rows)| *rows)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text_of(row: &Row) -> String {
    let path = root().join("tests/data/configs").join(row.file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn checked(row: &Row) -> Result<CheckedConfig, ConfigError> {
    warmroute_config::check(row.file, text_of(row).as_bytes(), &known_types(&Arc::new(registry())))
}

#[test]
fn every_file_has_a_row_and_every_row_a_file() {
    let mut files = Vec::new();
    for (folder, rows) in PARTS {
        assert!(rows.iter().all(|row| row.file.starts_with(folder)));
        for entry in std::fs::read_dir(root().join("tests/data/configs").join(folder)).unwrap() {
            files.push(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    let mut named: Vec<&str> = rows().map(|row| row.file).collect();
    named.sort_unstable();
    files.sort_unstable();
    assert_eq!(files, named);
    assert_eq!(PARTS.map(|(_, rows)| rows.len()), [19, 8, 28]);
}

/// What contradicts the row in what the check says of its file.
fn contradictions(row: &Row) -> Vec<String> {
    let by = match row.verdict {
        Verdict::Works { .. } => &[][..],
        Verdict::Refused { by, .. } => by,
    };
    let mistakes = match checked(row) {
        Ok(_) => Vec::new(),
        Err(error) => error.mistakes,
    };
    let refused = |name: &str| mistakes.iter().any(|mistake| refuses(&mistake.message, name));
    let arrived = row.until.iter().filter(|name| !refused(name));
    let mut found: Vec<String> =
        arrived.map(|name| format!("row {}: remove {name} from until", row.file)).collect();
    let missing = by.iter().filter(|name| !refused(name));
    found.extend(missing.map(|name| format!("row {}: {name} isn't refused any more", row.file)));
    for mistake in &mistakes {
        let message = &mistake.message;
        let is_named =
            |name: &&&str| refused(name) && (refuses(message, name) || follows_from(message, name));
        if !row.until.iter().chain(by).any(|name| is_named(&name)) {
            found.push(format!("row {}: unexpected: {}: {message}", row.file, mistake.place));
        }
    }
    found
}

#[test]
fn what_is_refused_is_refused_by_the_names_in_its_row() {
    let found: Vec<String> = rows().flat_map(contradictions).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A mistake without a hint says itself what to do; these do.
const SAYS_WHAT_TO_DO: [&str; 4] = ["write ", "leave it out", "expected one of", "must be"];

#[test]
fn every_refusal_says_what_to_do() {
    for row in rows() {
        let Err(error) = checked(row) else { continue };
        for mistake in error.mistakes {
            let says = SAYS_WHAT_TO_DO.iter().any(|part| mistake.message.contains(part));
            assert!(mistake.hint.is_some() || says, "{}: {}", row.file, mistake.message);
        }
    }
}

#[test]
fn the_sums_in_the_table_agree_with_its_picks() {
    for row in rows() {
        let Verdict::Works { decisions, .. } = row.verdict else { continue };
        assert!(!decisions.is_empty(), "{}", row.file);
        for decision in decisions {
            let best = decision.totals.iter().map(|(_, total)| *total).fold(f64::MIN, f64::max);
            let picks = decision.totals.iter().filter(|(_, total)| *total == best).map(|(name, _)| *name);
            assert_eq!(picks.collect::<Vec<_>>(), decision.picks, "{}", row.file);
        }
    }
}

#[tokio::test]
async fn what_works_decides_as_computed_by_hand() {
    let registry = registry();
    let mut decided = 0;
    for row in rows() {
        let Verdict::Works { pool, decisions, .. } = row.verdict else { continue };
        if !row.until.is_empty() {
            continue;
        }
        let config = checked(row).unwrap_or_else(|error| panic!("{error}"));
        build_scheduler(&config, &registry).unwrap_or_else(|error| panic!("{}: {error:#}", row.file));
        for decision in decisions {
            decide(row, pool, decision).await;
            decided += 1;
        }
    }
    assert!(decided > 0, "no row works");
}

async fn decide(row: &Row, pool: PoolKind, decision: &Decision) {
    let case = format!("{} for {:?}", row.file, decision.request);
    let testbed = Testbed::new(&text_of(row), pool, decision.request).await;
    let picked = testbed.pick(decision.request).await;
    let receipt = testbed.fixture.receipts.find("last").unwrap();
    let kept = receipt.candidates.iter().filter(|line| line.filtered_by.is_none());
    let mut kept: Vec<(&str, f64)> = kept.map(|line| (testbed.name(&line.endpoint), line.total)).collect();
    kept.sort_unstable_by_key(|(name, _)| *name);
    let names = |totals: &[(&'static str, f64)]| totals.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    assert_eq!(kept.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names(decision.totals), "{case}");
    for ((name, total), (_, expected)) in kept.iter().zip(decision.totals) {
        assert!((total - expected).abs() < 1e-9, "{case}: {name} has {total}, not {expected}");
    }
    let destination = testbed.name(&picked.destinations[0]);
    assert!(decision.picks.contains(&destination), "{case}: picked {destination}");
    let named = picked.set_headers.iter().filter(|(name, _)| ENDPOINT_HEADERS.contains(&name.as_str()));
    let named: Vec<(&str, &str)> =
        named.map(|(name, address)| (name.as_str(), testbed.name(address))).collect();
    assert_eq!(named, decision.headers, "{case}");
}

#[test]
fn the_page_says_what_the_table_and_the_code_say() {
    let path = root().join("docs/compatibility.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let rendered = page::rendered(&written, &Arc::new(registry()));
    if std::env::var_os("WARMROUTE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &rendered).unwrap();
        return;
    }
    let line = written.lines().zip(rendered.lines()).find(|(written, rendered)| written != rendered);
    assert!(
        written == rendered,
        "docs/compatibility.md isn't what is rendered: run this test with WARMROUTE_WRITE_DOCS=1; \
         the first line that differs: {line:#?}"
    );
}
