//! What is to be said of the ports that KV events pass through: none of them asks who is there.

use warmroute_config::{CheckedConfig, Notice, PrefixProducerSpec};

/// What to know of a configuration that asks for KV events, which come from engines' own ports; None if it doesn't.
///
/// vLLM and SGLang bind them on all interfaces (`vllm/distributed/kv_events.py`), and ZMQ's NULL mechanism, which they use,
/// has no authentication.
pub fn engine_ports(config: &CheckedConfig) -> Option<Notice> {
    let events = config.prefix_producers.iter().find_map(|producer| match producer {
        PrefixProducerSpec::Precise(events) if events.discover_pods => Some(events),
        _ => None,
    })?;
    let port = match events.socket_port {
        Some(port) => format!("port {port} of every engine"),
        None => "a port of every engine".to_owned(),
    };
    let replay = match events.replay_socket_port {
        Some(0) => "",
        _ => ", and replays",
    };
    let message = format!(
        "KV events{replay} come from {port}, where whoever reaches it reads the token ids of prompts, and whoever \
         answers in its place decides what is believed of its cache: let the picker alone reach it (\"Who may reach an engine\" in docs/operations.md)"
    );
    Some(Notice { place: None, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use warmroute_config::{KnownTypes, SchedulingKind, check};

    fn notice(plugin: &str) -> Option<String> {
        let text = format!(
            "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: max-score-picker\n{plugin}\
             schedulingProfiles:\n- name: p\n  plugins: [{{pluginRef: max-score-picker}}]\n"
        );
        let known = KnownTypes::new([("max-score-picker", SchedulingKind::Picker)]);
        engine_ports(&check("t", text.as_bytes(), &known).unwrap()).map(|notice| notice.message)
    }

    #[test]
    fn ports_that_anyone_may_reach_are_named() {
        let events = |ports: &str| {
            let plugin = format!(
                "- {{type: precise-prefix-cache-producer, parameters: {{kvEventsConfig: {{podDiscoveryConfig: {{{ports}}}}}}}}}\n"
            );
            notice(&plugin).unwrap()
        };
        assert_eq!(notice(""), None);
        let both = events("socketPort: 5560, replaySocketPort: 5561");
        assert!(both.starts_with("KV events, and replays come from port 5560 of every engine"), "{both}");
        assert!(events("socketPort: 5560, replaySocketPort: 0").starts_with("KV events come from port 5560"));
    }
}
