//! Parameters: from JSON to a plugin's own type, with the path of a mistake.

use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde::de::value::Error as ValueError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::BuildError;

/// Reads a plugin's parameters into its type; `null` counts as no parameters.
///
/// # Errors
///
/// [`BuildError::Parameters`] with the path of the first mistake.
///
/// serde_json knows no paths for a [`Value`], but lines for a text. So the value is printed with one
/// entry per line, read from there, and the line of an error is looked up among the printed paths.
pub(crate) fn read<P: DeserializeOwned>(parameters: Value) -> Result<P, BuildError> {
    let parameters = if parameters.is_null() { Value::Object(serde_json::Map::new()) } else { parameters };
    if !parameters.is_object() {
        // A struct can be read from a list too; nobody means that.
        let reason = "parameters must be a map from names to values".to_owned();
        return Err(BuildError::Parameters { path: String::new(), reason });
    }
    // The direct way first: the detour is only for its errors.
    let error = match P::deserialize(&parameters) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    let text = format!("{parameters:#}");
    let Err(located) = serde_json::from_str::<P>(&text) else {
        return Err(BuildError::Parameters { path: String::new(), reason: error.to_string() });
    };
    let mut paths = Vec::new();
    line_paths(&parameters, &mut String::new(), &mut paths);
    let path = paths.get(located.line().saturating_sub(1)).cloned().unwrap_or_default();
    Err(BuildError::Parameters { path, reason: error.to_string() })
}

/// Pushes the path of every line of the pretty-printed `value`.
fn line_paths(value: &Value, path: &mut String, lines: &mut Vec<String>) {
    let length = path.len();
    lines.push(path.clone());
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                let dot = if length == 0 { "" } else { "." };
                path.push_str(dot);
                path.push_str(key);
                line_paths(value, path, lines);
                path.truncate(length);
            }
            lines.push(path.clone());
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                // Writing to a String can't fail.
                let _ = write!(path, "[{index}]");
                line_paths(item, path, lines);
                path.truncate(length);
            }
            lines.push(path.clone());
        }
        _ => {}
    }
}

/// The parameters of a plugin type that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// A parameter of a plugin type, for listings.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in the configuration.
    pub name: String,
    /// Its value where the configuration gives none; `None` if it must be given.
    pub default: Option<Value>,
}

/// The parameters of `P`: names from its fields, defaults from what an object with only the required ones is
/// read as.
pub(crate) fn describe<P: DeserializeOwned + Serialize>() -> Vec<Parameter> {
    let mut names = Vec::new();
    // The deserializer refuses everything; what counts is what it was asked.
    let _ = P::deserialize(FieldNames(&mut names));
    let mut given = serde_json::Map::new();
    let defaults = read_with_placeholders::<P>(&mut given).and_then(|read| serde_json::to_value(read).ok());
    let default = |name: &str| {
        let defaults = defaults.as_ref().filter(|_| !given.contains_key(name));
        defaults.and_then(|defaults| defaults.get(name)).cloned()
    };
    let is_written = |name: &str| defaults.as_ref().is_none_or(|defaults| defaults.get(name).is_some());
    // An alias is a field name too, but nothing is written under it.
    let named = names.iter().filter(|name| is_written(name));
    named.map(|name| Parameter { name: (*name).to_owned(), default: default(name) }).collect()
}

/// Reads `P` from an object that has something for every required parameter, and nothing else; `given` are
/// those. `None` if one of them takes none of the simple values.
fn read_with_placeholders<P: DeserializeOwned>(given: &mut serde_json::Map<String, Value>) -> Option<P> {
    let missing = |error: &serde_json::Error| {
        let text = error.to_string();
        Some(text.strip_prefix("missing field `")?.split_once('`')?.0.to_owned())
    };
    let read = |given: &serde_json::Map<String, Value>| P::deserialize(Value::Object(given.clone()));
    loop {
        let field = match read(given) {
            Ok(read) => return Some(read),
            Err(error) => missing(&error).filter(|field| !given.contains_key(field))?,
        };
        // A placeholder fits if the next mistake is another missing field, or none.
        let simple = [json!(""), json!(0), json!(false), json!([]), json!({})];
        let fitting = simple.into_iter().find(|value| {
            given.insert(field.clone(), value.clone());
            read(given).err().is_none_or(|error| missing(&error).is_some_and(|next| next != field))
        });
        fitting?;
    }
}

