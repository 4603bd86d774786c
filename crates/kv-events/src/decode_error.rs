/// Why a payload, or one event of it, could not be decoded. Offsets are in bytes from the start of the payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload ends inside a value.
    #[error("{what} at byte {offset} needs {needed} bytes, {left} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// How many bytes it needs from there (at least).
        needed: u64,
        /// How many there are.
        left: usize,
    },
    /// A value of another type than expected.
    #[error("{what} at byte {offset} has msgpack marker {marker:#04x}, expected {expected}")]
    WrongType {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// The msgpack marker found.
        marker: u8,
        /// What would have been right.
        expected: &'static str,
    },
    /// A number that doesn't fit its field.
    #[error("{what} at byte {offset} is {value}, outside {expected}")]
    OutOfRange {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// The number found.
        value: i128,
        /// The range that would have been right.
        expected: &'static str,
    },
    /// A hash of no bytes or of more than [`EngineHash::MAX_BYTES`](crate::EngineHash::MAX_BYTES).
    #[error("block hash at byte {offset} has {len} bytes")]
    HashLength {
        /// Where it starts.
        offset: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// A string that isn't UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: usize,
    },
    /// More of something than [`DecodeLimits`](crate::DecodeLimits) allows.
    #[error("{count} {what} at byte {offset}, the limit is {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Where the claim is made.
        offset: usize,
        /// How many.
        count: u64,
        /// How many are allowed.
        limit: usize,
    },
    /// A field that every version of the event has is missing.
    #[error("event at byte {offset} has no {field}")]
    MissingField {
        /// Where the event starts.
        offset: usize,
        /// The field's name.
        field: &'static str,
    },
    /// An event type that isn't known.
    #[error("event at byte {offset} has an unknown type")]
    UnknownEvent {
        /// Where the event starts.
        offset: usize,
    },
    /// Token pairs (SGLang with EAGLE drafting) of which one doesn't begin with the token that the one before it ends
    /// with, lists of other lengths, or pairs among tokens: no prompt has such blocks.
    #[error("token ids at byte {offset} are not a row of overlapping pairs")]
    TokenPairs {
        /// Where the first pair that doesn't fit starts.
        offset: usize,
    },
    /// Bytes after the batch.
    #[error("{left} bytes after the batch at byte {offset}")]
    TrailingBytes {
        /// Where they start.
        offset: usize,
        /// How many.
        left: usize,
    },
}
