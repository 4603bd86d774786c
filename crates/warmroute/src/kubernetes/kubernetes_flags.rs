//! Flags that say which pods are picked from.

use std::path::PathBuf;

use clap::Args;

use super::POOL_GROUP;

/// Flags that say which pods of a Kubernetes cluster are picked from. Names, defaults and meanings:
/// `pkg/epp/server/options.go` in github.com/llm-d/llm-d-router.
#[derive(Clone, Debug, Args)]
pub struct KubernetesFlags {
    /// InferencePool whose pods are picked from.
    #[arg(long, default_value = "", value_name = "NAME")]
    pub pool_name: String,
    /// Namespace of the pool and of its pods; if empty, that of the environment variable NAMESPACE, else default.
    #[arg(long, default_value = "", value_name = "NAMESPACE")]
    pub pool_namespace: String,
    /// API group of the InferencePool: inference.networking.k8s.io (v1) or inference.networking.x-k8s.io (v1alpha2).
    #[arg(long, default_value = POOL_GROUP, value_name = "GROUP")]
    pub pool_group: String,
    /// Label selector of the pods that are picked from, instead of an InferencePool: `app=vllm,tier in (a,b)`.
    #[arg(long, default_value = "", value_name = "SELECTOR")]
    pub endpoint_selector: String,
    /// Ports on which each of those pods serves, 1 to 8 of them, each an endpoint of its own.
    #[arg(long, value_delimiter = ',', value_name = "PORT,…")]
    pub endpoint_target_ports: Vec<String>,
    /// File that says how to reach the Kubernetes API. Without it that of KUBECONFIG, else the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}
