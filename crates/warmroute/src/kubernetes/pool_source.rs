//! Where the endpoints of a pool come from in a cluster.

use warmroute_config::FileDiscoverySpec;

use super::label_selector::{SelectorError, check_selector};
use super::{ALPHA_GROUP, KubernetesFlags, POOL_GROUP, is_dns_name};

/// Most target ports, as in an InferencePool.
const MAX_TARGET_PORTS: usize = 8;
/// Name of the pool where nothing says one, as at the llm-d Router EPP with file discovery.
const DEFAULT_POOL_NAME: &str = "epp";

/// Which pods are picked from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSource {
    /// Name of the pool: in metrics, and in the references of objectives and rewrites.
    pub name: String,
    /// Namespace of everything that is read.
    pub namespace: String,
    /// Who says which pods.
    pub members: PoolMembers,
}

/// Who says which pods are in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolMembers {
    /// The InferencePool of this group.
    InferencePool {
        /// [`POOL_GROUP`] or [`ALPHA_GROUP`].
        group: String,
    },
    /// The command line.
    Selector {
        /// A label selector.
        selector: String,
        /// Serving ports, 1 to 8, each once.
        ports: Vec<u16>,
    },
}

/// The command line doesn't say clearly which pods are picked from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolSourceError {
    /// Several sources of endpoints.
    #[error("{first} and {second} both say where the endpoints are: keep one of them")]
    TwoSources {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// A selector without ports.
    #[error("--endpoint-selector needs --endpoint-target-ports: the 1 to 8 ports on which each pod serves")]
    NoPorts,
    /// Ports without a selector.
    #[error(
        "--endpoint-target-ports belongs to --endpoint-selector, which isn't given; the ports of a pool are in its \
         InferencePool"
    )]
    PortsAlone,
    /// A port that isn't one.
    #[error("--endpoint-target-ports: {port:?} is not a number from 1 to 65535")]
    BadPort {
        /// What was given.
        port: String,
    },
    /// Too many ports.
    #[error("--endpoint-target-ports has {given} ports: {MAX_TARGET_PORTS} at most")]
    TooManyPorts {
        /// How many.
        given: usize,
    },
    /// The selector isn't one.
    #[error("--endpoint-selector: {0}")]
    Selector(#[from] SelectorError),
    /// There is no such group.
    #[error(
        "--pool-group={group} is no group of InferencePools: write {POOL_GROUP} (v1) or {ALPHA_GROUP} (v1alpha2)"
    )]
    UnknownGroup {
        /// The group.
        group: String,
    },
    /// A name that no object can have.
    #[error("{what} {name:?} is no name of a Kubernetes object: lower case letters, digits, '-' and '.'")]
    BadName {
        /// Which flag or variable says it.
        what: &'static str,
        /// The name.
        name: String,
    },
}

impl KubernetesFlags {
    /// What the flags say, with what the environment says (`variable`). None: endpoints don't come from a cluster.
    ///
    /// # Errors
    /// The flags contradict each other, the rest of the command line, or the configuration; or a value is wrong.
    pub fn source(
        &self,
        endpoints: &[String],
        discovery: Option<&FileDiscoverySpec>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<PoolSource>, PoolSourceError> {
        self.check_alone(endpoints, discovery)?;
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let own = Some(self.pool_namespace.clone()).filter(|given| !given.is_empty());
        let namespace = own.or_else(|| variable("NAMESPACE")).unwrap_or_else(|| "default".to_owned());
        if !is_dns_name(&namespace) {
            return Err(PoolSourceError::BadName { what: "namespace", name: namespace });
        }
        if !self.pool_name.is_empty() {
            return self.pool(namespace).map(Some);
        }
        if self.endpoint_selector.is_empty() {
            return if self.given_ports().next().is_none() {
                Ok(None)
            } else {
                Err(PoolSourceError::PortsAlone)
            };
        }
        check_selector(&self.endpoint_selector)?;
        let members =
            PoolMembers::Selector { selector: self.endpoint_selector.clone(), ports: self.ports()? };
        let name = variable("POD_NAME")
            .map_or_else(|| DEFAULT_POOL_NAME.to_owned(), |pod| deployment_of(&pod).to_owned());
        Ok(Some(PoolSource { name, namespace, members }))
    }

    fn pool(&self, namespace: String) -> Result<PoolSource, PoolSourceError> {
        if self.given_ports().next().is_some() {
            return Err(PoolSourceError::PortsAlone);
        }
        if ![POOL_GROUP, ALPHA_GROUP].contains(&self.pool_group.as_str()) {
            return Err(PoolSourceError::UnknownGroup { group: self.pool_group.clone() });
        }
        let name = self.pool_name.clone();
        if !is_dns_name(&name) {
            return Err(PoolSourceError::BadName { what: "--pool-name", name });
        }
        let members = PoolMembers::InferencePool { group: self.pool_group.clone() };
        Ok(PoolSource { name, namespace, members })
    }

    /// One source of endpoints, or none.
    fn check_alone(
        &self,
        endpoints: &[String],
        discovery: Option<&FileDiscoverySpec>,
    ) -> Result<(), PoolSourceError> {
        let given = |is_given: bool, what: &str| is_given.then(|| what.to_owned());
        let sources = [
            given(!self.pool_name.is_empty(), "--pool-name"),
            given(!self.endpoint_selector.is_empty(), "--endpoint-selector"),
            given(endpoints.iter().any(|entry| !entry.trim().is_empty()), "--endpoints"),
            discovery.map(|discovery| format!("{} of dataLayer.discovery", discovery.name)),
        ];
        let is_asked = sources[..2].iter().any(Option::is_some);
        let mut given = sources.into_iter().flatten();
        match (given.next(), given.next()) {
            // Two that have nothing to do with Kubernetes are for others to judge.
            (Some(first), Some(second)) if is_asked => Err(PoolSourceError::TwoSources { first, second }),
            _ => Ok(()),
        }
    }

    fn given_ports(&self) -> impl Iterator<Item = &str> {
        self.endpoint_target_ports.iter().map(|port| port.trim()).filter(|port| !port.is_empty())
    }

    fn ports(&self) -> Result<Vec<u16>, PoolSourceError> {
        let mut ports: Vec<u16> = Vec::new();
        for text in self.given_ports() {
            let port = text.parse().ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| PoolSourceError::BadPort { port: text.to_owned() })?;
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        match ports.len() {
            0 => Err(PoolSourceError::NoPorts),
            1..=MAX_TARGET_PORTS => Ok(ports),
            given => Err(PoolSourceError::TooManyPorts { given }),
        }
    }
}

/// The Deployment of a pod, `deployment-replicaset-pod`; a pod with another name is taken by its name.
fn deployment_of(pod: &str) -> &str {
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let mut parts = pod.rsplitn(3, '-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(own), Some(set), Some(deployment))
            if is_part(own) && is_part(set) && !deployment.is_empty() =>
        {
            deployment
        }
        _ => pod,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        kubernetes: KubernetesFlags,
    }

    fn flags(args: &[&str]) -> KubernetesFlags {
        Flags::try_parse_from([&["x"], args].concat()).unwrap().kubernetes
    }

    fn source(args: &[&str], variables: &[(&str, &str)]) -> Result<Option<PoolSource>, PoolSourceError> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        flags(args).source(&[], None, variable)
    }

