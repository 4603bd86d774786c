use serde::Serialize;
use warmroute_ext_proc::ProbeRecord;

/// One request to the gateway, as its client and the picker saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Exchange {
    /// The response's status; None if there was no response.
    pub status: Option<u16>,
    /// Why there is no whole response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The response's `server` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The response header by which a picker says why it refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_because: Option<String>,
    /// Whether a picker has touched the response's headers.
    pub response_headers_touched: bool,
    /// Bytes of the response body.
    pub body_bytes: usize,
    /// Pieces in which the response body came.
    pub body_pieces: usize,
    /// The beginning of the body.
    #[serde(skip)]
    pub text: String,
    /// From the request's first byte to the response's headers, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_ms: Option<f64>,
    /// From the request's first byte to the response's end, in milliseconds.
    pub total_ms: f64,
    /// What the picker saw; None if no picker that was asked saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<ProbeRecord>,
}

impl Exchange {
    /// An exchange that has no response at all.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    /// Whether an engine (or something else with an opinion of the request) has answered: everything but a gateway's own
    /// words for "I can't".
    pub fn is_served(&self) -> bool {
        self.error.is_none()
            && self.status.is_some_and(|status| status < 500 && status != 429 && status != 408)
    }

    /// Whether the picker's refusal of a probe came through as it was.
    pub fn is_probe_refusal(&self) -> bool {
        self.status == Some(429) && self.refused_because.as_deref() == Some("warmroute-probe")
    }

    /// The status, or why there is none, in words.
    pub fn outcome(&self) -> String {
        match (self.status, &self.error) {
            (Some(status), None) => status.to_string(),
            (Some(status), Some(error)) => format!("{status}, then {error}"),
            (None, Some(error)) => error.clone(),
            (None, None) => "nothing".to_owned(),
        }
    }
}
