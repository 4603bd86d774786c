//! Token usage in a streamed response.

use memchr::memmem;

use crate::usage::{Usage, usage_of_json};

/// A line of a stream may be this long, in bytes; longer lines are passed over, and counted.
pub const MAX_LINE_BYTES: usize = 256 * 1024;

/// Reads the usage out of a stream of server-sent events, fed in chunks of any split.
///
/// Holds at most one unfinished line of [`MAX_LINE_BYTES`].
#[derive(Debug, Clone, Default)]
pub struct SseUsage {
    carry: Vec<u8>,
    skips_line: bool,
    usage: Option<Usage>,
    events: u64,
    skipped_lines: u64,
}

impl SseUsage {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the response body.
    pub fn feed(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            rest = behind.split_first().map_or(&[], |(_, rest)| rest);
            if std::mem::take(&mut self.skips_line) {
                continue;
            }
            if self.carry.is_empty() {
                self.line(line);
            } else {
                let mut carried = std::mem::take(&mut self.carry);
                carried.extend_from_slice(line);
                self.line(&carried);
                carried.clear();
                self.carry = carried;
            }
        }
        if self.skips_line {
            return;
        }
        if self.carry.len() + rest.len() > MAX_LINE_BYTES {
            self.carry = Vec::new();
            self.skips_line = true;
            self.skipped_lines += 1;
        } else {
            self.carry.extend_from_slice(rest);
        }
    }

    /// Takes the end of the stream: a last line may lack its line feed.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.carry);
        self.line(&line);
    }

    /// The usage seen so far. What a later event leaves out stays as an earlier one said.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Data events seen, without the closing `[DONE]`.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Lines passed over because they were too long.
    pub fn skipped_lines(&self) -> u64 {
        self.skipped_lines
    }

    fn line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            return;
        }
        self.events += 1;
        // Most events are a token: the word is looked for before the JSON is read.
        if memmem::find(data, b"\"usage\"").is_none() {
            return;
        }
        if let Some(usage) = usage_of_json(data) {
            self.usage = Some(self.usage.unwrap_or_default().updated_by(usage));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINE_BYTES, SseUsage};
    use crate::usage::Usage;

    const STREAM: &str = concat!(
        ": comment\r\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"usage \\\"\"}}],\"usage\":null}\n\n",
        "event: x\ndata:{\"choices\":[{\"delta\":{\"content\":\"{\\\"usage\\\":1}\"}}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,",
        "\"prompt_tokens_details\":{\"cached_tokens\":8}}}\r\n\r\n",
        "data: [DONE]\n\n"
    );
    const USAGE: Usage = Usage { prompt_tokens: 9, completion_tokens: 2, cached_tokens: Some(8) };

    #[test]
    fn every_split() {
        for first in 0..=STREAM.len() {
            for second in first..=STREAM.len() {
                let mut reader = SseUsage::new();
                reader.feed(&STREAM.as_bytes()[..first]);
                reader.feed(&STREAM.as_bytes()[first..second]);
                reader.feed(&STREAM.as_bytes()[second..]);
                reader.finish();
                assert_eq!((reader.usage(), reader.events()), (Some(USAGE), 3), "split at {first}, {second}");
            }
        }
    }

    #[test]
    fn byte_by_byte_and_without_last_line_feed() {
        let stream = STREAM.trim_end().strip_suffix("data: [DONE]").unwrap().trim_end();
        let mut reader = SseUsage::new();
        for byte in stream.bytes() {
            reader.feed(&[byte]);
        }
        assert_eq!(reader.usage(), None);
        reader.finish();
        assert_eq!(reader.usage(), Some(USAGE));
    }

    #[test]
    fn long_lines_are_passed_over_in_bounded_memory() {
        let mut reader = SseUsage::new();
        let chunk = vec![b'x'; 10_000];
        for _ in 0..200 {
            reader.feed(&chunk);
            assert!(reader.carry.capacity() <= 2 * MAX_LINE_BYTES);
        }
        reader.feed(b"\n");
        reader.feed(STREAM.as_bytes());
        assert_eq!((reader.usage(), reader.skipped_lines()), (Some(USAGE), 1));
    }
}
