//! The Kubernetes API: how it is reached. What is read from it and written to it stands in the sub-modules.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};

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
    Ok(kube::Client::try_from(config)?)
}
