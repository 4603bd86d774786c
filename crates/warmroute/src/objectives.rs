//! Objectives: names that clients give to kinds of requests, and the priority of each.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// Priorities by the name of an objective. Readers never wait; whoever knows better replaces the whole. Those of the
/// command line count before others of the same name.
#[derive(Debug, Default)]
pub struct Objectives {
    given: HashMap<Arc<str>, i32>,
    all: ArcSwap<HashMap<Arc<str>, i32>>,
}

/// An objective that is given on the command line as `NAME=PRIORITY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectiveArg {
    /// Its name, as in the header `x-llm-d-inference-objective`.
    pub name: String,
    /// Its priority; higher is more important, and below 0 a request is refused while the pool is full.
    pub priority: i32,
}

/// Two objectives have the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("objective {name:?} is given twice: keep one --inference-objective {name}=…")]
pub struct DuplicateObjective {
    /// The name.
    pub name: String,
}

impl Objectives {
    /// The objectives of the command line.
    ///
    /// # Errors
    /// A name is given twice.
    pub fn try_new(given: &[ObjectiveArg]) -> Result<Self, DuplicateObjective> {
        let mut priorities = HashMap::with_capacity(given.len());
        for ObjectiveArg { name, priority } in given {
            if priorities.insert(Arc::from(name.as_str()), *priority).is_some() {
                return Err(DuplicateObjective { name: name.clone() });
            }
        }
        Ok(Self { all: ArcSwap::from_pointee(priorities.clone()), given: priorities })
    }

    /// The priority of an objective; `None` if there is no such objective.
    pub fn priority_of(&self, name: &str) -> Option<i32> {
        self.all.load().get(name).copied()
    }

    /// Replaces all objectives but those of the command line.
    pub fn replace(&self, mut priorities: HashMap<Arc<str>, i32>) {
        priorities.extend(self.given.iter().map(|(name, priority)| (name.clone(), *priority)));
        self.all.store(Arc::new(priorities));
    }
}

/// Reads `NAME=PRIORITY`.
///
/// # Errors
/// Text that says what is wrong, for the command line.
pub fn objective_arg(text: &str) -> Result<ObjectiveArg, String> {
    let wrong = || format!("{text:?} is no objective: write NAME=PRIORITY, for example batch=-1");
    let (name, priority) = text.rsplit_once('=').ok_or_else(wrong)?;
    let priority = priority.parse().map_err(|_| wrong())?;
    if name.is_empty() { Err(wrong()) } else { Ok(ObjectiveArg { name: name.to_owned(), priority }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_from_the_command_line_and_can_be_replaced() {
        let given = ["batch=-1", "a=b=7"].map(|text| objective_arg(text).unwrap());
        let objectives = Objectives::try_new(&given).unwrap();
        assert_eq!(objectives.priority_of("batch"), Some(-1));
        assert_eq!(objectives.priority_of("a=b"), Some(7));
        assert_eq!(objectives.priority_of("Batch"), None);
        objectives.replace(HashMap::from([("chat".into(), 3), ("batch".into(), 5)]));
        assert_eq!((objectives.priority_of("chat"), objectives.priority_of("batch")), (Some(3), Some(-1)));
        objectives.replace(HashMap::new());
        assert_eq!((objectives.priority_of("chat"), objectives.priority_of("batch")), (None, Some(-1)));
    }

    #[test]
    fn mistakes_are_explained() {
        for wrong in ["", "batch", "=1", "batch=", "batch=low", "batch=1.5", "batch=99999999999"] {
            assert!(objective_arg(wrong).unwrap_err().contains("batch=-1"), "{wrong:?}");
        }
        let twice = ["batch=-1", "batch=2"].map(|text| objective_arg(text).unwrap());
        let error = Objectives::try_new(&twice).unwrap_err().to_string();
        assert!(error.contains("\"batch\" is given twice"), "{error}");
    }
}
