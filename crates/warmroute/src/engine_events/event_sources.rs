//! What an engine's API server says of its publishers: the answer of `GET /kv_event_sources`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};
use warmroute_config::MAX_RANKS;

/// The publishers of one API server, by data-parallel rank.
///
/// vLLM 0.32 answers with an object, `{"0": {…}, …}`; a list whose entries have `data_parallel_rank` is taken too, which
/// is what the route's test in vLLM's own repository shows (`tests/entrypoints/serve/kv_events`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventSources {
    by_rank: BTreeMap<u16, RankSource>,
}

/// One rank's publisher, with the endpoints that it has bound or connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct RankSource {
    data_parallel_rank: Option<u16>,
    /// None where the answer doesn't say: what is listed publishes.
    enable_kv_cache_events: Option<bool>,
    publisher: Option<String>,
    /// Of the PUB socket.
    pub(super) endpoint: Option<String>,
    /// Of the ROUTER socket, which is always bound.
    pub(super) replay_endpoint: Option<String>,
    /// First frame of every message.
    pub(super) topic: Option<String>,
}

/// An answer that isn't one.
#[derive(Debug, thiserror::Error)]
pub enum NoSources {
    /// Neither an object by rank nor a list.
    #[error("not an object by data-parallel rank, nor a list: {0}")]
    NotSources(#[from] serde_json::Error),
    /// A key or entry names no rank, or one that is too high.
    #[error("{0:?} is no data-parallel rank below {MAX_RANKS}")]
    NoRank(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    ByRank(BTreeMap<String, Map<String, Value>>),
    List(Vec<Map<String, Value>>),
}

impl EventSources {
    /// Reads an answer.
    ///
    /// # Errors
    /// It has another form, or names a rank that is none.
    pub fn read(answer: &[u8]) -> Result<Self, NoSources> {
        let source = |fields| serde_json::from_value::<RankSource>(Value::Object(fields));
        let mut named: Vec<(String, RankSource)> = Vec::new();
        match serde_json::from_slice(answer)? {
            Answer::ByRank(sources) => {
                for (rank, fields) in sources {
                    named.push((rank, source(fields)?));
                }
            }
            Answer::List(sources) => {
                for fields in sources {
                    let source = source(fields)?;
                    named.push((source.data_parallel_rank.unwrap_or(0).to_string(), source));
                }
            }
        }
        let by_rank = named.into_iter().map(|(rank, source)| {
            let number = rank.parse().ok().filter(|number| *number < MAX_RANKS);
            number.map(|number| (number, source)).ok_or(NoSources::NoRank(rank))
        });
        Ok(Self { by_rank: by_rank.collect::<Result<_, _>>()? })
    }

    /// The ranks, in order.
    pub fn ranks(&self) -> Vec<u16> {
        self.by_rank.keys().copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_rank.is_empty()
    }

    /// The publisher of a rank. One that is alone is meant whatever it is called: its server has no other.
    pub(super) fn of(&self, rank: u16) -> Option<&RankSource> {
        let alone = || self.by_rank.values().next().filter(|_| self.by_rank.len() == 1);
        self.by_rank.get(&rank).or_else(alone)
    }
}

impl RankSource {
    /// Whether it publishes over ZMQ.
    pub(super) fn publishes(&self) -> bool {
        let is_zmq = self.publisher.as_deref().is_none_or(|publisher| publisher == "zmq");
        self.enable_kv_cache_events.unwrap_or(true) && is_zmq && self.endpoint.is_some()
    }
}

/// What an engine's socket does at an endpoint, seen from the picker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SocketPlace {
    /// It listens there.
    Listens { host: String, port: u16 },
    /// It connects to somebody there instead.
    Connects,
    /// It isn't on the network.
    Unreachable,
}

impl SocketPlace {
    /// Where the socket is of an engine that requests reach at `host`.
    ///
    /// vLLM's publisher (`vllm/distributed/kv_events.py`) binds wildcards, and with port 0 its node's own address; to
    /// any other address it connects. SGLang's binds `0.0.0.0` too. An engine on a loopback address has other addresses
    /// as well, so there any address is its own.
    pub(super) fn of(endpoint: &str, host: &str) -> Self {
        let Some(address) = endpoint.strip_prefix("tcp://") else { return Self::Unreachable };
        let Some((named, port)) = address.rsplit_once(':') else { return Self::Unreachable };
        let Some(port) = port.parse().ok().filter(|port| *port != 0) else { return Self::Unreachable };
        let named = named.trim_start_matches('[').trim_end_matches(']');
        let listens = |host: &str| Self::Listens { host: host.to_owned(), port };
        if matches!(named, "*" | "::" | ":" | "0.0.0.0") {
            return listens(host);
        }
        match (named.parse::<IpAddr>(), host.parse::<IpAddr>()) {
            (Ok(named), Ok(own)) if named.to_canonical() == own.to_canonical() => listens(host),
            (Ok(named), Ok(own)) if own.is_loopback() => listens(&named.to_string()),
            _ => Self::Connects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vLLM 0.32.0 answered with two ranks.
    const RECORDED: &str = r#"{"1": {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5658",
        "replay_endpoint": "tcp://*:5758", "buffer_steps": 10000, "hwm": 100000, "max_queue_size": 100000, "topic": "kv@a@m"},
        "0": {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5657", "replay_endpoint":
        "tcp://*:5757", "buffer_steps": 10000, "hwm": 100000, "max_queue_size": 100000, "topic": "kv@a@m"}}"#;

