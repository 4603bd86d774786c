//! Where one rank's KV events are read: what is configured, and what the engine says.

use serde::Serialize;

use super::EventSettings;
use super::event_sources::{EventSources, SocketPlace};

/// Which ports a user has given. What a user gave counts before what engines say; what engines say before a default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenPorts {
    /// The port of events.
    pub events: bool,
    /// The port of replays, be it 0 for none.
    pub replay: bool,
}

/// What an engine said when it was asked where it publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Told {
    /// It has not been asked yet.
    #[default]
    NotAsked,
    /// It could not be asked, or can't say.
    Nothing,
    Sources(EventSources),
}

/// Where one rank's events are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventTarget {
    pub(super) host: String,
    /// Of its PUB socket; 0 if it connects to the picker.
    pub(super) port: u16,
    /// Of its ROUTER socket; 0 for no replays.
    pub(super) replay_port: u16,
}

/// Something that an operator should know of how an engine publishes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceProblem {
    /// Events are turned off.
    #[error(
        "this engine publishes no KV events: start it with --kv-events-config '{{\"enable_kv_cache_events\": true, \
         \"publisher\": \"zmq\", \"endpoint\": \"tcp://*:5557\"}}'"
    )]
    TurnedOff,
    /// Its publisher connects.
    #[error(
        "this engine's publisher connects to {endpoint} instead of listening: let it bind, with an endpoint like \
         tcp://*:5557"
    )]
    Connects {
        /// What it says.
        endpoint: String,
    },
    /// Its publisher isn't on the network.
    #[error(
        "this engine publishes at {endpoint}, which isn't reached over the network: use an endpoint like tcp://*:5557"
    )]
    Unreachable {
        /// What it says.
        endpoint: String,
    },
    /// It publishes elsewhere than is configured.
    #[error(
        "this engine says that it publishes at port {told}, and port {given} is configured: correct that or leave it out"
    )]
    OtherPort {
        /// What it says.
        told: u16,
        /// What is configured, with the rank added.
        given: u16,
    },
    /// The topic filter leaves it out.
    #[error("this engine publishes under the topic {topic:?}, which topicFilter {filter:?} leaves out")]
    OtherTopic {
        /// What it says.
        topic: String,
        /// What is configured.
        filter: String,
    },
    /// It has no such rank.
    #[error("this engine lists no data-parallel rank {rank}: it has {listed:?}")]
    NoSuchRank {
        /// What is configured.
        rank: u16,
        /// What it says.
        listed: Vec<u16>,
    },
    /// The port that would be the rank's is none.
    #[error("port {port} and rank {rank} make no port")]
    NoPort {
        /// What is configured.
        port: u16,
        /// The rank.
        rank: u16,
    },
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// None: there is nothing to connect to.
    pub(super) target: Option<EventTarget>,
    pub(super) problem: Option<SourceProblem>,
}

