use std::net::IpAddr;

use serde::Serialize;

use super::Exchange;
use super::probe_desk::PickerFacts;

/// Everything that was observed of a gateway. What wasn't tried is empty or None.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Observation {
    /// The gateway's URL.
    pub gateway: String,
    /// The pickers that were asked.
    pub pickers: Vec<PickerSide>,
    /// The model that was asked for.
    pub model: Option<String>,
    /// GET /v1/models, as every client sends it; the last one is the one that a picker saw, if any did.
    pub plain: Vec<Exchange>,
    /// The same at each address of the gateway's name.
    pub addresses: Vec<AddressTrial>,
    /// The same over HTTP/2.
    pub http2: Option<Exchange>,
    /// The same with routing headers and an `x-request-id` of the client's own.
    pub spoofed: Option<Exchange>,
    /// The request id that it had.
    pub spoofed_request_id: String,
    /// POST of a completion of one token.
    pub prompt: Option<Exchange>,
    /// The same with trailers.
    pub trailers: Option<Exchange>,
    /// A streamed completion.
    pub generation: Option<Generation>,
    /// The picker named the destination nowhere.
    pub neither: Vec<Exchange>,
    /// The picker named the destination in the header alone.
    pub header_only: Vec<Exchange>,
    /// The picker named the destination in the metadata alone.
    pub metadata_only: Vec<Exchange>,
    /// The picker refused a small request.
    pub refused: Vec<Exchange>,
    /// The picker refused larger ones, as soon as they were there.
    pub sizes: Vec<SizeTrial>,
    /// The picker took its time.
    pub delays: Vec<DelayTrial>,
    /// The picker's stream failed.
    pub failures: Option<Failures>,
    /// A streamed completion that goes on for long.
    pub long_generation: Option<Generation>,
}

/// A picker, by the address of its metrics port.
#[derive(Clone, Debug, Serialize)]
pub struct PickerSide {
    /// The URL.
    pub address: String,
    /// What it says of itself.
    pub facts: Option<PickerFacts>,
    /// Why it can't be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A request to one address of the gateway.
#[derive(Clone, Debug, Serialize)]
pub struct AddressTrial {
    /// The address.
    pub address: IpAddr,
    /// What came of it.
    pub exchange: Exchange,
}

/// A streamed completion.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// What came of it.
    pub exchange: Exchange,
    /// Whether the picker's stream was open when the first piece of the body had come; None if nobody could say.
    pub open_amid: Option<bool>,
    /// Pieces of the body that came after that was asked.
    pub pieces_after: usize,
    /// Milliseconds for which it was followed before the client itself broke it off; None if it ended before.
    pub broken_off_ms: Option<f64>,
}

/// A request with a body of some size.
#[derive(Clone, Debug, Serialize)]
pub struct SizeTrial {
    /// Bytes of the body.
    pub bytes: usize,
    /// What came of it.
    pub exchange: Exchange,
}

/// A request that the picker keeps waiting.
#[derive(Clone, Debug, Serialize)]
pub struct DelayTrial {
    /// How long, in milliseconds.
    pub delay_ms: u32,
    /// What came of it.
    pub exchange: Exchange,
}

/// Requests whose ext-proc stream the picker ended with an error.
#[derive(Clone, Debug, Serialize)]
pub struct Failures {
    /// A GET, at its headers.
    pub get: Exchange,
    /// A POST, at its headers.
    pub post_at_headers: Exchange,
    /// A POST, when its body was there.
    pub post_at_pick: Exchange,
}

impl Observation {
    /// The facts of the pickers that could be asked.
    pub fn facts(&self) -> impl Iterator<Item = &PickerFacts> {
        self.pickers.iter().filter_map(|picker| picker.facts.as_ref())
    }

    /// Every exchange that a picker saw.
    pub fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        let trials = self.sizes.iter().map(|trial| &trial.exchange);
        let delays = self.delays.iter().map(|trial| &trial.exchange);
        let addresses = self.addresses.iter().map(|trial| &trial.exchange);
        let generations = self.generation.iter().chain(&self.long_generation).map(|one| &one.exchange);
        let failures =
            self.failures.iter().flat_map(|all| [&all.get, &all.post_at_headers, &all.post_at_pick]);
        let single = self.http2.iter().chain(&self.spoofed).chain(&self.prompt).chain(&self.trailers);
        let lists =
            self.plain.iter().chain(&self.neither).chain(&self.header_only).chain(&self.metadata_only);
        lists
            .chain(single)
            .chain(&self.refused)
            .chain(trials)
            .chain(delays)
            .chain(addresses)
            .chain(generations)
            .chain(failures)
    }

    /// Whether a picker saw any probe.
    pub fn is_seen(&self) -> bool {
        self.exchanges().any(|exchange| exchange.record.is_some())
    }

    /// Whether the gateway answered anything.
    pub fn is_reached(&self) -> bool {
        self.plain.iter().any(|exchange| exchange.status.is_some())
    }
}
