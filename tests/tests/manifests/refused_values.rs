//! Values that can't be right are refused, with what to do.

use crate::chart::refusal;

#[test]
fn each_refusal_says_what_to_do() {
    let gateway = "agentgateway";
    for (set, says) in [
        ("router.modelServers.matchLabels=null", "--set router.modelServers.matchLabels.app=vllm"),
        // Values of the llm-d charts that mean nothing here.
        ("router.tokenizer.enabled=true", "router.tokenizer.source"),
        ("router.latencyPredictor.enabled=true", "there is no latency predictor here"),
        ("provider.gke.preferredBackends.enabled=true", "every replica serves here"),
        ("router.proxy.proxyType=agentgateway", "mode=gateway with provider.name=agentgateway"),
        ("router.proxy.presets.envoy.image=x", "are values of router.proxy"),
        ("router.proxy.configMap.name=x", "router.proxy.configMap"),
        ("router.proxy.args={-c,/etc/other.yaml}", "use logLevel, concurrency and extraArgs"),
        ("router.modelServers.protocol=grpc", "use http"),
        // Keys of older charts.
        ("inferenceExtension.replicas=2", "router.epp.replicas"),
        ("inferencePool.targetPorts=1", "router.inferencePool"),
        ("experimentalHttpRoute.enabled=true", "httpRoute, with create"),
        ("inferenceObjectives.a=1", "router.inferenceObjectives"),
        // Flags of the chart's own.
        ("router.epp.flags.pool-name=x", "router.inferencePool.name"),
        ("router.epp.flags.tokenizer=/x", "use router.tokenizer"),
        ("router.epp.flags.grpc-port=1", "router.epp.extProcPort"),
        ("router.epp.flags.cert-path=/x", "router.epp.tls.secretName"),
        ("router.epp.flags.drain-timeout=500ms", "whole seconds"),
        // What doesn't go together.
        ("router.epp.flags.secure-serving=false", "always speaks TLS"),
        ("router.epp.tls.clientCASecretName=ca", "shows the picker no client certificate"),
        ("router.proxy.enabled=true", "mode=standalone"),
        ("mode=standalone", "standalone mode has no gateway"),
        ("router.modelServers.kvEvents.mode=centralised", "one replica only"),
        ("router.epp.pluginsConfigFile=none.yaml", "pluginsCustomConfig"),
        ("router.tokenizer.source=volume", "persistentVolumeClaim"),
        ("router.tokenizer.source=image", "router.tokenizer.image.repository"),
        ("router.tokenizer.source=huggingFaceCache", "refs/main"),
    ] {
        let said = refusal(gateway, &[set]);
        assert!(said.contains(says), "{set}: {said}");
    }
}

#[test]
fn values_together_are_refused_too() {
    for (file, set, says) in [
        ("istio", &["router.epp.tls.clientCASecretName=ca"][..], "mode MUTUAL"),
        (
            "istio",
            &["router.epp.flags.secure-serving=false", "router.epp.tls.secretName=x"],
            "no certificate is used",
        ),
        (
            "standalone-service",
            &["router.epp.tls.clientCASecretName=ca"],
            "router.proxy.tls.clientSecretName",
        ),
        ("istio-envoyfilter", &["router.inferencePool.create=true"], "not a pool"),
        ("istio-envoyfilter", &["router.proxy.tls.caSecretName=x"], "don't have this Secret"),
        (
            "istio-envoyfilter",
            &[
                "router.modelServers.targetPorts[1].number=8001",
                "router.modelServers.targetPorts[0].number=8000",
            ],
            "one port per pod",
        ),
        ("election", &["router.epp.autoscaling.enabled=true"], "one picker serves"),
        ("centralised", &["router.epp.pluginsConfigFile=payload-agnostic.yaml"], "zmqEndpoint"),
        ("tokenizer-init-container", &["router.tokenizer.initContainer.command=null"], "/tokenizer"),
    ] {
        let said = refusal(file, set);
        assert!(said.contains(says), "{file} {set:?}: {said}");
    }
}

#[test]
fn misspelt_and_mistyped_values_are_refused_by_the_schema() {
    for set in [
        "router.epp.replica=2",
        "nonsense=1",
        "mode=sidecar",
        "router.epp.replicas=0",
        "router.epp.replicas=two",
        "router.epp.extProcPort=99999",
        "router.inferencePool.failureMode=Open",
        "router.epp.image.digest=latest",
        "router.proxy.messageTimeout=10",
        "router.modelServers.targetPorts[0].number=0",
    ] {
        let said = refusal("agentgateway", &[set]);
        assert!(said.contains("don't meet the specifications"), "{set}: {said}");
    }
}
