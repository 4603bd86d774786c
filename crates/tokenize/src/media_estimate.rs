//! How many tokens a picture or a video is taken to have.
//!
//! The formulas and defaults are those of the llm-d Router
//! (`pkg/epp/framework/plugins/requestcontrol/dataproducer/tokenizer/mm_estimate.go` in github.com/llm-d/llm-d-router).

use std::str::FromStr;

/// Most tokens that one part is taken to have, whatever headers and settings say.
const MAX_PART_TOKENS: f64 = 1_000_000.0;
/// Tokens of a sound: 10 seconds at 25 tokens per second, since nothing is known of its length.
const AUDIO_TOKENS: u32 = 250;

/// A size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Pixels per row; more than 0.
    pub width: u32,
    /// Rows; more than 0.
    pub height: u32,
}

impl Resolution {
    /// 640 × 360, the size that is assumed of media that say none.
    pub const ASSUMED: Self = Self { width: 640, height: 360 };

    fn pixels(self) -> f64 {
        f64::from(self.width) * f64::from(self.height)
    }
}

/// A text is no resolution: `WIDTHxHEIGHT`, both whole numbers over 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a resolution is WIDTHxHEIGHT, in pixels")]
pub struct NoResolution;

impl FromStr for Resolution {
    type Err = NoResolution;

    fn from_str(text: &str) -> Result<Self, NoResolution> {
        let (width, height) = text.split_once(['x', 'X']).ok_or(NoResolution)?;
        let side = |text: &str| text.trim().parse().ok().filter(|side| *side > 0).ok_or(NoResolution);
        Ok(Self { width: side(width)?, height: side(height)? })
    }
}

/// Tokens of one picture, or of one frame of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PictureTokens {
    /// Always as many.
    Static(u32),
    /// One for so many pixels.
    Dynamic {
        /// Pixels per token; more than 0.
        factor: u32,
    },
}

impl PictureTokens {
    /// One for 1024 pixels.
    pub const DEFAULT: Self = Self::Dynamic { factor: 1024 };

    fn of(self, resolution: Resolution) -> f64 {
        match self {
            Self::Static(tokens) => f64::from(tokens.max(1)),
            Self::Dynamic { factor } => (resolution.pixels() / f64::from(factor.max(1))).floor().max(1.0),
        }
    }
}

/// How pictures are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageEstimate {
    /// Tokens of one.
    pub tokens: PictureTokens,
    /// Size of one whose own isn't known.
    pub default_resolution: Resolution,
}

impl Default for ImageEstimate {
    fn default() -> Self {
        Self { tokens: PictureTokens::DEFAULT, default_resolution: Resolution::ASSUMED }
    }
}

impl ImageEstimate {
    /// Tokens of a picture; at least 1.
    pub fn tokens(&self, resolution: Option<Resolution>) -> u32 {
        bounded(self.tokens.of(resolution.unwrap_or(self.default_resolution)))
    }
}

/// Which frames of a video count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FrameChoice {
    /// So many per second of it, several of which make one group of tokens.
    Sampled {
        /// Frames per second; more than 0.
        fps: f64,
        /// Frames per group.
        temporal_patch_size: u32,
    },
    /// Each so-manieth of its own.
    Strided {
        /// Its own frames per second, if no header says; more than 0.
        default_source_fps: f64,
        /// The step.
        stride: u32,
    },
}

/// How videos are counted: frames × tokens of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoEstimate {
    /// Tokens of a frame.
    pub frame_tokens: PictureTokens,
    /// Which frames count.
    pub frames: FrameChoice,
    /// Least frames; 0 for no bound.
    pub min_frames: u32,
    /// Most frames; 0 for no bound.
    pub max_frames: u32,
    /// Size of a frame, if no header says.
    pub default_resolution: Resolution,
    /// Length in seconds, if no header says; more than 0.
    pub default_duration_s: f64,
    /// Most tokens of a video; 0 for no bound.
    pub max_tokens: u32,
}

impl Default for VideoEstimate {
    fn default() -> Self {
        Self {
            frame_tokens: PictureTokens::DEFAULT,
            frames: FrameChoice::Sampled { fps: 2.0, temporal_patch_size: 1 },
            min_frames: 0,
            max_frames: 0,
            default_resolution: Resolution::ASSUMED,
            default_duration_s: 10.0,
            max_tokens: 0,
        }
    }
}

/// What a request's headers say of its videos.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VideoHints {
    /// Frames per second.
    pub fps: Option<f64>,
    /// Length in seconds.
    pub duration_s: Option<f64>,
    /// Size of a frame.
    pub resolution: Option<Resolution>,
}

