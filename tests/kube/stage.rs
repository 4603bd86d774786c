//! [`Stage`]: a namespace with engines as pods, pickers that find them, and an Envoy in front.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use warmroute_demo::harness::{FreePorts, Recipe, Tools};

use crate::chart::{Chart, PickerArguments};
use crate::control_plane::ControlPlane;
use crate::engine_pod::{EnginePod, EnginePorts, PodSite};
use crate::gateway::{Gateway, PickerList};
use crate::load::{Load, LoadOptions};
use crate::manifests::Manifests;
use crate::picker_pod::{PickerPod, PickerPorts, PickerSite, SLOTS};
use crate::ready_log::ReadyLog;
use crate::transcript::Row;

/// How many engine pods may have an address at once.
const ENGINE_HOSTS: u8 = 12;

/// What all scenarios share.
pub(crate) struct Rig {
    pub(crate) tools: Tools,
    pub(crate) plane: ControlPlane,
    pub(crate) client: Client,
    pub(crate) chart: Chart,
    /// Where `deploy/setup/kube.sh` put the definitions of custom resources.
    pub(crate) crds: PathBuf,
    /// Where files of this run go.
    pub(crate) folder: PathBuf,
    pub(crate) per_second: u32,
    pub(crate) outage: Duration,
}

/// How a stage is made.
#[derive(Debug, Clone)]
pub(crate) struct StageOptions {
    /// Names the namespace and the logs.
    pub(crate) name: &'static str,
    /// The values file of `tests/kube/values`, without `.yaml`.
    pub(crate) values: &'static str,
    pub(crate) recipe: Recipe,
    pub(crate) engines: u8,
    /// Target ports of the pool, one after the other.
    pub(crate) ports: u16,
    pub(crate) pickers: u8,
    pub(crate) list: PickerList,
}

/// Everything of one scenario that runs.
pub(crate) struct Stage {
    pub(crate) namespace: String,
    pub(crate) client: Client,
    pub(crate) manifests: Manifests,
    pub(crate) site: PodSite,
    pub(crate) engines: Vec<EnginePod>,
    pub(crate) picker_site: PickerSite,
    pub(crate) pickers: Vec<PickerPod>,
    pub(crate) gateway: Gateway,
    pub(crate) ready_log: ReadyLog,
    per_second: u32,
    pickers_named: u32,
}

impl StageOptions {
    /// Four engines in a pool, two pickers, the recommended recipe.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            values: "pool",
            recipe: Recipe::Buffered,
            engines: 4,
            ports: 1,
            pickers: 2,
            list: PickerList::Slots,
        }
    }
}

/// The address of an engine pod, counted from 0.
pub(crate) fn engine_host(at: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 2, at + 1).into()
}

/// The first of so many ports in a row that are free on all addresses.
fn first_of(free: &mut FreePorts, count: u16, hosts: &[IpAddr]) -> anyhow::Result<u16> {
    loop {
        let first = free.on_all(hosts)?;
        let is_free = |port: u16| hosts.iter().all(|host| TcpListener::bind((*host, port)).is_ok());
        if (first + 1..first + count).all(is_free) {
            return Ok(first);
        }
    }
}

impl Stage {
    /// Applies the chart, starts everything and waits until Envoy sends requests to pickers that pick from all engines.
    ///
    /// # Errors
    /// Something doesn't start, with the end of its log.
    pub(crate) async fn open(rig: &Rig, options: StageOptions) -> anyhow::Result<Self> {
        let (client, namespace) = (rig.client.clone(), format!("wr-{}", options.name));
        let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        Manifests::parse(&space.to_string())?.apply(&client, "").await?;
        let hosts: Vec<IpAddr> = (0..ENGINE_HOSTS).map(engine_host).collect();
        let mut free = FreePorts::default();
        let mut free = || first_of(&mut free, options.ports, &hosts);
        let ports = EnginePorts { http: free()?, kv_events: free()?, kv_replay: free()? };
        let set: Vec<String> = (0..options.ports)
            .map(|at| format!("router.modelServers.targetPorts[{at}].number={}", ports.http + at))
            .collect();
        let manifests = rig.chart.render(&namespace, options.values, &set)?;
        manifests.apply(&client, &namespace).await?;
        let ready_log = ReadyLog::default();
        let site = PodSite {
            client: client.clone(),
            namespace: namespace.clone(),
            ports,
            ready_log: ready_log.clone(),
        };
        let mut engines = Vec::new();
        for at in 0..options.engines {
            let engine = site.start(&format!("engine-{at}"), engine_host(at)).await?;
            engine.set_ready(true).await?;
            engines.push(engine);
        }
        let picker_site = picker_site(rig, &client, &namespace, &manifests, options.name).await?;
        let gateway = format!("{}-envoy", options.name);
        let slots = picker_site.ports.grpc_addresses();
        let gateway = Gateway::start(&rig.tools, &gateway, options.recipe, slots, options.list).await?;
        let mut stage = Self {
            namespace,
            client,
            manifests,
            site,
            engines,
            picker_site,
            pickers: Vec::new(),
            gateway,
            ready_log,
            per_second: rig.per_second,
            pickers_named: 0,
        };
        for _ in 0..options.pickers {
            stage.add_picker()?;
        }
        Ok(stage)
    }

