//! The tokens of a chat before its first image, sound or video.

use std::collections::HashMap;

use warmroute_inference_api::{ApiRequest, Field};

use crate::content_format::ContentFormat;
use crate::error::{TokenizeError, Unsupported};
use crate::member::{flag, member};
use crate::message::{MEDIA_MARK, MediaForm};
use crate::model_tokenizer::{ModelTokenizer, check_salt, reused_ids};
use crate::prompt_options::PromptOptions;

/// Tokens that stand before all that the engine puts in the place of a placeholder, so that those before them are as
/// they are in the text: of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, and of Qwen's models that hear
/// (`vllm/model_executor/models/qwen2_vl.py` and others in github.com/vllm-project/vllm).
const MEDIA_STARTS: [&str; 4] = ["<|vision_start|>", "<|vision_bos|>", "<|audio_bos|>", "<|audio_start|>"];
/// What placeholders are called, behind `<`, `<|` or `[`.
const PLACEHOLDERS: [&str; 6] = ["image", "img", "audio", "video", "vision", "start_of_image"];

/// The tokens of a model by which it is known where the media of a prompt begin.
#[derive(Debug, Default)]
pub(crate) struct MediaTokens {
    /// Tokens that are found in a text before anything else, with whether they are of `MEDIA_STARTS`.
    hard: HashMap<u32, bool>,
}

impl MediaTokens {
    /// Of a model's tokens that are found in a text before anything else.
    pub(crate) fn new(hard_tokens: Vec<(u32, String)>) -> Self {
        let starts = |text: &str| MEDIA_STARTS.contains(&text);
        Self { hard: hard_tokens.into_iter().map(|(id, text)| (id, starts(&text))).collect() }
    }

    /// How many of `announced` come before the first of the hard tokens of which it has more than `left_out`; None if
    /// there is no such token.
    ///
    /// A text of the user's that names a placeholder counts as one: the engine takes it for one, too.
    fn first_media(&self, announced: &[u32], left_out: &[u32]) -> Option<usize> {
        let mut surplus: HashMap<u32, i64> = HashMap::new();
        for (ids, step) in [(announced, 1), (left_out, -1)] {
            for id in ids.iter().filter(|id| self.hard.contains_key(id)) {
                *surplus.entry(*id).or_default() += step;
            }
        }
        announced.iter().position(|id| surplus.get(id).is_some_and(|surplus| *surplus > 0))
    }

    /// How many ids are the same whatever comes behind them: up to the last hard token.
    fn settled(&self, ids: &[u32]) -> usize {
        ids.iter().rposition(|id| self.hard.contains_key(id)).map_or(0, |last| last + 1)
    }

    /// How many ids of a prompt are known if its media begin at `first`.
    fn known(&self, ids: &[u32], first: usize) -> usize {
        match ids.get(first).and_then(|id| self.hard.get(id)) {
            Some(true) => first,
            // What the engine puts there may begin before it: Gemma's begins with line feeds, which join others.
            _ => self.settled(&ids[..first]),
        }
    }
}

impl ModelTokenizer {
    /// The token ids of a chat up to its first image, sound or video, as far as it is certain that the engine has the
    /// same; may be empty. At least one token follows.
    ///
    /// The template is given what vLLM gives it, and where its media begin shows by the special tokens that it doesn't
    /// write without them. Where a template takes contents as one text, the engine puts the model's placeholders in front
    /// of the text, so that nothing of that message is known. Between the last special token before the media and the
    /// media themselves only what `MEDIA_STARTS` vouches for is known.
    ///
    /// # Errors
    /// As [`Self::tokens`]; [`Unsupported::Multimodal`] if it can't be told where the media begin.
    pub fn tokens_before_media(
        &self,
        request: &ApiRequest<'_>,
        options: &PromptOptions,
    ) -> Result<Vec<u32>, TokenizeError> {
        check_salt(request)?;
        let members = [
            (Field::TruncatePromptTokens, "truncate_prompt_tokens"),
            (Field::ContinueFinalMessage, "continue_final_message"),
        ];
        for (field, name) in members {
            if member(request, field, name)?.is_some() {
                return Err(TokenizeError::unclear(name));
            }
        }
        if reused_ids(request)?.is_some() {
            return Err(TokenizeError::unclear("kv_transfer_params"));
        }
        let adds_special = flag(request, Field::AddSpecialTokens, "add_special_tokens")?.unwrap_or(false);
        let encode = |text: &str| {
            let mut ids = Vec::with_capacity(text.len() / 3 + 8);
            self.encode(text, adds_special, &mut ids).map(|()| ids)
        };
        let unknown = || {
            let part = "whose place in the prompt isn't known".to_owned();
            TokenizeError::Unsupported(Unsupported::Multimodal { index: 0, part })
        };
        let announced = self.render(request, options, MediaForm::Announced)?;
        let (mut ids, known) = match announced.format {
            ContentFormat::OpenAi => {
                let ids = encode(&announced.text)?;
                let left_out = self.render(request, options, MediaForm::LeftOut).map_err(|_| unknown())?;
                let first = self.media_tokens.first_media(&ids, &encode(&left_out.text)?);
                let known = self.media_tokens.known(&ids, first.ok_or_else(unknown)?);
                (ids, known)
            }
            ContentFormat::String => {
                let before = announced.text.find(MEDIA_MARK).map(|at| &announced.text[..at]);
                // Tokens that are added behind a text would be taken for its last ones.
                let before = before.filter(|text| !adds_special && !names_placeholder(text));
                let ids = encode(before.ok_or_else(unknown)?)?;
                let known = self.media_tokens.settled(&ids);
                (ids, known)
            }
        };
        ids.truncate(known);
        Ok(ids)
    }
}

/// Whether a text may have a placeholder in it, which the engine would take for that of the first media.
fn names_placeholder(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    lower.match_indices(['<', '[']).any(|(at, _)| {
        let behind = lower[at + 1..].trim_start_matches('|');
        PLACEHOLDERS.iter().any(|name| behind.starts_with(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> MediaTokens {
        let hard = [
            (100, "<|im_start|>"),
            (101, "<|im_end|>"),
            (102, "<|vision_start|>"),
            (103, "<start_of_image>"),
        ];
        MediaTokens::new(hard.map(|(id, text)| (id, text.to_owned())).to_vec())
    }

    #[test]
    fn media_begin_where_tokens_are_that_come_with_them() {
        let known = |announced: &[u32], left_out: &[u32]| {
            tokens().first_media(announced, left_out).map(|first| tokens().known(announced, first))
        };
        assert_eq!(known(&[100, 1, 2, 102, 3, 101], &[100, 1, 2, 3, 101]), Some(3));
        // A user's text has the placeholder too.
        assert_eq!(known(&[100, 1, 102, 2, 102, 3], &[100, 1, 102, 2, 3]), Some(2));
        // Not known to leave what comes before it as it is.
        assert_eq!(known(&[100, 1, 2, 103, 3], &[100, 1, 2, 3]), Some(1));
        assert_eq!(known(&[1, 2, 103, 3], &[1, 2, 3]), Some(0));
        // The template says nothing of them.
        assert_eq!(known(&[100, 1, 7, 2], &[100, 1, 2]), None);
    }

    #[test]
    fn placeholders_in_texts_are_noticed() {
        for text in
            ["a <image> b", "<|IMAGE_1|>", "[IMG]", "(<image>./</image>)", "<|vision_start|>", "<Img>"]
        {
            assert!(names_placeholder(text), "{text}");
        }
        assert!(!names_placeholder("<|im_start|>user\nan image [1] < audio"));
    }
}
