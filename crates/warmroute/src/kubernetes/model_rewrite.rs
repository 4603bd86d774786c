//! InferenceModelRewrites, as far as they say which model an engine is asked for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

use super::object_watch::Kept;
use super::pool_reference::PoolReference;
use crate::model_rewrites::{RewriteSpec, RewriteTarget};

/// What is kept of a rewrite.
#[derive(Clone, Debug)]
pub(super) struct Rewrite {
    /// The pool that it is for.
    pub(super) pool: PoolReference,
    /// Of several rewrites the oldest counts first.
    pub(super) created: Option<Time>,
    /// Its rules in order.
    pub(super) rules: Vec<RewriteSpec>,
}

/// What is read of it (`apix/v1alpha2/inferencemodelrewrite_types.go` in github.com/llm-d/llm-d-router).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RewriteBody {
    spec: Spec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    pool_ref: PoolReference,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
struct Rule {
    matches: Option<Vec<Match>>,
    targets: Vec<Target>,
}

#[derive(Clone, Debug, Deserialize)]
struct Match {
    model: ModelMatch,
}

#[derive(Clone, Debug, Deserialize)]
struct ModelMatch {
    #[serde(rename = "type")]
    kind: Option<String>,
    value: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    model_rewrite: String,
    weight: Option<u32>,
}

impl Kept for Rewrite {
    type Body = RewriteBody;

    fn keep(metadata: ObjectMeta, RewriteBody { spec }: RewriteBody) -> Result<Self, String> {
        let rules = (0..)
            .zip(spec.rules)
            .map(|(number, rule)| rule.read().map_err(|why| format!("spec.rules[{number}]: {why}")));
        let rules = rules.collect::<Result<_, _>>()?;
        Ok(Self { pool: spec.pool_ref, created: metadata.creation_timestamp, rules })
    }
}

impl Rule {
    fn read(self) -> Result<RewriteSpec, String> {
        if self.targets.is_empty() {
            return Err("there are no targets".to_owned());
        }
        let model = |Match { model: ModelMatch { kind, value } }| match kind.as_deref() {
            None | Some("Exact" | "") if !value.is_empty() => Ok(value),
            None | Some("Exact" | "") => Err("a match has an empty model".to_owned()),
            Some(kind) => Err(format!("a match is of the type {kind:?}: only Exact is known")),
        };
        let target = |Target { model_rewrite, weight }| match model_rewrite.is_empty() {
            true => Err("a target has an empty modelRewrite".to_owned()),
            false => Ok(RewriteTarget { model: model_rewrite.into(), weight }),
        };
        Ok(RewriteSpec {
            models: self.matches.unwrap_or_default().into_iter().map(model).collect::<Result<_, _>>()?,
            targets: self.targets.into_iter().map(target).collect::<Result<_, _>>()?,
        })
    }
}
