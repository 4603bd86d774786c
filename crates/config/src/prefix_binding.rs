//! Which producer of prefix matches each plugin reads.

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::fields::Mistakes;
use crate::peer_types::{DeciderType, HostType, PRECISE_SCORER};
use crate::plugins::{self, Declared};
use crate::profiles::free_name;
use crate::suggest::did_you_mean;
use crate::yaml::shown;
use crate::{ApproximatePrefixSpec, Place, PluginSpec, PrefixProducerSpec, host_plugins};

/// Types that can't do without prefix matches; the parameter that names the producer is the same for all.
const READERS: [&str; 3] = ["prefix-cache-scorer", "no-hit-lru-scorer", "prefix-cache-affinity-filter"];
/// Types that read prefix matches where there are any.
const OPTIONAL_READERS: [&str; 1] = ["token-load-scorer"];
/// Where a reader without a name reads at the llm-d EPP.
pub(crate) const PEERS_PRODUCER: &str = "approx-prefix-cache-producer";
const PRECISE_PRODUCER: &str = "precise-prefix-cache-producer";
pub(crate) const PRODUCER_PARAMETER: &str = "prefixMatchInfoProducerName";
/// What `no-hit-lru-scorer` had before that.
const OLD_PRODUCER_PARAMETER: &str = "prefixPluginName";

/// The producers of a configuration, and who reads which.
pub(crate) struct PrefixBinding {
    producers: Vec<PrefixProducerSpec>,
    /// The name of a producer that is added.
    free_name: String,
    is_precise_declared: bool,
    /// Which one those read who name none, once it is clear.
    default: Option<usize>,
    is_injected: bool,
    /// Whether a decider is declared that reads prefix matches.
    has_decider: bool,
    read: RefCell<Vec<String>>,
}

