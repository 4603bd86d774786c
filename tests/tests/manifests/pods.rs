//! Pods: what they may do, how they are asked whether they are well, and how they stop.

use serde_json::{Value, json};

use crate::objects::{Objects, container, containers, list, pod};

/// No pod of ours runs as root, writes to its root file system, has a capability or gains any, or gets the service
/// account's token without need.
pub(crate) fn are_confined(what: &str, objects: &Objects) {
    for deployment in objects.of("Deployment") {
        let name = &deployment["metadata"]["name"];
        let pod = pod(deployment);
        assert_eq!(pod["automountServiceAccountToken"], false, "{what}: {name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}: {name}");
        assert_eq!(pod["securityContext"]["runAsUser"], 65532, "{what}: {name}");
        assert_eq!(
            pod["securityContext"]["seccompProfile"],
            json!({"type": "RuntimeDefault"}),
            "{what}: {name}"
        );
        for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[forbidden].is_null(), "{what}: {name}: {forbidden}");
        }
        for container in containers(deployment) {
            let context = &container["securityContext"];
            let place = format!("{what}: {name}: {}", container["name"]);
            assert_eq!(context["allowPrivilegeEscalation"], false, "{place}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{place}");
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{place}");
            assert!(context["privileged"].is_null(), "{place}");
            assert!(!container["resources"]["limits"]["memory"].is_null(), "{place}: no limit of memory");
            let token = mounts(container).any(|mount| mount["mountPath"] == TOKEN);
            assert_eq!(token, container["name"] == "epp", "{place}: the token is for the picker alone");
        }
    }
}

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Readiness is asked apart from liveness, mounts have volumes, configurations a checksum, and the grace period is
/// longer than what stops before it.
pub(crate) fn are_probed_and_stop_in_time(what: &str, objects: &Objects) {
    let picker = objects.picker();
    let election = objects.picker_flag("ha-enable-leader-election") == Some("true");
    let epp = container(picker, "epp").expect("no container epp");
    let health = epp["readinessProbe"]["grpc"].clone();
    let service = if election { "readiness" } else { "inference-extension" };
    assert_eq!(health["service"], service, "{what}");
    assert_eq!(health["port"].to_string(), objects.picker_flag("grpc-health-port").unwrap(), "{what}");
    let liveness = &epp["livenessProbe"];
    match election {
        true => assert_eq!(liveness["grpc"]["service"], "liveness", "{what}"),
        // Without an election every health service says the same, and a picker that waits for its pool is alive.
        false => assert_eq!(liveness["tcpSocket"]["port"], "grpc-health", "{what}"),
    }
    assert!(!picker["spec"]["template"]["metadata"]["annotations"]["checksum/plugins"].is_null(), "{what}");
    let drain = objects.picker_flag("drain-timeout").unwrap().trim_end_matches('s').parse::<i64>().unwrap();
    let grace = |deployment: &Value| pod(deployment)["terminationGracePeriodSeconds"].as_i64().unwrap();
    assert!(
        grace(picker) > pre_stop_seconds(epp) + 2 * drain,
        "{what}: a picker is killed before it has drained"
    );
    for deployment in objects.of("Deployment") {
        for container in containers(deployment) {
            let place = format!("{what}: {}: {}", deployment["metadata"]["name"], container["name"]);
            assert!(grace(deployment) > pre_stop_seconds(container), "{place}");
            for mount in mounts(container) {
                let volume =
                    list(&pod(deployment)["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
                assert!(volume.is_some(), "{place}: no volume {}", mount["name"]);
            }
        }
        if let Some(envoy) = container(deployment, "envoy") {
            assert_eq!(envoy["readinessProbe"]["httpGet"]["path"], "/ready", "{what}");
            assert!(pre_stop_seconds(envoy) > 0, "{what}: Envoy stops at once");
            // A picker in the same pod must not go first.
            if container(deployment, "epp").is_some() {
                assert_eq!(pre_stop_seconds(envoy), pre_stop_seconds(epp), "{what}");
            }
        }
    }
}

/// Seconds that a container waits before it is told to stop.
fn pre_stop_seconds(container: &Value) -> i64 {
    container["lifecycle"]["preStop"]["sleep"]["seconds"].as_i64().unwrap_or(0)
}

fn mounts(container: &Value) -> impl Iterator<Item = &Value> {
    list(&container["volumeMounts"]).iter()
}
