//! What the chart renders.

use std::process::Command;

use serde_json::{Value, json};
use warmroute_demo::harness::Tools;

use crate::chart::{folder, lint, rendered, rendered_for, values_files};
use crate::configurations::is_taken;
use crate::holds;
use crate::objects::{Objects, container, containers, list, pod, strings};

#[test]
fn every_values_file_holds() {
    let files = values_files();
    assert!(files.len() >= 15, "{files:?}");
    for file in &files {
        lint(file);
        holds(file, &rendered(file, &[]));
    }
}

#[test]
fn the_checked_in_manifests_are_what_the_chart_renders() {
    let script = Tools::root().join("deploy/kubernetes/render.sh");
    let output = Command::new(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn more_of_what_values_ask_for_holds_too() {
    for (file, set) in [
        ("istio", &["router.epp.replicas=1"][..]),
        ("istio", &["router.epp.flags.secure-serving=false"]),
        ("istio", &["router.monitoring.prometheus.enabled=true"]),
        (
            "istio",
            &["router.monitoring.prometheus.auth.enabled=false", "router.monitoring.prometheus.enabled=true"],
        ),
        ("istio", &["router.networkPolicy.enabled=false", "router.epp.podDisruptionBudget.enabled=false"]),
        ("istio", &["router.modelServers.kvEvents.mode=off"]),
        ("istio", &["router.epp.pluginsConfigFile=payload-agnostic.yaml"]),
        ("istio", &["router.epp.parsers={openai-parser}"]),
        ("istio", &["router.inferencePool.create=false", "router.inferencePool.name=theirs"]),
        ("standalone-sidecar", &["router.proxy.enabled=false"]),
        ("standalone-sidecar", &["router.proxy.bodyMode=full-duplex"]),
        ("standalone-sidecar", &["router.epp.flags.secure-serving=false"]),
        ("standalone-sidecar", &["router.inferencePool.create=true"]),
        ("standalone-service", &["router.epp.tls.secretName=x", "router.proxy.tls.caSecretName=x"]),
        ("gke", &["router.epp.grpcHealthPort=9103"]),
    ] {
        holds(&format!("{file} {set:?}"), &rendered(file, set));
    }
    for engine in ["vllm", "sglang", "triton-tensorrt-llm", "trtllm-serve", "triton"] {
        let objects = rendered("istio", &[&format!("router.modelServers.type={engine}")]);
        holds(engine, &objects);
        assert!(default_plugins(&objects).contains(&format!("defaultEngine: {engine}")));
    }
}

fn default_plugins(objects: &Objects) -> String {
    objects.named("ConfigMap", "warmroute-epp").unwrap()["data"]["default-plugins.yaml"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn the_default_configuration_matches_prefixes_exactly_where_it_can() {
    let text = default_plugins(&rendered("istio", &[]));
    assert!(text.contains("- type: prefix-cache-producer"), "{text}");
    let notices = is_taken("default-plugins.yaml", &text);
    assert!(
        notices.iter().all(|notice| !notice.contains("can't matter") && !notice.contains("tie")),
        "{notices:?}"
    );
    let central = default_plugins(&rendered("centralised", &[]));
    assert!(
        central.contains("zmqEndpoint: tcp://*:5557") && central.contains("discoverPods: false"),
        "{central}"
    );
}

#[test]
fn a_changed_configuration_makes_new_pods() {
    let checksum = |set: &[&str]| {
        let objects = rendered("standalone-sidecar", set);
        objects.picker()["spec"]["template"]["metadata"]["annotations"].clone()
    };
    let (before, plugins, envoy) = (
        checksum(&[]),
        checksum(&["router.epp.parsers={openai-parser}"]),
        checksum(&["router.proxy.port=8082"]),
    );
    assert_ne!(before["checksum/plugins"], plugins["checksum/plugins"]);
    assert_eq!(before["checksum/envoy"], plugins["checksum/envoy"]);
    assert_ne!(before["checksum/envoy"], envoy["checksum/envoy"]);
}

#[test]
fn replicas_are_spread_replaced_one_by_one_and_kept_from_evictions() {
    let objects = rendered("istio", &[]);
    let picker = &objects.picker()["spec"];
    assert_eq!(picker["replicas"], 2);
    assert_eq!(picker["strategy"]["rollingUpdate"], json!({"maxUnavailable": 0, "maxSurge": 1}));
    let pod = pod(objects.picker());
    assert_eq!(list(&pod["topologySpreadConstraints"])[0]["topologyKey"], "topology.kubernetes.io/zone");
    let soft = &pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(list(soft).len(), 1);
    assert_eq!(objects.of("PodDisruptionBudget")[0]["spec"]["maxUnavailable"], 1);
    // With an election standbys are unready on purpose: whoever waits for a second ready one waits forever.
    let election = rendered("election", &[]);
    let strategy = &election.picker()["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(strategy["maxUnavailable"], "100%");
    assert!(election.of("PodDisruptionBudget").is_empty());
    let scaled = rendered("everything", &[]);
    assert!(scaled.picker()["spec"]["replicas"].is_null(), "an autoscaler decides");
    assert_eq!(scaled.of("HorizontalPodAutoscaler").len(), 1);
}

#[test]
fn an_envoy_of_its_own_asks_every_picker() {
    let objects = rendered("standalone-service", &[]);
    let text =
        objects.named("ConfigMap", "warmroute-epp-proxy").unwrap()["data"]["envoy.yaml"].as_str().unwrap();
    // A Service with an address would send all streams of a connection to one picker.
    assert!(text.contains("address: warmroute-epp-replicas.inference.svc.cluster.local"), "{text}");
    let proxy = objects.deployment("proxy").unwrap();
    assert!(container(proxy, "epp").is_none());
    assert_eq!(objects.named("Service", "warmroute-epp-proxy").unwrap()["spec"]["ports"][0]["port"], 8081);
    let sidecar = rendered("standalone-sidecar", &[]);
    assert!(sidecar.deployment("proxy").is_none());
    let ports = list(&sidecar.named("Service", "warmroute-epp").unwrap()["spec"]["ports"]);
    assert!(ports.iter().any(|port| port["name"] == "http" && port["port"] == 8081));
}

#[test]
fn a_kubernetes_that_cannot_wait_before_stopping_gets_no_wait() {
    for file in ["standalone-sidecar", "standalone-service"] {
        let objects = rendered_for("1.29.0", file, &[]);
        for deployment in objects.of("Deployment") {
            assert!(containers(deployment).all(|container| container["lifecycle"].is_null()), "{file}");
        }
        assert_eq!(objects.picker_flag("drain-timeout"), Some("60s"), "{file}");
    }
}

#[test]
fn tokenizers_come_from_where_they_are() {
    let volume = |objects: &Objects| -> Value {
        let volumes = list(&pod(objects.picker())["volumes"]).iter();
        volumes.clone().find(|volume| volume["name"] == "tokenizer").cloned().unwrap_or_default()
    };
    let none = rendered("standalone-sidecar", &[]);
    assert_eq!(none.picker_flag("tokenizer"), None);
    assert!(volume(&none).is_null());
    let image = rendered("tokenizer-image", &[]);
    assert_eq!(image.picker_flag("tokenizer"), Some("/tokenizer"));
    assert_eq!(volume(&image)["image"]["reference"], "registry.example.com/models/qwen3-32b-tokenizer:1");
    let copied = rendered("tokenizer-init-container", &[]);
    assert_eq!(copied.picker_flag("tokenizer"), Some("/tokenizer"));
    let first = container(copied.picker(), "tokenizer").unwrap();
    assert_eq!(strings(&first["command"]), ["cp", "-r", "/files/.", "/tokenizer/"]);
    assert!(volume(&copied)["emptyDir"].is_object());
    let cache = rendered("tokenizer-hugging-face-cache", &[]);
    assert_eq!(
        cache.picker_flag("tokenizer"),
        Some("/tokenizer/models--Qwen--Qwen3-32B/snapshots/9216db5781bf21249d130ec9da846c4624c16137")
    );
    assert_eq!(volume(&cache)["persistentVolumeClaim"]["claimName"], "huggingface-hub");
    let claim = rendered("everything", &[]);
    assert_eq!(claim.picker_flag("tokenizer"), Some("/tokenizer/qwen3-32b"));
    // Only the init container may write.
    for objects in [&image, &copied, &cache, &claim] {
        let mounts = list(&container(objects.picker(), "epp").unwrap()["volumeMounts"]);
        let mount = mounts.iter().find(|mount| mount["name"] == "tokenizer").unwrap();
        assert_eq!(mount["readOnly"], true);
    }
}

#[test]
fn values_of_the_llm_d_charts_mean_the_same() {
    let objects = rendered("llm-d", &[]);
    let args = objects.picker_args();
    for argument in [
        "--pool-name=warmroute",
        "--config-file=/config/custom.yaml",
        "--v=4",
        "--refresh-metrics-interval=100ms",
        "--drain-timeout=45s",
        "--metrics-endpoint-auth=true",
    ] {
        assert!(args.contains(&argument), "{argument}: {args:?}");
    }
    assert_eq!(objects.picker()["metadata"]["name"], "warmroute-epp");
    assert_eq!(objects.named("Service", "warmroute-epp").unwrap()["spec"]["ports"][0]["port"], 9002);
    let epp = container(objects.picker(), "epp").unwrap();
    assert_eq!(epp["image"], "registry.example.com/inference/warmroute:0.1.0");
    assert_eq!(epp["resources"]["requests"], json!({"cpu": "8", "memory": "8Gi"}));
    assert!(list(&epp["env"]).contains(&json!({"name": "LOG", "value": "info"})));
    assert_eq!(objects.of("Secret")[0]["metadata"]["name"], "inference-gateway-sa-metrics-reader-secret");
    assert_eq!(objects.of("InferenceObjective")[0]["spec"]["priority"], 5);
    let rule = &objects.of("DestinationRule")[0]["spec"]["trafficPolicy"];
    assert_eq!(rule["connectionPool"]["http"]["maxRequestsPerConnection"], 256_000);
    assert_eq!(rule["tls"]["insecureSkipVerify"], true);
    let route = &objects.of("HTTPRoute")[0]["spec"]["rules"][0];
    assert_eq!(route["matches"][0]["headers"][0]["value"], "Qwen/Qwen3-32B");
    assert_eq!(route["timeouts"]["request"], "300s");
}

#[test]
fn values_as_the_guides_of_llm_d_layer_them_mean_the_same() {
    let objects = rendered("llm-d-standalone", &[]);
    // The election's value stands in its name, as older charts needed it.
    assert!(objects.picker_args().contains(&"--ha-enable-leader-election=false"));
    let ports = list(&objects.named("Service", "warmroute-epp").unwrap()["spec"]["ports"]);
    let to_envoy: Vec<&Value> = ports.iter().filter(|port| port["name"] == "http").collect();
    assert_eq!(
        (to_envoy.len(), &to_envoy[0]["port"], &to_envoy[0]["targetPort"]),
        (1, &json!(80), &json!(8081))
    );
    let envoy = container(objects.picker(), "envoy").unwrap();
    assert_eq!(strings(&envoy["args"])[..4], ["--service-node", "envoy-sidecar", "--log-level", "warn"]);
    // The kind of engine and its metrics page are in the configuration that runs, which leaves them out.
    let runs = objects.named("ConfigMap", "warmroute-epp").unwrap()["data"]["baseline-plugins.yaml"].clone();
    let config: Value = serde_saphyr::from_str(runs.as_str().unwrap()).unwrap();
    let parameters = |kind: &str| {
        list(&config["plugins"]).iter().find(|plugin| plugin["type"] == kind).unwrap()["parameters"].clone()
    };
    assert_eq!(parameters("metrics-data-source")["path"], "/prometheus/metrics");
    assert_eq!(parameters("core-metrics-extractor")["defaultEngine"], "trtllm-serve");
    // Envoys of their own have the port at their own Service.
    let service = rendered("llm-d-standalone", &["router.proxy.mode=service"]);
    let port = |name: &str| service.named("Service", name).unwrap()["spec"]["ports"].clone();
    assert_eq!(port("warmroute-epp-proxy")[0]["port"], 80);
    assert!(list(&port("warmroute-epp")).iter().all(|port| port["name"] != "http"));
}

#[test]
fn what_is_given_reaches_the_pod() {
    let objects = rendered("everything", &[]);
    let picker = objects.picker();
    assert_eq!(pod(picker)["terminationGracePeriodSeconds"], 190);
    assert_eq!(pod(picker)["priorityClassName"], "system-cluster-critical");
    let hard = &pod(picker)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(list(hard).len(), 1);
    assert!(pod(picker)["topologySpreadConstraints"].is_null());
    let epp = container(picker, "epp").unwrap();
    assert!(epp["image"].as_str().unwrap().starts_with("registry.example.com/inference/warmroute@sha256:"));
    let env =
        |name: &str| list(&epp["env"]).iter().find(|env| env["name"] == name).cloned().unwrap_or_default();
    assert_eq!(env("OTEL_EXPORTER_OTLP_ENDPOINT")["value"], "http://collector.monitoring:4317");
    assert_eq!(env("EXAMPLE")["value"], "1");
    assert_eq!(env("POD_IP")["valueFrom"]["fieldRef"]["fieldPath"], "status.podIP");
    assert!(objects.picker_args().contains(&"--max-request-body-bytes=67108864"), "not 6.7e+07");
    let security = rendered(
        "istio",
        &["router.epp.podSecurityContext.runAsUser=1000", "router.epp.securityContext.runAsUser=1000"],
    );
    assert_eq!(pod(security.picker())["securityContext"]["runAsUser"], 1000);
    // Where the cluster gives out user ids, as OpenShift does.
    let none =
        ["runAsUser", "runAsGroup", "fsGroup"].map(|id| format!("router.epp.podSecurityContext.{id}=null"));
    let none = rendered("istio", &none.each_ref().map(String::as_str));
    assert!(pod(none.picker())["securityContext"]["runAsUser"].is_null());
    assert_eq!(pod(none.picker())["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        container(security.picker(), "epp").unwrap()["securityContext"]["readOnlyRootFilesystem"],
        true
    );
}

#[test]
fn the_chart_and_its_image_have_the_version_of_the_workspace() {
    let chart = Objects::read(&folder().join("Chart.yaml")).all()[0].clone();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}
