//! What makes tokens of prompts, as the options and the configuration say.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use warmroute_config::{
    CheckedConfig, EstimateSpec, FramesSpec, PictureTokensSpec, ResolutionSpec, TokenBackend,
};
use warmroute_tokenize::{
    Estimator, FrameChoice, ImageEstimate, ModelTokenizer, PictureTokens, Resolution, VideoEstimate,
};

use super::Renderer;
use crate::cli::ServeOptions;

/// What makes tokens of prompts. Without a tokenizer and a renderer they are estimated.
#[derive(Clone, Default)]
pub struct TokenSource {
    /// The model's own, in process.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
    /// A server, asked if there is no tokenizer.
    pub renderer: Option<Renderer>,
    /// For everything that neither can tell.
    pub estimator: Estimator,
}

impl TokenSource {
    /// What `--tokenizer` names, else what the token-producer of the configuration does.
    ///
    /// # Errors
    /// The tokenizer can't be loaded, or the server's address makes no URL.
    pub async fn load(options: &ServeOptions, config: &CheckedConfig) -> anyhow::Result<Self> {
        let backend = config.token_producer.as_ref().map(|producer| &producer.backend);
        let mut source = Self::default();
        match (&options.tokenizer, backend) {
            (Some(dir), _) => {
                source.tokenizer = Some(load_tokenizer(dir.clone()).await.context("--tokenizer")?)
            }
            (None, Some(TokenBackend::Local { path })) => {
                source.tokenizer = Some(load_tokenizer(path.clone()).await.context("token-producer")?);
            }
            (None, Some(TokenBackend::Vllm(server))) => source.renderer = Some(Renderer::try_new(server)?),
            _ if config.kv_events().is_some() => tracing::warn!(
                "no tokenizer: text prompts can't be matched against KV caches; give --tokenizer DIR"
            ),
            _ => {}
        }
        if let Some(TokenBackend::Estimate(spec)) = backend {
            source.estimator = estimator_of(spec);
        }
        Ok(source)
    }
}

/// Loads the tokenizer off the async threads: it takes most of a second.
async fn load_tokenizer(dir: PathBuf) -> anyhow::Result<Arc<ModelTokenizer>> {
    let started = Instant::now();
    let shown = dir.display().to_string();
    let loaded = tokio::task::spawn_blocking(move || ModelTokenizer::load(&dir)).await;
    let tokenizer = loaded.context("loading panicked")??;
    tracing::info!(
        dir = shown,
        encoder = tokenizer.encoder_name(),
        took_ms = started.elapsed().as_millis() as u64,
        "tokenizer loaded"
    );
    Ok(Arc::new(tokenizer))
}

/// The estimator that a configuration describes.
pub fn estimator_of(spec: &EstimateSpec) -> Estimator {
    let resolution = |(width, height): ResolutionSpec| Resolution { width, height };
    let tokens = |tokens| match tokens {
        PictureTokensSpec::Static(tokens) => PictureTokens::Static(tokens),
        PictureTokensSpec::Dynamic(factor) => PictureTokens::Dynamic { factor },
    };
    let (image, video) = (&spec.image, &spec.video);
    Estimator {
        image: ImageEstimate {
            tokens: tokens(image.tokens),
            default_resolution: resolution(image.default_resolution),
        },
        video: VideoEstimate {
            frame_tokens: tokens(video.tokens_per_frame),
            frames: match video.frames {
                FramesSpec::Sampled { sample_fps, temporal_patch_size } => {
                    FrameChoice::Sampled { fps: sample_fps, temporal_patch_size }
                }
                FramesSpec::Strided { default_source_fps, frame_stride } => {
                    FrameChoice::Strided { default_source_fps, stride: frame_stride }
                }
            },
            min_frames: video.min_frames,
            max_frames: video.max_frames,
            default_resolution: resolution(video.default_resolution),
            default_duration_s: video.default_duration_s,
            max_tokens: video.max_video_tokens,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_both_sides_are_the_same() {
        assert_eq!(estimator_of(&EstimateSpec::default()), Estimator::default());
    }
}