impl VideoHints {
    /// Reads the values of `x-llm-d-video-fps`, `-duration-seconds` and `-resolution`; what isn't one is left out.
    pub fn from_headers<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let number = |name| {
            header(name)?.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0)
        };
        Self {
            fps: number("x-llm-d-video-fps"),
            duration_s: number("x-llm-d-video-duration-seconds"),
            resolution: header("x-llm-d-video-resolution").and_then(|text| text.parse().ok()),
        }
    }
}

impl VideoEstimate {
    /// Tokens of a video; at least 1.
    pub fn tokens(&self, hints: &VideoHints) -> u32 {
        let duration_s = hints.duration_s.unwrap_or(self.default_duration_s);
        let (frames, per_group) = match self.frames {
            FrameChoice::Sampled { fps, temporal_patch_size } => (duration_s * fps, temporal_patch_size),
            FrameChoice::Strided { default_source_fps, stride } => {
                let frames = (duration_s * hints.fps.unwrap_or(default_source_fps)).floor();
                (frames / f64::from(stride.max(1)), 1)
            }
        };
        let mut frames = frames.floor().max(f64::from(self.min_frames));
        if self.max_frames > 0 {
            frames = frames.min(f64::from(self.max_frames));
        }
        let groups = (frames / f64::from(per_group.max(1))).floor();
        let tokens = groups * self.frame_tokens.of(hints.resolution.unwrap_or(self.default_resolution));
        let most = if self.max_tokens > 0 { f64::from(self.max_tokens) } else { MAX_PART_TOKENS };
        bounded(tokens.min(most))
    }
}

/// Tokens of a sound.
pub(crate) fn audio_tokens() -> u32 {
    AUDIO_TOKENS
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is clamped")]
fn bounded(tokens: f64) -> u32 {
    tokens.clamp(1.0, MAX_PART_TOKENS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures() {
        let default = ImageEstimate::default();
        assert_eq!(default.tokens(None), 225, "640 × 360 / 1024");
        assert_eq!(default.tokens(Some(Resolution { width: 1024, height: 1024 })), 1024);
        assert_eq!(default.tokens(Some(Resolution { width: 3, height: 3 })), 1);
        assert_eq!(default.tokens(Some(Resolution { width: u32::MAX, height: u32::MAX })), 1_000_000);
        let fixed = ImageEstimate { tokens: PictureTokens::Static(77), ..default };
        assert_eq!(fixed.tokens(Some(Resolution { width: 9, height: 9 })), 77);
    }

    #[test]
    fn videos() {
        let none = VideoHints::default();
        let default = VideoEstimate::default();
        assert_eq!(default.tokens(&none), 20 * 225);
        let qwen = VideoEstimate {
            frames: FrameChoice::Sampled { fps: 2.0, temporal_patch_size: 2 },
            min_frames: 4,
            max_tokens: 12_288,
            ..default
        };
        assert_eq!(qwen.tokens(&none), 10 * 225);
        let short = VideoHints { duration_s: Some(0.5), ..none };
        assert_eq!(qwen.tokens(&short), 2 * 225);
        assert_eq!(qwen.tokens(&VideoHints { duration_s: Some(1e300), ..none }), 12_288);
        let strided = VideoEstimate {
            frames: FrameChoice::Strided { default_source_fps: 24.0, stride: 24 },
            frame_tokens: PictureTokens::Static(70),
            max_frames: 32,
            ..default
        };
        assert_eq!(strided.tokens(&none), 10 * 70);
        assert_eq!(strided.tokens(&VideoHints { fps: Some(48.0), ..none }), 20 * 70);
        assert_eq!(strided.tokens(&VideoHints { fps: Some(1e9), ..none }), 32 * 70);
        assert_eq!(
            default.tokens(&VideoHints { fps: Some(1e300), duration_s: Some(1e300), ..none }),
            1_000_000
        );
    }

    #[test]
    fn headers_that_say_nothing_are_left_out() {
        let hints = |value: &'static str| VideoHints::from_headers(move |_| Some(value));
        for value in ["", "x", "0", "-1", "NaN", "inf", "0x10", "10x", "-1x5"] {
            assert_eq!(hints(value), VideoHints::default(), "{value}");
        }
        assert_eq!(hints(" 2.5 ").fps, Some(2.5));
        assert_eq!(hints("1920x1080").resolution, Some(Resolution { width: 1920, height: 1080 }));
    }
}
