//! `warmroute plugins`: the plugin types that are linked into this binary, and the host's own parts.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use warmroute_config::{HostPart, ParameterDefault, host_parts};
use warmroute_plugin::Registry;

/// The plugin types that are linked, by name, then the host's parts, by name.
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
    /// `without effect` or `not available`, for what is known for the llm-d Router EPP's sake.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<&'static str>,
}

impl PluginList {
    /// What `registry` and the host have.
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
                    remark: None,
                })
                .collect(),
        });
        Self { plugins: plugins.chain(host_parts().iter().map(host_line)).collect() }
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
                let _ = match (&parameter.default, parameter.remark) {
                    (_, Some(remark)) => writeln!(text, "    {} ({remark})", parameter.name),
                    (Some(Value::Null), _) => writeln!(text, "    {} (not set)", parameter.name),
                    (Some(default), _) => writeln!(text, "    {} = {default}", parameter.name),
                    (None, _) => writeln!(text, "    {} (must be given)", parameter.name),
                };
            }
        }
        text
    }

    /// As JSON: a list of `{type, kind, description, parameters: [{name, required, default, remark}]}`.
    ///
    /// # Errors
    /// A default can't be written as JSON.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

fn host_line(part: &HostPart) -> PluginLine {
    let parameters = part.parameters.iter().map(|parameter| ParameterLine {
        name: parameter.name.to_owned(),
        required: parameter.default == ParameterDefault::Required,
        default: match parameter.default {
            ParameterDefault::Is(text) => {
                Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
            }
            ParameterDefault::Required => None,
            _ => Some(Value::Null),
        },
        remark: match parameter.default {
            ParameterDefault::Unused => Some("without effect"),
            ParameterDefault::Refused => Some("not available"),
            _ => None,
        },
    });
    PluginLine {
        plugin_type: part.plugin_type.to_owned(),
        kind: part.kind.to_owned(),
        description: part.description.to_owned(),
        parameters: parameters.collect(),
    }
}
