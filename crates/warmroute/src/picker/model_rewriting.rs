//! Asking the engine for another model than the client named.

use std::sync::Arc;

use warmroute_ext_proc::HttpRequest;
use warmroute_inference_api::Api;

use super::{Draft, Picker};
use crate::control_headers::{ControlHeaders, MAX_NAME_BYTES};
use crate::prompt::{ModelTarget, ReadRequest};
use crate::receipt::Fallback;

impl Picker {
    /// What says which model the engine is asked for: the rules in effect, then the request's header.
    pub(super) fn model_target(&self, request: &HttpRequest, api: Api) -> ModelTarget {
        let by_header = ControlHeaders::of(&request.headers).model_rewrite;
        ModelTarget {
            by_header: by_header.filter(|model| model.len() <= MAX_NAME_BYTES).map(Arc::from),
            rules: self.rewrites.table(),
            draw: fastrand::u64(..),
            is_possible: api.takes_another_model(),
        }
    }

    /// Puts the model that a rule or a header asks for in the place of the body's, and counts what rules say.
    pub(super) fn rewrite(&self, request: &HttpRequest, api: Api, read: &ReadRequest, draft: &mut Draft) {
        // Such a body names a model, unless it wasn't read.
        if read.model.is_empty() && api.takes_another_model() && self.rewrites.table().is_some() {
            let detail = "there are InferenceModelRewrites, and the body wasn't read in time to know whether one is meant";
            draft.fallback(Fallback::ModelRewriteIgnored, detail);
            return;
        }
        if !draft.rewrite(request, read) {
            return;
        }
        if let (Some(rule), Some(target)) = (&read.rewritten_by, &read.target_model) {
            let requests = &self.metrics.requests;
            let models = [requests.model_label(&read.model), requests.model_label(target)];
            self.metrics.rewrites.count(rule, models);
        }
    }
}

impl Draft {
    /// Says whether the engine is asked for another model.
    fn rewrite(&mut self, request: &HttpRequest, read: &ReadRequest) -> bool {
        let by_header = ControlHeaders::of(&request.headers).model_rewrite;
        if read.rewritten_by.is_none() && by_header.is_none() {
            return false;
        }
        let asked_by = match &read.rewritten_by {
            Some(rule) => format!("InferenceModelRewrite {rule}"),
            None => "a header".to_owned(),
        };
        let (Some(target), Some(range)) = (&read.target_model, read.model_range.clone()) else {
            let detail = format!(
                "asked for by {asked_by}: the name is too long, or the body isn't one whose model can be replaced, or \
                 wasn't read in time"
            );
            self.fallback(Fallback::ModelRewriteIgnored, detail);
            return false;
        };
        target.as_ref().clone_into(&mut self.receipt.target_model);
        if let Some(rule) = &read.rewritten_by {
            rule.as_ref().clone_into(&mut self.receipt.model_rewrite);
        }
        let body = request.body.contiguous();
        if **target != *read.model
            && let (Some(before), Some(after)) = (body.get(..range.start), body.get(range.end..))
        {
            let model = serde_json::Value::from(&**target).to_string();
            self.body = Some([before, model.as_bytes(), after].concat().into());
        }
        true
    }
}
