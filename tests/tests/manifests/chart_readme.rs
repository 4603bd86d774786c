//! The chart's README: its table of values is made from the schema and the defaults. `WARMROUTE_WRITE_DOCS=1` rewrites it.

use std::fmt::Write;

use serde_json::{Map, Value};
use warmroute_demo::harness::Tools;

use crate::objects::Objects;

const BEGIN: &str = "<!-- values: begin -->\n";
const END: &str = "<!-- values: end -->";

#[test]
fn the_table_of_values_is_what_the_chart_takes() {
    let chart = Tools::root().join("charts/warmroute");
    let schema: Value =
        serde_json::from_slice(&std::fs::read(chart.join("values.schema.json")).unwrap()).unwrap();
    let values = Objects::read(&chart.join("values.yaml")).all()[0].clone();
    let mut rows = String::from("| Value | Default | |\n| --- | --- | --- |\n");
    write_rows(&mut rows, "", &schema, Some(&values));
    let path = chart.join("README.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = written.split_once(BEGIN).expect("the place of the table");
    let (_, after) = rest.split_once(END).expect("the end of the table");
    let rendered = format!("{before}{BEGIN}{rows}{END}{after}");
    if std::env::var_os("WARMROUTE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &rendered).unwrap();
        return;
    }
    let line = written.lines().zip(rendered.lines()).find(|(written, rendered)| written != rendered);
    assert!(
        written == rendered,
        "charts/warmroute/README.md isn't what the chart takes: run this test with WARMROUTE_WRITE_DOCS=1; {line:?}"
    );
}

/// A row per value that has no values below it, in the schema's order; every default must be in the schema, and every
/// value of the schema that isn't somebody else's must have a default.
fn write_rows(rows: &mut String, path: &str, schema: &Value, values: Option<&Value>) {
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    for key in values.and_then(Value::as_object).unwrap_or(&empty).keys() {
        assert!(properties.contains_key(key), "{path}.{key} has a default and isn't in the schema");
    }
    for (key, part) in properties {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let value = values.and_then(|values| values.get(key));
        let description = part["description"].as_str().unwrap_or_default();
        let foreign = description.starts_with("Of ");
        assert!(value.is_some() || foreign || path.contains(".resources."), "{path} has no default");
        if foreign {
            continue;
        }
        let below = part["properties"].is_object() && value.is_some_and(|value| value.as_object().is_some());
        if below && !path.ends_with(".resources") {
            write_rows(rows, &path, part, value);
            continue;
        }
        let description = if path.ends_with(".resources") { "Resources, as in a pod." } else { description };
        assert!(description.ends_with('.'), "{path} isn't described");
        let default = value.map_or_else(String::new, |value| value.to_string().replace('|', "\\|"));
        writeln!(rows, "| `{path}` | `{default}` | {} |", described(part, description)).unwrap();
    }
}

/// The description, with the words that are taken.
fn described(part: &Value, description: &str) -> String {
    let Some(words) = part["enum"].as_array() else { return description.replace('|', "\\|") };
    let words: Vec<String> = words.iter().map(|word| format!("`{}`", word.as_str().unwrap())).collect();
    format!("{description} One of {}.", words.join(", "))
}
