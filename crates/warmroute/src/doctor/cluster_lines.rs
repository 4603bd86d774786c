//! What a picker knows of its cluster, in words.

use std::fmt::Write;

use crate::kubernetes::{FollowState, KubernetesReport, ResourceState};

/// Whether something is wrong: no pool, objects that aren't told, or such as can't be used.
pub(super) fn has_problem(report: &KubernetesReport) -> bool {
    let is_wrong =
        |resource: &ResourceState| resource.state == FollowState::Failing || !resource.refused.is_empty();
    report.no_pool.is_some() || report.resources.iter().any(is_wrong)
}

/// A line per kind of objects, and what is wrong beneath it.
pub(super) fn text(report: &KubernetesReport) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(text, "Kubernetes, namespace {}", report.namespace);
    if let Some(why) = &report.no_pool {
        let _ = writeln!(text, "  no pool: {why}");
    }
    for resource in &report.resources {
        let state = match resource.state {
            FollowState::Starting => "not known yet",
            FollowState::Following => "followed",
            FollowState::Failing => "not told any more, what was known stays in effect",
            FollowState::NotInstalled => "not installed",
        };
        let _ = writeln!(text, "  {}: {state}, {} known", resource.resource, resource.objects);
        if let Some(problem) = &resource.problem {
            let _ = writeln!(text, "    {problem}");
        }
        for (name, why) in &resource.refused {
            let _ = writeln!(text, "    {name} can't be used, its last good version stays: {why}");
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_wrong_stands_beneath_its_kind() {
        let resource = |resource: &str, state, problem: Option<&str>| ResourceState {
            resource: resource.to_owned(),
            state,
            objects: 2,
            problem: problem.map(str::to_owned),
            refused: BTreeMap::new(),
        };
        let mut report = KubernetesReport {
            namespace: "team".to_owned(),
            no_pool: None,
            resources: vec![
                resource("pods", FollowState::Following, None),
                resource("inferenceobjectives.llm-d.ai", FollowState::NotInstalled, None),
            ],
        };
        assert!(!has_problem(&report));
        report.resources[0].refused.insert("p".to_owned(), "no address".to_owned());
        assert!(has_problem(&report));
        report.resources[0].refused.clear();
        report.resources.push(resource("inferencepools.x", FollowState::Failing, Some("a Role is missing")));
        assert!(has_problem(&report));
        report.no_pool = Some("create it".to_owned());
        let text = text(&report);
        for part in [
            "Kubernetes, namespace team\n  no pool: create it\n  pods: followed, 2 known\n",
            "  inferenceobjectives.llm-d.ai: not installed, 2 known\n",
            "  inferencepools.x: not told any more, what was known stays in effect, 2 known\n    a Role is missing\n",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
