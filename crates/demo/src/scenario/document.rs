//! [`DocumentWriter`]: English-looking text from a seed.
//!
//! Prompts made of random letters or of one repeated word tokenise like nothing that users send. These sentences have
//! ordinary words, numbers and punctuation, so that tokens per word come out as in real documents.

const SUBJECTS: &[&str] = &[
    "the customer",
    "a technician",
    "the night shift",
    "our supplier",
    "the insurance office",
    "every branch",
    "the harbour authority",
    "a new employee",
    "the warehouse",
    "the billing department",
    "an auditor",
    "the driver",
    "the laboratory",
    "a visiting engineer",
    "the regional manager",
    "the support desk",
    "the tenant",
    "a volunteer",
    "the school board",
    "the pharmacist",
    "the dispatcher",
    "a contractor",
    "the archive",
    "the kitchen",
];
const VERBS: &[&str] = &[
    "checks",
    "returns",
    "approves",
    "records",
    "replaces",
    "inspects",
    "forwards",
    "cancels",
    "repairs",
    "orders",
    "measures",
    "labels",
    "delivers",
    "reviews",
    "rejects",
    "stores",
    "collects",
    "confirms",
    "transfers",
    "cleans",
];
const OBJECTS: &[&str] = &[
    "the damaged parcel",
    "a signed form",
    "two spare batteries",
    "the monthly invoice",
    "the pressure valve",
    "all temperature readings",
    "the rental agreement",
    "a backup copy",
    "the delivery note",
    "the fire extinguisher",
    "any unopened box",
    "the service contract",
    "a second sample",
    "the access card",
    "the travel expenses",
    "the calibration report",
    "the old firmware",
    "a written complaint",
    "the emergency generator",
    "the spare keys",
];
const PLACES: &[&str] = &[
    "in the northern depot",
    "at gate 14",
    "on the second floor",
    "near the loading ramp",
    "in Rotterdam",
    "at the counter",
    "in the cold storage room",
    "behind the main building",
    "in the online portal",
    "at the Lisbon office",
    "on platform 3",
    "in the workshop",
    "at the customer's address",
    "in the shared folder",
];
const CONDITIONS: &[&str] = &[
    "within {n} working days",
    "before the end of the quarter",
    "if the value exceeds {n} euros",
    "at least {n} times a year",
    "unless the seal is broken",
    "after {n} hours of operation",
    "when the indicator turns red",
    "no later than {n} p.m.",
    "as described in paragraph {n}",
    "provided that a receipt exists",
    "once both parties agree",
    "for orders above {n} units",
];
const OPENINGS: &[&str] = &[
    "As a rule",
    "In most cases",
    "On weekdays",
    "According to the updated policy",
    "During the winter months",
    "For safety reasons",
    "Since last year",
    "With written permission",
    "By exception",
    "To avoid delays",
];
const TOPICS: &[&str] = &[
    "refunds",
    "maintenance",
    "cold chain",
    "parking",
    "data retention",
    "travel",
    "laboratory safety",
    "shipping",
    "tenancy",
    "training",
    "procurement",
    "night work",
];
const QUESTIONS: &[&str] = &[
    "Who is responsible when",
    "What has to happen before",
    "Which deadline applies if",
    "How should we proceed when",
    "Is it still allowed that",
    "What does the handbook say about the case that",
    "Who must be informed when",
];

/// Writes texts; the same seed always writes the same ones, in the same order.
#[derive(Debug, Clone)]
pub struct DocumentWriter {
    random: fastrand::Rng,
}

impl DocumentWriter {
    /// A writer with a seed of its own.
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed) }
    }

    /// A handbook of at least `words` words, ended at the sentence. Its number stands in the first line, so that the
    /// texts of two seeds part early.
    pub fn document(&mut self, words: usize) -> String {
        let (number, topic) = (self.random.u32(1_000..1_000_000), self.one_of(TOPICS));
        let mut text = format!("Handbook {number} on {topic}. Answer questions from this text only.\n");
        let mut section = 0;
        while text.split_whitespace().count() < words {
            section += 1;
            let topic = self.one_of(TOPICS);
            text.push_str(&format!("\n{section}. Rules for {topic}\n"));
            for _ in 0..6 {
                let sentence = self.sentence();
                text.push_str(&sentence);
                text.push(' ');
            }
            text.push('\n');
        }
        cut_at_sentence(&text, words)
    }

    /// A question of about `words` words.
    pub fn question(&mut self, words: usize) -> String {
        let mut text = format!("{} {}?", self.one_of(QUESTIONS), self.clause());
        while text.split_whitespace().count() < words {
            let sentence = self.sentence();
            text = format!("{sentence} {text}");
        }
        text
    }

    fn sentence(&mut self) -> String {
        let (opening, clause) = (self.one_of(OPENINGS), self.clause());
        match self.random.u8(0..3) {
            0 => format!("{opening}, {clause}."),
            1 => capitalised(&format!("{clause}.")),
            _ => {
                let other = self.clause();
                capitalised(&format!("{clause}, and {other}."))
            }
        }
    }

    fn clause(&mut self) -> String {
        let (subject, verb, object) = (self.one_of(SUBJECTS), self.one_of(VERBS), self.one_of(OBJECTS));
        let (place, condition) = (self.one_of(PLACES), self.one_of(CONDITIONS));
        let condition = condition.replace("{n}", &self.random.u32(2..2_000).to_string());
        format!("{subject} {verb} {object} {place} {condition}")
    }

    fn one_of(&mut self, words: &'static [&'static str]) -> &'static str {
        words[self.random.usize(..words.len())]
    }
}

/// The beginning of `text` up to the end of the sentence in which the `words`-th word stands.
fn cut_at_sentence(text: &str, words: usize) -> String {
    let mut count = 0;
    let mut in_word = false;
    for (at, character) in text.char_indices() {
        count += usize::from(!in_word && !character.is_whitespace());
        in_word = !character.is_whitespace();
        if count >= words && character == '.' {
            return text[..=at].to_owned();
        }
    }
    text.trim_end().to_owned()
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_its_length_and_depends_on_the_seed_alone() {
        let text = DocumentWriter::new(7).document(1200);
        assert_eq!(text, DocumentWriter::new(7).document(1200));
        let words = text.split_whitespace().count();
        assert!((1200..1260).contains(&words), "{words}");
        assert!(text.ends_with('.'));
        let other = DocumentWriter::new(8).document(1200);
        assert_ne!(text[..30], other[..30], "two documents must part early");
    }

    #[test]
    fn questions_of_one_writer_differ() {
        let mut writer = DocumentWriter::new(7);
        let questions: Vec<String> = (0..20).map(|_| writer.question(40)).collect();
        let mut distinct = questions.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), questions.len());
        assert!(questions.iter().all(|question| question.ends_with('?')));
    }
}
