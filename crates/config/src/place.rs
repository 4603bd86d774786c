//! Where something stands in a configuration text, and what is wrong there.

use std::fmt;
use std::sync::Arc;

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// The first character of the text.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub place: Place,
    /// What is wrong, without full stop.
    pub message: String,
    /// What to do about it, where we know.
    pub hint: Option<String>,
}

impl Mistake {
    /// A mistake without a hint.
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None }
    }

    /// The same mistake with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Something that an operator should know of a configuration that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about; `None` where it is about something that the text doesn't have.
    pub place: Option<Place>,
    /// What there is to know, without full stop.
    pub message: String,
}

/// The text of a configuration and what to call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: Arc<str>,
    text: Arc<str>,
}

/// A line is shown up to here, so that a report stays readable.
const MAX_SHOWN_CHARACTERS: usize = 160;

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// What the text is called: usually the path of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the line of `place` with a caret under the column.
    fn snippet(&self, place: Place, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(line) = self.text.lines().nth(place.line as usize - 1) else { return Ok(()) };
        let before = place.column as usize - 1;
        // A long line is shown from a bit before the place.
        let from = before.saturating_sub(MAX_SHOWN_CHARACTERS / 2);
        let shown: String = line.chars().skip(from).take(MAX_SHOWN_CHARACTERS).map(printable).collect();
        let number = place.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(before - from);
        write!(f, "\n{margin} |\n{number} | {shown}\n{margin} | {indent}^")
    }
}

/// Control characters would move the caret, or worse.
fn printable(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}

/// Everything that is wrong with a configuration, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The text.
    pub source_text: Source,
    /// What is wrong with it; at least one.
    pub mistakes: Vec<Mistake>,
    /// What is to be known of it beside, in the order of the text; not part of the error's text.
    pub notices: Vec<Notice>,
}

impl ConfigError {
    pub(crate) fn new(source_text: Source, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.place);
        Self { source_text, mistakes, notices: Vec::new() }
    }

    pub(crate) fn with_notices(self, notices: Vec<Notice>) -> Self {
        Self { notices, ..self }
    }
}

impl fmt::Display for ConfigError {
    /// All mistakes, each with its line and a caret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{}:{}: {}", self.source_text.name, mistake.place, mistake.message)?;
            self.source_text.snippet(mistake.place, f)?;
            if let Some(hint) = &mistake.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}
