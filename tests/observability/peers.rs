//! [`PeerFile`]: expressions of other projects' dashboards and alerts, and the table of the docs that tells how they fare.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

/// The page with the table, and the lines between which it stands.
pub(crate) const PAGE: &str = "docs/kubernetes/observability.md";
const BEGIN: &str = "<!-- made from tests/data/peers/llm-d-observability.yaml: make dashboards -->\n";
const END: &str = "<!-- end -->\n";

/// What this project's metrics begin with today.
const PREFIX: &str = "llm_d_epp_";

/// `tests/data/peers/llm-d-observability.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerFile {
    pub(crate) sources: Vec<PeerSource>,
}

/// A dashboard or a file of alerts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerSource {
    pub(crate) name: String,
    /// Repository, path and commit.
    pub(crate) place: String,
    /// What its metrics begin with, if that isn't what they begin with today.
    pub(crate) prefix: Option<String>,
    pub(crate) queries: Vec<PeerQuery>,
}

/// One expression.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerQuery {
    pub(crate) panel: String,
    pub(crate) expect: Expected,
    /// Why there is nothing.
    pub(crate) why: Option<String>,
    pub(crate) expr: String,
}

/// What comes of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expected {
    /// Data, in a healthy pool.
    Data,
    /// Data, once something has gone wrong.
    Trouble,
    /// An alert whose metrics are all there, and that doesn't fire in a healthy pool.
    Quiet,
    /// Nothing ever.
    None,
}

impl PeerFile {
    /// Reads the file of the source tree at `root`.
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        let path = root.join("tests/data/peers/llm-d-observability.yaml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
    }

    /// The table of the docs.
    fn table(&self) -> String {
        let mut table = String::new();
        for source in &self.sources {
            let total = source.queries.len();
            let works = source.queries.iter().filter(|query| query.expect != Expected::None).count();
            // Writing to a string can't fail.
            let _ = writeln!(
                table,
                "**{}** ({}): {works} of {total} expressions work.\n",
                source.name, source.place
            );
            if let Some(prefix) = &source.prefix {
                let _ = writeln!(
                    table,
                    "Its metrics begin with `{prefix}`, which is neither the EPP's prefix today nor ours: replace it by \
                     `{PREFIX}` first.\n"
                );
            }
            table.push_str("| Panel or alert | |\n| --- | --- |\n");
            for query in &source.queries {
                let verdict = match (query.expect, &query.why) {
                    (Expected::Data, _) => "works".to_owned(),
                    (Expected::Trouble, _) => "works; empty while all is well".to_owned(),
                    (Expected::Quiet, _) => "works; quiet while all is well".to_owned(),
                    (Expected::None, why) => format!("empty: {}", why.as_deref().unwrap_or("?")),
                };
                let _ = writeln!(table, "| {} | {verdict} |", query.panel);
            }
            table.push('\n');
        }
        table
    }

    /// The page with its table renewed.
    pub(crate) fn page_with_table(&self, page: &str) -> anyhow::Result<String> {
        let (before, rest) =
            page.split_once(BEGIN).with_context(|| format!("{PAGE} lacks the line {BEGIN}"))?;
        let (_, after) = rest.split_once(END).with_context(|| format!("{PAGE} lacks the line {END}"))?;
        Ok(format!("{before}{BEGIN}\n{}{END}{after}", self.table()))
    }
}

impl PeerSource {
    /// An expression of this source under today's names.
    pub(crate) fn current(&self, query: &PeerQuery) -> String {
        match &self.prefix {
            Some(prefix) => query.expr.replace(prefix.as_str(), PREFIX),
            None => query.expr.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use warmroute_demo::harness::Tools;

    use super::*;

    #[test]
    fn the_table_of_the_docs_is_current() {
        let root = Tools::root();
        let page = std::fs::read_to_string(root.join(PAGE)).unwrap();
        let file = PeerFile::load(&root).unwrap();
        assert!(file.page_with_table(&page).unwrap() == page, "run `make dashboards`");
    }

    #[test]
    fn what_is_empty_has_a_reason() {
        for source in PeerFile::load(&Tools::root()).unwrap().sources {
            for query in &source.queries {
                assert_eq!(query.why.is_some(), query.expect == Expected::None, "{}", query.panel);
            }
        }
    }
}
