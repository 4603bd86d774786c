use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Requests fail or go to the wrong engine as things are.
    Problem,
    /// They will if something happens: the picker goes away, somebody means harm.
    Risk,
    /// Good to know.
    Note,
}

impl Severity {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Risk => "risk",
            Self::Note => "note",
        }
    }
}

/// What can be wrong with a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Symptom {
    /// Requests don't reach the picker.
    PickerNotAsked,
    /// Some don't, or reach another one.
    PickerSometimesAsked,
    /// The picker has to answer before it sees the prompt.
    RequestBodyHidden,
    /// It sees the beginning of a long prompt only.
    RequestBodyPartial,
    /// Streamed responses come in one piece.
    ResponseBuffered,
    /// Response bodies pass through the picker.
    ResponseBodiesPass,
    /// Leases end before responses do.
    LeaseBlind,
    /// Large bodies are refused before the picker sees them.
    BodyLimit,
    /// The gateway doesn't wait for the picker.
    MessageTimeout,
    /// It waits for ever.
    StallUnbounded,
    /// Requests with trailers fail.
    TrailersFail,
    /// The picked endpoint isn't where requests go.
    DestinationIgnored,
    /// Whether it is can't be told.
    DestinationUnclear,
    /// Clients' routing headers reach the picker.
    RoutingHeadersPass,
    /// A client's routing header wins over the picker's.
    RoutingHeadersWin,
    /// Refusals don't reach clients as they were.
    RefusalsLost,
    /// A failing picker fails requests.
    FailClosed,
    /// It does so for those with bodies.
    FailOpenNotForBodies,
    /// Without a picker there is nowhere to go.
    FailOpenNowhere,
    /// Prompts travel to the picker in the clear.
    ExtProcPlaintext,
    /// The gateway can't know whether it is the picker that it speaks to.
    ExtProcUnverified,
    /// Requests have no id.
    RequestIdMissing,
    /// Clients' request ids are replaced.
    RequestIdReplaced,
    /// Long responses are cut.
    ResponseCut,
    /// An address of the gateway's name doesn't answer.
    AddressFails,
    /// The gateway sends requests again.
    Retried,
}

impl Symptom {
    /// Every one.
    pub const ALL: &[Self] = &[
        Self::PickerNotAsked,
        Self::PickerSometimesAsked,
        Self::RequestBodyHidden,
        Self::RequestBodyPartial,
        Self::ResponseBuffered,
        Self::ResponseBodiesPass,
        Self::LeaseBlind,
        Self::BodyLimit,
        Self::MessageTimeout,
        Self::StallUnbounded,
        Self::TrailersFail,
        Self::DestinationIgnored,
        Self::DestinationUnclear,
        Self::RoutingHeadersPass,
        Self::RoutingHeadersWin,
        Self::RefusalsLost,
        Self::FailClosed,
        Self::FailOpenNotForBodies,
        Self::FailOpenNowhere,
        Self::ExtProcPlaintext,
        Self::ExtProcUnverified,
        Self::RequestIdMissing,
        Self::RequestIdReplaced,
        Self::ResponseCut,
        Self::AddressFails,
        Self::Retried,
    ];

    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PickerNotAsked => "picker-not-asked",
            Self::PickerSometimesAsked => "picker-sometimes-asked",
            Self::RequestBodyHidden => "request-body-hidden",
            Self::RequestBodyPartial => "request-body-partial",
            Self::ResponseBuffered => "response-buffered",
            Self::ResponseBodiesPass => "response-bodies-pass",
            Self::LeaseBlind => "lease-blind",
            Self::BodyLimit => "body-limit",
            Self::MessageTimeout => "message-timeout",
            Self::StallUnbounded => "stall-unbounded",
            Self::TrailersFail => "trailers-fail",
            Self::DestinationIgnored => "destination-ignored",
            Self::DestinationUnclear => "destination-unclear",
            Self::RoutingHeadersPass => "routing-headers-pass",
            Self::RoutingHeadersWin => "routing-headers-win",
            Self::RefusalsLost => "refusals-lost",
            Self::FailClosed => "fail-closed",
            Self::FailOpenNotForBodies => "fail-open-not-for-bodies",
            Self::FailOpenNowhere => "fail-open-nowhere",
            Self::ExtProcPlaintext => "ext-proc-plaintext",
            Self::ExtProcUnverified => "ext-proc-unverified",
            Self::RequestIdMissing => "request-id-missing",
            Self::RequestIdReplaced => "request-id-replaced",
            Self::ResponseCut => "response-cut",
            Self::AddressFails => "address-fails",
            Self::Retried => "retried",
        }
    }

    /// How much it matters.
    pub fn severity(self) -> Severity {
        match self {
            Self::PickerNotAsked
            | Self::PickerSometimesAsked
            | Self::RequestBodyHidden
            | Self::ResponseBuffered
            | Self::LeaseBlind
            | Self::BodyLimit
            | Self::MessageTimeout
            | Self::TrailersFail
            | Self::DestinationIgnored
            | Self::RoutingHeadersWin
            | Self::RefusalsLost
            | Self::ResponseCut
            | Self::AddressFails => Severity::Problem,
            Self::RequestBodyPartial
            | Self::RoutingHeadersPass
            | Self::FailClosed
            | Self::FailOpenNotForBodies
            | Self::ExtProcPlaintext => Severity::Risk,
            Self::ResponseBodiesPass
            | Self::StallUnbounded
            | Self::DestinationUnclear
            | Self::FailOpenNowhere
            | Self::ExtProcUnverified
            | Self::RequestIdMissing
            | Self::RequestIdReplaced
            | Self::Retried => Severity::Note,
        }
    }
}

/// A setting that helps, of one kind of gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// Whose setting it is.
    pub at: &'static str,
    /// The setting.
    pub setting: &'static str,
}

/// Something found about a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayFinding {
    /// What.
    pub code: Symptom,
    /// How much it matters.
    pub severity: Severity,
    /// What was observed.
    pub seen: String,
    /// What follows from it.
    pub means: &'static str,
    /// What helps, by gateway.
    pub fixes: &'static [Fix],
}

impl GatewayFinding {
    /// A finding with the meaning and the fixes that its code has.
    pub fn new(code: Symptom, seen: impl Into<String>) -> Self {
        Self { code, severity: code.severity(), seen: seen.into(), means: code.means(), fixes: code.fixes() }
    }
}