impl PrefixBinding {
    /// Reads the producers that the file declares.
    pub(crate) fn read(declared: &[Declared<'_>], mistakes: &mut Mistakes) -> Self {
        let mut producers = Vec::new();
        let precise = plugins::only(declared, HostType::PrefixProducer, mistakes);
        let scorers = declared.iter().filter(|plugin| plugin.plugin_type == PRECISE_SCORER);
        let own = scorers.clone().next().filter(|_| precise.is_none());
        if let Some(plugin) = precise {
            producers.push(PrefixProducerSpec::Precise(host_plugins::prefix_producer(plugin, mistakes)));
        } else if let Some(scorer) = own {
            let mut spec = host_plugins::prefix_producer(scorer, mistakes);
            spec.name = free_name(PRECISE_PRODUCER, declared);
            producers.push(PrefixProducerSpec::Precise(spec));
        }
        for scorer in scorers {
            note_precise_scorer(scorer, own.is_some_and(|own| own.name == scorer.name), &producers, mistakes);
        }
        for plugin in declared {
            producers.extend(match plugin.host() {
                Some(HostType::ApproximateProducer) => {
                    let spec = host_plugins::approximate_prefix(plugin, mistakes);
                    Some(PrefixProducerSpec::Approximate(spec))
                }
                Some(HostType::ExactFirstProducer) => {
                    let spec = host_plugins::approximate_prefix(plugin, mistakes);
                    Some(PrefixProducerSpec::ExactFirst(spec))
                }
                Some(HostType::BurstProducer) => {
                    Some(PrefixProducerSpec::Burst(host_plugins::burst_prefix(plugin, mistakes)))
                }
                _ => None,
            });
        }
        Self {
            producers,
            free_name: free_name(PEERS_PRODUCER, declared),
            is_precise_declared: precise.is_some() || own.is_some(),
            default: None,
            is_injected: false,
            has_decider: declared.iter().any(|plugin| plugin.is_host(HostType::Decider(DeciderType::Prefix))),
            read: RefCell::default(),
        }
    }

    /// Writes into every plugin that reads prefix matches whose. Returns the names of those that can't be bound.
    pub(crate) fn bind(&mut self, specs: &mut [PluginSpec], mistakes: &mut Mistakes) -> Vec<String> {
        for spec in &*specs {
            self.read.borrow_mut().extend(self.named(spec));
        }
        let is_wanted =
            |spec: &PluginSpec| READERS.contains(&spec.plugin_type.as_str()) && spec.parameters.is_object();
        let wants_default = |spec: &PluginSpec| self.named(spec).is_none_or(|name| name == PEERS_PRODUCER);
        let inject = specs.iter().any(|spec| is_wanted(spec) && wants_default(spec))
            || (self.has_decider && self.producers.is_empty());
        self.choose_default(inject);
        let mut unbound = Vec::new();
        for spec in specs {
            let is_optional = OPTIONAL_READERS.contains(&spec.plugin_type.as_str());
            if (is_optional || READERS.contains(&spec.plugin_type.as_str()))
                && spec.parameters.is_object()
                && !self.bind_one(spec, mistakes)
            {
                unbound.push(spec.name.clone());
            }
        }
        unbound
    }

    /// The producer that a part of the host names; `None` if it names none, or after a mistake.
    pub(crate) fn resolve(&self, named: Option<(&str, Place)>, mistakes: &mut Mistakes) -> Option<String> {
        let (name, place) = named?;
        // The peer has one of this name wherever it is read.
        let at = self.position(name).or_else(|| self.default.filter(|_| name == PEERS_PRODUCER));
        if at.is_none() && name != PEERS_PRODUCER {
            let (message, hint) = self.no_such_producer(name);
            mistakes.hinted(place, message, hint);
        }
        let name = self.producers[at?].name().to_owned();
        self.read.borrow_mut().push(name.clone());
        Some(name)
    }

    /// The producer that a part of the host reads which can't do without; the first one if there is no default.
    pub(crate) fn default_name(&self) -> Option<String> {
        let name = self.producers.get(self.default.unwrap_or(0))?.name().to_owned();
        self.read.borrow_mut().push(name.clone());
        Some(name)
    }

    /// Whether the producer is none of the file's.
    pub(crate) fn is_added(&self, name: &str) -> bool {
        self.is_injected && self.free_name == name
    }

    /// The producers, injected ones last. Those that nobody reads are pointed out.
    pub(crate) fn finish(
        self,
        declared: &[Declared<'_>],
        mistakes: &mut Mistakes,
    ) -> Vec<PrefixProducerSpec> {
        for producer in &self.producers {
            let is_read = self.read.borrow().iter().any(|name| name == producer.name());
            if let Some(plugin) = declared.iter().find(|plugin| plugin.name == producer.name())
                && !is_read
                && plugin.host().is_some()
                && producer.approximate().is_some()
            {
                mistakes.notice(plugin.place, format!("nothing reads the prefix matches of {}", plugin.name));
            }
        }
        self.producers
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.producers.iter().position(|producer| producer.name() == name)
    }

    /// The producer that a plugin names.
    fn named(&self, spec: &PluginSpec) -> Option<String> {
        let text = |parameter: &str| spec.parameters.get(parameter)?.as_str().map(str::to_owned);
        text(PRODUCER_PARAMETER).or_else(|| {
            text(OLD_PRODUCER_PARAMETER)
                .filter(|name| spec.plugin_type == "no-hit-lru-scorer" && self.position(name).is_some())
        })
    }

    /// The exact producer, else the one that has the name which the peer reads, else the only one that nobody names, else
    /// one that is added if `inject`.
    fn choose_default(&mut self, inject: bool) {
        let is_precise = |producer: &PrefixProducerSpec| matches!(producer, PrefixProducerSpec::Precise(_));
        let unnamed: Vec<usize> = (0..self.producers.len())
            .filter(|at| !self.read.borrow().iter().any(|name| name == self.producers[*at].name()))
            .collect();
        let only = match *unnamed {
            [only] => Some(only),
            _ => None,
        };
        let precise = self.producers.iter().position(is_precise);
        self.default = precise.or_else(|| self.position(PEERS_PRODUCER)).or(only);
        if inject && self.default.is_none() {
            self.is_injected = true;
            self.default = Some(self.inject());
        }
    }

    fn inject(&mut self) -> usize {
        let spec = ApproximatePrefixSpec::new(&self.free_name);
        self.producers.push(PrefixProducerSpec::ExactFirst(spec));
        self.producers.len() - 1
    }

    fn bind_one(&mut self, spec: &mut PluginSpec, mistakes: &mut Mistakes) -> bool {
        let named = self.named(spec);
        let is_known = named.as_deref().is_some_and(|name| self.position(name).is_some());
        let name = match named {
            Some(name) if is_known => name,
            Some(name) if name != PEERS_PRODUCER => {
                let (message, hint) = self.no_such_producer(&name);
                mistakes.push(spec.mistake(PRODUCER_PARAMETER, message).with_hint(hint));
                return false;
            }
            // The peer adds it for whoever names it.
            Some(_) => {
                let at = self.position(&self.free_name).unwrap_or_else(|| self.inject());
                self.note_default(spec, at, true, mistakes);
                self.producers[at].name().to_owned()
            }
            None => {
                let Some(at) = self.default else { return true };
                self.note_default(spec, at, self.is_injected, mistakes);
                self.producers[at].name().to_owned()
            }
        };
        if let Some(parameters) = spec.parameters.as_object_mut() {
            // Parameters of another shape are for the parameter check to refuse.
            match parameters.get(PRODUCER_PARAMETER) {
                None | Some(Value::String(_)) => {
                    parameters.insert(PRODUCER_PARAMETER.to_owned(), json!(name));
                    self.read.borrow_mut().push(name);
                }
                Some(_) => {}
            }
        }
        true
    }

    /// What an operator should know of the producer that a plugin reads without having named it.
    fn note_default(&self, spec: &PluginSpec, at: usize, is_injected: bool, mistakes: &mut Mistakes) {
        let Some(place) = spec.place else { return };
        let producer = &self.producers[at];
        let (reader, name) = (&spec.name, producer.name());
        let message = match producer {
            PrefixProducerSpec::Precise(_) if self.is_precise_declared => format!(
                "{reader} reads exact prefix matches from {name}; without a producer's name the llm-d EPP reads those \
                 of {PEERS_PRODUCER}"
            ),
            _ if is_injected => format!(
                "{reader} reads prefix matches from {name}, which is added with its defaults: they are exact where \
                 an engine's KV events are seen, and elsewhere what was sent there, as at the llm-d EPP"
            ),
            _ if name == PEERS_PRODUCER => return,
            _ => format!(
                "{reader} reads prefix matches from {name}, the only producer that no plugin names; without a \
                 producer's name the llm-d EPP reads those of {PEERS_PRODUCER}"
            ),
        };
        mistakes.notice(place, message);
    }

    fn no_such_producer(&self, name: &str) -> (String, String) {
        let message = format!("there is no prefix producer called {}", shown(name));
        let names = || self.producers.iter().map(PrefixProducerSpec::name);
        let hint = did_you_mean(name, names()).unwrap_or_else(|| match names().next() {
            Some(first) if self.producers.len() == 1 => format!("did you mean {first:?}?"),
            Some(_) => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
            None => format!("remove {PRODUCER_PARAMETER}, or add a producer of this name"),
        });
        (message, hint)
    }
}

/// `precise-prefix-cache-scorer` is a producer and a scorer in one.
fn note_precise_scorer(
    scorer: &Declared<'_>,
    is_producer: bool,
    producers: &[PrefixProducerSpec],
    mistakes: &mut Mistakes,
) {
    let message = format!("{PRECISE_SCORER} is deprecated: use {PRECISE_PRODUCER} with prefix-cache-scorer");
    mistakes.notice(scorer.place, message);
    if let (false, Some(producer), Some(parameters)) = (is_producer, producers.first(), scorer.parameters) {
        let message =
            format!("parameters of {} aren't used: it reads those of {}", scorer.name, producer.name());
        mistakes.notice(parameters.place, message);
    }
}
