//! From named plugins and references to them to a scheduler.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use warmroute_plugin::{
    BuildContext, BuildError, Needs, Plugin, PluginKind, PrefixColumn, Registry, SharedStates, Task,
};

use crate::{NamedFilter, NamedPicker, Profile, ProfileHandler, Scheduler, SchedulerError, WeightedScorer};

/// Builds plugins from a [`Registry`] and puts them into profiles.
#[derive(Debug)]
pub struct SchedulerBuilder<'a> {
    registry: &'a Registry,
    plugins: HashMap<Arc<str>, Plugin>,
    profiles: Vec<Profile>,
    handler: ProfileHandler,
    needs: Needs,
}

/// A scheduler, and the tasks that its plugins want to have run as long as it is in use.
pub struct BuiltScheduler {
    /// The scheduler.
    pub scheduler: Scheduler,
    /// The tasks, each with the name of its plugin.
    pub tasks: Vec<(String, Task)>,
    /// Keys of the requests' attributes that the plugins read.
    pub request_attributes: Vec<String>,
}

/// Why a profile can't be put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Two plugins have one name.
    #[error("there are two plugins called {name}")]
    DuplicatePlugin {
        /// The name.
        name: String,
    },
    /// The profile refers to a plugin that wasn't added.
    #[error("profile {profile} refers to {plugin}, and there is no such plugin")]
    UnknownPlugin {
        /// The profile.
        profile: String,
        /// What it refers to.
        plugin: String,
    },
    /// The profile has more than one picker.
    #[error("profile {profile} has two pickers: {first} and {second}")]
    TwoPickers {
        /// The profile.
        profile: String,
        /// The picker that comes first.
        first: String,
        /// The next one.
        second: String,
    },
    /// The profile has no picker.
    #[error("profile {profile} has no picker")]
    NoPicker {
        /// The profile.
        profile: String,
    },
    /// The plugin is of a kind that has no place in a profile.
    #[error("profile {profile} refers to {plugin}, a {kind}, which has no place in a profile")]
    WrongKind {
        /// The profile.
        profile: String,
        /// What it refers to.
        plugin: String,
        /// What that is.
        kind: PluginKind,
    },
}

impl<'a> SchedulerBuilder<'a> {
    /// A builder that makes plugins of the types in `registry`.
    pub fn new(registry: &'a Registry) -> Self {
        Self {
            registry,
            plugins: HashMap::new(),
            profiles: Vec::new(),
            handler: ProfileHandler::Single,
            needs: Needs::default(),
        }
    }

    /// The same builder, whose plugins find what those of earlier configurations remember. To be called before the
    /// first plugin is built.
    #[must_use]
    pub fn with_states(self, states: SharedStates) -> Self {
        Self { needs: Needs::with_states(states), ..self }
    }

    /// Builds a plugin. Parameters are an object, or null for none.
    ///
    /// # Errors
    ///
    /// If the registry can't build it.
    pub fn plugin(&mut self, name: &str, plugin_type: &str, parameters: Value) -> Result<(), BuildError> {
        let mut context = BuildContext::new(name, &mut self.needs);
        let plugin = self.registry.build(plugin_type, parameters, &mut context)?;
        self.plugins.insert(name.into(), plugin);
        Ok(())
    }

    /// Puts plugins into a profile, in this order, each with its weight. Weights of filters and pickers
    /// mean nothing.
    ///
    /// # Errors
    ///
    /// If a plugin wasn't built, or there isn't exactly one picker.
    pub fn profile<'p>(
        &mut self,
        name: &str,
        plugins: impl IntoIterator<Item = (&'p str, f64)>,
    ) -> Result<(), ProfileError> {
        let (mut filters, mut scorers, mut picker) = (Vec::new(), Vec::new(), None::<NamedPicker>);
        let profile = || name.to_owned();
        for (plugin, weight) in plugins {
            let unknown = || ProfileError::UnknownPlugin { profile: profile(), plugin: plugin.to_owned() };
            let (name, built) = self.plugins.get_key_value(plugin).ok_or_else(unknown)?;
            let name = Arc::clone(name);
            match built.clone() {
                Plugin::Filter(filter) => filters.push(NamedFilter { name, filter }),
                Plugin::Scorer(scorer) => scorers.push(WeightedScorer { name, weight, scorer }),
                Plugin::Picker(second) => match &picker {
                    None => picker = Some(NamedPicker { name, picker: second }),
                    Some(first) => {
                        let (first, second) = (first.name.to_string(), name.to_string());
                        return Err(ProfileError::TwoPickers { profile: profile(), first, second });
                    }
                },
                other => {
                    let (plugin, kind) = (name.to_string(), other.kind());
                    return Err(ProfileError::WrongKind { profile: profile(), plugin, kind });
                }
            }
        }
        let picker = picker.ok_or_else(|| ProfileError::NoPicker { profile: profile() })?;
        self.profiles.push(Profile { name: name.into(), filters, scorers, picker });
        Ok(())
    }

    /// Says which profiles run; without it the only one does.
    pub fn handler(&mut self, handler: ProfileHandler) {
        self.handler = handler;
    }

    /// The prefix column of a producer, for a [`Decider`](crate::Decider) called `plugin`.
    pub fn prefix_column(&mut self, plugin: &str, producer: &str) -> PrefixColumn {
        BuildContext::new(plugin, &mut self.needs).prefix_match(producer)
    }

    /// The scheduler.
    ///
    /// # Errors
    ///
    /// What [`Scheduler::try_with_handler`] says.
    pub fn build(mut self) -> Result<BuiltScheduler, SchedulerError> {
        let tasks = self.needs.take_tasks();
        let producers = self.needs.prefix_producers().to_vec();
        let scheduler = Scheduler::try_with_handler(self.profiles, producers, self.handler)?;
        let scheduler = scheduler.with_needs(&self.needs);
        let request_attributes = self.needs.request_attributes().to_vec();
        Ok(BuiltScheduler { scheduler, tasks, request_attributes })
    }
}
