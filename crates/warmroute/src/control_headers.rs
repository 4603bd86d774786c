//! What clients tell the picker by headers.

use warmroute_ext_proc::HeaderList;

/// Fairness id of requests whose clients give none, as at the llm-d Router EPP.
pub const DEFAULT_FAIRNESS_ID: &str = "default-flow";

/// Longest value kept, in bytes: clients make these names up, and receipts and label values keep them. A name of a
/// Kubernetes object has 253 at most.
pub const MAX_NAME_BYTES: usize = 256;

/// Today's spelling and the older one, which counts if the first is absent.
const OBJECTIVE: [&str; 2] = ["x-llm-d-inference-objective", "x-gateway-inference-objective"];
const FAIRNESS_ID: [&str; 2] = ["x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"];

const MODEL_REWRITE: [&str; 2] = ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"];

/// What a client tells the picker by headers. The engine doesn't see them, see
/// [`CONTROL_HEADERS`](warmroute_ext_proc::CONTROL_HEADERS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlHeaders<'r> {
    /// What kind of request it is.
    pub objective: Option<&'r str>,
    /// Whose request it is.
    pub fairness_id: &'r str,
    /// The model that the engine shall be asked for instead of the body's.
    pub model_rewrite: Option<&'r str>,
}

impl<'r> ControlHeaders<'r> {
    /// Reads them. What is empty or no text counts as absent; objective and fairness id are cut if they are too long, a
    /// model is not, since part of its name would be another model's.
    pub fn of(headers: &'r HeaderList) -> Self {
        let value = |names: [&str; 2]| {
            let mut values = names.into_iter().filter_map(|name| headers.get_str(name));
            values.find(|value| !value.is_empty())
        };
        Self {
            objective: value(OBJECTIVE).map(cut),
            fairness_id: value(FAIRNESS_ID).map_or(DEFAULT_FAIRNESS_ID, cut),
            model_rewrite: value(MODEL_REWRITE),
        }
    }
}

fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_NAME_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_the_newer_one_wins() {
        let of = |pairs: &[(&str, &str)]| {
            let headers = HeaderList::from_pairs(pairs.iter().copied());
            let ControlHeaders { objective, fairness_id, .. } = ControlHeaders::of(&headers);
            (objective.map(str::to_owned), fairness_id.to_owned())
        };
        let expected = |objective: Option<&str>, id: &str| (objective.map(str::to_owned), id.to_owned());
        assert_eq!(of(&[]), expected(None, "default-flow"));
        let old = [("x-gateway-inference-objective", "a"), ("x-gateway-inference-fairness-id", "b")];
        assert_eq!(of(&old), expected(Some("a"), "b"));
        let both = [old[0], ("x-llm-d-inference-objective", "c"), ("x-llm-d-inference-fairness-id", "")];
        assert_eq!(of(&both), expected(Some("c"), "default-flow"));
        let long = "ä".repeat(200);
        assert_eq!(of(&[("x-llm-d-inference-objective", &long)]).0.unwrap().len(), 256);
        let long = format!("a{long}");
        assert_eq!(of(&[("x-llm-d-inference-objective", &long)]).0.unwrap().len(), 255);
    }

    #[test]
    fn what_is_read_here_is_kept_from_the_engine() {
        for name in [OBJECTIVE, FAIRNESS_ID, MODEL_REWRITE].concat() {
            assert!(warmroute_ext_proc::CONTROL_HEADERS.contains(&name), "{name}");
        }
    }
}
