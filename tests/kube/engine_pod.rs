//! [`EnginePod`]: a Pod without a node, whose engine is a simulated one that really listens on the pod's address.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use warmroute_engine_sim::{Engine, EngineOptions, KvEventOptions, LatencyModel, RunningEngine};

use crate::ready_log::ReadyLog;

/// The model that the engines serve.
pub(crate) const MODEL: &str = "qwen2.5";

/// Tokens per KV block.
pub(crate) const BLOCK_TOKENS: u32 = 16;

/// The label by which a pool or a selector finds the pods.
pub(crate) const APP: &str = "vllm";

/// How long an engine goes on serving after its pod's deletion began, as a preStop hook of a few seconds makes it.
const PRE_STOP: Duration = Duration::from_secs(2);

/// How long requests that are running then may take.
const IDLE_WITHIN: Duration = Duration::from_secs(60);

/// Where engines listen: the same ports on every pod's address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EnginePorts {
    pub(crate) http: u16,
    pub(crate) kv_events: u16,
    pub(crate) kv_replay: u16,
}

/// What every pod of a test is made with.
#[derive(Clone)]
pub(crate) struct PodSite {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) ports: EnginePorts,
    pub(crate) ready_log: ReadyLog,
}

/// A pod and its engine.
pub(crate) struct EnginePod {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    site: PodSite,
    engine: Option<RunningEngine>,
}

impl PodSite {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Starts an engine on `host` and makes its pod, which isn't ready yet.
    ///
    /// # Errors
    /// The address is taken, or the API server refuses.
    pub(crate) async fn start(&self, name: &str, host: IpAddr) -> anyhow::Result<EnginePod> {
        let engine = start_engine(host, self.ports).await?;
        let pod = EnginePod {
            name: name.to_owned(),
            address: engine.http_address(),
            site: self.clone(),
            engine: Some(engine),
        };
        pod.create().await?;
        Ok(pod)
    }
}

/// Starts an engine without a pod.
///
/// # Errors
/// The address is taken.
pub(crate) async fn start_engine(host: IpAddr, ports: EnginePorts) -> anyhow::Result<RunningEngine> {
    let mut options = EngineOptions::new(MODEL);
    (options.host, options.port) = (host, ports.http);
    options.block_size_tokens = BLOCK_TOKENS;
    options.served_model_names = [MODEL, "tuned-a", "tuned-b"].map(str::to_owned).to_vec();
    options.kv_events = Some(KvEventOptions {
        port: ports.kv_events,
        replay_port: Some(ports.kv_replay),
        ..KvEventOptions::default()
    });
    options.latency =
        LatencyModel { prefill_us_per_token: 20.0, decode_ms_per_token: 4.0, ..LatencyModel::default() };
    Ok(Engine::start(options).await?)
}

impl EnginePod {
    async fn create(&self) -> anyhow::Result<()> {
        let pod = json!({
            "metadata": {"name": self.name, "labels": {"app": APP}},
            "spec": {
                "nodeName": "fake",
                "containers": [{
                    "name": "vllm",
                    "image": "vllm/vllm-openai",
                    "ports": [{"name": "http", "containerPort": self.address.port()}],
                }],
            },
        });
        self.site
            .api()
            .create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await
            .with_context(|| format!("making pod {}", self.name))?;
        self.set_status(false).await
    }

    /// Where the pod's changes are told from now on.
    pub(crate) fn tell(&mut self, client: &Client) {
        self.site.client = client.clone();
    }

