//! `token-producer`, also under its old name `tokenizer`.

use std::path::PathBuf;
use std::time::Duration;

use super::estimate::estimate;
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;
use crate::yaml::Node;
use crate::{EstimateSpec, TokenBackend, TokenProducerSpec, VllmBackendSpec};

const BACKENDS: [&str; 3] = ["local", "vllm", "estimate"];
const OLD_NAME: &str = "tokenizer";
const DEFAULT_URL: &str = "http://localhost:8000";

/// `token-producer`: exactly one backend, or none for an estimate.
pub(crate) fn token_producer(declared: &Declared<'_>, mistakes: &mut Mistakes) -> Option<TokenProducerSpec> {
    if declared.plugin_type == OLD_NAME {
        mistakes.notice(declared.place, format!("{OLD_NAME} is deprecated: use token-producer"));
    }
    let name = declared.name.clone();
    let Some(node) = declared.parameters else {
        return Some(TokenProducerSpec { name, backend: TokenBackend::Estimate(EstimateSpec::default()) });
    };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    let model_name =
        fields.text("modelName", mistakes).map(|(model, _)| model).filter(|model| !model.is_empty());
    let sidecar = fields.entry("udsTokenizerConfig");
    if let Some(entry) = sidecar {
        let why = "the tokenizer sidecar is not available; tokens are made in process";
        mistakes.hinted(
            entry.place,
            why,
            "give the folder with the model's tokenizer files: `local: {path: …}`",
        );
    }
    let given: Vec<_> = BACKENDS.iter().filter_map(|name| Some((*name, fields.node(name)?))).collect();
    if let [(first, _), (second, node), ..] = given.as_slice() {
        let message = format!("{first} and {second} are two backends of {}", declared.name);
        mistakes.hinted(node.place, message, "leave one of them");
    }
    let backend = match given.first() {
        Some(("local", node)) => local(node, mistakes),
        Some(("vllm", node)) => vllm(node, model_name, mistakes).map(TokenBackend::Vllm),
        Some((_, node)) => Some(TokenBackend::Estimate(estimate(node, mistakes))),
        None if sidecar.is_some() => None,
        None => Some(TokenBackend::Estimate(EstimateSpec::default())),
    };
    fields.finish(mistakes);
    Some(TokenProducerSpec { name, backend: backend? })
}

fn local(node: &Node, mistakes: &mut Mistakes) -> Option<TokenBackend> {
    let mut fields = Fields::of(node, "local", mistakes);
    let path = fields.text("path", mistakes).filter(|(path, _)| !path.is_empty());
    if path.is_none() {
        mistakes.hinted(
            fields.place(),
            "local needs a path",
            "give the folder with the model's tokenizer files",
        );
    }
    fields.finish(mistakes);
    Some(TokenBackend::Local { path: PathBuf::from(path?.0) })
}

fn vllm(node: &Node, model_name: Option<&str>, mistakes: &mut Mistakes) -> Option<VllmBackendSpec> {
    let mut fields = Fields::of(node, "vllm", mistakes);
    let url = match fields.text("url", mistakes) {
        Some((url, place)) => {
            let host = url.strip_prefix("http://").unwrap_or_default();
            if url.starts_with("https://") {
                let message = "asking vLLM for tokens over https is not available in this version";
                mistakes.hinted(place, message, "use http");
            } else if host.is_empty() || host.starts_with('/') || host.contains(char::is_whitespace) {
                mistakes.at(place, "url of vllm must be one like http://host:8000");
            }
            url.trim_end_matches('/').to_owned()
        }
        None => DEFAULT_URL.to_owned(),
    };
    let mut wait = |name, default_s| match fields.duration(name, mistakes) {
        Some((wait, place)) => {
            if wait.is_zero() {
                mistakes.at(place, format!("{name} must be more than 0"));
            }
            wait
        }
        None => Duration::from_secs(default_s),
    };
    let (timeout, mm_timeout) = (wait("timeout", 5), wait("mmTimeout", 30));
    fields.finish(mistakes);
    if model_name.is_none() {
        let message = "the vllm backend needs the name of the model to ask for";
        mistakes.hinted(node.place, message, "add modelName beside vllm");
    }
    Some(VllmBackendSpec { url, model_name: model_name?.to_owned(), timeout, mm_timeout })
}
