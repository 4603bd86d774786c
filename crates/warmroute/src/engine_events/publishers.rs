//! Which engine a message of the event listener is of, and which connection speaks for it.
//!
//! Engines that connect to the picker name themselves by topic (`kv@<address:port>@<model>`) and by the rank in the
//! batch, since all ranks of one endpoint publish under one topic. Nothing proves it: who can reach the port can name any
//! engine. So one connection speaks for an engine at a time, the newest; while others that did are still open the view is
//! doubtful, and what they send is left out.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use warmroute_kv_events::LiveMessage;
use warmroute_plugin::EndpointId;

use super::shard::ShardHandle;
use super::state::EngineState;

/// Publishers that aren't known by name in the status; of more, only the number is kept.
const MOST_UNKNOWN: usize = 32;
/// Of a topic in the status and the log, in bytes.
const LONGEST_TOPIC_BYTES: usize = 128;

/// One accepted connection.
pub(super) type ConnectionId = u64;

/// An engine's name on the wire: its endpoint's address and its rank.
type EngineName = (Arc<str>, u32);

/// An engine that is followed.
#[derive(Clone)]
pub(super) struct EngineTarget {
    pub(super) id: EndpointId,
    /// What it is called in metrics and the log.
    pub(super) label: Arc<str>,
    pub(super) state: Arc<EngineState>,
    pub(super) shard: ShardHandle,
}

struct Entry {
    target: EngineTarget,
    /// Open connections that have spoken for it; the one that does now is the last.
    speakers: Vec<ConnectionId>,
    /// Whether the last of them was told to the shard as a new connection.
    is_announced: bool,
}

/// What became of a message.
pub(super) enum Offered {
    /// It waits for the engine's shard.
    Taken(EngineTarget),
    /// The shard's queue is full.
    Dropped(EngineTarget),
    /// This connection is the engine's newest: the shard is to be told first, then the message is to be offered again.
    NewSpeaker(EngineTarget),
    /// A newer connection speaks for the engine, or it is subscribed to at its own address.
    NotItsSpeaker,
    /// No engine has this name.
    Unknown,
}

/// What a connection leaves behind when it ends.
pub(super) struct Left {
    pub(super) target: EngineTarget,
    /// Whether it was the one that spoke for the engine.
    pub(super) was_speaker: bool,
}

/// A name that no engine has, with how often it was heard.
#[derive(Clone, Debug, Serialize)]
pub struct UnknownPublisher {
    /// The topic, cut to 128 bytes.
    pub topic: String,
    /// The rank in its batches.
    pub rank: u32,
    /// Messages of it.
    pub messages: u64,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The engines that may be spoken for, by name.
#[derive(Default)]
pub(super) struct Publishers {
    engines: Mutex<HashMap<EngineName, Entry>>,
    unknown: Mutex<Unknown>,
}

#[derive(Default)]
struct Unknown {
    named: HashMap<(Box<str>, u32), (u64, &'static str)>,
    others: u64,
}

impl Publishers {
    /// From now on messages of this name are of the engine. An engine that had it before has left.
    pub(super) fn add(&self, address: &Arc<str>, rank: u32, target: EngineTarget) {
        let name = (address.clone(), rank);
        self.engines.lock().insert(name, Entry { target, speakers: Vec::new(), is_announced: false });
    }

    /// The engine has left; its successor under the same name stays.
    pub(super) fn remove(&self, address: &Arc<str>, rank: u32, id: EndpointId) {
        let mut engines = self.engines.lock();
        let name = (address.clone(), rank);
        if engines.get(&name).is_some_and(|entry| entry.target.id == id) {
            engines.remove(&name);
        }
    }

    /// Hands a message to the shard of the engine that it names.
    /// `room` is what its connection may have waiting; None if it has none left.
    pub(super) fn offer(
        &self,
        connection: ConnectionId,
        name: &EngineName,
        message: &LiveMessage<'_>,
        room: impl FnOnce() -> Option<OwnedSemaphorePermit>,
    ) -> Offered {
        let mut engines = self.engines.lock();
        let Some(entry) = engines.get_mut(name) else { return Offered::Unknown };
        if entry.target.state.is_dialled() {
            entry.is_announced = false;
            return Offered::NotItsSpeaker;
        }
        if entry.speakers.last() != Some(&connection) {
            if entry.speakers.contains(&connection) {
                return Offered::NotItsSpeaker;
            }
            entry.speakers.push(connection);
            entry.target.state.set_speakers(entry.speakers.len());
            entry.is_announced = false;
        }
        let target = entry.target.clone();
        if !entry.is_announced {
            return Offered::NewSpeaker(target);
        }
        // Under the lock, so that nothing of an older connection comes after a newer one's first message.
        let is_taken = room().is_some_and(|room| target.shard.offer_within(target.id, message, room));
        if is_taken { Offered::Taken(target) } else { Offered::Dropped(target) }
    }

