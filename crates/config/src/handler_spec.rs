//! What a configuration says of the profiles that run for a request.

/// What chooses among the scheduling profiles.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ProfileHandlerSpec {
    /// Its name; its type if it was made up.
    pub name: String,
    /// Its type.
    pub plugin_type: String,
    /// What it does.
    pub kind: HandlerKind,
}

/// What a profile handler does. Every profile that is named here is in
/// [`CheckedConfig::profiles`](crate::CheckedConfig::profiles).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HandlerKind {
    /// Runs the only profile.
    Single,
    /// Runs a profile per stage of a request.
    Disaggregated(DisaggregationSpec),
    /// Runs the only profile, which picks a data-parallel rank.
    DataParallel {
        /// The port of the rank's host that requests go to.
        primary_port: u16,
    },
    /// Runs the profile that a header names.
    ByHeader {
        /// The header's name in lower case.
        header_name: String,
        /// The profile for requests without the header. Means nothing if there is only one profile.
        default_profile: String,
    },
}

/// The stages of disaggregated serving.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DisaggregationSpec {
    /// Which stage picks first.
    pub stage_order: StageOrderSpec,
    /// Profile of the stage that decides where the request goes.
    pub decode_profile: String,
    /// The prefill stage; `None` if it never runs.
    pub prefill: Option<StageSpec>,
    /// The encode stage; `None` if it never runs.
    pub encode: Option<StageSpec>,
    /// The port of the decode endpoint's host that requests go to; `None` for the endpoint's own.
    pub primary_port: Option<u16>,
}

/// Which stage picks first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StageOrderSpec {
    /// Decode, then encode, then prefill.
    #[default]
    DecodeFirst,
    /// Prefill, then encode, then decode.
    PrefillFirst,
}

impl StageOrderSpec {
    /// The word in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DecodeFirst => "decode-first",
            Self::PrefillFirst => "prefill-first",
        }
    }
}

/// A stage beside decode.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StageSpec {
    /// Its profile.
    pub profile: String,
    /// What says whether it runs; `None` if it always does.
    pub decider: Option<DeciderSpec>,
    /// What happens to a request if the stage runs and finds no endpoint.
    pub on_failure: OnFailureSpec,
}

/// What happens to a request if a stage finds no endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailureSpec {
    /// It is served without the stage.
    #[default]
    Aggregate,
    /// It is refused.
    Refuse,
}

impl OnFailureSpec {
    /// The word in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::Refuse => "refuse",
        }
    }
}

/// What says whether a stage runs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeciderSpec {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: DeciderKind,
}

/// What a decider does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DeciderKind {
    /// Always yes.
    Always,
    /// Yes if enough of the prompt is left to compute.
    UncachedTokens {
        /// Tokens that must be left; 0 means never.
        non_cached_tokens: u32,
        /// Tokens that the prompt must have; 0 for no such limit.
        prompt_tokens: u32,
        /// The producer that knows what is cached.
        producer: String,
    },
    /// Yes for prompts with images, sounds or videos.
    Multimodal,
}

impl DeciderKind {
    /// The type in configurations.
    pub fn plugin_type(&self) -> &'static str {
        match self {
            Self::Always => "always-disagg-pd-decider",
            Self::UncachedTokens { .. } => "prefix-based-pd-decider",
            Self::Multimodal => "always-disagg-multimodal-decider",
        }
    }
}

impl ProfileHandlerSpec {
    /// The handler of a configuration with one profile that names none.
    pub(crate) fn single() -> Self {
        const TYPE: &str = "single-profile-handler";
        Self { name: TYPE.to_owned(), plugin_type: TYPE.to_owned(), kind: HandlerKind::Single }
    }

    /// Whether it ever runs the profile.
    pub fn runs(&self, profile: &str) -> bool {
        match &self.kind {
            HandlerKind::Single | HandlerKind::DataParallel { .. } | HandlerKind::ByHeader { .. } => true,
            HandlerKind::Disaggregated(stages) => {
                let helpers = [&stages.prefill, &stages.encode].into_iter().flatten();
                stages.decode_profile == profile || helpers.into_iter().any(|stage| stage.profile == profile)
            }
        }
    }

    /// In a few words, for the start-up log; `None` for the usual one.
    pub(crate) fn summary(&self) -> Option<String> {
        let name = &self.name;
        match &self.kind {
            HandlerKind::Single => None,
            HandlerKind::DataParallel { primary_port } => {
                Some(format!("{name}, requests go to port {primary_port} of the picked rank's host"))
            }
            HandlerKind::ByHeader { header_name, default_profile } => {
                Some(format!("{name}, the profile that header {header_name} names, else {default_profile}"))
            }
            HandlerKind::Disaggregated(stages) => Some(format!("{name}, {}", stages.summary())),
        }
    }
}

impl DisaggregationSpec {
    fn summary(&self) -> String {
        let stage = |stage: &Option<StageSpec>| stage.as_ref().map(StageSpec::summary);
        let decode = Some(self.decode_profile.clone());
        let stages = match self.stage_order {
            StageOrderSpec::DecodeFirst => [decode, stage(&self.encode), stage(&self.prefill)],
            StageOrderSpec::PrefillFirst => [stage(&self.prefill), stage(&self.encode), decode],
        };
        let mut text = stages.into_iter().flatten().collect::<Vec<_>>().join(", then ");
        if let Some(port) = self.primary_port {
            text.push_str(&format!("; requests go to port {port} of the picked rank's host"));
        }
        text
    }
}

impl StageSpec {
    fn summary(&self) -> String {
        let asked = self.decider.as_ref().map_or_else(String::new, |decider| match &decider.kind {
            DeciderKind::UncachedTokens { non_cached_tokens, prompt_tokens, producer } => {
                let least = match prompt_tokens {
                    0 => String::new(),
                    least => format!(", prompts from {least} on"),
                };
                format!(
                    " if {} says so ({non_cached_tokens} uncached tokens by {producer}{least})",
                    decider.name
                )
            }
            DeciderKind::Always | DeciderKind::Multimodal => format!(" if {} says so", decider.name),
        });
        let refuses = match self.on_failure {
            OnFailureSpec::Aggregate => "",
            OnFailureSpec::Refuse => ", or refuse",
        };
        format!("{}{asked}{refuses}", self.profile)
    }
}
