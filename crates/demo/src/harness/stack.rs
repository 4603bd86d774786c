//! [`Stack`]: engines, pickers and Envoy, started in that order.

use std::net::SocketAddr;
use std::time::Duration;

use super::{
    EngineFleet, EngineOptions, EnvoyProxy, Picker, PickerOptions, PickerTransport, Process, Recipe, Tools,
};
use crate::DemoError;

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// Begins the names of all its processes and logs.
    pub label: String,
    /// The engines.
    pub engines: EngineOptions,
    /// The pickers.
    pub picker: PickerOptions,
    /// How many replicas of the picker, each of which Envoy may ask.
    pub picker_replicas: usize,
    /// How Envoy is configured.
    pub recipe: Recipe,
    /// The gateway's port on 127.0.0.1; `None` takes a free one.
    pub gateway_port: Option<u16>,
}

/// A running stack. Dropping it kills its processes; [`Stack::stop`] lets them end by themselves.
#[derive(Debug)]
pub struct Stack {
    /// Envoy.
    pub envoy: EnvoyProxy,
    /// The picker's replicas.
    pub pickers: Vec<Picker>,
    /// The engines.
    pub fleet: EngineFleet,
}

impl Stack {
    /// Starts everything; ready when this returns.
    ///
    /// # Errors
    /// The first process that fails; those started before it are ended.
    pub async fn start(tools: &Tools, options: &StackOptions) -> Result<Self, DemoError> {
        let label = &options.label;
        let fleet = EngineFleet::start(tools, label, &options.engines).await?;
        let mut pickers = Vec::with_capacity(options.picker_replicas);
        for replica in 1..=options.picker_replicas {
            let name = format!("{label}-picker-{replica}");
            pickers.push(Picker::start(tools, &name, &options.picker, &fleet).await?);
        }
        let addresses: Vec<SocketAddr> = pickers.iter().map(|picker| picker.grpc).collect();
        let transport =
            if options.picker.secure_serving { PickerTransport::Tls } else { PickerTransport::Plaintext };
        let name = format!("{label}-envoy");
        let envoy =
            EnvoyProxy::start(tools, &name, options.recipe, &addresses, transport, options.gateway_port)
                .await?;
        Ok(Self { envoy, pickers, fleet })
    }

    /// Where clients connect.
    pub fn gateway(&self) -> SocketAddr {
        self.envoy.listener
    }

    /// Whether everything still runs.
    ///
    /// # Errors
    /// [`DemoError::EndedEarly`] for the first process that does not.
    pub fn check(&mut self) -> Result<(), DemoError> {
        let pickers = self.pickers.iter_mut().map(|picker| &mut picker.process);
        let engines = self.fleet.processes.iter_mut().map(|engines| &mut engines.process);
        std::iter::once(&mut self.envoy.process).chain(pickers).chain(engines).try_for_each(Process::check)
    }

    /// Ends Envoy, then the pickers, then the engines.
    pub async fn stop(self) {
        self.envoy.process.stop(GRACE).await;
        futures::future::join_all(self.pickers.into_iter().map(|picker| picker.process.stop(GRACE))).await;
        let engines = self.fleet.processes.into_iter().map(|engines| engines.process.stop(GRACE));
        futures::future::join_all(engines).await;
    }

    /// Names and process ids of everything that was started.
    pub fn processes(&self) -> Vec<(String, u32)> {
        let pickers = self.pickers.iter().map(|picker| &picker.process);
        let engines = self.fleet.processes.iter().map(|engines| &engines.process);
        let all = std::iter::once(&self.envoy.process).chain(pickers).chain(engines);
        all.map(|process| (process.name().to_owned(), process.pid())).collect()
    }
}
