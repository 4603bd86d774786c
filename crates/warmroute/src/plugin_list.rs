//! `warmroute plugins`: the plugin types that are linked into this binary.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use warmroute_plugin::Registry;

/// The plugin types that are linked, by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PluginList {
    plugins: Vec<PluginLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct PluginLine {
    #[serde(rename = "type")]
    plugin_type: String,
    kind: String,
    description: String,
    parameters: Vec<ParameterLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ParameterLine {
    name: String,
    required: bool,
    /// Absent if the parameter must be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<Value>,
}

impl PluginList {
    /// What `registry` has.
    pub fn new(registry: &Registry) -> Self {
        let plugins = registry.types().map(|known| PluginLine {
            plugin_type: known.name().to_owned(),
            kind: known.kind().to_string(),
            description: known.description().to_owned(),
            parameters: known
                .parameters()
                .iter()
                .map(|parameter| ParameterLine {
                    name: parameter.name.clone(),
                    required: parameter.default.is_none(),
                    default: parameter.default.clone(),
                })
                .collect(),
        });
        Self { plugins: plugins.collect() }
    }

    /// As a table: a line per type, and one per parameter with its default below it.
    pub fn table(&self) -> String {
        let width = |of: fn(&PluginLine) -> usize| self.plugins.iter().map(of).max().unwrap_or(0);
        let types = width(|plugin| plugin.plugin_type.len()).max("type".len());
        let kinds = width(|plugin| plugin.kind.len()).max("kind".len());
        let mut text = format!("{:types$}  {:kinds$}  what it does\n", "type", "kind");
        for plugin in &self.plugins {
            let PluginLine { plugin_type, kind, description, parameters } = plugin;
            // Writing to a String can't fail.
            let _ = writeln!(text, "{plugin_type:types$}  {kind:kinds$}  {description}");
            for parameter in parameters {
                let _ = match &parameter.default {
                    Some(Value::Null) => writeln!(text, "    {} (not set)", parameter.name),
                    Some(default) => writeln!(text, "    {} = {default}", parameter.name),
                    None => writeln!(text, "    {} (must be given)", parameter.name),
                };
            }
        }
        text
    }

    /// As JSON: a list of `{type, kind, description, parameters: [{name, required, default}]}`.
    ///
    /// # Errors
    /// A default can't be written as JSON.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
