//! Which plugin types a configuration may name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::PluginSpec;

/// What a linked plugin type makes; decides what it may do in a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchedulingKind {
    /// Takes endpoints out.
    Filter,
    /// Scores them; has a weight.
    Scorer,
    /// Picks one; a profile has exactly one.
    Picker,
}

/// What is wrong with a plugin's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterMistake {
    /// Where in the parameters, like `a.b[2].c`; empty for all of them.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

type CheckParameters = Arc<dyn Fn(&PluginSpec) -> Result<(), ParameterMistake> + Send + Sync>;

/// The filters, scorers and pickers that are linked into the binary: the built-in ones and those of third
/// parties. Everything else that a configuration may name is part of the host.
#[derive(Clone, Default)]
pub struct KnownTypes {
    scheduling: BTreeMap<String, SchedulingKind>,
    check: Option<CheckParameters>,
}

impl KnownTypes {
    /// These types and no others.
    pub fn new<T: Into<String>>(types: impl IntoIterator<Item = (T, SchedulingKind)>) -> Self {
        Self { scheduling: types.into_iter().map(|(name, kind)| (name.into(), kind)).collect(), check: None }
    }

    /// Checks the parameters of every plugin with `check`, usually by building it, so that mistakes in
    /// them are reported together with all others.
    #[must_use]
    pub fn check_parameters_with(
        mut self,
        check: impl Fn(&PluginSpec) -> Result<(), ParameterMistake> + Send + Sync + 'static,
    ) -> Self {
        self.check = Some(Arc::new(check));
        self
    }

    /// What the type makes; `None` if it isn't linked.
    pub fn kind(&self, plugin_type: &str) -> Option<SchedulingKind> {
        self.scheduling.get(plugin_type).copied()
    }

    /// The names of the types.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.scheduling.keys().map(String::as_str)
    }

    pub(crate) fn check(&self, plugin: &PluginSpec) -> Result<(), ParameterMistake> {
        self.check.as_ref().map_or(Ok(()), |check| check(plugin))
    }
}

impl fmt::Debug for KnownTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KnownTypes").field(&self.scheduling).finish()
    }
}
