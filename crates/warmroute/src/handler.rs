//! The profile handler of a configuration, as the scheduler takes it.

use anyhow::Context;
use http::HeaderName;
use warmroute_config::{
    CheckedConfig, DeciderKind, DeciderSpec, DisaggregationSpec, HandlerKind, OnFailureSpec, StageOrderSpec,
    StageSpec,
};
use warmroute_scheduler::{
    Decider, Disaggregation, HelperStage, NamedDecider, OnFailure, ProfileHandler, SchedulerBuilder,
    StageOrder,
};

/// Puts the handler together. Prefix matches that its deciders read become columns of the builder's table.
///
/// # Errors
/// A header's name isn't one, which checking a configuration excludes.
pub(crate) fn profile_handler(
    config: &CheckedConfig,
    builder: &mut SchedulerBuilder<'_>,
) -> anyhow::Result<ProfileHandler> {
    Ok(match &config.handler.kind {
        HandlerKind::Disaggregated(stages) => ProfileHandler::Disaggregated(disaggregation(stages, builder)),
        HandlerKind::DataParallel { primary_port } => {
            ProfileHandler::DataParallel { primary_port: *primary_port }
        }
        HandlerKind::ByHeader { header_name, default_profile } => ProfileHandler::ByHeader {
            header: HeaderName::try_from(header_name)
                .with_context(|| format!("{header_name} is no name of a header"))?,
            default: default_profile.as_str().into(),
        },
        // The enum may grow; whatever isn't known here is refused by the scheduler if it has several profiles.
        _ => ProfileHandler::Single,
    })
}

fn disaggregation(stages: &DisaggregationSpec, builder: &mut SchedulerBuilder<'_>) -> Disaggregation {
    Disaggregation {
        stage_order: match stages.stage_order {
            StageOrderSpec::DecodeFirst => StageOrder::DecodeFirst,
            StageOrderSpec::PrefillFirst => StageOrder::PrefillFirst,
        },
        decode: stages.decode_profile.as_str().into(),
        prefill: stages.prefill.as_ref().map(|stage| helper(stage, builder)),
        encode: stages.encode.as_ref().map(|stage| helper(stage, builder)),
        primary_port: stages.primary_port,
    }
}

fn helper(stage: &StageSpec, builder: &mut SchedulerBuilder<'_>) -> HelperStage {
    HelperStage {
        profile: stage.profile.as_str().into(),
        decider: stage.decider.as_ref().map(|decider| named_decider(decider, builder)),
        on_failure: match stage.on_failure {
            OnFailureSpec::Aggregate => OnFailure::Aggregate,
            OnFailureSpec::Refuse => OnFailure::Refuse,
        },
    }
}

fn named_decider(spec: &DeciderSpec, builder: &mut SchedulerBuilder<'_>) -> NamedDecider {
    let decider = match &spec.kind {
        DeciderKind::Multimodal => Decider::Multimodal,
        DeciderKind::UncachedTokens { non_cached_tokens, prompt_tokens, producer } => {
            Decider::UncachedTokens {
                least_uncached_tokens: *non_cached_tokens,
                least_prompt_tokens: *prompt_tokens,
                prefix: builder.prefix_column(&spec.name, producer),
            }
        }
        _ => Decider::Always,
    };
    NamedDecider { name: spec.name.as_str().into(), decider }
}
