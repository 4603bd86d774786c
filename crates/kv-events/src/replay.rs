use bytes::Bytes;

/// The number that marks the end of an answer: -1 as the publisher writes it.
const END_SEQ: u64 = u64::MAX;
/// An answer of at most this many batches can't have lost any: a ROUTER queues 1,000 messages for a peer.
const SAFE_ANSWER_BATCHES: u64 = 500;

/// What a batch without payload counts as.
const BATCH_OVERHEAD_BYTES: u64 = 64;

/// What a replay may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimits {
    /// Most requests.
    pub max_requests: u32,
    /// Most requests in a row that bring nothing new.
    pub max_fruitless_requests: u32,
    /// Most bytes, repeated ones too.
    pub max_bytes: u64,
    /// Longest time, in milliseconds.
    pub max_ms: u64,
    /// Longest time without an answer, in milliseconds. Engines answer between two batches; an idle one looks every
    /// 100 ms.
    pub silence_ms: u64,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        Self {
            max_requests: 64,
            max_fruitless_requests: 3,
            max_bytes: 1 << 30,
            max_ms: 120_000,
            silence_ms: 2_000,
        }
    }
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplayEnd {
    /// All that the engine keeps has come, without a hole.
    Complete,
    /// What was missing has left the engine's buffer meanwhile.
    Overtaken,
    /// Holes stayed, however often they were asked for.
    Holes,
    /// No answer, or no end of it.
    Silent,
    /// A limit on requests, bytes or time was reached.
    Limit,
    /// Not an answer to a replay request.
    Malformed,
}

impl ReplayEnd {
    /// The word used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Overtaken => "overtaken",
            Self::Holes => "holes",
            Self::Silent => "silent",
            Self::Limit => "limit",
            Self::Malformed => "malformed",
        }
    }
}

/// What to do after an answer, or after time has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayStep {
    /// Nothing.
    Wait,
    /// The next batch, in order and without a hole before it (but before the very first one, which says where the
    /// engine's buffer begins).
    Batch {
        /// Its number.
        seq: u64,
        /// The msgpack batch, for [`decode_batch`](crate::decode_batch).
        payload: Bytes,
    },
    /// Send [`Replay::request`] again.
    Ask,
    /// It is over.
    End(ReplayEnd),
}

/// One replay over one DEALER connection, as a state machine: requests out, batches in.
///
/// The request is `["", number (u64 big-endian)]`. An answer is every batch that the engine keeps from that number on,
/// `["", topic, number, payload]` (vLLM before 0.26 and SGLang: without the topic), then an end marker, numbered -1
/// with an empty payload (`distributed/kv_events.py` in vLLM's wheels). A ROUTER drops silently what its queue for us
/// can't take, so an answer may have holes; and it starts late, without a word, where the buffer begins later. So holes
/// are asked for again from the first one, and a long answer is only complete when asking after its end brings nothing
/// new.
#[derive(Debug)]
pub struct Replay {
    limits: ReplayLimits,
    /// What to ask for next time.
    from: u64,
    /// The number expected next; None until the first batch.
    next: Option<u64>,
    requests: u32,
    fruitless: u32,
    bytes: u64,
    started_ms: u64,
    heard_ms: u64,
    /// Of the answer that is coming in: batches in all, new ones, and whether it has a hole.
    answer: Answer,
}

#[derive(Debug, Default)]
struct Answer {
    batches: u64,
    new: u64,
    has_hole: bool,
}

impl Replay {
    /// A replay of everything from the number `from` on. Its first request is to be sent now.
    pub fn new(from: u64, limits: ReplayLimits, now_ms: u64) -> Self {
        Self {
            limits,
            from,
            next: None,
            requests: 1,
            fruitless: 0,
            bytes: 0,
            started_ms: now_ms,
            heard_ms: now_ms,
            answer: Answer::default(),
        }
    }

    /// The number to ask for: the last frame of the request, big-endian, after an empty one.
    pub fn request(&self) -> [u8; 8] {
        self.from.to_be_bytes()
    }

    /// Takes one message of the ROUTER.
    pub fn take(&mut self, frames: &[Bytes], now_ms: u64) -> ReplayStep {
        let ([delimiter, seq, payload] | [delimiter, _, seq, payload]) = frames else {
            return ReplayStep::End(ReplayEnd::Malformed);
        };
        let Ok(seq) = <[u8; 8]>::try_from(seq.as_ref()).map(u64::from_be_bytes) else {
            return ReplayStep::End(ReplayEnd::Malformed);
        };
        if !delimiter.is_empty() {
            return ReplayStep::End(ReplayEnd::Malformed);
        }
        self.heard_ms = now_ms;
        if seq == END_SEQ {
            return self.end_of_answer(now_ms);
        }
        self.bytes = self.bytes.saturating_add(payload.len() as u64 + BATCH_OVERHEAD_BYTES);
        self.answer.batches += 1;
        if self.bytes > self.limits.max_bytes || self.is_over(now_ms) {
            return ReplayStep::End(ReplayEnd::Limit);
        }
        self.take_batch(seq, payload)
    }

    fn take_batch(&mut self, seq: u64, payload: &Bytes) -> ReplayStep {
        match self.next {
            // Stray ones of an earlier request.
            None if seq < self.from => return ReplayStep::Wait,
            Some(next) if seq < next || self.answer.has_hole => return ReplayStep::Wait,
            Some(next) if seq > next => {
                if self.answer.batches == 1 {
                    return ReplayStep::End(ReplayEnd::Overtaken);
                }
                self.answer.has_hole = true;
                return ReplayStep::Wait;
            }
            _ => {}
        }
        self.next = Some(seq + 1);
        self.answer.new += 1;
        ReplayStep::Batch { seq, payload: payload.clone() }
    }

    /// What time has brought about.
    pub fn tick(&mut self, now_ms: u64) -> ReplayStep {
        if self.is_over(now_ms) {
            return ReplayStep::End(ReplayEnd::Limit);
        }
        if now_ms.saturating_sub(self.heard_ms) < self.limits.silence_ms {
            return ReplayStep::Wait;
        }
        self.heard_ms = now_ms;
        self.ask_again(ReplayEnd::Silent)
    }

    /// When [`Replay::tick`] has something to do, unless an answer comes before; by the caller's clock.
    pub fn next_tick_ms(&self) -> u64 {
        (self.heard_ms + self.limits.silence_ms).min(self.started_ms + self.limits.max_ms)
    }

    fn end_of_answer(&mut self, now_ms: u64) -> ReplayStep {
        if self.is_over(now_ms) {
            return ReplayStep::End(ReplayEnd::Limit);
        }
        if self.answer.has_hole {
            return self.ask_again(ReplayEnd::Holes);
        }
        if self.answer.batches > SAFE_ANSWER_BATCHES && self.answer.new > 0 {
            return self.ask_again(ReplayEnd::Holes);
        }
        ReplayStep::End(ReplayEnd::Complete)
    }

    fn ask_again(&mut self, otherwise: ReplayEnd) -> ReplayStep {
        self.fruitless = if self.answer.new > 0 { 0 } else { self.fruitless + 1 };
        self.answer = Answer::default();
        if self.fruitless >= self.limits.max_fruitless_requests {
            return ReplayStep::End(otherwise);
        }
        if self.requests >= self.limits.max_requests {
            return ReplayStep::End(ReplayEnd::Limit);
        }
        self.requests += 1;
        if let Some(next) = self.next {
            self.from = next;
        }
        ReplayStep::Ask
    }

    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.started_ms) >= self.limits.max_ms
    }
}