    #[test]
    fn what_vllm_says_is_read_by_rank() {
        let sources = EventSources::read(RECORDED.as_bytes()).unwrap();
        assert_eq!(sources.ranks(), [0, 1]);
        let second = sources.of(1).unwrap();
        assert!(second.publishes());
        assert_eq!(second.replay_endpoint.as_deref(), Some("tcp://*:5758"));
        assert!(sources.of(2).is_none());
        let list = r#"[{"data_parallel_rank": 3, "endpoint": "tcp://10.0.0.1:5557", "replay_endpoint": null, "topic": ""}]"#;
        let sources = EventSources::read(list.as_bytes()).unwrap();
        assert_eq!(sources.ranks(), [3]);
        assert!(sources.of(0).is_some_and(RankSource::publishes), "a server's only rank is meant");
    }

    #[test]
    fn what_does_not_publish_is_told_apart_and_garbage_is_an_error() {
        assert!(EventSources::read(b"{}").unwrap().is_empty());
        for off in [
            r#"{"0": {"enable_kv_cache_events": false, "publisher": "null", "endpoint": "tcp://*:5557"}}"#,
            r#"{"0": {"enable_kv_cache_events": true, "publisher": "null", "endpoint": "tcp://*:5557"}}"#,
            r#"{"0": {}}"#,
        ] {
            assert!(!EventSources::read(off.as_bytes()).unwrap().of(0).unwrap().publishes(), "{off}");
        }
        let garbage = [
            "",
            "[",
            "7",
            "null",
            "{\"ok\":true}",
            "{\"x\":{}}",
            "{\"1024\":{}}",
            "{\"-1\":{}}",
            "[[]]",
            "{\"0\":[]}",
        ];
        for garbage in garbage {
            assert!(EventSources::read(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn sockets_listen_connect_or_are_not_on_the_network() {
        let listens = |host: &str, port| SocketPlace::Listens { host: host.to_owned(), port };
        let at = |endpoint: &str| SocketPlace::of(endpoint, "10.0.0.3");
        for wildcard in ["tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://[::]:5557", "tcp://:::5557"] {
            assert_eq!(at(wildcard), listens("10.0.0.3", 5557), "{wildcard}");
        }
        assert_eq!(at("tcp://10.0.0.3:40123"), listens("10.0.0.3", 40123));
        assert_eq!(at("tcp://10.0.0.4:5557"), SocketPlace::Connects);
        assert_eq!(at("tcp://picker.gpu.svc:5557"), SocketPlace::Connects);
        for local in ["ipc:///tmp/events", "inproc://events", "tcp://*", "tcp://*:0", "tcp://*:x", ""] {
            assert_eq!(at(local), SocketPlace::Unreachable, "{local}");
        }
        assert_eq!(SocketPlace::of("tcp://[fd00::1]:5557", "fd00::1"), listens("fd00::1", 5557));
        assert_eq!(SocketPlace::of("tcp://10.0.0.3:40123", "127.0.0.1"), listens("10.0.0.3", 40123));
    }
}
