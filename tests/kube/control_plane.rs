//! [`ControlPlane`]: a real Kubernetes API server with its store, on loopback, without a node.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use warmroute_demo::harness::{FreePorts, HttpClient, Process, READY_WITHIN, wait_until_ready};

use crate::certificates::Certificates;

/// Who the tokens of service accounts are from.
const ISSUER: &str = "https://kubernetes.default.svc";

/// The store, the API server that pickers know, and sometimes a second one on the same store.
pub(crate) struct ControlPlane {
    certificates: Certificates,
    binaries: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
    etcd_address: SocketAddr,
    /// Where pickers reach it; the same after a restart.
    address: SocketAddr,
    starts: u32,
    server: Option<Process>,
    second: Option<Process>,
    etcd: Process,
}

impl ControlPlane {
    /// Starts both with an empty store. `binaries` holds `etcd` and `kube-apiserver`; certificates, data and kubeconfigs go
    /// to `folder`.
    ///
    /// # Errors
    /// One doesn't start.
    pub(crate) async fn start(binaries: PathBuf, folder: PathBuf, logs: PathBuf) -> anyhow::Result<Self> {
        let mut ports = FreePorts::default();
        let mut free = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports.on_loopback()?)));
        let (etcd_address, peers, address) = (free()?, free()?, free()?);
        let certificates = Certificates::make(&folder.join("certificates"))?;
        let data = folder.join("etcd");
        let mut command = Command::new(binaries.join("etcd"));
        command
            .arg("--data-dir")
            .arg(&data)
            .args(["--unsafe-no-fsync", "--log-level=warn", "--name=etcd"])
            .arg(format!("--listen-client-urls=http://{etcd_address}"))
            .arg(format!("--advertise-client-urls=http://{etcd_address}"))
            .arg(format!("--listen-peer-urls=http://{peers}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peers}"))
            .arg(format!("--initial-cluster=etcd=http://{peers}"));
        let mut etcd = Process::spawn("etcd", command, &logs)?;
        let http = HttpClient::default();
        wait_until_ready(&mut etcd, READY_WITHIN, || async {
            http.get_ok(etcd_address, "/health").await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        let mut plane = Self {
            certificates,
            binaries,
            folder,
            logs,
            etcd_address,
            address,
            starts: 0,
            server: None,
            second: None,
            etcd,
        };
        plane.start_server().await?;
        Ok(plane)
    }

    /// Starts the API server that pickers know, under the address that it had, and waits until it is ready.
    ///
    /// # Errors
    /// It doesn't start.
    pub(crate) async fn start_server(&mut self) -> anyhow::Result<()> {
        self.server = Some(self.serve(self.address).await?);
        Ok(())
    }

    /// Ends the API server that pickers know, without a word to its clients.
    pub(crate) fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts a second API server on the same store, which pickers don't know, and gives an administrator's client of it.
    ///
    /// # Errors
    /// It doesn't start.
    pub(crate) async fn start_second(&mut self) -> anyhow::Result<Client> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FreePorts::default().on_loopback()?));
        self.second = Some(self.serve(address).await?);
        self.client_of(address).await
    }

    /// Ends the second API server.
    pub(crate) fn kill_second(&mut self) {
        if let Some(mut server) = self.second.take() {
            server.kill();
        }
    }

    /// An administrator's client of the API server that pickers know.
    ///
    /// # Errors
    /// No client can be made.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.client_of(self.address).await
    }

    async fn client_of(&self, address: SocketAddr) -> anyhow::Result<Client> {
        let user = json!({
            "client-certificate": self.certificates.administrator,
            "client-key": self.certificates.administrator_key,
        });
        let document = self.kubeconfig(address, &user);
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(serde_json::from_value(document)?, &options);
        Ok(Client::try_from(config.await?)?)
    }

    /// Writes a kubeconfig whose user is whom this token is of, and returns the file.
    ///
    /// # Errors
    /// It can't be written.
    pub(crate) fn write_kubeconfig(&self, name: &str, token: &str) -> anyhow::Result<PathBuf> {
        let file = self.folder.join(format!("{name}.kubeconfig"));
        let document = self.kubeconfig(self.address, &json!({"token": token}));
        let _: Kubeconfig = serde_json::from_value(document.clone())?;
        // JSON is YAML.
        std::fs::write(&file, serde_json::to_string_pretty(&document)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn kubeconfig(&self, address: SocketAddr, user: &Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{
                "name": "test",
                "cluster": {
                    "server": format!("https://{address}"),
                    "certificate-authority": self.certificates.authority,
                },
            }],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
    }

    async fn serve(&mut self, address: SocketAddr) -> anyhow::Result<Process> {
        self.starts += 1;
        let name = format!("kube-apiserver-{}", self.starts);
        let flag = |name: &str, file: &Path| format!("--{name}={}", file.display());
        let (certificates, folder) = (&self.certificates, self.folder.join(&name));
        let mut command = Command::new(self.binaries.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_address))
            .arg(format!("--bind-address={}", address.ip()))
            .arg(format!("--advertise-address={}", address.ip()))
            .arg(format!("--secure-port={}", address.port()))
            .arg(flag("cert-dir", &folder))
            .arg(flag("tls-cert-file", &certificates.server))
            .arg(flag("tls-private-key-file", &certificates.server_key))
            .arg(flag("client-ca-file", &certificates.authority))
            .arg(flag("service-account-signing-key-file", &certificates.token_key))
            .arg(flag("service-account-key-file", &certificates.token_public_key))
            .arg(format!("--service-account-issuer={ISSUER}"))
            .args(["--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"])
            // Nothing here makes the default account and its token, which that plugin asks of every pod.
            .arg("--disable-admission-plugins=ServiceAccount")
            // A loopback address is no endpoint of the service `kubernetes`.
            .arg("--endpoint-reconciler-type=none")
            // So that a watch which was away for a while is told 410 as in a real cluster after five minutes.
            .arg("--etcd-compaction-interval=20s")
            .arg("--profiling=false");
        let mut process = Process::spawn(&name, command, &self.logs)?;
        let client = self.client_of(address).await?;
        wait_until_ready(&mut process, READY_WITHIN, || async {
            let request =
                http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
            client.request_text(request).await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        Ok(process)
    }

    /// Fine while everything runs that should.
    ///
    /// # Errors
    /// A process has ended by itself, with the end of its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.etcd.check()?;
        match &mut self.server {
            Some(server) => server.check().map_err(Into::into),
            None => bail!("the API server is stopped"),
        }
    }
}
