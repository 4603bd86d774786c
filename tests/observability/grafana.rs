//! Dashboards as Grafana imports them.

use serde_json::{Value, json};

use crate::dashboard::{Dashboard, Panel, PanelKind, Query, Row};
use crate::expression::expanded;

/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;

/// A metric that every picker always has, so that the variables know its namespaces and pods.
const ALWAYS_THERE: &str = "warmroute_kv_index_entries";

/// The JSON of a dashboard, for Grafana 10 and newer. It asks for the data source when it is imported by hand, and has a
/// variable of the same name where it is provisioned.
pub(crate) fn dashboard_json(dashboard: &Dashboard) -> String {
    let model = json!({
        "__inputs": [{
            "name": "DS_PROMETHEUS", "label": "Prometheus", "description": "The Prometheus that scrapes the pickers.",
            "type": "datasource", "pluginId": "prometheus", "pluginName": "Prometheus",
        }],
        "annotations": {"list": []},
        "description": dashboard.description,
        "editable": true,
        "graphTooltip": 1,
        "id": null,
        "links": [{
            "title": "Warmroute", "type": "dashboards", "tags": ["warmroute"], "asDropdown": false,
            "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "dashboard", "tooltip": "", "url": "",
        }],
        "panels": panels(dashboard),
        "refresh": "30s",
        "schemaVersion": 39,
        "tags": ["warmroute"],
        "templating": {"list": variables()},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
    });
    // A Value can always be written.
    let mut text = serde_json::to_string_pretty(&model).unwrap_or_default();
    text.push('\n');
    text
}

fn data_source() -> Value {
    json!({"type": "prometheus", "uid": "${DS_PROMETHEUS}"})
}

