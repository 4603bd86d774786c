//! The configuration in use when none is given.

use crate::{CheckedConfig, ConfigError, KnownTypes, check};

/// The text of [`built_in`]: the weights are those of the llm-d EPP's own default
/// (`pkg/epp/config/loader/defaults.go` in github.com/llm-d/llm-d-router), prefix matches are exact where an engine's KV events
/// are seen.
pub const BUILT_IN: &str = "\
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
- type: prefix-cache-producer
  name: approx-prefix-cache-producer
- type: metrics-data-source
- type: core-metrics-extractor
- type: max-score-picker
- type: single-profile-handler
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: prefix-cache-scorer
    weight: 3
  - pluginRef: max-score-picker
dataLayer:
  sources:
  - pluginRef: metrics-data-source
    extractors:
    - pluginRef: core-metrics-extractor
";

/// The configuration in use when none is given.
///
/// # Errors
///
/// If one of its plugin types isn't linked.
pub fn built_in(known: &KnownTypes) -> Result<CheckedConfig, ConfigError> {
    check("built-in default", BUILT_IN.as_bytes(), known)
}
