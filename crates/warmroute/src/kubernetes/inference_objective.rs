//! InferenceObjectives, as far as they give requests a priority.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::object_watch::Kept;
use super::pool_reference::PoolReference;

/// What is kept of an objective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objective {
    /// The pool that it is for.
    pub(super) pool: PoolReference,
    /// 0 if it says nothing.
    pub(super) priority: i32,
}

/// What is read of it (`apix/v1alpha2/inferenceobjective_types.go` in github.com/llm-d/llm-d-router).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ObjectiveBody {
    spec: ObjectiveSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectiveSpec {
    priority: Option<i32>,
    pool_ref: PoolReference,
}

impl Kept for Objective {
    type Body = ObjectiveBody;

    fn keep(_: ObjectMeta, ObjectiveBody { spec }: ObjectiveBody) -> Result<Self, String> {
        Ok(Self { pool: spec.pool_ref, priority: spec.priority.unwrap_or(0) })
    }
}
