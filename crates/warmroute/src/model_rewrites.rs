//! Model rewrites: rules by which the engine is asked for another model than the client named.
//!
//! Precedence, weights and the place before the headers are those of the llm-d Router EPP
//! (`pkg/epp/datastore/modelrewritestore.go`, `pkg/epp/requestcontrol/director.go` in github.com/llm-d/llm-d-router).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// The rules in effect. Readers never wait; whoever knows better replaces the whole.
#[derive(Debug, Default)]
pub struct ModelRewrites(ArcSwap<RewriteTable>);

/// One version of the rules.
#[derive(Debug, Default)]
pub struct RewriteTable {
    /// By the model that the client names.
    exact: HashMap<Box<str>, Arc<RewriteRule>>,
    /// For every other model.
    generic: Option<Arc<RewriteRule>>,
}

/// A set of rules that came together, as an InferenceModelRewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteSet {
    /// What it is called.
    pub name: Arc<str>,
    /// In order: of rules that match the same model the first counts.
    pub rules: Vec<RewriteSpec>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteSpec {
    /// The models that it is for, by their exact names; empty: all.
    pub models: Vec<String>,
    /// What the engine is asked for, at least one.
    pub targets: Vec<RewriteTarget>,
}

/// A model that the engine may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteTarget {
    /// Its name.
    pub model: Arc<str>,
    /// Its share of the requests is this over the sum of all; None has no share, unless none of them has a weight: then
    /// all have the same.
    pub weight: Option<u32>,
}

#[derive(Debug)]
struct RewriteRule {
    set: Arc<str>,
    /// With the sum of the weights up to and with each.
    targets: Vec<(u64, Arc<str>)>,
}

/// The outcome for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Which set's rule.
    pub set: Arc<str>,
    /// What the engine is asked for.
    pub model: Arc<str>,
}

impl ModelRewrites {
    /// Replaces all rules.
    pub fn replace(&self, table: RewriteTable) {
        self.0.store(Arc::new(table));
    }

    /// The rules of now; None if there are none.
    pub fn table(&self) -> Option<Arc<RewriteTable>> {
        Some(self.0.load_full()).filter(|table| !table.is_empty())
    }
}

impl RewriteTable {
    /// Rules of sets, the one that counts first coming first. A rule for a model by name counts before one for all.
    pub fn new(sets: &[RewriteSet]) -> Self {
        let mut table = Self::default();
        for (set, spec) in sets.iter().flat_map(|set| set.rules.iter().map(move |spec| (set, spec))) {
            let rule = Arc::new(RewriteRule::new(&set.name, &spec.targets));
            if spec.models.is_empty() && table.generic.is_none() {
                table.generic = Some(rule.clone());
            }
            for model in &spec.models {
                table.exact.entry(model.as_str().into()).or_insert_with(|| rule.clone());
            }
        }
        table
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.generic.is_none()
    }

    /// What the engine is asked for instead of `model`; `draw` is a random number. None if no rule is for that model, or
    /// the request names none.
    pub fn rewrite(&self, model: &str, draw: u64) -> Option<Rewrite> {
        let rule = self.exact.get(model).or(self.generic.as_ref()).filter(|_| !model.is_empty())?;
        let sum = rule.targets.last()?.0.max(1);
        let drawn = draw % sum;
        let (_, model) = rule.targets.iter().find(|(up_to, _)| drawn < *up_to)?;
        Some(Rewrite { set: rule.set.clone(), model: model.clone() })
    }
}

impl RewriteRule {
    fn new(set: &Arc<str>, targets: &[RewriteTarget]) -> Self {
        let is_weighted = targets.iter().any(|target| target.weight.unwrap_or(0) > 0);
        let mut sum = 0;
        let mut summed = |target: &RewriteTarget| {
            let weight = if is_weighted { target.weight.unwrap_or(0) } else { 1 };
            sum += u64::from(weight);
            (weight > 0).then(|| (sum, target.model.clone()))
        };
        Self { set: set.clone(), targets: targets.iter().filter_map(&mut summed).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target((model, weight): &(&str, Option<u32>)) -> RewriteTarget {
        RewriteTarget { model: (*model).into(), weight: *weight }
    }

    fn rule(models: &[&str], targets: &[(&str, Option<u32>)]) -> RewriteSpec {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        RewriteSpec { models, targets: targets.iter().map(target).collect() }
    }

    fn set(name: &str, rules: &[RewriteSpec]) -> RewriteSet {
        RewriteSet { name: name.into(), rules: rules.to_vec() }
    }

    fn outcome(table: &RewriteTable, model: &str, draw: u64) -> Option<(String, String)> {
        table.rewrite(model, draw).map(|rewrite| (rewrite.set.to_string(), rewrite.model.to_string()))
    }

    fn pair(set: &str, model: &str) -> Option<(String, String)> {
        Some((set.to_owned(), model.to_owned()))
    }

    #[test]
    fn an_exact_rule_counts_before_a_generic_one_then_the_first() {
        let table = RewriteTable::new(&[
            set("first", &[rule(&[], &[("any", None)]), rule(&["a"], &[("x", None)])]),
            set(
                "second",
                &[rule(&["a", "b"], &[("y", None)]), rule(&["b"], &[("z", None)]), rule(&[], &[("w", None)])],
            ),
        ]);
        assert_eq!(outcome(&table, "a", 0), pair("first", "x"));
        assert_eq!(outcome(&table, "b", 0), pair("second", "y"));
        assert_eq!(outcome(&table, "c", 0), pair("first", "any"));
        assert_eq!(outcome(&table, "", 0), None, "there is nothing to rewrite");
        let exact_only = RewriteTable::new(&[set("s", &[rule(&["a"], &[("x", None)])])]);
        assert_eq!(outcome(&exact_only, "A", 0), None);
    }

    #[test]
    fn weights_are_shares_and_mixed_ones_leave_the_others_out() {
        let shares = |targets: &[(&str, Option<u32>)]| {
            let table = RewriteTable::new(&[set("s", &[rule(&[], targets)])]);
            let mut counts = std::collections::BTreeMap::new();
            for draw in 0..1200 {
                let (_, model) = outcome(&table, "m", draw).unwrap();
                *counts.entry(model).or_insert(0) += 1;
            }
            counts.into_iter().collect::<Vec<_>>()
        };
        let expected = |shares: &[(&str, i32)]| {
            shares.iter().map(|(model, count)| ((*model).to_owned(), *count)).collect::<Vec<_>>()
        };
        assert_eq!(shares(&[("a", Some(3)), ("b", Some(1))]), expected(&[("a", 900), ("b", 300)]));
        assert_eq!(
            shares(&[("a", None), ("b", None), ("c", None)]),
            expected(&[("a", 400), ("b", 400), ("c", 400)])
        );
        assert_eq!(shares(&[("a", None), ("b", Some(2))]), expected(&[("b", 1200)]));
        assert_eq!(shares(&[("a", Some(0)), ("b", Some(0))]), expected(&[("a", 600), ("b", 600)]));
        assert_eq!(shares(&[("a", Some(0)), ("b", Some(1)), ("c", Some(0))]), expected(&[("b", 1200)]));
    }

    #[test]
    fn without_rules_there_is_no_table() {
        let rewrites = ModelRewrites::default();
        assert!(rewrites.table().is_none());
        rewrites.replace(RewriteTable::new(&[set("s", &[rule(&[], &[("x", None)])])]));
        assert_eq!(rewrites.table().unwrap().rewrite("m", 7).unwrap().model.as_ref(), "x");
        rewrites.replace(RewriteTable::new(&[]));
        assert!(rewrites.table().is_none());
    }
}
