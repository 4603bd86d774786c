//! `estimate` of a token-producer: how many tokens pictures and videos are taken to have.
//!
//! The schema is that of `pkg/epp/framework/plugins/requestcontrol/dataproducer/tokenizer` in
//! github.com/llm-d/llm-d-router.

use std::ops::RangeInclusive;

use crate::fields::{Fields, Mistakes};
use crate::scalar::Plain;
use crate::yaml::{Node, NodeValue};
use crate::{
    EstimateSpec, FramesSpec, ImageEstimateSpec, PictureTokensSpec, ResolutionSpec, VideoEstimateSpec,
};

/// Most tokens, frames or pixels of a factor that a setting may say.
const COUNT: RangeInclusive<u64> = 1..=1_000_000;
/// The same where 0 means no bound.
const BOUND: RangeInclusive<u64> = 0..=1_000_000;
/// Pixels of one side.
const SIDE: RangeInclusive<u64> = 1..=100_000;

pub(super) fn estimate(node: &Node, mistakes: &mut Mistakes) -> EstimateSpec {
    let mut fields = Fields::of(node, "estimate", mistakes);
    let mut spec = EstimateSpec::default();
    if let Some(node) = fields.node("image") {
        spec.image = image(node, mistakes);
    }
    if let Some(node) = fields.node("video") {
        spec.video = video(node, mistakes);
    }
    fields.finish(mistakes);
    spec
}

fn image(node: &Node, mistakes: &mut Mistakes) -> ImageEstimateSpec {
    let mut spec = ImageEstimateSpec::default();
    let mut fields = Fields::of(node, "image", mistakes);
    spec.tokens = picture_tokens(&mut fields, "image", "staticToken", mistakes);
    if let Some(resolution) = resolution(&mut fields, mistakes) {
        spec.default_resolution = resolution;
    }
    fields.finish(mistakes);
    spec
}

fn video(node: &Node, mistakes: &mut Mistakes) -> VideoEstimateSpec {
    let mut spec = VideoEstimateSpec::default();
    let mut fields = Fields::of(node, "video", mistakes);
    if let Some(node) = fields.node("tokensPerFrame") {
        let mut fields = Fields::of(node, "tokensPerFrame", mistakes);
        spec.tokens_per_frame = picture_tokens(&mut fields, "tokensPerFrame", "numTokensPerFrame", mistakes);
        fields.finish(mistakes);
    }
    if let Some(node) = fields.node("frames") {
        frames(node, &mut spec, mistakes);
    }
    if let Some(resolution) = resolution(&mut fields, mistakes) {
        spec.default_resolution = resolution;
    }
    if let Some(duration_s) = seconds(&mut fields, "defaultDuration", mistakes) {
        spec.default_duration_s = duration_s;
    }
    spec.max_video_tokens = count(&mut fields, "maxVideoTokens", BOUND, 0, mistakes);
    fields.finish(mistakes);
    spec
}

fn frames(node: &Node, spec: &mut VideoEstimateSpec, mistakes: &mut Mistakes) {
    let mut fields = Fields::of(node, "frames", mistakes);
    let is_strided = mode(&mut fields, ["sampled", "strided"], mistakes) == 1;
    spec.min_frames = count(&mut fields, "minFrames", BOUND, 0, mistakes);
    spec.max_frames = count(&mut fields, "maxFrames", BOUND, 0, mistakes);
    let (mut sample_fps, mut temporal_patch_size) = (2.0, 1);
    if let Some(node) = fields.node("sampled") {
        let mut fields = Fields::of(node, "sampled", mistakes);
        sample_fps = rate(&mut fields, "sampleFPS", mistakes).unwrap_or(sample_fps);
        temporal_patch_size = count(&mut fields, "temporalPatchSize", BOUND, 1, mistakes).max(1);
        fields.finish(mistakes);
    }
    let (mut default_source_fps, mut frame_stride) = (24.0, 1);
    if let Some(node) = fields.node("strided") {
        let mut fields = Fields::of(node, "strided", mistakes);
        default_source_fps = rate(&mut fields, "defaultSourceFPS", mistakes).unwrap_or(default_source_fps);
        frame_stride = count(&mut fields, "frameStride", BOUND, 1, mistakes).max(1);
        fields.finish(mistakes);
    }
    fields.finish(mistakes);
    spec.frames = match is_strided {
        true => FramesSpec::Strided { default_source_fps, frame_stride },
        false => FramesSpec::Sampled { sample_fps, temporal_patch_size },
    };
}

