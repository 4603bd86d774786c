//! What happens while a plugin is built from its configuration.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::fallback_counter::PluginFallback;
use crate::{
    AdapterColumn, AttributeColumn, FallbackCounter, Filter, Picker, PrefixColumn, Scorer, SharedStates,
};

/// A built plugin. Shared, since two profiles may refer to one plugin.
#[derive(Clone)]
#[non_exhaustive]
pub enum Plugin {
    /// Takes endpoints out.
    Filter(Arc<dyn Filter>),
    /// Scores endpoints.
    Scorer(Arc<dyn Scorer>),
    /// Picks one.
    Picker(Arc<dyn Picker>),
}

impl Plugin {
    /// Which of the three it is.
    pub fn kind(&self) -> PluginKind {
        match self {
            Self::Filter(_) => PluginKind::Filter,
            Self::Scorer(_) => PluginKind::Scorer,
            Self::Picker(_) => PluginKind::Picker,
        }
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plugin({})", self.kind())
    }
}

/// What a plugin type makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PluginKind {
    /// A [`Filter`].
    Filter,
    /// A [`Scorer`].
    Scorer,
    /// A [`Picker`].
    Picker,
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Scorer => "scorer",
            Self::Picker => "picker",
        })
    }
}

/// A background task of a plugin: whatever a scorer needs from afar is kept fresh by a task and read
/// from memory.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What plugins asked for while they were built: the host provides it, or drops it all if a later
/// plugin can't be built.
#[derive(Default)]
pub struct Needs {
    prefix_producers: Vec<String>,
    attributes: Vec<String>,
    request_attributes: Vec<String>,
    adapters: bool,
    fallbacks: Vec<PluginFallback>,
    tasks: Vec<(String, Task)>,
    states: SharedStates,
}

impl Needs {
    /// Nothing asked for yet, where plugins find what those before them remembered.
    pub fn with_states(states: SharedStates) -> Self {
        Self { states, ..Self::default() }
    }

    /// What plugins count when they have to do with less; see [`FallbackCounter`].
    pub fn fallbacks(&self) -> &[PluginFallback] {
        &self.fallbacks
    }

    /// Names of the prefix producers whose columns must be computed. Their order is the order of the
    /// columns in [`CandidatesBuilder::prefix_matches`](crate::CandidatesBuilder::prefix_matches).
    pub fn prefix_producers(&self) -> &[String] {
        &self.prefix_producers
    }

    /// Keys of the attributes whose columns must be filled. Their order is the order of the columns in
    /// [`CandidatesBuilder::attributes`](crate::CandidatesBuilder::attributes).
    pub fn attributes(&self) -> &[String] {
        &self.attributes
    }

    /// Keys of what plugins read of [`InferenceRequest::attribute`](crate::InferenceRequest::attribute).
    pub fn request_attributes(&self) -> &[String] {
        &self.request_attributes
    }

    /// Whether somebody reads the column of adapters.
    pub fn adapters(&self) -> bool {
        self.adapters
    }

    /// The tasks to run, each with the name of its plugin. Each call gives the tasks since the last.
    pub fn take_tasks(&mut self) -> Vec<(String, Task)> {
        std::mem::take(&mut self.tasks)
    }
}

impl fmt::Debug for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Needs")
            .field("prefix_producers", &self.prefix_producers)
            .field("attributes", &self.attributes)
            .field("request_attributes", &self.request_attributes)
            .field("adapters", &self.adapters)
            .field("fallbacks", &self.fallbacks)
            .field("tasks", &self.tasks.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .finish()
    }
}

/// What a plugin may ask for while it is being built.
#[derive(Debug)]
pub struct BuildContext<'a> {
    name: &'a str,
    needs: &'a mut Needs,
}

impl<'a> BuildContext<'a> {
    /// A context for the plugin called `name` in the configuration.
    pub fn new(name: &'a str, needs: &'a mut Needs) -> Self {
        Self { name, needs }
    }

