/// What one publisher's sequence numbers say about missing messages. One tracker per publisher (engine and rank).
///
/// vLLM and SGLang number their batches from 0 per publisher process and never send a live batch twice; messages are
/// lost when the publisher's queue for a subscriber is full or no subscriber was connected.
#[derive(Debug, Clone, Default)]
pub struct SequenceTracker {
    last: Option<u64>,
    /// Set between a reconnect and the next message: the other side may be a new process.
    reconnected: bool,
}

/// What a sequence number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceStep {
    /// The next one, or number 0 as the first.
    InOrder,
    /// Messages are missing before this one; also the first message seen, if its number isn't 0.
    Gap {
        /// How many.
        missed: u64,
    },
    /// Seen already: to be ignored.
    Duplicate,
    /// Numbers went back: a new publisher process, whose cache was empty when it started.
    Restart {
        /// How many messages of the new process are missing before this one.
        missed: u64,
    },
}

impl SequenceTracker {
    /// A tracker that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of the last message, if any.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// Tells that the connection was lost and made again. From then on the last number seen again is a restart, for
    /// a live publisher sends nothing twice.
    pub fn reconnected(&mut self) {
        self.reconnected = true;
    }

    /// Forgets everything seen, as a new tracker.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Takes the number of the next message received.
    pub fn observe(&mut self, seq: u64) -> SequenceStep {
        let reconnected = std::mem::take(&mut self.reconnected);
        let step = match self.last {
            None if seq == 0 => SequenceStep::InOrder,
            None => SequenceStep::Gap { missed: seq },
            Some(last) if seq == last && !reconnected => SequenceStep::Duplicate,
            Some(last) if seq <= last => SequenceStep::Restart { missed: seq },
            Some(last) if seq - last == 1 => SequenceStep::InOrder,
            Some(last) => SequenceStep::Gap { missed: seq - last - 1 },
        };
        self.last = Some(seq);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::{SequenceStep, SequenceTracker};

    #[test]
    fn order_gaps_duplicates_and_restarts() {
        let mut tracker = SequenceTracker::new();
        let steps: Vec<SequenceStep> =
            [0, 1, 4, 4, 5, 0, 1, 0].into_iter().map(|seq| tracker.observe(seq)).collect();
        assert_eq!(
            steps,
            [
                SequenceStep::InOrder,
                SequenceStep::InOrder,
                SequenceStep::Gap { missed: 2 },
                SequenceStep::Duplicate,
                SequenceStep::InOrder,
                SequenceStep::Restart { missed: 0 },
                SequenceStep::InOrder,
                SequenceStep::Restart { missed: 0 },
            ]
        );
        assert_eq!(tracker.last(), Some(0));
    }

    #[test]
    fn joining_late_is_a_gap() {
        assert_eq!(SequenceTracker::new().observe(7), SequenceStep::Gap { missed: 7 });
        assert_eq!(SequenceTracker::new().observe(u64::MAX), SequenceStep::Gap { missed: u64::MAX });
    }

    #[test]
    fn the_same_number_after_a_reconnect_is_a_new_process() {
        let mut tracker = SequenceTracker::new();
        tracker.observe(0);
        tracker.reconnected();
        assert_eq!(tracker.observe(0), SequenceStep::Restart { missed: 0 });
        tracker.reconnected();
        assert_eq!(tracker.observe(1), SequenceStep::InOrder);
        tracker.observe(2);
        tracker.reconnected();
        assert_eq!(tracker.observe(2), SequenceStep::Restart { missed: 2 });
    }
}
