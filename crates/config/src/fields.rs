//! Reads the fields of a map, and notes every mistake on the way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::scalar::{Plain, duration, plain};
use crate::suggest::{did_you_mean, nearest};
use crate::yaml::{Entry, Node, NodeValue, shown};
use crate::{Mistake, Notice, Place};

/// More mistakes than this don't help anybody.
const MAX_MISTAKES: usize = 100;

/// Plugins, references and the like are compared with each other, so their number is bounded. A real file has
/// a few dozen.
const MAX_ITEMS: usize = 500;

/// The mistakes and notices so far.
#[derive(Debug, Default)]
pub(crate) struct Mistakes {
    list: Vec<Mistake>,
    left_out: usize,
    notices: Vec<Notice>,
}

impl Mistakes {
    pub(crate) fn push(&mut self, mistake: Mistake) {
        if self.is_full() { self.left_out += 1 } else { self.list.push(mistake) }
    }

    pub(crate) fn at(&mut self, place: Place, message: impl Into<String>) {
        self.push(Mistake::new(place, message));
    }

    /// A mistake with what to do about it.
    pub(crate) fn hinted(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Mistake::new(place, message).with_hint(hint));
    }

    pub(crate) fn notice(&mut self, place: impl Into<Option<Place>>, message: impl Into<String>) {
        self.notices.push(Notice { place: place.into(), message: message.into() });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether further mistakes are only counted, so that it isn't worth finding good words for them.
    fn is_full(&self) -> bool {
        self.list.len() >= MAX_MISTAKES
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len() + self.left_out
    }

    /// The notices so far, in the order of the text.
    pub(crate) fn take_notices(&mut self) -> Vec<Notice> {
        let mut notices = std::mem::take(&mut self.notices);
        notices.sort_by_key(|notice| notice.place);
        notices
    }

    pub(crate) fn into_list(mut self) -> Vec<Mistake> {
        if self.left_out > 0 {
            let last = self.list.last().map_or(Place::START, |last| last.place);
            self.list.push(Mistake::new(last, format!("and {} more mistakes", self.left_out)));
        }
        self.list
    }
}