/// Notes the field names of the struct that is read from it.
struct FieldNames<'a>(&'a mut Vec<&'static str>);

impl<'de> serde::Deserializer<'de> for FieldNames<'_> {
    type Error = ValueError;

    fn deserialize_any<V: serde::de::Visitor<'de>>(self, _visitor: V) -> Result<V::Value, ValueError> {
        Err(serde::de::Error::custom("only field names are looked at"))
    }

    fn deserialize_struct<V: serde::de::Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ValueError> {
        self.0.extend_from_slice(fields);
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Nested {
        #[serde(default = "three")]
        max_items: u32,
        #[serde(default)]
        rules: Vec<Rule>,
        #[serde(default, alias = "oldName")]
        name: Option<String>,
    }

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        value: f64,
    }

    #[derive(Debug, Deserialize, Serialize)]
    struct Required {
        zone: String,
        rules: Vec<Rule>,
        level: u8,
        #[serde(default)]
        weight: f64,
    }

    /// No simple value is a kind.
    #[derive(Debug, Deserialize, Serialize)]
    struct Odd {
        kind: Kind,
        #[serde(default)]
        size: u32,
    }

    #[derive(Debug, Deserialize, Serialize)]
    enum Kind {
        One,
    }

    fn three() -> u32 {
        3
    }

    fn mistake(parameters: Value) -> (String, String) {
        match read::<Nested>(parameters).unwrap_err() {
            BuildError::Parameters { path, reason } => (path, reason),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn nothing_and_null_are_no_parameters() {
        assert_eq!(read::<Nested>(Value::Null).unwrap().max_items, 3);
        assert_eq!(read::<NoParameters>(json!({})), Ok(NoParameters {}));
    }

    #[test]
    fn a_mistake_has_its_path() {
        let table = [
            (json!({"maxItems": "x"}), "maxItems", "invalid type: string \"x\", expected u32"),
            (json!({"maxItems": 1, "maxItmes": 2}), "maxItmes", "unknown field `maxItmes`"),
            (
                json!({"rules": [{"value": 1}, {"value": true}]}),
                "rules[1].value",
                "invalid type: boolean `true`",
            ),
            (json!({"rules": [{"value": 1.5}, {}]}), "rules[1]", "missing field `value`"),
            (json!({"rules": {}}), "rules", "invalid type: map"),
            (json!({"name": [], "rules": []}), "name", "invalid type: sequence"),
            (json!([1]), "", "parameters must be a map"),
            (json!("text"), "", "parameters must be a map"),
        ];
        for (parameters, path, reason) in table {
            let (got_path, got_reason) = mistake(parameters.clone());
            assert_eq!(got_path, path, "{parameters}: {got_reason}");
            assert!(got_reason.starts_with(reason), "{parameters}: {got_reason}");
            assert!(!got_reason.contains("line"), "{got_reason}");
        }
    }

    #[test]
    fn parameters_are_listed_with_their_defaults() {
        let names = |listed: Vec<Parameter>| {
            listed.into_iter().map(|parameter| (parameter.name, parameter.default)).collect::<Vec<_>>()
        };
        let nested = [
            ("maxItems".to_owned(), Some(json!(3))),
            ("name".to_owned(), Some(Value::Null)),
            ("rules".to_owned(), Some(json!([]))),
        ];
        let mut listed = names(describe::<Nested>());
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(listed, nested);
        let required = [("zone", None), ("rules", None), ("level", None), ("weight", Some(json!(0.0)))];
        let required = required.map(|(name, default)| (name.to_owned(), default));
        assert_eq!(names(describe::<Required>()), required);
        assert_eq!(names(describe::<Odd>()), [("kind".to_owned(), None), ("size".to_owned(), None)]);
        assert_eq!(describe::<NoParameters>(), []);
    }
}
