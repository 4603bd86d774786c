use bytes::Bytes;

/// One live message of a publisher: the three frames topic, sequence number, payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveMessage<'f> {
    /// The topic; by llm-d's convention `kv@<address:port>@<model>`, empty by vLLM's default.
    pub topic: &'f str,
    /// Number of the batch, from 0 per publisher process.
    pub seq: u64,
    /// The msgpack batch, for [`decode_batch`](crate::decode_batch).
    pub payload: Bytes,
}

/// Why a message isn't a live message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LiveMessageError {
    /// Not three frames.
    #[error("message has {parts} frames, expected 3 (topic, sequence number, payload)")]
    Parts {
        /// How many it has.
        parts: usize,
    },
    /// The topic isn't UTF-8.
    #[error("topic of {len} bytes is not UTF-8")]
    TopicNotUtf8 {
        /// Its length.
        len: usize,
    },
    /// The sequence number isn't 8 bytes.
    #[error("sequence number has {len} bytes, expected 8")]
    SeqLength {
        /// Its length.
        len: usize,
    },
}

impl<'f> LiveMessage<'f> {
    /// Reads the frames of one message.
    pub fn try_new(frames: &'f [Bytes]) -> Result<Self, LiveMessageError> {
        let [topic, seq, payload] = frames else {
            return Err(LiveMessageError::Parts { parts: frames.len() });
        };
        let topic =
            std::str::from_utf8(topic).map_err(|_| LiveMessageError::TopicNotUtf8 { len: topic.len() })?;
        let seq: [u8; 8] =
            seq.as_ref().try_into().map_err(|_| LiveMessageError::SeqLength { len: seq.len() })?;
        Ok(Self { topic, seq: u64::from_be_bytes(seq), payload: payload.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::{LiveMessage, LiveMessageError};
    use bytes::Bytes;

    fn parse(frames: &[&'static [u8]]) -> Result<(String, u64, Bytes), LiveMessageError> {
        let frames: Vec<Bytes> = frames.iter().map(|frame| Bytes::from_static(frame)).collect();
        LiveMessage::try_new(&frames).map(|message| (message.topic.to_owned(), message.seq, message.payload))
    }

    #[test]
    fn reads_three_frames() {
        let (topic, seq, payload) = parse(&[b"kv@10.0.0.1:8000@m", &[0, 0, 0, 0, 0, 0, 1, 2], b"x"]).unwrap();
        assert_eq!((&*topic, seq, &*payload), ("kv@10.0.0.1:8000@m", 258, &b"x"[..]));
        assert_eq!(parse(&[b"", &[0; 8], b""]).unwrap().0, "");
    }

    #[test]
    fn refuses_everything_else() {
        assert_eq!(parse(&[b"t", b"x"]), Err(LiveMessageError::Parts { parts: 2 }));
        assert_eq!(parse(&[b"", b"t", &[0; 8], b"x"]), Err(LiveMessageError::Parts { parts: 4 }));
        assert_eq!(parse(&[b"t", &[0; 7], b"x"]), Err(LiveMessageError::SeqLength { len: 7 }));
        assert_eq!(parse(&[&[0xff], &[0; 8], b"x"]), Err(LiveMessageError::TopicNotUtf8 { len: 1 }));
    }
}