/// The fields of one map. What isn't asked for until [`finish`](Self::finish) is a mistake.
pub(crate) struct Fields<'n> {
    /// What the map is, for messages: `a plugin`, `flowControl`.
    what: String,
    place: Place,
    all: &'n [Entry],
    /// Whether it is a map at all; if not, nothing more is said about its fields.
    is_map: bool,
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The fields of `node`, which must be a map; no fields if it isn't, which is a mistake.
    pub(crate) fn of(node: &'n Node, what: impl Into<String>, mistakes: &mut Mistakes) -> Self {
        let what = what.into();
        let (all, is_map): (&[Entry], bool) = match &node.value {
            NodeValue::Map(entries) => (entries, true),
            _ => {
                mistakes.at(node.place, format!("{what} must be a map, not {}", node.kind()));
                (&[], false)
            }
        };
        Self { what, place: node.place, all, is_map, known: Vec::new() }
    }

    /// Where the map begins.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The value of a field, unless it is null.
    pub(crate) fn node(&mut self, name: &'static str) -> Option<&'n Node> {
        self.entry(name).map(|entry| &entry.value).filter(|node| !node.is_null())
    }

    /// A field with the place of its name.
    pub(crate) fn entry(&mut self, name: &'static str) -> Option<&'n Entry> {
        self.known.push(name);
        self.all.iter().find(|entry| entry.key == name)
    }

    /// The fields that nobody asked for so far.
    fn others(&self) -> impl Iterator<Item = &'n Entry> {
        self.all.iter().filter(|entry| !self.known.contains(&entry.key.as_str()))
    }

    pub(crate) fn text(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<(&'n str, Place)> {
        let node = self.node(name)?;
        match (node.as_text(), &node.value) {
            (Some(text), _) => Some((text, node.place)),
            (None, NodeValue::Scalar { .. }) => {
                let message = format!("{} of {} must be a text, not {}", name, self.what, node.kind());
                mistakes.hinted(node.place, message, "put it in quotes");
                None
            }
            (None, _) => self.wrong(name, "a text", node, mistakes),
        }
    }

    /// A field that must be there. A slip in its name is one mistake, not two.
    pub(crate) fn required(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<&'n Node> {
        let node = self.node(name);
        if node.is_none() && self.is_map && !self.others().any(|entry| nearest(&entry.key, [name]).is_some())
        {
            let message = format!("{} needs {} {name}", self.what, article(name));
            mistakes.hinted(self.place, message, format!("add `{name}: …`"));
        }
        node
    }

    /// A text that must be there and not be empty.
    pub(crate) fn required_text(
        &mut self,
        name: &'static str,
        mistakes: &mut Mistakes,
    ) -> Option<(&'n str, Place)> {
        self.required(name, mistakes)?;
        let (text, place) = self.text(name, mistakes)?;
        if text.is_empty() {
            mistakes.at(place, format!("{name} of {} must not be empty", self.what));
            return None;
        }
        Some((text, place))
    }

    pub(crate) fn boolean(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<(bool, Place)> {
        let node = self.node(name)?;
        match node.plain() {
            Some(Plain::Bool(value) | Plain::OldBool(value)) => Some((value, node.place)),
            _ => self.wrong(name, "true or false", node, mistakes),
        }
    }

    pub(crate) fn number(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<(f64, Place)> {
        let node = self.node(name)?;
        match node.plain() {
            Some(Plain::Number(number)) => number.as_f64().map(|number| (number, node.place)),
            _ => self.wrong(name, "a number", node, mistakes),
        }
    }

    /// A whole number within a range.
    pub(crate) fn whole(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
        mistakes: &mut Mistakes,
    ) -> Option<(u64, Place)> {
        let node = self.node(name)?;
        let number = match node.plain() {
            Some(Plain::Number(number)) => number.as_u64().filter(|number| range.contains(number)),
            _ => None,
        };
        match number {
            Some(number) => Some((number, node.place)),
            None if *range.end() == u64::MAX => {
                self.wrong(name, &format!("a whole number from {}", range.start()), node, mistakes)
            }
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(name, &expected, node, mistakes)
            }
        }
    }

    /// A duration in Go's notation.
    pub(crate) fn duration(
        &mut self,
        name: &'static str,
        mistakes: &mut Mistakes,
    ) -> Option<(Duration, Place)> {
        let node = self.node(name)?;
        let read = match &node.value {
            NodeValue::Scalar { text, .. } => duration(text),
            _ => None,
        };
        match read {
            Some(read) => Some((read, node.place)),
            None => self.wrong(name, "a duration like 500ms or 1m30s", node, mistakes),
        }
    }

    pub(crate) fn list(&mut self, name: &'static str, mistakes: &mut Mistakes) -> &'n [Node] {
        self.list_up_to(MAX_ITEMS, name, mistakes)
    }

    /// A list of at most `max_items`.
    pub(crate) fn list_up_to(
        &mut self,
        max_items: usize,
        name: &'static str,
        mistakes: &mut Mistakes,
    ) -> &'n [Node] {
        let Some(node) = self.node(name) else { return &[] };
        match &node.value {
            NodeValue::List(items) if items.len() > max_items => {
                let message = format!("{name} of {} has {} entries", self.what, items.len());
                mistakes.hinted(node.place, message, format!("at most {max_items} are read"));
                &items[..max_items]
            }
            NodeValue::List(items) => items,
            _ => {
                self.wrong::<()>(name, "a list", node, mistakes);
                &[]
            }
        }
    }

    fn wrong<T>(&self, name: &str, expected: &str, node: &Node, mistakes: &mut Mistakes) -> Option<T> {
        let found = node.kind();
        mistakes.at(node.place, format!("{name} of {} must be {expected}, not {found}", self.what));
        None
    }

    /// Every field that nobody asked for is a mistake.
    pub(crate) fn finish(self, mistakes: &mut Mistakes) {
        self.finish_with(None, mistakes);
    }

    /// The same, with a hint for fields that aren't just misspelt.
    pub(crate) fn finish_with(self, hint: Option<&str>, mistakes: &mut Mistakes) {
        for entry in self.others() {
            if mistakes.is_full() {
                mistakes.left_out += 1;
                continue;
            }
            let message = format!("{} has no field {}", self.what, shown(&entry.key));
            let known = || match self.known.is_empty() {
                true => "it has none".to_owned(),
                false => format!("there are {}", self.known.join(", ")),
            };
            let hint = did_you_mean(&entry.key, self.known.iter().copied())
                .or_else(|| hint.map(str::to_owned))
                .unwrap_or_else(known);
            mistakes.hinted(entry.place, message, hint);
        }
    }
}

fn article(name: &str) -> &'static str {
    if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        self.plain() == Some(Plain::Null)
    }

    /// A text, quoted or not.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            NodeValue::Scalar { text, .. } if self.plain() == Some(Plain::Text) => Some(text),
            _ => None,
        }
    }

    /// What a scalar means; a quoted one is a text.
    pub(crate) fn plain(&self) -> Option<Plain> {
        match &self.value {
            NodeValue::Scalar { quoted: true, .. } => Some(Plain::Text),
            NodeValue::Scalar { text, .. } => Some(plain(text)),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> String {
        match (&self.value, self.plain()) {
            (NodeValue::List(_), _) => "a list".to_owned(),
            (NodeValue::Map(_), _) => "a map".to_owned(),
            (NodeValue::Scalar { .. }, Some(Plain::Null)) => "nothing".to_owned(),
            (NodeValue::Scalar { text, quoted: false }, Some(plain)) if plain != Plain::Text => {
                shown(text).replace('"', "")
            }
            (NodeValue::Scalar { text, .. }, _) => shown(text),
        }
    }

    /// The value as JSON, with the place of everything in it by path (`a.b[2].c`).
    pub(crate) fn to_json(&self, places: &mut BTreeMap<String, Place>, mistakes: &mut Mistakes) -> Value {
        self.json_at(&mut String::new(), places, mistakes)
    }

    fn json_at(
        &self,
        path: &mut String,
        places: &mut BTreeMap<String, Place>,
        mistakes: &mut Mistakes,
    ) -> Value {
        let length = path.len();
        places.entry(path.clone()).or_insert(self.place);
        match &self.value {
            NodeValue::Scalar { text, quoted } => self.json_scalar(text, *quoted, mistakes),
            NodeValue::List(items) => {
                let mut values = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    // Writing to a String can't fail.
                    let _ = write!(path, "[{index}]");
                    values.push(item.json_at(path, places, mistakes));
                    path.truncate(length);
                }
                Value::Array(values)
            }
            NodeValue::Map(entries) => {
                let mut values = Map::new();
                for entry in entries {
                    let dot = if length == 0 { "" } else { "." };
                    let _ = write!(path, "{dot}{}", entry.key);
                    places.insert(path.clone(), entry.place);
                    values.insert(entry.key.clone(), entry.value.json_at(path, places, mistakes));
                    path.truncate(length);
                }
                Value::Object(values)
            }
        }
    }

    fn json_scalar(&self, text: &str, quoted: bool, mistakes: &mut Mistakes) -> Value {
        if quoted {
            return Value::String(text.to_owned());
        }
        match plain(text) {
            Plain::Null => Value::Null,
            Plain::Bool(value) => Value::Bool(value),
            Plain::Number(number) => Value::Number(number),
            Plain::Text => Value::String(text.to_owned()),
            Plain::OldBool(value) => {
                let message = format!("{text} is a boolean to some readers of YAML and a text to others");
                mistakes.hinted(self.place, message, format!("write {value}, or put it in quotes"));
                Value::Null
            }
            Plain::OddNumber => {
                let message = format!("readers of YAML don't agree on the number {}", shown(text));
                mistakes.hinted(self.place, message, "write it in plain decimal digits, or put it in quotes");
                Value::Null
            }
        }
    }
}