    /// The plugin's name in the configuration; its type if the configuration gives no name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Asks for the prefix column of the producer with this name. A column is computed once per request,
    /// however many plugins asked for it, and not at all if none did.
    ///
    /// Whether there is such a producer is the host's to check, after all plugins are built.
    pub fn prefix_match(&mut self, producer: &str) -> PrefixColumn {
        PrefixColumn(place_of(producer, &mut self.needs.prefix_producers))
    }

    /// Asks for the column of a numeric attribute of the endpoints, by its key `<attribute>/<producer>`: for
    /// example a custom metric, `my-metric/core-metrics-extractor`. An endpoint of which the producer knows no
    /// value has none in the column; the same if there is no such producer, which is the host's to check.
    pub fn attribute(&mut self, key: &str) -> AttributeColumn {
        AttributeColumn(place_of(key, &mut self.needs.attributes))
    }

    /// Says that the plugin reads [`InferenceRequest::attribute`](crate::InferenceRequest::attribute) by this key,
    /// `<data type>/<producer name>`. Whether there is such a producer is the host's to check.
    pub fn request_attribute(&mut self, key: &str) -> Arc<str> {
        place_of(key, &mut self.needs.request_attributes);
        key.into()
    }

    /// Asks for the column that says where every endpoint stands with the request's LoRA adapter.
    pub fn adapters(&mut self) -> AdapterColumn {
        self.needs.adapters = true;
        AdapterColumn(())
    }

    /// Asks for a counter of how often the plugin has to do with less than it is configured for, for a `reason` of a
    /// word or two: what operators read in metrics and receipts.
    pub fn fallback_counter(&mut self, reason: &'static str) -> FallbackCounter {
        let fallback = PluginFallback::new(self.name, reason);
        let counter = fallback.counter.clone();
        self.needs.fallbacks.push(fallback);
        counter
    }

    /// What the plugin remembers beyond its own life: when a configuration is replaced, the new plugin of the same
    /// name gets the `T` of the old one if it asks with the same `key`; else `make` makes one. Put into the key which
    /// of the parameters must be the same for the state to make sense.
    ///
    /// Old and new plugin may use it at once for a moment.
    pub fn shared<T: Any + Send + Sync>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        self.needs.states.get(self.name, key, make)
    }

    /// Hands over a task that runs as long as the plugin is in use. It is started once the whole
    /// configuration is built, and cancelled when the configuration is replaced, at whatever it then awaits. A task that
    /// ends or panics isn't started again.
    ///
    /// The host runs it on a multi-threaded tokio runtime with timers and IO: a task that needs one of them has tokio as
    /// a dependency of its own.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.needs.tasks.push((self.name.to_owned(), Box::pin(task)));
    }
}

/// The place of `name` in the list, where it is put if it isn't there.
fn place_of(name: &str, list: &mut Vec<String>) -> usize {
    list.iter().position(|known| known == name).unwrap_or_else(|| {
        list.push(name.to_owned());
        list.len() - 1
    })
}

/// Why a plugin can't be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The parameters don't have the shape that the type takes.
    #[error("{}{reason}", place(path))]
    Parameters {
        /// Where in the parameters, like `a.b[2].c`; empty for the parameters as a whole.
        path: String,
        /// What is wrong there.
        reason: String,
    },
    /// A parameter has a value that the type doesn't take.
    #[error("{parameter}: {reason}")]
    Invalid {
        /// The parameter, as in the configuration.
        parameter: String,
        /// What is wrong with its value, and what would be right.
        reason: String,
    },
    /// No linked crate registered the type.
    #[error("plugin type {plugin_type:?} is not linked; there are {}", known.join(", "))]
    UnknownType {
        /// The type asked for.
        plugin_type: String,
        /// The types that there are.
        known: Vec<&'static str>,
    },
}

impl BuildError {
    /// A parameter whose value isn't taken; the reason says what would be.
    pub fn invalid(parameter: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { parameter: parameter.into(), reason: reason.into() }
    }

    /// Where in the plugin's parameters the mistake is, like `a.b[2].c`; empty for the whole.
    pub fn path(&self) -> &str {
        match self {
            Self::Parameters { path, .. } => path,
            Self::Invalid { parameter, .. } => parameter,
            Self::UnknownType { .. } => "",
        }
    }
}

fn place(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}
