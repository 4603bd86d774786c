//! Names and types of a configuration's plugins, for metrics and spans.

use std::collections::HashMap;

use warmroute_config::CheckedConfig;

use crate::metrics::PluginLabels;

/// The type of the producer of token ids.
const TOKEN_PRODUCER: &str = "token-producer";

/// Names and types of the plugins.
#[derive(Clone, Debug, Default)]
pub struct PluginNames {
    types: HashMap<String, String>,
    token_producer: Option<String>,
}

impl PluginNames {
    /// Of a configuration.
    pub fn of(config: &CheckedConfig) -> Self {
        let plugins = config.plugins.iter();
        Self {
            types: plugins.map(|plugin| (plugin.name.clone(), plugin.plugin_type.clone())).collect(),
            token_producer: config.token_producer.as_ref().map(|producer| producer.name.clone()),
        }
    }

    /// The type of a filter, scorer or picker; the name itself if it isn't known.
    pub fn type_of<'a>(&'a self, name: &'a str) -> &'a str {
        self.types.get(name).map_or(name, String::as_str)
    }

    /// Name and type of a filter, scorer or picker.
    pub fn labels<'a>(&'a self, name: &'a str) -> PluginLabels<'a> {
        PluginLabels { name, plugin_type: self.type_of(name) }
    }

    /// The producer of token ids, which is there whether the configuration names it or not.
    pub fn token_producer(&self) -> PluginLabels<'_> {
        let name = self.token_producer.as_deref().unwrap_or(TOKEN_PRODUCER);
        PluginLabels { name, plugin_type: TOKEN_PRODUCER }
    }
}
