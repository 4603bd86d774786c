//! What messages hold, counted on the way over them.

use std::ops::Range;

use crate::json_error::JsonError;
use crate::json_lexer::{JsonLexer, MAX_SCAN_DEPTH};

/// Counts of one list of messages or items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MessageCount {
    /// Images, sounds and videos.
    pub(crate) media_parts: u32,
    /// Bytes of roles and texts as they stand in the JSON text, escapes included.
    pub(crate) text_bytes: usize,
}

impl MessageCount {
    /// Moves behind the value at the cursor, checking its grammar, and returns its bytes and what it holds: a text,
    /// or a list of objects with `role` and `content` (or `output`), which are texts or lists of parts.
    pub(crate) fn read(lexer: &mut JsonLexer<'_>) -> Result<(Range<usize>, Self), JsonError> {
        let mut count = Self::default();
        let first = lexer.peek_token();
        let start = lexer.pos();
        match first {
            Some(b'[') => lexer.array(|lexer| count.message(lexer, 2))?,
            _ => count.text(lexer, 1)?,
        }
        Ok((start..lexer.pos(), count))
    }

    fn message(&mut self, lexer: &mut JsonLexer<'_>, depth: usize) -> Result<(), JsonError> {
        if lexer.peek_token() != Some(b'{') {
            return lexer.skip_value(depth).map(drop);
        }
        lexer.object(|lexer, key| match &lexer.bytes()[key.inner] {
            b"role" => self.text(lexer, depth + 1),
            b"content" | b"output" => self.content(lexer, depth + 1),
            _ => lexer.skip_value(depth + 1).map(drop),
        })
    }

    fn content(&mut self, lexer: &mut JsonLexer<'_>, depth: usize) -> Result<(), JsonError> {
        if lexer.peek_token() != Some(b'[') {
            return self.text(lexer, depth);
        }
        lexer.check_depth(depth, MAX_SCAN_DEPTH)?;
        lexer.array(|lexer| self.part(lexer, depth + 1))
    }

    fn part(&mut self, lexer: &mut JsonLexer<'_>, depth: usize) -> Result<(), JsonError> {
        if lexer.peek_token() != Some(b'{') {
            return lexer.skip_value(depth).map(drop);
        }
        lexer.check_depth(depth, MAX_SCAN_DEPTH)?;
        lexer.object(|lexer, key| match &lexer.bytes()[key.inner] {
            b"type" => {
                let range = lexer.skip_value(depth + 1)?;
                self.media_parts += u32::from(is_media(&lexer.bytes()[range]));
                Ok(())
            }
            b"text" | b"thinking" => self.text(lexer, depth + 1),
            // A tool's result has parts of its own.
            b"content" => self.content(lexer, depth + 1),
            _ => lexer.skip_value(depth + 1).map(drop),
        })
    }

    fn text(&mut self, lexer: &mut JsonLexer<'_>, depth: usize) -> Result<(), JsonError> {
        if lexer.peek_token() == Some(b'"') {
            self.text_bytes += lexer.string()?.inner.len();
            return Ok(());
        }
        lexer.skip_value(depth).map(drop)
    }
}

/// Whether the type of a part, with its quotes, is one of media: `image_url`, `input_audio`, `video` and the like.
fn is_media(quoted: &[u8]) -> bool {
    let Some(kind) = quoted.strip_prefix(b"\"") else { return false };
    let kind = kind.strip_prefix(b"input_").unwrap_or(kind);
    [&b"image"[..], b"audio", b"video"].iter().any(|media| kind.starts_with(media))
}
