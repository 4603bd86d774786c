//! The pickers' metrics ports, as the examiner uses them.

use std::time::Duration;

use anyhow::{Context, bail};
use http::{StatusCode, Uri};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use warmroute_ext_proc::{ProbeOrder, ProbeRecord};

use super::observation::PickerSide;
use super::probe_desk::{PickerFacts, RegisteredProbe};
use crate::admin_client::PickerAccess;

/// How often a record is asked for until its stream has ended.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long after a response its ext-proc stream may go on.
const ENDED_WITHIN: Duration = Duration::from_secs(2);

/// The pickers that are asked: each address behind the names that were given.
pub(super) struct PickerDesks {
    pub(super) sides: Vec<PickerSide>,
    access: PickerAccess,
}

/// A probe as it is registered at every picker: which of them, and its nonce.
pub(super) struct Registration(Vec<(usize, String)>);

impl Registration {
    /// The value of the probe's header.
    pub(super) fn header(&self) -> String {
        self.0.iter().map(|(_, nonce)| nonce.as_str()).collect::<Vec<_>>().join(",")
    }
}

impl PickerDesks {
    /// Asks every picker for its facts.
    pub(super) async fn open(access: &PickerAccess) -> Self {
        let mut sides: Vec<PickerSide> = Vec::new();
        for address in access.address.split(',') {
            for base in behind(address.trim()).await {
                let facts: anyhow::Result<PickerFacts> =
                    read(&at_picker(access, &base), "/debug/probes").await;
                let (facts, error) = match facts {
                    Ok(facts) => (Some(facts), None),
                    Err(error) => (None, Some(format!("{error:#}"))),
                };
                let is_known = |side: &PickerSide| {
                    let instance =
                        |facts: &Option<PickerFacts>| facts.as_ref().map(|facts| facts.instance.clone());
                    facts.is_some() && instance(&side.facts) == instance(&facts)
                };
                if !sides.iter().any(is_known) {
                    sides.push(PickerSide { address: base, facts, error });
                }
            }
        }
        Self { sides, access: access.clone() }
    }

    /// Whether any can be asked.
    pub(super) fn is_any(&self) -> bool {
        self.sides.iter().any(|side| side.facts.is_some())
    }

    /// Registers a probe at all of them.
    ///
    /// # Errors
    /// One refuses or can't be reached any more.
    pub(super) async fn register(&self, order: ProbeOrder) -> anyhow::Result<Registration> {
        let mut nonces = Vec::new();
        for (at, side) in self.sides.iter().enumerate().filter(|(_, side)| side.facts.is_some()) {
            let json = serde_json::to_vec(&order)?;
            let picker = at_picker(&self.access, &side.address);
            let (status, body) = picker.post("/debug/probes", json.into()).await?;
            if status != StatusCode::CREATED {
                bail!("{} registers no probe: {}", side.address, String::from_utf8_lossy(&body).trim());
            }
            let registered: RegisteredProbe = serde_json::from_slice(&body)?;
            nonces.push((at, registered.nonce));
        }
        Ok(Registration(nonces))
    }

    /// What the picker that saw the probe says of it now.
    pub(super) async fn record(&self, registration: &Registration) -> Option<ProbeRecord> {
        for (side, nonce) in &registration.0 {
            let picker = at_picker(&self.access, &self.sides.get(*side)?.address);
            let record: anyhow::Result<ProbeRecord> = read(&picker, &format!("/debug/probes/{nonce}")).await;
            if let Ok(record) = record
                && record.streams > 0
            {
                return Some(record);
            }
        }
        None
    }

    /// The same when the probe's stream has ended, or won't for long.
    pub(super) async fn settled_record(&self, registration: &Registration) -> Option<ProbeRecord> {
        let until = Instant::now() + ENDED_WITHIN;
        loop {
            let record = self.record(registration).await?;
            if record.ended.is_some() || Instant::now() >= until {
                return Some(record);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// The URLs of all addresses that a URL's host has; the URL itself where that can't be found out.
async fn behind(address: &str) -> Vec<String> {
    let as_given = || vec![address.trim_end_matches('/').to_owned()];
    let Ok(uri) = address.parse::<Uri>() else { return as_given() };
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else { return as_given() };
    if host.parse::<std::net::Ipv4Addr>().is_ok() || host.starts_with('[') || host == "localhost" {
        return as_given();
    }
    match tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await {
        Ok(found) => {
            let mut urls: Vec<String> = found.map(|socket| format!("http://{socket}")).collect();
            urls.dedup();
            urls
        }
        Err(_) => as_given(),
    }
}

/// The same access to another picker.
fn at_picker(access: &PickerAccess, base: &str) -> PickerAccess {
    PickerAccess { address: base.to_owned(), ..access.clone() }
}

async fn read<T: DeserializeOwned>(picker: &PickerAccess, path: &str) -> anyhow::Result<T> {
    let base = picker.base();
    let (status, body) = picker.get(path).await?;
    if status != StatusCode::OK {
        bail!("{base}{path} answered {status}: is this a Warmroute picker of this version?");
    }
    serde_json::from_slice(&body).with_context(|| format!("the answer of {base}{path} isn't understood"))
}
