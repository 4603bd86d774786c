//! From bytes to the one document in them.

use crate::Place;
use crate::fields::Mistakes;
use crate::place::Source;
use crate::yaml::{self, Node};

/// A file may be as large as what fits into a ConfigMap.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Reads the one document of a text, YAML or JSON. `None` if there is none, or if it can't be read, which is a
/// mistake then.
pub(crate) fn read(name: &str, text: &[u8], mistakes: &mut Mistakes) -> (Source, Option<Node>) {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("the text has {} bytes, and at most {MAX_TEXT_BYTES} are read", text.len());
        mistakes.at(Place::START, message);
        return (Source::new(name, ""), None);
    }
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    let source = Source::new(name, &String::from_utf8_lossy(text));
    match std::str::from_utf8(text) {
        Ok(text) => (source, yaml::read(text, mistakes)),
        Err(error) => {
            let place = end_of(&String::from_utf8_lossy(&text[..error.valid_up_to()]));
            mistakes.at(place, "this is not UTF-8");
            (source, None)
        }
    }
}

/// The place after the last character.
fn end_of(text: &str) -> Place {
    let line = text.matches('\n').count() + 1;
    let column = text.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    Place { line: line as u32, column: column as u32 }
}