    /// The same, and waits until everything can serve.
    ///
    /// # Errors
    /// As [`Stage::open`].
    pub(crate) async fn open_ready(rig: &Rig, options: StageOptions) -> anyhow::Result<Self> {
        let mut stage = Self::open(rig, options).await?;
        let addresses = stage.addresses();
        for picker in &mut stage.pickers {
            picker.until_ready().await?;
            picker.until_endpoints(&addresses).await?;
        }
        let pickers = stage.pickers.len();
        stage.gateway.until_pickers(pickers).await?;
        Ok(stage)
    }

    /// Starts a replica in a free slot and returns its place.
    ///
    /// # Errors
    /// No slot is free, or it doesn't start.
    pub(crate) fn add_picker(&mut self) -> anyhow::Result<usize> {
        let is_free = |slot: &u8| self.pickers.iter().all(|picker| picker.slot != *slot);
        let Some(slot) = (0..SLOTS).find(is_free) else { bail!("all {SLOTS} slots have a picker") };
        self.pickers_named += 1;
        let name = format!("warmroute-{}", self.pickers_named);
        self.pickers.push(self.picker_site.spawn(slot, &name)?);
        Ok(self.pickers.len() - 1)
    }

    /// Where the engines of all pods listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.engines.iter().map(|engine| engine.address).collect()
    }

    /// Waits until every picker picks from exactly these.
    ///
    /// # Errors
    /// One doesn't in time.
    pub(crate) async fn until_endpoints(&self, wanted: &[SocketAddr]) -> anyhow::Result<()> {
        for picker in &self.pickers {
            picker.until_endpoints(wanted).await?;
        }
        Ok(())
    }

    /// Starts the usual load.
    pub(crate) fn load(&self, row: &mut Row) -> Load {
        let options = LoadOptions::new(self.gateway.listener, self.per_second);
        let load = Load::start(options, self.ready_log.clone());
        row.follow(&load);
        load
    }

    /// Ends everything; pickers as Kubernetes ends them.
    ///
    /// # Errors
    /// A picker doesn't end as it should.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        self.gateway.stop().await;
        for picker in &mut self.pickers {
            picker.terminate()?;
        }
        for picker in self.pickers {
            let name = picker.name.clone();
            picker.until_ended().await.with_context(|| format!("ending {name}"))?;
        }
        for engine in &mut self.engines {
            engine.end().await?;
        }
        Ok(())
    }
}

/// A picker of the chart's deployment: its arguments, its configuration, a token of its service account.
async fn picker_site(
    rig: &Rig,
    client: &Client,
    namespace: &str,
    manifests: &Manifests,
    label: &str,
) -> anyhow::Result<PickerSite> {
    let chart = PickerArguments::of(manifests)?;
    let token = token_of(client, namespace, &chart.service_account).await?;
    let kubeconfig = rig.plane.write_kubeconfig(namespace, &token)?;
    let config_file = rig.folder.join(format!("{namespace}.yaml"));
    std::fs::write(&config_file, &chart.config)?;
    Ok(PickerSite {
        tools: rig.tools.clone(),
        namespace: namespace.to_owned(),
        kubeconfig,
        config_file,
        args: chart.kept,
        ports: PickerPorts::free()?,
        label: label.to_owned(),
    })
}

/// A token of a service account, as the kubelet asks for one.
///
/// # Errors
/// The API server gives none.
pub(crate) async fn token_of(client: &Client, namespace: &str, account: &str) -> anyhow::Result<String> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request: TokenRequest = serde_json::from_value(json!({
        "metadata": {},
        "spec": {"audiences": [], "expirationSeconds": 7200},
    }))?;
    let token = api.create_token_request(account, &PostParams::default(), &request).await?;
    token.status.and_then(|status| status.token).context("the API server gives no token")
}