    #[test]
    fn a_pool_has_a_namespace_and_a_group() {
        let pool = |args: &[&str], variables: &[(&str, &str)]| {
            let PoolSource { name, namespace, members } = source(args, variables).unwrap().unwrap();
            let PoolMembers::InferencePool { group } = members else { panic!("a selector") };
            (name, namespace, group)
        };
        let expected =
            |name: &str, namespace: &str, group: &str| (name.into(), namespace.into(), group.into());
        assert_eq!(pool(&["--pool-name=p"], &[]), expected("p", "default", POOL_GROUP));
        let own = [("NAMESPACE", "team")];
        assert_eq!(pool(&["--pool-name=p"], &own), expected("p", "team", POOL_GROUP));
        let given = ["--pool-name", "p", "--pool-namespace", "ns", "--pool-group", ALPHA_GROUP];
        assert_eq!(pool(&given, &own), expected("p", "ns", ALPHA_GROUP));
        assert_eq!(source(&["--pool-namespace=ns"], &[]), Ok(None), "a namespace alone asks for nothing");
    }

    #[test]
    fn a_selector_takes_its_pools_name_from_the_deployment() {
        let args = ["--endpoint-selector=app=vllm,tier in (a,b)", "--endpoint-target-ports=8000,8001,8000"];
        let name = |pod: &str| source(&args, &[("POD_NAME", pod)]).unwrap().unwrap().name;
        assert_eq!(name("my-epp-6d4b75f9c-x2x4z"), "my-epp");
        assert_eq!(name("My-epp-0"), "My", "the pattern is the peer's");
        assert_eq!(name("bare"), "bare");
        assert_eq!(name(""), "epp");
        let PoolMembers::Selector { selector, ports } = source(&args, &[]).unwrap().unwrap().members else {
            panic!("a pool");
        };
        assert_eq!((selector.as_str(), ports.as_slice()), ("app=vllm,tier in (a,b)", &[8000, 8001][..]));
    }

    #[test]
    fn what_is_unclear_is_refused() {
        let selector = "--endpoint-selector=app=vllm";
        let ports = "--endpoint-target-ports=1,2,3,4,5,6,7,8,9";
        for (args, words) in [
            (&["--pool-name=p", selector][..], "--pool-name and --endpoint-selector both"),
            (&[selector], "needs --endpoint-target-ports"),
            (&[selector, ports], "has 9 ports"),
            (&["--endpoint-target-ports=8000"], "which isn't given"),
            (&["--pool-name=p", "--endpoint-target-ports=8000"], "are in its InferencePool"),
            (
                &["--endpoint-selector=app in vllm", "--endpoint-target-ports=1"],
                "\"app in vllm\" is no requirement",
            ),
            (&["--pool-name=p", "--pool-group=x"], "--pool-group=x is no group"),
            (&["--pool-name=p,metadata.name=q"], "is no name"),
            (&["--pool-name=p", "--pool-namespace=../x"], "namespace \"../x\""),
        ] {
            let error = source(args, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{args:?}: {error}");
        }
        let static_too = flags(&["--pool-name=p"]).source(&["h:1".to_owned()], None, |_| None).unwrap_err();
        assert!(static_too.to_string().starts_with("--pool-name and --endpoints both"), "{static_too}");
        let zero = source(&[selector, "--endpoint-target-ports=8000,0"], &[]).unwrap_err();
        assert!(zero.to_string().contains("\"0\" is not a number"), "{zero}");
        assert_eq!(source(&["--pool-name=", "--endpoint-target-ports="], &[]), Ok(None));
        let elsewhere = flags(&[]).source(&["h:1".to_owned()], None, |_| None);
        assert_eq!(elsewhere, Ok(None));
    }
}