/// The same for the status page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Where events are read; absent if nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_at: Option<String>,
    /// Where missing ones are asked for; absent if nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_at: Option<String>,
    /// What is wrong with how the engine publishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Resolved {
    /// Where the events of a rank are read whose endpoint has that host.
    pub(super) fn of(
        settings: &EventSettings,
        given: GivenPorts,
        host: &str,
        rank: u16,
        told: &Told,
    ) -> Self {
        if settings.port == 0 && settings.listen.is_none() {
            return Self::default();
        }
        let configured = match Self::configured(settings, host, rank) {
            Ok(target) => target,
            Err(problem) => return Self { target: None, problem: Some(problem) },
        };
        let Told::Sources(sources) = told else {
            return Self { target: Some(configured), problem: None };
        };
        let Some(source) = sources.of(rank) else {
            let listed = sources.ranks();
            return match sources.is_empty() {
                true => Self::turned_off(configured, given),
                false => Self {
                    target: Some(configured),
                    problem: Some(SourceProblem::NoSuchRank { rank, listed }),
                },
            };
        };
        let Some(endpoint) = source.endpoint.as_deref().filter(|_| source.publishes()) else {
            return Self::turned_off(configured, given);
        };
        let place = SocketPlace::of(endpoint, host);
        let mut resolved = match settings.listen {
            // Where to is its own business: the listener knows those that come.
            Some(_) if settings.port == 0 || place == SocketPlace::Connects => {
                Self { target: Some(EventTarget { port: 0, ..configured }), problem: None }
            }
            _ => Self::at(place, configured, given, endpoint),
        };
        if let (Some(target), Some(endpoint), false) =
            (&mut resolved.target, &source.replay_endpoint, given.replay)
        {
            target.replay_port = match SocketPlace::of(endpoint, host) {
                SocketPlace::Listens { port, .. } => port,
                SocketPlace::Connects | SocketPlace::Unreachable => 0,
            };
        }
        let topic = source.topic.as_deref().unwrap_or_default();
        if resolved.problem.is_none() && !topic.starts_with(&settings.topic_filter) {
            let (topic, filter) = (topic.to_owned(), settings.topic_filter.clone());
            resolved.problem = Some(SourceProblem::OtherTopic { topic, filter });
        }
        resolved
    }

    /// As vLLM and SGLang do it: each rank's ports are those of rank 0 and its number.
    fn configured(settings: &EventSettings, host: &str, rank: u16) -> Result<EventTarget, SourceProblem> {
        let of_rank = |port: u16| port.checked_add(rank).ok_or(SourceProblem::NoPort { port, rank });
        let replay_port = if settings.replay_port == 0 { 0 } else { of_rank(settings.replay_port)? };
        let port = if settings.port == 0 { 0 } else { of_rank(settings.port)? };
        Ok(EventTarget { host: host.to_owned(), port, replay_port })
    }

    /// A port that a user has given is tried nevertheless: somebody else may publish there.
    fn turned_off(configured: EventTarget, given: GivenPorts) -> Self {
        Self { target: Some(configured).filter(|_| given.events), problem: Some(SourceProblem::TurnedOff) }
    }

    fn at(place: SocketPlace, configured: EventTarget, given: GivenPorts, endpoint: &str) -> Self {
        let endpoint = endpoint.to_owned();
        match place {
            SocketPlace::Listens { port, .. } if given.events && port != configured.port => {
                let problem = SourceProblem::OtherPort { told: port, given: configured.port };
                Self { target: Some(configured), problem: Some(problem) }
            }
            SocketPlace::Listens { .. } if given.events => Self { target: Some(configured), problem: None },
            SocketPlace::Listens { host, port } => {
                Self { target: Some(EventTarget { host, port, ..configured }), problem: None }
            }
            SocketPlace::Connects => Self {
                target: Some(configured).filter(|_| given.events),
                problem: Some(SourceProblem::Connects { endpoint }),
            },
            SocketPlace::Unreachable => Self {
                target: Some(configured).filter(|_| given.events),
                problem: Some(SourceProblem::Unreachable { endpoint }),
            },
        }
    }

    pub(super) fn can_replay(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.replay_port != 0)
    }

    pub(super) fn status(&self) -> SourceStatus {
        let at = |port: fn(&EventTarget) -> u16| {
            let target = self.target.as_ref().filter(|target| port(target) != 0);
            target.map(|target| crate::pool::host_port(&target.host, port(target)))
        };
        SourceStatus {
            events_at: at(|target| target.port),
            replay_at: at(|target| target.replay_port),
            problem: self.problem.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(port: u16, replay_port: u16) -> EventSettings {
        EventSettings { listen: None, port, replay_port, topic_filter: "kv@".to_owned(), shards: 1 }
    }

    const NONE: GivenPorts = GivenPorts { events: false, replay: false };
    const BOTH: GivenPorts = GivenPorts { events: true, replay: true };

    fn told(rank: u16, endpoint: &str, replay: &str) -> Told {
        let source = format!(
            r#"{{"{rank}": {{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "{endpoint}",
                "replay_endpoint": {replay}, "topic": "kv@e@m"}}, "{}": {{}}}}"#,
            rank + 1
        );
        Told::Sources(EventSources::read(source.as_bytes()).unwrap())
    }

    fn ports(resolved: &Resolved) -> Option<(&str, u16, u16)> {
        resolved.target.as_ref().map(|target| (target.host.as_str(), target.port, target.replay_port))
    }

    #[test]
    fn a_rank_has_the_configured_ports_and_its_number() {
        let of = |settings, rank| Resolved::of(&settings, NONE, "h", rank, &Told::Nothing);
        assert_eq!(ports(&of(settings(5557, 5657), 0)), Some(("h", 5557, 5657)));
        assert_eq!(ports(&of(settings(5557, 5657), 3)), Some(("h", 5560, 5660)));
        assert_eq!(
            ports(&of(settings(5557, 0), 3)),
            Some(("h", 5560, 0)),
            "no replay is no replay for any rank"
        );
        assert_eq!(of(settings(0, 0), 1), Resolved::default());
        assert_eq!(of(settings(65535, 0), 1).problem, Some(SourceProblem::NoPort { port: 65535, rank: 1 }));
    }

    #[test]
    fn what_the_engine_says_counts_before_a_default_and_after_what_was_given() {
        let says = told(1, "tcp://*:6001", "\"tcp://*:6101\"");
        let of = |given, rank| Resolved::of(&settings(5557, 0), given, "10.0.0.1", rank, &says);
        assert_eq!(ports(&of(NONE, 1)), Some(("10.0.0.1", 6001, 6101)));
        let given = of(BOTH, 1);
        assert_eq!(ports(&given), Some(("10.0.0.1", 5558, 0)));
        assert_eq!(given.problem, Some(SourceProblem::OtherPort { told: 6001, given: 5558 }));
        let other = of(NONE, 7);
        assert_eq!(ports(&other), Some(("10.0.0.1", 5564, 0)));
        assert_eq!(other.problem, Some(SourceProblem::NoSuchRank { rank: 7, listed: vec![1, 2] }));
        let none = told(1, "tcp://*:5558", "null");
        let resolved = Resolved::of(&settings(5557, 5657), BOTH, "10.0.0.1", 1, &none);
        assert_eq!((ports(&resolved), &resolved.problem), (Some(("10.0.0.1", 5558, 5658)), &None));
    }

    #[test]
    fn publishers_that_cannot_be_reached_are_named_and_tried_only_where_a_port_was_given() {
        let empty = Told::Sources(EventSources::default());
        let cases = [
            (empty, "this engine publishes no KV events: start it with --kv-events-config"),
            (told(0, "tcp://picker:5557", "null"), "connects to tcp://picker:5557"),
            (told(0, "ipc:///tmp/x", "null"), "isn't reached over the network"),
        ];
        for (told, text) in cases {
            let of = |given| Resolved::of(&settings(5557, 0), given, "10.0.0.1", 0, &told);
            assert_eq!(of(NONE).target, None);
            assert_eq!(ports(&of(BOTH)), Some(("10.0.0.1", 5557, 0)));
            let problem = of(NONE).status().problem.unwrap();
            assert!(problem.contains(text), "{problem}");
        }
        let off = Resolved::of(&settings(5557, 0), NONE, "10.0.0.1", 1, &told(0, "tcp://*:1", "null"));
        assert_eq!(off.problem, Some(SourceProblem::TurnedOff));
    }

    #[test]
    fn engines_that_may_connect_are_asked_for_replays_where_they_are() {
        let listening = |port, replay| EventSettings {
            listen: Some(([0, 0, 0, 0], 5557).into()),
            ..settings(port, replay)
        };
        let connects = told(1, "tcp://picker:5557", "\"tcp://*:6101\"");
        for port in [0, 5557] {
            let resolved = Resolved::of(&listening(port, 0), NONE, "10.0.0.1", 1, &connects);
            assert_eq!((ports(&resolved), &resolved.problem), (Some(("10.0.0.1", 0, 6101)), &None));
        }
        let resolved = Resolved::of(&listening(0, 5657), BOTH, "10.0.0.1", 1, &Told::Nothing);
        assert_eq!(ports(&resolved), Some(("10.0.0.1", 0, 5658)));
        // One that listens is still dialled where that is wanted.
        let listens = told(1, "tcp://*:6001", "null");
        let resolved = Resolved::of(&listening(5557, 0), NONE, "10.0.0.1", 1, &listens);
        assert_eq!(ports(&resolved), Some(("10.0.0.1", 6001, 0)));
    }

    #[test]
    fn a_topic_that_the_filter_leaves_out_is_named() {
        let settings = EventSettings { topic_filter: "kv@pod".to_owned(), ..settings(5557, 0) };
        let resolved = Resolved::of(&settings, NONE, "h", 0, &told(0, "tcp://*:5557", "null"));
        assert!(resolved.target.is_some());
        assert!(resolved.problem.unwrap().to_string().contains("\"kv@pod\" leaves out"));
    }
}
