use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ZmtpError;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// One frame as received.
pub(super) struct Frame {
    pub(super) flags: u8,
    pub(super) body: Bytes,
}

/// What a frame's head says.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) flags: u8,
    head_bytes: usize,
    pub(super) body_bytes: u64,
}

impl Head {
    pub(super) fn is_command(self) -> bool {
        self.flags & COMMAND != 0
    }

    /// The head at the start of `input`, if all of it is there.
    pub(super) fn parse(input: &[u8]) -> Result<Option<Self>, ZmtpError> {
        let Some(&flags) = input.first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(ZmtpError::UnexpectedFrame { what: "frame with reserved flags", flags });
        }
        if flags & COMMAND != 0 && flags & MORE != 0 {
            return Err(ZmtpError::UnexpectedFrame { what: "command with more frames", flags });
        }
        let rest = &input[1..];
        Ok(if flags & LONG == 0 {
            rest.first().map(|&len| Self { flags, head_bytes: 2, body_bytes: u64::from(len) })
        } else {
            rest.first_chunk().map(|len| Self { flags, head_bytes: 9, body_bytes: u64::from_be_bytes(*len) })
        })
    }

    /// Cuts the frame off `input`, if all of it is there. The caller has checked the length.
    pub(super) fn split_frame(self, input: &mut BytesMut) -> Option<Frame> {
        let body_bytes = usize::try_from(self.body_bytes).ok()?;
        let end = self.head_bytes.checked_add(body_bytes)?;
        if input.len() < end {
            return None;
        }
        input.advance(self.head_bytes);
        Some(Frame { flags: self.flags, body: input.split_to(body_bytes).freeze() })
    }
}

impl Frame {
    pub(super) fn is_command(&self) -> bool {
        self.flags & COMMAND != 0
    }

    pub(super) fn has_more(&self) -> bool {
        self.flags & MORE != 0
    }
}

/// Bytes that a frame of `body` bytes takes on the wire.
pub(super) fn wire_bytes(body: usize) -> usize {
    body + if body > 255 { 9 } else { 2 }
}

fn put(output: &mut BytesMut, flags: u8, body: &[&[u8]]) {
    let len: usize = body.iter().map(|piece| piece.len()).sum();
    match u8::try_from(len) {
        Ok(short) => output.put_slice(&[flags, short]),
        Err(_) => {
            output.put_u8(flags | LONG);
            output.put_u64(len as u64);
        }
    }
    for piece in body {
        output.put_slice(piece);
    }
}

pub(super) fn put_message_frame(output: &mut BytesMut, body: &[&[u8]], more: bool) {
    put(output, if more { MORE } else { 0 }, body);
}

pub(super) fn put_command(output: &mut BytesMut, body: &[&[u8]]) {
    put(output, COMMAND, body);
}