fn variables() -> Value {
    let query = |name: &str, label: &str, of: &str| {
        let definition = format!("label_values({of}, {name})");
        json!({
            "name": name, "label": label, "type": "query", "datasource": data_source(),
            "definition": definition,
            "query": {"qryType": 1, "query": definition, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
            "includeAll": true, "allValue": ".*", "multi": true,
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
            "hide": 0, "options": [], "refresh": 2, "regex": "", "skipUrlSync": false, "sort": 1,
        })
    };
    json!([
        {
            "name": "DS_PROMETHEUS", "label": "Data source", "type": "datasource", "query": "prometheus",
            "current": {}, "hide": 0, "includeAll": false, "multi": false, "options": [], "refresh": 1, "regex": "",
            "skipUrlSync": false,
        },
        query("namespace", "Namespace", ALWAYS_THERE),
        query("pod", "Picker", &format!("{ALWAYS_THERE}{{namespace=~\"$namespace\"}}")),
    ])
}

/// Places panels from left to right, each row under its heading.
struct Grid {
    x: u64,
    y: u64,
    /// Height of what stands in this line already.
    line_height: u64,
    next_id: u64,
}

impl Grid {
    fn place(&mut self, width: u64, height: u64) -> Value {
        if self.x + width > COLUMNS {
            self.break_line();
        }
        let place = json!({"x": self.x, "y": self.y, "w": width, "h": height});
        self.x += width;
        self.line_height = self.line_height.max(height);
        place
    }

    fn break_line(&mut self) {
        self.y += self.line_height;
        (self.x, self.line_height) = (0, 0);
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn panels(dashboard: &Dashboard) -> Vec<Value> {
    let mut grid = Grid { x: 0, y: 0, line_height: 0, next_id: 0 };
    let about = format!("{} What it shows and what to do: `{}`.", dashboard.description, dashboard.docs);
    let mut panels = vec![json!({
        "id": grid.id(), "type": "text", "title": "", "gridPos": grid.place(COLUMNS, 2),
        "options": {"mode": "markdown", "content": about},
    })];
    for row in &dashboard.rows {
        panels.extend(row_panels(row, &mut grid));
    }
    panels
}

fn row_panels(row: &Row, grid: &mut Grid) -> Vec<Value> {
    grid.break_line();
    let mut panels = vec![json!({
        "id": grid.id(), "type": "row", "title": row.title, "collapsed": false, "panels": [],
        "gridPos": grid.place(COLUMNS, 1),
    })];
    grid.break_line();
    panels.extend(row.panels.iter().map(|panel| panel_json(panel, grid)));
    panels
}

fn panel_json(panel: &Panel, grid: &mut Grid) -> Value {
    let (kind, width, height) = match panel.kind {
        PanelKind::Stat => ("stat", 4, 4),
        PanelKind::Timeseries => ("timeseries", 8, 8),
        PanelKind::Heatmap => ("heatmap", 8, 8),
    };
    let targets: Vec<Value> =
        panel.queries.iter().zip('A'..='Z').map(|(query, id)| target(panel.kind, query, id)).collect();
    json!({
        "id": grid.id(), "type": kind, "title": panel.title, "description": description(panel),
        "gridPos": grid.place(width, height), "datasource": data_source(),
        "fieldConfig": {"defaults": field(panel), "overrides": []},
        "options": options(panel.kind),
        "targets": targets,
    })
}

/// The panel's own words, and why it may be empty.
fn description(panel: &Panel) -> String {
    let mut reasons: Vec<&str> = panel.queries.iter().filter_map(|query| query.empty.as_deref()).collect();
    reasons.dedup();
    match reasons[..] {
        [] => panel.description.clone(),
        _ => format!("{} Empty while {}.", panel.description, reasons.join(", or ")),
    }
}

fn target(kind: PanelKind, query: &Query, id: char) -> Value {
    json!({
        "datasource": data_source(), "editorMode": "code", "refId": id.to_string(), "range": true,
        "expr": expanded(&query.expr), "legendFormat": query.legend,
        "format": if kind == PanelKind::Heatmap { "heatmap" } else { "time_series" },
    })
}

fn field(panel: &Panel) -> Value {
    let steps: Vec<Value> = if panel.steps.is_empty() {
        vec![json!({"color": "green", "value": null})]
    } else {
        panel.steps.iter().map(|step| json!({"color": step.color, "value": step.from})).collect()
    };
    let by_value = !panel.steps.is_empty();
    let mut field = json!({
        "unit": panel.unit,
        "color": {"mode": if by_value { "thresholds" } else { "palette-classic" }},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [],
    });
    if panel.kind == PanelKind::Timeseries {
        field["custom"] = json!({
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false,
            "axisLabel": panel.axis.as_deref().unwrap_or_default(),
            "stacking": {"mode": if panel.stack { "normal" } else { "none" }, "group": "A"},
        });
        field["min"] = json!(panel.min.unwrap_or(0.0));
    }
    if let Some(max) = panel.max {
        field["max"] = json!(max);
    }
    field
}

fn options(kind: PanelKind) -> Value {
    match kind {
        PanelKind::Stat => json!({
            "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto",
            "textMode": "auto", "wideLayout": true,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
        }),
        PanelKind::Timeseries => json!({
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }),
        PanelKind::Heatmap => json!({
            "calculate": false, "cellGap": 1, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
            "legend": {"show": true}, "tooltip": {"mode": "single", "yHistogram": false},
            "yAxis": {"axisPlacement": "left"},
        }),
    }
}

#[cfg(test)]
mod tests {
    use warmroute_demo::harness::Tools;

    use super::*;
    use crate::dashboard::{DashboardFile, folder};

    #[test]
    fn the_files_are_what_the_source_makes() {
        let root = Tools::root();
        let file = DashboardFile::load(&root).unwrap();
        let made = file.dashboards.iter().map(|dashboard| format!("{}.json", dashboard.file));
        let mut made: Vec<String> = made.collect();
        made.sort_unstable();
        let entries = std::fs::read_dir(folder(&root).join("dashboards")).unwrap();
        let mut there: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        there.sort_unstable();
        assert_eq!(there, made, "run `make dashboards`");
        for dashboard in &file.dashboards {
            let path = folder(&root).join("dashboards").join(format!("{}.json", dashboard.file));
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text == dashboard_json(dashboard), "{} is old: run `make dashboards`", path.display());
        }
    }

    #[test]
    fn panels_do_not_overlap_and_have_numbers_of_their_own() {
        for dashboard in &DashboardFile::load(&Tools::root()).unwrap().dashboards {
            let model: Value = serde_json::from_str(&dashboard_json(dashboard)).unwrap();
            let (mut cells, mut ids) = (std::collections::HashSet::new(), std::collections::HashSet::new());
            for panel in model["panels"].as_array().unwrap() {
                assert!(ids.insert(panel["id"].as_u64().unwrap()));
                let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
                assert!(at("x") + at("w") <= COLUMNS);
                for (x, y) in (at("x")..at("x") + at("w"))
                    .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
                {
                    assert!(cells.insert((x, y)), "{} overlaps at {x}, {y}", panel["title"]);
                }
            }
        }
    }
}
