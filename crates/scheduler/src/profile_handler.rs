//! Which scheduling profiles run for a request, in which order, and which of them decides where it goes.

use std::fmt;
use std::sync::Arc;

use http::HeaderName;

use crate::{NamedDecider, Profile, SchedulerError};

/// Chooses the profiles that run. Profiles are named; [`Scheduler::try_with_handler`](crate::Scheduler::try_with_handler)
/// says whether they are there.
#[derive(Clone, Debug, Default)]
pub enum ProfileHandler {
    /// The only profile.
    #[default]
    Single,
    /// Decode, and for some requests prefill and encode, each at an endpoint of its own.
    Disaggregated(Disaggregation),
    /// The only profile, which picks a data-parallel rank; the request goes to the primary port of its host.
    DataParallel {
        /// The port, not 0.
        primary_port: u16,
    },
    /// The profile that a header of the request names. If there is only one profile it is that one, whatever the
    /// header says.
    ByHeader {
        /// The header; space around its value doesn't count.
        header: HeaderName,
        /// The profile for requests without it, or with an empty one.
        default: Arc<str>,
    },
}

/// Stages of a request that may run at different endpoints.
#[derive(Clone, Debug)]
pub struct Disaggregation {
    /// Which stage picks first; what it picked is the peer of the later ones.
    pub stage_order: StageOrder,
    /// The profile that decides where the request goes.
    pub decode: Arc<str>,
    /// The stage that computes the prompt; `None` if decode endpoints always do.
    pub prefill: Option<HelperStage>,
    /// The stage that encodes images, sounds and videos; `None` if nobody else does.
    pub encode: Option<HelperStage>,
    /// The port of the decode endpoint's host that the request goes to, where ranks are told by a header; see
    /// [`ProfileHandler::DataParallel`].
    pub primary_port: Option<u16>,
}

/// A stage that helps the one that decides where the request goes.
#[derive(Clone, Debug)]
pub struct HelperStage {
    /// Its profile.
    pub profile: Arc<str>,
    /// Says whether it runs; `None` if it runs always.
    pub decider: Option<NamedDecider>,
    /// What happens if it runs and picks nothing.
    pub on_failure: OnFailure,
}

/// The order in which stages pick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StageOrder {
    /// Decode, encode, prefill.
    #[default]
    DecodeFirst,
    /// Prefill, encode, decode.
    PrefillFirst,
}

/// What happens if a stage was wanted and picks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The request is served without it: the endpoints of the other stages do its work.
    #[default]
    Aggregate,
    /// The request is refused.
    Refuse,
}

/// What a profile's pick is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Where the request goes. With disaggregation this is the decode stage.
    Primary,
    /// Where its prompt is computed.
    Prefill,
    /// Where its images, sounds and videos are encoded.
    Encode,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Prefill => "prefill",
            Self::Encode => "encode",
        })
    }
}

impl ProfileHandler {
    /// The port that requests go to instead of the picked endpoint's own, if there is one.
    pub fn primary_port(&self) -> Option<u16> {
        match self {
            Self::DataParallel { primary_port } => Some(*primary_port),
            Self::Disaggregated(disaggregation) => disaggregation.primary_port,
            Self::Single | Self::ByHeader { .. } => None,
        }
    }

    /// The stages in the order in which they run. With [`ByHeader`](Self::ByHeader) the request may name another profile.
    pub(crate) fn plan(&self, profiles: &[Profile]) -> Result<Vec<PlannedStage>, SchedulerError> {
        let place = |name: &Arc<str>| {
            let unknown = || SchedulerError::UnknownProfile { profile: Arc::clone(name) };
            profiles.iter().position(|profile| profile.name == *name).ok_or_else(unknown)
        };
        let primary = |profile| PlannedStage {
            stage: Stage::Primary,
            profile,
            decider: None,
            on_failure: OnFailure::Refuse,
        };
        match self {
            Self::Single | Self::DataParallel { .. } => match profiles.len() {
                1 => Ok(vec![primary(0)]),
                count => Err(SchedulerError::SeveralProfiles { count }),
            },
            Self::ByHeader { default, .. } => {
                let only = profiles.len() == 1;
                Ok(vec![primary(if only { 0 } else { place(default)? })])
            }
            Self::Disaggregated(disaggregation) => {
                let helper = |stage, helper: &Option<HelperStage>| {
                    let planned = |helper: &HelperStage| Ok(helper.planned(stage, place(&helper.profile)?));
                    helper.as_ref().map(planned).transpose()
                };
                let decode = Some(primary(place(&disaggregation.decode)?));
                let prefill = helper(Stage::Prefill, &disaggregation.prefill)?;
                let encode = helper(Stage::Encode, &disaggregation.encode)?;
                let stages = match disaggregation.stage_order {
                    StageOrder::DecodeFirst => [decode, encode, prefill],
                    StageOrder::PrefillFirst => [prefill, encode, decode],
                };
                Ok(stages.into_iter().flatten().collect())
            }
        }
    }
}

impl HelperStage {
    fn planned(&self, stage: Stage, profile: usize) -> PlannedStage {
        PlannedStage { stage, profile, decider: self.decider.clone(), on_failure: self.on_failure }
    }
}

/// A stage with the place of its profile.
#[derive(Clone, Debug)]
pub(crate) struct PlannedStage {
    pub(crate) stage: Stage,
    pub(crate) profile: usize,
    pub(crate) decider: Option<NamedDecider>,
    pub(crate) on_failure: OnFailure,
}
