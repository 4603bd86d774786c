//! [`SseAnswer`]: reads a streamed completion out of server-sent events, however the bytes are cut.
//!
//! Events are parsed as the HTML standard says (§9.2.6 "Interpreting an event stream"), as far as the inference APIs use
//! it: fields other than `data` are skipped, several `data` lines are joined by a line feed, a blank line ends an event.

use serde::Deserialize;

use super::StreamUsage;

/// A line longer than this is no part of a token stream.
const MAX_LINE_BYTES: usize = 4 << 20;

/// What one event of the stream meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerPart {
    /// Generated text.
    Content,
    /// `usage`, at the end of the stream.
    Usage(StreamUsage),
    /// `[DONE]`.
    Done,
    /// An error that the engine sent within the stream.
    Error,
    /// Anything else: the role, a finish reason, something unreadable.
    Other,
}

/// Incremental parser of one answer.
#[derive(Debug, Default)]
pub struct SseAnswer {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    overflowed: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Deserialize)]
struct PromptTokensDetails {
    cached_tokens: Option<u64>,
}

impl SseAnswer {
    /// Takes the next bytes and calls `part` for each event that they complete.
    pub fn feed(&mut self, bytes: &[u8], mut part: impl FnMut(AnswerPart)) {
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(&mut part);
                }
                _ => {
                    self.after_cr = false;
                    if self.line.len() < MAX_LINE_BYTES {
                        self.line.push(byte);
                    } else {
                        self.overflowed = true;
                    }
                }
            }
        }
    }

    fn end_line(&mut self, part: &mut impl FnMut(AnswerPart)) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let data = std::mem::take(&mut self.data);
                let cut_off = std::mem::take(&mut self.overflowed);
                part(if cut_off { AnswerPart::Other } else { meaning(&data) });
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            let value = value.strip_prefix(b" ").unwrap_or(value);
            let room = MAX_LINE_BYTES.saturating_sub(self.data.len());
            self.overflowed |= value.len() > room;
            self.data.extend_from_slice(&value[..value.len().min(room)]);
        }
        // The buffer is kept for the next line.
        self.line = line;
        self.line.clear();
    }
}

fn meaning(data: &[u8]) -> AnswerPart {
    if data == b"[DONE]" {
        return AnswerPart::Done;
    }
    let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else { return AnswerPart::Other };
    let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let delta = |delta: &Delta| filled(&delta.content) || filled(&delta.reasoning_content);
    let is_content = |choice: &Choice| filled(&choice.text) || choice.delta.as_ref().is_some_and(delta);
    if chunk.error.is_some() {
        AnswerPart::Error
    } else if chunk.choices.iter().any(is_content) {
        AnswerPart::Content
    } else if let Some(usage) = chunk.usage {
        AnswerPart::Usage(StreamUsage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
        })
    } else {
        AnswerPart::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": a comment\r\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\r\n\r\n",
        "event: message\nid: 7\ndata:{\"choices\":[{\"delta\":{\"content\":\"Grüße\\n\"}}]}\n\n",
        "data: {\"choices\":[\ndata: {\"text\":\"x\"}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\r\r",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":40,\"completion_tokens\":2,",
        "\"prompt_tokens_details\":{\"cached_tokens\":32}}}\n\n",
        "data: {\"error\":{\"message\":\"late\"}}\n\n",
        "data: [DONE]\n\n",
    );

    fn expected() -> Vec<AnswerPart> {
        let usage = StreamUsage { prompt_tokens: 40, completion_tokens: 2, cached_tokens: Some(32) };
        vec![
            AnswerPart::Other,
            AnswerPart::Content,
            AnswerPart::Content,
            AnswerPart::Other,
            AnswerPart::Usage(usage),
            AnswerPart::Error,
            AnswerPart::Done,
        ]
    }

    #[test]
    fn every_way_to_cut_the_bytes_gives_the_same_parts() {
        let bytes = STREAM.as_bytes();
        for first in 0..=bytes.len() {
            for step in [1, 2, 3, 7, bytes.len()] {
                let (head, rest) = bytes.split_at(first);
                let mut answer = SseAnswer::default();
                let mut parts = Vec::new();
                answer.feed(head, |part| parts.push(part));
                for piece in rest.chunks(step) {
                    answer.feed(piece, |part| parts.push(part));
                }
                assert_eq!(parts, expected(), "cut at {first}, then every {step}");
            }
        }
    }

    #[test]
    fn an_event_that_is_not_ended_is_not_counted() {
        let mut answer = SseAnswer::default();
        answer.feed(b"data: [DONE]\n", |part| panic!("{part:?}"));
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut answer = SseAnswer::default();
        answer.feed(b"data: ", |_| {});
        for _ in 0..(2 * MAX_LINE_BYTES / 4096) {
            answer.feed(&[b'x'; 4096], |_| {});
        }
        assert!(answer.line.len() <= MAX_LINE_BYTES);
        let mut parts = Vec::new();
        answer.feed(b"\n\ndata: [DONE]\n\n", |part| parts.push(part));
        assert_eq!(parts, [AnswerPart::Other, AnswerPart::Done]);
    }
}
