//! The examples of engines: KV events where their ports are, and pods that stop without failing a request.

use serde_json::Value;
use warmroute_demo::harness::Tools;

use crate::objects::{Objects, list, pod, selects, strings};

/// The engines' Deployment of an example.
struct Example {
    name: &'static str,
    objects: Objects,
}

impl Example {
    fn read(name: &'static str) -> Self {
        let file = Tools::root().join("deploy/kubernetes").join(format!("{name}.yaml"));
        Self { name, objects: Objects::read(&file) }
    }

    fn deployment(&self) -> &Value {
        self.objects.of("Deployment")[0]
    }

    fn container(&self) -> &Value {
        &pod(self.deployment())["containers"][0]
    }

    fn argument(&self, flag: &str) -> Option<&str> {
        let start = format!("--{flag}=");
        strings(&self.container()["args"])
            .into_iter()
            .find_map(|argument| argument.strip_prefix(start.as_str()))
    }

    fn kv_events(&self) -> Value {
        serde_json::from_str(self.argument("kv-events-config").unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn serves(&self, port: u64) -> bool {
        list(&self.container()["ports"]).iter().any(|given| given["containerPort"] == port)
    }
}

/// The port of an endpoint such as `tcp://*:5557`.
fn port(endpoint: &Value) -> u64 {
    endpoint.as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

#[test]
fn events_are_where_pickers_look_for_them() {
    for (name, ranks) in [("vllm/subscribe", 1), ("vllm/ranks", 4), ("sglang/subscribe", 1)] {
        let example = Example::read(name);
        assert_eq!(
            example.argument("data-parallel-size").map_or(1, |ranks| ranks.parse().unwrap()),
            ranks,
            "{name}"
        );
        let events = example.kv_events();
        assert_eq!(events["publisher"], "zmq", "{name}");
        let (live, replay) = (port(&events["endpoint"]), port(&events["replay_endpoint"]));
        // 5557 is where a picker looks if nothing is configured.
        assert_eq!(live, 5557, "{name}");
        assert!(replay >= live + ranks, "{name}: ranks publish where others replay");
        for rank in 0..ranks {
            assert!(example.serves(live + rank) && example.serves(replay + rank), "{name}: rank {rank}");
        }
    }
}

#[test]
fn engines_that_connect_name_themselves_as_the_picker_knows_them() {
    let example = Example::read("vllm/centralised");
    let events = example.kv_events();
    assert_eq!(events["endpoint"], "tcp://warmroute-epp.inference.svc.cluster.local:5557");
    let serving = list(&example.container()["ports"])[0]["containerPort"].to_string();
    let topic = events["topic"].as_str().unwrap();
    let wanted = format!("kv@$(POD_IP):{serving}@{}", example.argument("model").unwrap());
    assert_eq!(topic, wanted);
    let address = &list(&example.container()["env"])[0];
    assert_eq!(
        (address["name"].as_str(), address["valueFrom"]["fieldRef"]["fieldPath"].as_str()),
        (Some("POD_IP"), Some("status.podIP"))
    );
}

#[test]
fn engines_are_replaced_without_a_failed_request() {
    for name in ["vllm/subscribe", "vllm/ranks", "vllm/centralised", "sglang/subscribe"] {
        let example = Example::read(name);
        assert_eq!(example.deployment()["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0, "{name}");
        let notice = example.container()["lifecycle"]["preStop"]["sleep"]["seconds"].as_i64().unwrap();
        let running = example.argument("shutdown-timeout").map_or(0, |seconds| seconds.parse().unwrap());
        let grace = pod(example.deployment())["terminationGracePeriodSeconds"].as_i64().unwrap();
        assert!(notice >= 10, "{name}: pickers and gateways need to hear of it");
        assert!(notice + running >= 120, "{name}: running requests are cut off");
        assert!(grace >= notice + running + 10, "{name}: killed before it has ended");
        assert_eq!(example.container()["readinessProbe"]["httpGet"]["path"], "/health", "{name}");
        for policy in
            example.objects.of("NetworkPolicy").into_iter().chain(example.objects.of("PodDisruptionBudget"))
        {
            let selector = if policy["spec"]["podSelector"].is_null() {
                &policy["spec"]["selector"]
            } else {
                &policy["spec"]["podSelector"]
            };
            let labels = &example.deployment()["spec"]["template"]["metadata"]["labels"];
            assert!(selects(&selector["matchLabels"], labels), "{name}: {}", policy["kind"]);
        }
    }
}
