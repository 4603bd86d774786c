//! The benches, in the order of a request's path.

mod approximate_index;
mod decision;
mod duel;
mod echo;
mod events;
mod expression;
mod ext_proc;
mod index;
mod losses;
mod parse;
mod response_chunks;
mod scrape;
mod snapshot;
mod socket;
mod tokenize;
mod whole_picker;

use crate::report::Report;
use crate::timing::Effort;

/// One bench: measures and adds its figures to the report.
pub type Run = fn(Effort, &mut Report) -> anyhow::Result<()>;

/// Name, what it is about in a line, and how to run it.
pub const ALL: [(&str, &str, Run); 12] = [
    ("parse", "request bodies to typed requests", parse::run),
    ("tokenize", "unseen text to block keys, against HF tokenizers 0.23.2", tokenize::run),
    ("events", "msgpack payloads of KV events, against rmp-serde", events::run),
    ("index", "block keys, ingest, look-ups", index::run),
    ("snapshot", "what is known of an engine to another index, beside a replay", snapshot::run),
    ("socket", "engines' KV events from loopback TCP to the index, all threads", socket::run),
    ("scrape", "a metrics page of vLLM to what picking needs", scrape::run),
    ("decision", "filters, scorers and picker over a table of endpoints", decision::run),
    ("losses", "where cached tokens are lost, per decision", losses::run),
    ("expression", "a row in an expression, beside a built-in scorer", expression::run),
    ("ext_proc", "whole streams with token-id prompts, against a bare tonic echo", ext_proc::run),
    (
        "response_chunks",
        "streams with 100 echoed response chunks, against a bare tonic echo",
        response_chunks::run,
    ),
];
