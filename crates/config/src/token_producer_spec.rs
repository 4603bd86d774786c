//! Where token ids come from.

use std::path::PathBuf;
use std::time::Duration;

/// Where token ids come from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenProducerSpec {
    /// Its name.
    pub name: String,
    /// What makes them.
    pub backend: TokenBackend,
}

/// What makes token ids of a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TokenBackend {
    /// The model's own tokenizer and chat template, in process.
    Local {
        /// Folder with the model's tokenizer files.
        path: PathBuf,
    },
    /// A vLLM server that renders prompts.
    Vllm(VllmBackendSpec),
    /// Nothing: prompts that are text are only estimated.
    Estimate(EstimateSpec),
}

/// A vLLM server that renders prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VllmBackendSpec {
    /// Its address, `http://…`, without a `/` at the end.
    pub url: String,
    /// The model that it is asked for.
    pub model_name: String,
    /// Longest wait for a prompt of text.
    pub timeout: Duration,
    /// Longest wait for a prompt with images, sounds or videos.
    pub mm_timeout: Duration,
}

/// How the tokens of a prompt are estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EstimateSpec {
    /// Pictures.
    pub image: ImageEstimateSpec,
    /// Videos.
    pub video: VideoEstimateSpec,
}

/// Tokens of a picture, or of a frame of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PictureTokensSpec {
    /// Always as many; at least 1.
    Static(u32),
    /// One for so many pixels; at least 1.
    Dynamic(u32),
}

/// Width and height in pixels; each at least 1.
pub type ResolutionSpec = (u32, u32);

/// How pictures are estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageEstimateSpec {
    /// Tokens of one.
    pub tokens: PictureTokensSpec,
    /// Size of one whose own isn't known.
    pub default_resolution: ResolutionSpec,
}

impl Default for ImageEstimateSpec {
    fn default() -> Self {
        Self { tokens: PictureTokensSpec::Dynamic(1024), default_resolution: (640, 360) }
    }
}

/// Which frames of a video count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FramesSpec {
    /// So many per second of it.
    Sampled {
        /// Frames per second; more than 0.
        sample_fps: f64,
        /// Frames that share their tokens; at least 1.
        temporal_patch_size: u32,
    },
    /// Each so-manieth of its own.
    Strided {
        /// Its own frames per second, if the request doesn't say; more than 0.
        default_source_fps: f64,
        /// The step; at least 1.
        frame_stride: u32,
    },
}

/// How videos are estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoEstimateSpec {
    /// Tokens of a frame.
    pub tokens_per_frame: PictureTokensSpec,
    /// Which frames count.
    pub frames: FramesSpec,
    /// Least frames; 0 for no bound.
    pub min_frames: u32,
    /// Most frames; 0 for no bound.
    pub max_frames: u32,
    /// Size of a frame, if the request doesn't say.
    pub default_resolution: ResolutionSpec,
    /// Length in seconds, if the request doesn't say; more than 0.
    pub default_duration_s: f64,
    /// Most tokens of a video; 0 for no bound.
    pub max_video_tokens: u32,
}

impl Default for VideoEstimateSpec {
    fn default() -> Self {
        Self {
            tokens_per_frame: PictureTokensSpec::Dynamic(1024),
            frames: FramesSpec::Sampled { sample_fps: 2.0, temporal_patch_size: 1 },
            min_frames: 0,
            max_frames: 0,
            default_resolution: (640, 360),
            default_duration_s: 10.0,
            max_video_tokens: 0,
        }
    }
}