    /// The shard has been told of this connection; false if a newer one has come meanwhile.
    pub(super) fn announced(&self, connection: ConnectionId, name: &EngineName) -> bool {
        let mut engines = self.engines.lock();
        let Some(entry) = engines.get_mut(name) else { return false };
        let is_speaker = entry.speakers.last() == Some(&connection);
        entry.is_announced |= is_speaker;
        is_speaker
    }

    /// A connection has ended: what it was to each engine of `names`.
    pub(super) fn leave<'n>(
        &self,
        connection: ConnectionId,
        names: impl IntoIterator<Item = &'n EngineName>,
    ) -> Vec<Left> {
        let mut engines = self.engines.lock();
        let mut left = Vec::new();
        for name in names {
            let Some(entry) = engines.get_mut(name) else { continue };
            let Some(at) = entry.speakers.iter().position(|speaker| *speaker == connection) else { continue };
            let was_speaker = at + 1 == entry.speakers.len();
            entry.speakers.remove(at);
            // Who is left speaks for it again when its next message comes, as a new connection.
            entry.is_announced &= !was_speaker;
            entry.target.state.set_speakers(entry.speakers.len());
            left.push(Left { target: entry.target.clone(), was_speaker });
        }
        left
    }

    /// Counts a message of a name that no engine has; true the first time.
    pub(super) fn count_unknown(&self, topic: &str, rank: u32, why: &'static str) -> bool {
        let end = (0..=LONGEST_TOPIC_BYTES.min(topic.len())).rev().find(|end| topic.is_char_boundary(*end));
        let key = (Box::from(&topic[..end.unwrap_or_default()]), rank);
        let mut unknown = self.unknown.lock();
        if let Some((messages, _)) = unknown.named.get_mut(&key) {
            *messages += 1;
            return false;
        }
        if unknown.named.len() >= MOST_UNKNOWN {
            unknown.others += 1;
            return false;
        }
        unknown.named.insert(key, (1, why));
        true
    }

    /// The names that no engine has, most heard first, and how many messages came of further ones.
    pub(super) fn unknown(&self) -> (Vec<UnknownPublisher>, u64) {
        let unknown = self.unknown.lock();
        let mut named: Vec<UnknownPublisher> = unknown
            .named
            .iter()
            .map(|((topic, rank), (messages, why))| UnknownPublisher {
                topic: topic.to_string(),
                rank: *rank,
                messages: *messages,
                why,
            })
            .collect();
        named.sort_by(|one, other| {
            other.messages.cmp(&one.messages).then_with(|| one.topic.cmp(&other.topic))
        });
        (named, unknown.others)
    }
}

/// The address in `kv@<address>@<model>`; a model's name may hold `@`.
pub(super) fn address_in(topic: &str) -> Option<&str> {
    let (address, _model) = topic.strip_prefix("kv@")?.split_once('@')?;
    (!address.is_empty()).then_some(address)
}

/// What is wrong with the topic of a message whose engine isn't known.
pub(super) fn why_unknown(topic: &str) -> &'static str {
    match address_in(topic) {
        _ if topic.is_empty() => {
            "the topic is empty: set the engine's topic to kv@<address:port>@<model>, as Envoy reaches it"
        }
        None => "the topic isn't kv@<address:port>@<model>",
        Some(address) if address.parse::<std::net::IpAddr>().is_ok() => {
            "the topic has an address without a port: kv@<address:port>@<model>"
        }
        Some(address) if address.parse::<std::net::SocketAddr>().is_err() => {
            "the topic names no address: kv@<address:port>@<model>, not a pod's name"
        }
        Some(_) => "no endpoint of the pool has this address and rank",
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_UNKNOWN, Publishers, address_in, why_unknown};

    #[test]
    fn addresses_are_read_from_topics() {
        for (topic, address) in [
            ("kv@10.0.0.1:8000@m", Some("10.0.0.1:8000")),
            ("kv@[fd00::1]:8000@org/m@fp8", Some("[fd00::1]:8000")),
            ("kv@@m", None),
            ("kv@10.0.0.1:8000", None),
            ("", None),
            ("10.0.0.1:8000", None),
        ] {
            assert_eq!(address_in(topic), address, "{topic}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let why = |topic: &str| why_unknown(topic);
        assert!(why("").contains("empty") && why("x").contains("isn't kv@"));
        assert!(why("kv@10.0.0.1@m").contains("without a port") && why("kv@pod-1@m").contains("pod's name"));
        assert!(why("kv@10.0.0.1:8000@m").contains("no endpoint"));
    }

    #[test]
    fn names_that_nobody_has_are_bounded() {
        let publishers = Publishers::default();
        let long = "é".repeat(200);
        assert!(publishers.count_unknown(&long, 0, "x") && !publishers.count_unknown(&long, 0, "x"));
        for number in 0..1000 {
            publishers.count_unknown(&format!("topic-{number}"), 1, "x");
        }
        let (named, others) = publishers.unknown();
        assert_eq!((named.len(), others), (MOST_UNKNOWN, 1000 - MOST_UNKNOWN as u64 + 1));
        assert_eq!((named[0].messages, named[0].topic.len()), (2, 128));
    }
}
