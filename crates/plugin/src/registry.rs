//! The plugin types that are linked into a binary.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{BuildContext, BuildError, Filter, Parameter, Picker, Plugin, PluginKind, Scorer, parameters};

/// The plugin types that are linked into a binary: by name, how to build one.
///
/// A crate with plugins has one public function that registers them, and the binary's `main` names it:
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use warmroute_plugin::{
///     BuildContext, BuildError, Candidates, DuplicateType, InferenceRequest, Registry, Scorer,
/// };
///
/// pub fn register(registry: &mut Registry) -> Result<(), DuplicateType> {
///     registry.scorer("zone-scorer", "1 for the endpoints of one zone, 0 for others", ZoneScorer::build)
/// }
///
/// #[derive(Deserialize, Serialize)]
/// #[serde(rename_all = "camelCase", deny_unknown_fields)]
/// struct Parameters {
///     zone: String,
/// }
///
/// struct ZoneScorer {
///     zone: String,
/// }
///
/// impl ZoneScorer {
///     fn build(parameters: Parameters, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
///         if parameters.zone.is_empty() {
///             return Err(BuildError::invalid("zone", "must not be empty"));
///         }
///         Ok(Self { zone: parameters.zone })
///     }
/// }
///
/// impl Scorer for ZoneScorer {
///     fn score(&self, _: &InferenceRequest, candidates: &Candidates<'_>, scores: &mut [f64]) {
///         for (score, endpoint) in scores.iter_mut().zip(candidates.endpoints()) {
///             *score = f64::from(u8::from(endpoint.labels.get("zone") == Some(&self.zone)));
///         }
///     }
/// }
///
/// let mut registry = Registry::default();
/// register(&mut registry)?;
/// assert_eq!(registry.types().next().map(|t| t.name()), Some("zone-scorer"));
/// # Ok::<(), DuplicateType>(())
/// ```
///
/// A type of parameters is read with serde, so give it `deny_unknown_fields`: a parameter that nobody
/// reads is a mistake of the operator. It is also written with serde, to show defaults in listings.
#[derive(Default)]
pub struct Registry {
    types: BTreeMap<&'static str, PluginType>,
}

type Build = Box<dyn Fn(Value, &mut BuildContext<'_>) -> Result<Plugin, BuildError> + Send + Sync>;

/// One plugin type, for listings.
pub struct PluginType {
    name: &'static str,
    kind: PluginKind,
    description: &'static str,
    parameters: Vec<Parameter>,
    build: Build,
}

impl PluginType {
    /// Its name in the configuration (`type`).
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it makes.
    pub fn kind(&self) -> PluginKind {
        self.kind
    }

    /// One line that says what it does.
    pub fn description(&self) -> &'static str {
        self.description
    }

    /// Its parameters, with their defaults.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
}

impl fmt::Debug for PluginType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginType")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Registers a type of filter: its name in configurations, one line that says what it does, and how
    /// to build one from its parameters.
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn filter<P, F, B>(
        &mut self,
        name: &'static str,
        description: &'static str,
        build: B,
    ) -> Result<(), DuplicateType>
    where
        P: DeserializeOwned + Serialize,
        F: Filter,
        B: Fn(P, &mut BuildContext<'_>) -> Result<F, BuildError> + Send + Sync + 'static,
    {
        self.insert::<P>(name, PluginKind::Filter, description, move |parameters, context| {
            Ok(Plugin::Filter(Arc::new(build(parameters::read(parameters)?, context)?)))
        })
    }

    /// Registers a type of scorer; see [`filter`](Self::filter).
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn scorer<P, S, B>(
        &mut self,
        name: &'static str,
        description: &'static str,
        build: B,
    ) -> Result<(), DuplicateType>
    where
        P: DeserializeOwned + Serialize,
        S: Scorer,
        B: Fn(P, &mut BuildContext<'_>) -> Result<S, BuildError> + Send + Sync + 'static,
    {
        self.insert::<P>(name, PluginKind::Scorer, description, move |parameters, context| {
            Ok(Plugin::Scorer(Arc::new(build(parameters::read(parameters)?, context)?)))
        })
    }

    /// Registers a type of picker; see [`filter`](Self::filter).
    ///
    /// # Errors
    ///
    /// If the name is taken.
    pub fn picker<P, K, B>(
        &mut self,
        name: &'static str,
        description: &'static str,
        build: B,
    ) -> Result<(), DuplicateType>
    where
        P: DeserializeOwned + Serialize,
        K: Picker,
        B: Fn(P, &mut BuildContext<'_>) -> Result<K, BuildError> + Send + Sync + 'static,
    {
        self.insert::<P>(name, PluginKind::Picker, description, move |parameters, context| {
            Ok(Plugin::Picker(Arc::new(build(parameters::read(parameters)?, context)?)))
        })
    }

    /// The registered types, by name.
    pub fn types(&self) -> impl ExactSizeIterator<Item = &PluginType> {
        self.types.values()
    }

    /// The type with this name.
    pub fn get(&self, name: &str) -> Option<&PluginType> {
        self.types.get(name)
    }

    /// Builds one plugin. `parameters` is an object, or null for none.
    ///
    /// # Errors
    ///
    /// If there is no such type, or it doesn't take these parameters.
    pub fn build(
        &self,
        plugin_type: &str,
        parameters: Value,
        context: &mut BuildContext<'_>,
    ) -> Result<Plugin, BuildError> {
        match self.types.get(plugin_type) {
            Some(plugin_type) => (plugin_type.build)(parameters, context),
            None => Err(BuildError::UnknownType {
                plugin_type: plugin_type.to_owned(),
                known: self.types.keys().copied().collect(),
            }),
        }
    }

    fn insert<P: DeserializeOwned + Serialize>(
        &mut self,
        name: &'static str,
        kind: PluginKind,
        description: &'static str,
        build: impl Fn(Value, &mut BuildContext<'_>) -> Result<Plugin, BuildError> + Send + Sync + 'static,
    ) -> Result<(), DuplicateType> {
        match self.types.entry(name) {
            Entry::Occupied(_) => Err(DuplicateType { name }),
            Entry::Vacant(entry) => {
                let parameters = parameters::describe::<P>();
                entry.insert(PluginType { name, kind, description, parameters, build: Box::new(build) });
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.types.values()).finish()
    }
}

/// Two crates registered the same plugin type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plugin type {name:?} is registered twice")]
pub struct DuplicateType {
    /// The name of the type.
    pub name: &'static str,
}
