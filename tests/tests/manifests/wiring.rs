//! Who names whom: ports, Services, pools, routes, monitors.

use serde_json::Value;

use crate::objects::{Objects, containers, list, selects};

/// The picker listens on the ports that its pod names, every Service's selector finds a pod and every port a container's,
/// and what routes and pools refer to is there.
pub(crate) fn leads_somewhere(what: &str, objects: &Objects) {
    for (flag, port) in [
        ("grpc-port", "grpc"),
        ("grpc-health-port", "grpc-health"),
        ("metrics-port", "metrics"),
        ("replica-port", "replica"),
    ] {
        let number = port_of(objects.picker(), port).unwrap_or_else(|| panic!("{what}: no port {port}"));
        assert_eq!(objects.picker_flag(flag), Some(number.to_string().as_str()), "{what}: {flag}");
    }
    let peers = objects.picker_flag("replica-peers").expect("no --replica-peers");
    let (host, port) = peers.rsplit_once(':').unwrap();
    let replicas = objects.named("Service", host.split('.').next().unwrap()).expect("no Service of replicas");
    assert_eq!(replicas["spec"]["clusterIP"], "None", "{what}: a replica asks all others");
    assert_eq!(
        replicas["spec"]["publishNotReadyAddresses"], false,
        "{what}: cold replicas have nothing to give"
    );
    assert!(has_port(replicas, port.parse().unwrap()), "{what}: {peers}");
    services_have_pods(what, objects);
    for pool in objects.of("InferencePool") {
        let picker = &pool["spec"]["endpointPickerRef"];
        let service =
            objects.named("Service", picker["name"].as_str().unwrap()).expect("no Service of the picker");
        assert!(has_port(service, picker["port"]["number"].as_u64().unwrap()), "{what}: {picker}");
        assert_eq!(objects.picker_flag("pool-name"), pool["metadata"]["name"].as_str(), "{what}");
    }
    for route in objects.of("HTTPRoute") {
        for backend in list(&route["spec"]["rules"]).iter().flat_map(|rule| list(&rule["backendRefs"])) {
            let (kind, name) = (backend["kind"].as_str().unwrap(), backend["name"].as_str().unwrap());
            // A pool that somebody else made is the one that the picker follows.
            let theirs = kind == "InferencePool" && objects.picker_flag("pool-name") == Some(name);
            assert!(theirs || objects.named(kind, name).is_some(), "{what}: no {kind} {name}");
        }
    }
    for (kind, endpoints) in [("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")] {
        for monitor in objects.of(kind) {
            let port = list(&monitor["spec"][endpoints])[0]["port"].as_str().unwrap();
            let found = match kind {
                "PodMonitor" => port_of(objects.picker(), port).is_some(),
                _ => objects.of("Service").into_iter().any(|service| {
                    selects(&monitor["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"])
                        && list(&service["spec"]["ports"]).iter().any(|given| given["name"] == port)
                }),
            };
            assert!(found, "{what}: {kind} of a port {port} that isn't there");
        }
    }
}

fn services_have_pods(what: &str, objects: &Objects) {
    for service in objects.of("Service") {
        let name = service["metadata"]["name"].as_str().unwrap();
        let labels = |deployment: &Value| deployment["spec"]["template"]["metadata"]["labels"].clone();
        let deployment = objects
            .of("Deployment")
            .into_iter()
            .find(|deployment| selects(&service["spec"]["selector"], &labels(deployment)));
        let Some(deployment) = deployment else {
            // The engines, which somebody else deploys.
            assert!(name.ends_with("-engines"), "{what}: nothing answers behind {name}");
            continue;
        };
        for port in list(&service["spec"]["ports"]) {
            if let Some(target) = port["targetPort"].as_str() {
                assert!(port_of(deployment, target).is_some(), "{what}: {name}: no port {target}");
            }
        }
    }
}

/// The number of a named port of a Deployment's containers.
fn port_of(deployment: &Value, name: &str) -> Option<u64> {
    let mut ports = containers(deployment).flat_map(|container| list(&container["ports"]));
    ports.find(|port| port["name"] == name).and_then(|port| port["containerPort"].as_u64())
}

fn has_port(service: &Value, number: u64) -> bool {
    list(&service["spec"]["ports"]).iter().any(|port| port["port"] == number)
}