/// `mode`, `static` and `dynamic`, as pictures and frames have them alike.
fn picture_tokens(
    fields: &mut Fields<'_>,
    what: &str,
    static_name: &'static str,
    mistakes: &mut Mistakes,
) -> PictureTokensSpec {
    let is_static = mode(fields, ["dynamic", "static"], mistakes) == 1;
    let (mut tokens, mut factor) = (None, 1024);
    if let Some(node) = fields.node("static") {
        let mut fields = Fields::of(node, "static", mistakes);
        tokens =
            fields.whole(static_name, COUNT, mistakes).and_then(|(tokens, _)| u32::try_from(tokens).ok());
        fields.finish(mistakes);
    }
    if let Some(node) = fields.node("dynamic") {
        let mut fields = Fields::of(node, "dynamic", mistakes);
        factor = count(&mut fields, "factor", COUNT, factor, mistakes);
        fields.finish(mistakes);
    }
    if is_static && tokens.is_none() {
        let message = format!("{what} is static and says no static.{static_name}: each counts as one token");
        mistakes.notice(fields.place(), message);
    }
    if is_static {
        PictureTokensSpec::Static(tokens.unwrap_or(1))
    } else {
        PictureTokensSpec::Dynamic(factor)
    }
}

/// Which of the modes it is; the first is the default.
fn mode(fields: &mut Fields<'_>, modes: [&str; 2], mistakes: &mut Mistakes) -> usize {
    let Some((mode, place)) = fields.text("mode", mistakes) else { return 0 };
    modes.iter().position(|known| *known == mode || mode.is_empty()).unwrap_or_else(|| {
        mistakes.hinted(
            place,
            format!("there is no mode {mode:?}"),
            format!("there are {}", modes.join(", ")),
        );
        0
    })
}

fn count(
    fields: &mut Fields<'_>,
    name: &'static str,
    range: RangeInclusive<u64>,
    default: u32,
    mistakes: &mut Mistakes,
) -> u32 {
    let given = fields.whole(name, range, mistakes);
    given.and_then(|(count, _)| u32::try_from(count).ok()).unwrap_or(default)
}

fn rate(fields: &mut Fields<'_>, name: &'static str, mistakes: &mut Mistakes) -> Option<f64> {
    let (rate, place) = fields.number(name, mistakes)?;
    if rate > 0.0 && rate.is_finite() {
        return Some(rate);
    }
    mistakes.at(place, format!("{name} must be more than 0"));
    None
}

/// A number of seconds, or a duration.
fn seconds(fields: &mut Fields<'_>, name: &'static str, mistakes: &mut Mistakes) -> Option<f64> {
    match fields.node(name)?.plain() {
        Some(Plain::Number(_)) => rate(fields, name, mistakes),
        _ => {
            let (duration, place) = fields.duration(name, mistakes)?;
            if duration.is_zero() {
                mistakes.at(place, format!("{name} must be more than 0"));
            }
            Some(duration.as_secs_f64())
        }
    }
}

/// `defaultResolution`: `{width, height}`, or a text like `640x360`.
fn resolution(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<ResolutionSpec> {
    const NAME: &str = "defaultResolution";
    let node = fields.node(NAME)?;
    if let NodeValue::Scalar { text, .. } = &node.value {
        let side = |text: &str| text.trim().parse().ok().filter(|side| SIDE.contains(&u64::from(*side)));
        let sides = text.split_once(['x', 'X']).and_then(|(w, h)| Some((side(w)?, side(h)?)));
        if sides.is_none() {
            let message = format!("{NAME} must be one like 640x360, not {}", node.kind());
            mistakes.hinted(node.place, message, "or write {width: 640, height: 360}");
        }
        return sides;
    }
    let mut fields = Fields::of(node, NAME, mistakes);
    let (default_width, default_height) = ImageEstimateSpec::default().default_resolution;
    let width = count(&mut fields, "width", SIDE, default_width, mistakes);
    let height = count(&mut fields, "height", SIDE, default_height, mistakes);
    fields.finish(mistakes);
    Some((width, height))
}
