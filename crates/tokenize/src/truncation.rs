//! `truncate_prompt_tokens` and the limits of length.

use warmroute_inference_api::{ApiRequest, Field};

use crate::encoder::Encoder;
use crate::error::{Rejection, TokenizeError, Unsupported};
use crate::member::member;
use crate::prompt_options::PromptOptions;

/// Which tokens are cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// How the prompts of a request are cut, and how long they may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Truncation {
    limit_tokens: Option<usize>,
    side: Option<Side>,
    max_model_len: Option<u32>,
}

impl Truncation {
    pub(crate) fn of(request: &ApiRequest<'_>, options: &PromptOptions) -> Result<Self, TokenizeError> {
        let max_model_len = options.max_model_len;
        if let (Some(max_tokens), Some(max_model_len)) = (request.max_tokens, max_model_len)
            && max_tokens > max_model_len
        {
            return Err(TokenizeError::member("max_tokens", "is greater than the context length"));
        }
        let side = match member(request, Field::TruncationSide, "truncation_side")? {
            None => None,
            Some(side) => match side.as_str() {
                Some("left") => Some(Side::Left),
                Some("right") => Some(Side::Right),
                _ => return Err(TokenizeError::member("truncation_side", "must be left or right")),
            },
        };
        Ok(Self { limit_tokens: Self::limit(request, max_model_len)?, side, max_model_len })
    }

    fn limit(request: &ApiRequest<'_>, max_model_len: Option<u32>) -> Result<Option<usize>, TokenizeError> {
        const NAME: &str = "truncate_prompt_tokens";
        let Some(value) = member(request, Field::TruncatePromptTokens, NAME)? else { return Ok(None) };
        let limit = match value.as_i64() {
            Some(-1) => {
                let context =
                    max_model_len.ok_or(TokenizeError::Unsupported(Unsupported::UnknownContextLength))?;
                i64::from(context) - i64::from(request.max_tokens.is_some())
            }
            Some(limit) if limit >= 0 => limit,
            Some(_) => return Err(TokenizeError::member(NAME, "must be at least -1")),
            None => return Err(TokenizeError::unclear(NAME)),
        };
        if max_model_len.is_some_and(|context| limit > i64::from(context)) {
            return Err(TokenizeError::member(NAME, "is greater than the context length"));
        }
        usize::try_from(limit).map(Some).map_err(|_| TokenizeError::unclear(NAME))
    }

    /// Encodes a text and cuts it.
    ///
    /// Without a side the tokenizer itself cuts the text from the left and keeps the special tokens it adds;
    /// with one the whole list of ids is cut.
    pub(crate) fn encode(
        &self,
        encoder: &dyn Encoder,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TokenizeError> {
        // A guess that is too low for few texts and too high for none by much.
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        encoder.encode(text, add_special_tokens, &mut ids)?;
        let Some(limit) = self.limit_tokens.filter(|limit| ids.len() > *limit) else { return Ok(ids) };
        if self.side.is_some() || !add_special_tokens {
            return Ok(self.cut(ids));
        }
        let mut plain = Vec::with_capacity(ids.len());
        encoder.encode(text, false, &mut plain)?;
        let added = ids.len().saturating_sub(plain.len());
        let kept = limit.checked_sub(added);
        let before = (0..=added).find(|before| ids.get(*before..before + plain.len()) == Some(&plain[..]));
        let (Some(kept), Some(before)) = (kept, before) else {
            return Err(TokenizeError::unclear("truncate_prompt_tokens"));
        };
        let mut cut = ids[..before].to_vec();
        cut.extend_from_slice(&plain[plain.len() - kept..]);
        cut.extend_from_slice(&ids[before + plain.len()..]);
        Ok(cut)
    }

    /// Cuts a list of ids, from the left unless told otherwise.
    pub(crate) fn cut(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let Some(limit) = self.limit_tokens.filter(|limit| ids.len() > *limit) else { return ids };
        match self.side {
            Some(Side::Right) => ids.truncate(limit),
            Some(Side::Left) | None => drop(ids.drain(..ids.len() - limit)),
        }
        ids
    }

    /// Refuses prompts that are empty or leave no room for output.
    pub(crate) fn check(&self, index: usize, ids: &[u32]) -> Result<(), TokenizeError> {
        if ids.is_empty() {
            return Err(TokenizeError::Rejected(Rejection::EmptyPrompt { index }));
        }
        match self.max_model_len {
            Some(max_model_len) if ids.len() >= max_model_len as usize => {
                Err(TokenizeError::Rejected(Rejection::TooLong { index, tokens: ids.len(), max_model_len }))
            }
            _ => Ok(()),
        }
    }
}
