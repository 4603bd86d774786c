//! `token-producer`.

use std::path::PathBuf;

use crate::TokenProducerSpec;
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;

/// `token-producer`.
pub(crate) fn token_producer(declared: &Declared<'_>, mistakes: &mut Mistakes) -> Option<TokenProducerSpec> {
    const HINT: &str = "give the folder with the model's tokenizer files: `local: {path: …}`";
    let Some(node) = declared.parameters else {
        let message = "token-producer needs to know where the tokenizer is";
        mistakes.hinted(declared.place, message, HINT);
        return None;
    };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    // The local tokenizer knows its model; the name is for the peer's remote backends.
    let _ = fields.text("modelName", mistakes);
    let mut refused = false;
    for (name, why) in [
        (
            "estimate",
            "an estimate doesn't give the engine's tokens, so exact prefix matches would never be found",
        ),
        ("vllm", "asking vLLM for tokens is not available; tokens are made in process"),
        ("udsTokenizerConfig", "the tokenizer sidecar is not available; tokens are made in process"),
    ] {
        if let Some(node) = fields.entry(name) {
            mistakes.hinted(node.place, why, HINT);
            refused = true;
        }
    }
    let mut path = None;
    if let Some(node) = fields.node("local") {
        let mut fields = Fields::of(node, "local", mistakes);
        path = fields.text("path", mistakes).filter(|(path, _)| !path.is_empty());
        if path.is_none() && !refused {
            mistakes.hinted(fields.place(), "local needs a path", HINT);
        }
        fields.finish(mistakes);
    } else if !refused {
        mistakes.hinted(node.place, "token-producer needs to know where the tokenizer is", HINT);
    }
    fields.finish(mistakes);
    let (path, _) = path?;
    Some(TokenProducerSpec { name: declared.name.clone(), path: PathBuf::from(path) })
}
