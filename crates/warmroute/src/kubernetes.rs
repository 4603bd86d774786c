//! The Kubernetes API: how it is reached. What is read from it and written to it stands in the sub-modules.

mod api_problem;
mod api_status;
mod followed;
mod inference_objective;
mod inference_pool;
mod kubernetes_flags;
mod label_selector;
mod model_rewrite;
mod object_set;
mod object_watch;
mod pods;
mod pool_discovery;
mod pool_reference;
mod pool_rules;
mod pool_source;

use std::path::Path;
use std::time::Duration;

use kube::api::ApiResource;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;

pub use api_status::{FollowState, KubernetesReport, KubernetesStatus, ResourceState};
pub use kubernetes_flags::KubernetesFlags;
pub use label_selector::SelectorError;
pub use object_watch::Pace;
pub use pool_discovery::PoolDiscovery;
pub use pool_rules::PoolRules;
pub use pool_source::{PoolMembers, PoolSource, PoolSourceError};

/// API group of InferencePools, version v1.
pub const POOL_GROUP: &str = "inference.networking.k8s.io";
/// API group of InferenceObjectives and InferenceModelRewrites, version v1alpha2.
pub const RULES_GROUP: &str = "llm-d.ai";
/// Older API group of the same, and of InferencePools, version v1alpha2.
pub const ALPHA_GROUP: &str = "inference.networking.x-k8s.io";

/// Longest wait for a connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The Kubernetes API can't be reached because of what this process was given.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The file of `--kubeconfig` is wrong.
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: kube::config::KubeconfigError,
    },
    /// Neither a service account nor a kubeconfig says where the API server is.
    #[error(
        "no Kubernetes API server is known: run in a pod with a service account, set KUBECONFIG or give \
         --kubeconfig; without Kubernetes, name the engines with --endpoints ({0})"
    )]
    Unknown(kube::config::InferConfigError),
    /// No client can be made of the configuration, mostly because of a certificate.
    #[error("no client for the Kubernetes API: {0}")]
    Client(#[from] kube::Error),
}

/// A client of the API server: the one of the kubeconfig if there is one, else the one that `KUBECONFIG` or the pod's
/// service account names. Nothing is asked yet.
///
/// # Errors
/// What says where the API server is, is missing or wrong.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<kube::Client, KubernetesError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let wrong = |source| KubernetesError::Kubeconfig { path: path.display().to_string(), source };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
        }
        None => kube::Config::infer().await.map_err(KubernetesError::Unknown)?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Who asks also repeats, and tells of what fails.
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

fn pod_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Pod"), "pods")
}

/// InferencePools of a group.
fn pool_resource(group: &str) -> ApiResource {
    let version = if group == POOL_GROUP { "v1" } else { "v1alpha2" };
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(group, version, "InferencePool"),
        "inferencepools",
    )
}

/// Whether an object could have this name: lower case letters, digits, `-` and `.`, with a letter or digit at both ends.
fn is_dns_name(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}