    /// The pod becomes ready, or stops being so; its engine doesn't notice.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn set_ready(&self, is_ready: bool) -> anyhow::Result<()> {
        if is_ready {
            self.site.ready_log.begin(self.address, &self.name);
        }
        self.set_status(is_ready).await?;
        if !is_ready {
            self.site.ready_log.end(self.address, &self.name);
        }
        Ok(())
    }

    async fn set_status(&self, is_ready: bool) -> anyhow::Result<()> {
        let (ip, status) = (self.address.ip().to_string(), if is_ready { "True" } else { "False" });
        self.patch_status(json!({
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "hostIP": "127.0.0.1",
            "conditions": [
                {"type": "Ready", "status": status},
                {"type": "ContainersReady", "status": status},
            ],
        }))
        .await
    }

    async fn patch_status(&self, status: Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        self.site
            .api()
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("patching the status of pod {}", self.name))?;
        Ok(())
    }

    /// The pod's label is taken away, so that it leaves the pool, or given back.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn set_member(&self, is_member: bool) -> anyhow::Result<()> {
        if is_member {
            self.site.ready_log.begin(self.address, &self.name);
        }
        let label = is_member.then_some(APP);
        let patch = Patch::Merge(json!({"metadata": {"labels": {"app": label}}}));
        self.site
            .api()
            .patch(&self.name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("labelling pod {}", self.name))?;
        if !is_member {
            self.site.ready_log.end(self.address, &self.name);
        }
        Ok(())
    }

    /// An annotation is set, or taken away.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn annotate(&self, name: &str, value: Option<&str>) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {name: value}}}));
        self.site
            .api()
            .patch(&self.name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("annotating pod {}", self.name))?;
        Ok(())
    }

    /// The pod's deletion begins: it has a deletion timestamp and is still there, and its engine serves on.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn begin_deletion(&self) -> anyhow::Result<()> {
        let params = DeleteParams { grace_period_seconds: Some(60), ..DeleteParams::default() };
        self.site
            .api()
            .delete(&self.name, &params)
            .await
            .with_context(|| format!("deleting pod {}", self.name))?;
        self.site.ready_log.end(self.address, &self.name);
        Ok(())
    }

    /// The engine ends, as under a preStop hook: it serves for a while, until nothing runs any more.
    ///
    /// # Errors
    /// Something still runs after a minute.
    pub(crate) async fn stop_engine(&mut self) -> anyhow::Result<()> {
        let Some(engine) = self.engine.take() else { return Ok(()) };
        tokio::time::sleep(PRE_STOP).await;
        let since = Instant::now();
        // Twice, because a request may have been accepted and not counted yet.
        let mut idle_looks = 0;
        while idle_looks < 2 {
            let stats = engine.stats();
            idle_looks =
                if stats.running_requests + stats.waiting_requests == 0 { idle_looks + 1 } else { 0 };
            if since.elapsed() > IDLE_WITHIN {
                bail!("pod {} still runs {} requests after its preStop", self.name, stats.running_requests);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        engine.stop().await;
        Ok(())
    }

    /// Engine and pod end at once: nobody asks them any more.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        if let Some(engine) = self.engine.take() {
            engine.stop().await;
        }
        self.remove().await
    }

    /// The pod is gone.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        match self.site.api().delete(&self.name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).with_context(|| format!("removing pod {}", self.name)),
        }
    }

    /// The pod leaves as pods do: its deletion begins, its engine ends, it is gone.
    ///
    /// # Errors
    /// As the steps.
    pub(crate) async fn leave(mut self) -> anyhow::Result<()> {
        self.begin_deletion().await?;
        self.stop_engine().await?;
        self.remove().await
    }

    /// Another pod takes this one's address and engine: only the object is another one.
    ///
    /// # Errors
    /// The API server refuses.
    pub(crate) async fn replace_object(self, name: &str) -> anyhow::Result<Self> {
        self.begin_deletion().await?;
        self.remove().await?;
        let next = Self { name: name.to_owned(), ..self };
        next.create().await?;
        next.set_ready(true).await?;
        Ok(next)
    }

    /// Another pod takes this one's address: with its own name and UID, and an engine with an empty cache. This pod's
    /// object stays until the other one is ready, as it happens where a node is slow to say that a pod is gone.
    ///
    /// # Errors
    /// As the steps.
    pub(crate) async fn replace(mut self, name: &str) -> anyhow::Result<Self> {
        self.begin_deletion().await?;
        self.stop_engine().await?;
        let next = self.site.start(name, self.address.ip()).await?;
        next.set_ready(true).await?;
        self.remove().await?;
        Ok(next)
    }
}
