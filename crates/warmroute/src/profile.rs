//! From the configuration to a scheduler: everything that the file gets wrong is reported at once.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use warmroute_config::{
    BUILT_IN, CheckedConfig, ConfigError, KnownTypes, ParameterMistake, PluginSpec, SchedulingKind, check,
};
use warmroute_plugin::{BuildContext, Needs, PluginKind, Registry, SharedStates};
use warmroute_scheduler::{BuiltScheduler, SchedulerBuilder};

use crate::attributes::Attribute;
use crate::cli::ServeOptions;
use crate::handler::profile_handler;
use crate::prefix_plan::PrefixPlan;
use crate::reload::read_bounded;
use crate::session_ids::key_of;

/// The text of a configuration and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSource {
    /// What to call it in errors.
    pub name: String,
    /// The text.
    pub text: Vec<u8>,
    /// The file that it was read from, if it was.
    pub path: Option<PathBuf>,
}

impl ConfigSource {
    /// What the options name: a file, a text, or the built-in configuration.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn of(options: &ServeOptions) -> anyhow::Result<Self> {
        Ok(match (&options.config_file, &options.config_text) {
            (Some(path), _) => Self {
                name: path.display().to_string(),
                text: read_bounded(path)
                    .with_context(|| format!("can't read --config-file {}", path.display()))?,
                path: Some(path.clone()),
            },
            (None, Some(text)) => {
                Self { name: "--config-text".to_owned(), text: text.clone().into_bytes(), path: None }
            }
            (None, None) => {
                Self { name: "built-in default".to_owned(), text: BUILT_IN.as_bytes().to_vec(), path: None }
            }
        })
    }

    /// Checks it.
    ///
    /// # Errors
    /// All its mistakes, with their places.
    pub fn check(&self, registry: &Arc<Registry>) -> Result<CheckedConfig, ConfigError> {
        check(&self.name, &self.text, &known_types(registry))
    }
}

/// Reads and checks the configuration that the options name, or the built-in one.
///
/// # Errors
/// The file can't be read, or has mistakes: all of them, with their places.
pub fn read_config(options: &ServeOptions, registry: &Arc<Registry>) -> anyhow::Result<CheckedConfig> {
    Ok(ConfigSource::of(options)?.check(registry)?)
}

/// What a configuration may name: the linked plugin types, which check their own parameters.
pub fn known_types(registry: &Arc<Registry>) -> KnownTypes {
    let builder = registry.clone();
    let types = KnownTypes::new(registry.types().filter_map(|plugin_type| {
        let kind = match plugin_type.kind() {
            PluginKind::Filter => SchedulingKind::Filter,
            PluginKind::Scorer => SchedulingKind::Scorer,
            PluginKind::Picker => SchedulingKind::Picker,
            _ => return None,
        };
        Some((plugin_type.name(), kind))
    }));
    types.check_parameters_with(move |plugin| takes_parameters(&builder, plugin))
}

fn takes_parameters(registry: &Registry, plugin: &PluginSpec) -> Result<(), ParameterMistake> {
    let mut needs = Needs::default();
    let mut context = BuildContext::new(&plugin.name, &mut needs);
    match registry.build(&plugin.plugin_type, plugin.parameters.clone(), &mut context) {
        Ok(_) => Ok(()),
        Err(error) => Err(ParameterMistake { path: error.path().to_owned(), message: error.to_string() }),
    }
}

/// Builds the plugins and profiles of a checked configuration.
///
/// # Errors
/// A profile can't be put together, or a plugin reads prefix matches or an attribute that nothing produces.
pub fn build_scheduler(config: &CheckedConfig, registry: &Registry) -> anyhow::Result<BuiltScheduler> {
    build_scheduler_with(config, registry, SharedStates::default())
}

/// The same, with plugins that find what those of the configuration before remember.
///
/// # Errors
/// See [`build_scheduler`].
pub fn build_scheduler_with(
    config: &CheckedConfig,
    registry: &Registry,
    states: SharedStates,
) -> anyhow::Result<BuiltScheduler> {
    let mut builder = SchedulerBuilder::new(registry).with_states(states);
    let profiles = || config.profiles.iter().filter(|profile| config.handler.runs(&profile.name));
    // A plugin that is in no profile that runs isn't built, so that nothing is computed for it.
    let named = |plugin: &&PluginSpec| {
        profiles().any(|p| p.plugins.iter().any(|reference| reference.plugin_ref == plugin.name))
    };
    for plugin in config.plugins.iter().filter(named) {
        builder.plugin(&plugin.name, &plugin.plugin_type, plugin.parameters.clone())?;
    }
    for profile in profiles() {
        let plugins = profile.plugins.iter().map(|plugin| (plugin.plugin_ref.as_str(), plugin.weight));
        builder.profile(&profile.name, plugins)?;
    }
    let handler = profile_handler(config, &mut builder)?;
    builder.handler(handler);
    let built = builder.build()?;
    PrefixPlan::try_new(config, built.scheduler.prefix_producers())?;
    Attribute::find_all(built.scheduler.attributes(), config)?;
    for wanted in &built.request_attributes {
        anyhow::ensure!(
            config.session_id_producers.iter().any(|producer| key_of(producer) == *wanted),
            "a plugin reads the request's attribute {wanted:?}, and nothing produces it: declare a session-id-producer \
             of this name"
        );
    }
    Ok(built)
}
