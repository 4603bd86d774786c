use std::fmt;
use std::hash::{Hash, Hasher};

/// The name that an engine gave to one KV block: opaque, only ever compared.
///
/// vLLM publishes the low 64 bits of a digest as an integer, or the whole digest (16 or 32 bytes) as a msgpack `bin`;
/// SGLang publishes a signed 64-bit integer, kept here by its bits. One engine uses one form throughout, and the two
/// forms never compare equal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EngineHash(Form);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Int(u64),
    /// Right-aligned would lose the length; the unused tail is always zero, so that equality can be derived.
    Digest {
        len: u8,
        bytes: [u8; EngineHash::MAX_BYTES],
    },
}

impl EngineHash {
    /// The longest digest that is understood, in bytes (SHA-256).
    pub const MAX_BYTES: usize = 32;

    /// A hash published as an integer.
    pub const fn from_u64(value: u64) -> Self {
        Self(Form::Int(value))
    }

    /// A hash published as bytes; `None` if there are none or more than [`Self::MAX_BYTES`].
    pub fn from_bytes(digest: &[u8]) -> Option<Self> {
        if digest.is_empty() || digest.len() > Self::MAX_BYTES {
            return None;
        }
        let mut bytes = [0; Self::MAX_BYTES];
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Self(Form::Digest { len: digest.len() as u8, bytes }))
    }

    /// The integer, where the engine published one.
    pub const fn as_u64(&self) -> Option<u64> {
        match self.0 {
            Form::Int(value) => Some(value),
            Form::Digest { .. } => None,
        }
    }

    /// The digest, where the engine published one.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Form::Int(_) => None,
            Form::Digest { len, bytes } => Some(&bytes[..usize::from(*len)]),
        }
    }

    /// The low 64 bits: what vLLM would have published for the same digest with integer hashes (the last 8 bytes,
    /// big endian; shorter digests are padded on the left).
    pub fn low_u64(&self) -> u64 {
        match &self.0 {
            Form::Int(value) => *value,
            Form::Digest { len, bytes } => {
                let end = usize::from(*len);
                bytes[end.saturating_sub(8)..end]
                    .iter()
                    .fold(0, |value, byte| (value << 8) | u64::from(*byte))
            }
        }
    }
}

impl Hash for EngineHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Equal hashes have equal low bits, and those are already well mixed.
        state.write_u64(self.low_u64());
    }
}

impl fmt::Debug for EngineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EngineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Int(value) => write!(f, "{value}"),
            Form::Digest { len, bytes } => {
                bytes[..usize::from(*len)].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EngineHash;

    #[test]
    fn the_low_bits_of_a_digest_are_its_last_eight_bytes() {
        let digest: Vec<u8> = (0..32).collect();
        let hash = EngineHash::from_bytes(&digest).unwrap();
        assert_eq!(hash.low_u64(), 0x1819_1a1b_1c1d_1e1f);
        assert_eq!(hash.as_bytes().unwrap(), digest);
        assert_eq!(EngineHash::from_bytes(&[1, 2]).unwrap().low_u64(), 0x0102);
    }

    #[test]
    fn forms_and_lengths_are_told_apart() {
        assert_ne!(EngineHash::from_bytes(&[1, 0]), EngineHash::from_bytes(&[1]));
        assert_ne!(EngineHash::from_bytes(&[0, 0, 0, 0, 0, 0, 0, 9]), Some(EngineHash::from_u64(9)));
        assert_eq!(EngineHash::from_bytes(&[]), None);
        assert_eq!(EngineHash::from_bytes(&[7; 33]), None);
    }
}
