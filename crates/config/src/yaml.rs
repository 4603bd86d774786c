//! YAML as a tree in which everything has its place.
//!
//! A typed read stops at the first mistake, and knows the places of values only. So the parser's events
//! are put together to a tree here, and the sections are read from that: every mistake is found in one go.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use crate::fields::Mistakes;
use crate::{Mistake, Place};

/// How much may come of a text, what aliases repeat included: every value counts 1, and 1 more per
/// [`BYTES_PER_COST`] bytes of a long one. A real file costs a few hundred.
const MAX_COST: usize = 100_000;
const BYTES_PER_COST: usize = 32;
/// How deep maps and lists may be nested.
const MAX_DEPTH: usize = 48;

/// A value in a YAML text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: NodeValue,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NodeValue {
    Scalar { text: String, quoted: bool },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) value: Node,
}

/// Reads one document. `None` if the text has none, or can't be read at all, which is a mistake then.
pub(crate) fn read(text: &str, mistakes: &mut Mistakes) -> Option<Node> {
    let options = granit_parser::options! { emit_comments: false };
    let mut composer = Composer { mistakes, open: Vec::new(), root: None, anchors: HashMap::new(), cost: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        let read = match event {
            Ok((event, span)) => composer.event(event, span),
            Err(error) => {
                let place = at(error.marker().line(), error.marker().col());
                Err(Mistake::new(place, format!("this is not YAML: {}", error.info())))
            }
        };
        if let Err(mistake) = read {
            composer.mistakes.push(mistake);
            return None;
        }
    }
    composer.root
}

fn at(line: usize, column: usize) -> Place {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Place { line: number(line).max(1), column: number(column).saturating_add(1) }
}

struct Composer<'m> {
    mistakes: &'m mut Mistakes,
    open: Vec<Open>,
    root: Option<Node>,
    /// Nodes that aliases may refer to, with what they cost.
    anchors: HashMap<usize, (Node, usize)>,
    cost: usize,
}

/// A map or list that isn't closed.
struct Open {
    place: Place,
    anchor: usize,
    /// What everything before it cost.
    before: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, keys: HashMap<String, Place>, key: Key },
}

/// What a map waits for.
enum Key {
    Next,
    Read(String, Place),
    /// The key was a mistake, so its value is dropped.
    Wrong,
}

impl Composer<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Mistake> {
        let place = at(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                return Err(Mistake::new(place, "a file has one document, and here begins a second one"));
            }
            Event::Scalar(text, style, anchor, tag) => {
                let before = self.cost;
                self.spend(place, 1 + text.len() / BYTES_PER_COST)?;
                let quoted = style != ScalarStyle::Plain || self.tag(place, tag.as_deref());
                let value = NodeValue::Scalar { text: text.into_owned(), quoted };
                self.close(Node { place, value }, anchor, before)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(place, tag.as_deref());
                self.open(place, anchor, OpenKind::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(place, tag.as_deref());
                let kind = OpenKind::Map { entries: Vec::new(), keys: HashMap::new(), key: Key::Next };
                self.open(place, anchor, kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let value = match open.kind {
                        OpenKind::List(items) => NodeValue::List(items),
                        OpenKind::Map { entries, .. } => NodeValue::Map(merged(entries, self.mistakes)),
                    };
                    self.close(Node { place: open.place, value }, open.anchor, open.before)?;
                }
            }
            Event::Alias(anchor) => {
                let before = self.cost;
                let Some((_, cost)) = self.anchors.get(&anchor) else {
                    return Err(Mistake::new(
                        place,
                        "this alias refers to something that it is itself a part of",
                    ));
                };
                self.spend(place, *cost)?;
                let node = self.anchors[&anchor].0.clone();
                self.close(node, 0, before)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Says whether the tag makes a text of a plain scalar. Other tags than that mean nothing here.
    fn tag(&mut self, place: Place, tag: Option<&Tag>) -> bool {
        let Some(tag) = tag else { return false };
        match tag.core_suffix() {
            Some("str") => true,
            Some("map" | "seq" | "int" | "float" | "bool" | "null") => false,
            _ => {
                self.mistakes
                    .push(Mistake::new(place, format!("the tag {} means nothing here", tag.original())));
                false
            }
        }
    }

    fn spend(&mut self, place: Place, cost: usize) -> Result<(), Mistake> {
        self.cost += cost;
        if self.cost > MAX_COST {
            return Err(Mistake::new(place, "the text has too many values, counting what aliases repeat"));
        }
        Ok(())
    }

    fn open(&mut self, place: Place, anchor: usize, kind: OpenKind) -> Result<(), Mistake> {
        let before = self.cost;
        self.spend(place, 1)?;
        if self.open.len() >= MAX_DEPTH {
            let message = format!("maps and lists are nested more than {MAX_DEPTH} deep");
            return Err(Mistake::new(place, message));
        }
        self.open.push(Open { place, anchor, before, kind });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn close(&mut self, node: Node, anchor: usize, before: usize) -> Result<(), Mistake> {
        if anchor != 0 {
            let cost = self.cost - before;
            // What is kept for aliases is a copy too.
            self.spend(node.place, cost)?;
            self.anchors.insert(anchor, (node.clone(), cost));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, keys, key }) => match std::mem::replace(key, Key::Next) {
                Key::Next => *key = read_key(node, keys, self.mistakes),
                Key::Read(key, place) => entries.push(Entry { key, place, value: node }),
                Key::Wrong => {}
            },
        }
        Ok(())
    }
}

fn read_key(node: Node, keys: &mut HashMap<String, Place>, mistakes: &mut Mistakes) -> Key {
    let NodeValue::Scalar { text, .. } = node.value else {
        mistakes.push(Mistake::new(node.place, "a key must be a text"));
        return Key::Wrong;
    };
    if let Some(first) = keys.get(&text) {
        let mistake = Mistake::new(node.place, format!("{} is given twice", shown(&text)));
        mistakes.push(mistake.with_hint(format!("it is also in line {}", first.line)));
        return Key::Wrong;
    }
    keys.insert(text.clone(), node.place);
    Key::Read(text, node.place)
}

/// A name from the text, short enough for a message.
pub(crate) fn shown(text: &str) -> String {
    const MAX_CHARACTERS: usize = 80;
    match text.char_indices().nth(MAX_CHARACTERS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// Carries out merge keys (`<<: *defaults`, yaml.org/type/merge.html): what the map itself says wins.
fn merged(entries: Vec<Entry>, mistakes: &mut Mistakes) -> Vec<Entry> {
    if !entries.iter().any(|entry| entry.key == "<<") {
        return entries;
    }
    let (merges, mut entries): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.key == "<<");
    let mut keys: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    let sources = merges.into_iter().flat_map(|merge| match merge.value.value {
        NodeValue::List(items) => items,
        _ => vec![merge.value],
    });
    for source in sources {
        match source.value {
            NodeValue::Map(more) => {
                entries.extend(more.into_iter().filter(|entry| keys.insert(entry.key.clone())));
            }
            _ => mistakes.push(Mistake::new(source.place, "only maps can be merged with <<")),
        }
    }
    entries
}
