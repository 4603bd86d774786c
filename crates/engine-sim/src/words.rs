//! The made-up output: which token ids an engine decodes, and their text.

use std::collections::HashMap;

use warmroute_tokenize::ModelTokenizer;

/// Words that most byte-pair tokenizers have as one token, with the space before them.
const WORDS: &[&str] = &[
    " the",
    " a",
    " of",
    " to",
    " in",
    " is",
    " that",
    " it",
    " for",
    " on",
    " with",
    " as",
    " was",
    " at",
    " by",
    " this",
    " from",
    " are",
    " be",
    " or",
    " an",
    " not",
    " can",
    " all",
    " one",
    " time",
    " first",
    " new",
    " more",
    " use",
    " make",
    " work",
    " way",
    " day",
    " water",
    " long",
    " place",
    " well",
    " small",
    " large",
    " end",
    " side",
    " part",
    " number",
    " point",
    " line",
    " home",
    " light",
    " house",
    " world",
    " name",
    " head",
    " hand",
    " high",
    " year",
    " state",
    " group",
    " case",
    " start",
    " result",
    " question",
    " answer",
    " value",
    " order",
];

/// The vocabulary that an engine writes with. With a tokenizer its output text encodes to exactly the ids decoded,
/// so that a conversation sent back with the answer in it hits the decoded blocks too.
pub(crate) struct Words {
    vocabulary: Vec<u32>,
    texts: HashMap<u32, &'static str>,
}

impl Words {
    /// Words of one token of this tokenizer; without one, any ids.
    pub(crate) fn new(tokenizer: Option<&ModelTokenizer>) -> Self {
        let mut texts = HashMap::new();
        let mut vocabulary = Vec::new();
        for word in tokenizer.iter().flat_map(|_| WORDS) {
            let mut ids = Vec::new();
            let encoded = tokenizer.map(|tokenizer| tokenizer.encode(word, false, &mut ids));
            if let (Some(Ok(())), [id]) = (encoded, ids.as_slice()) {
                vocabulary.push(*id);
                texts.insert(*id, *word);
            }
        }
        Self { vocabulary, texts }
    }

    /// The output for a prompt: always the same for equal prompts.
    pub(crate) fn output_token_ids(&self, prompt_token_ids: &[u32], tokens: usize) -> Vec<u32> {
        // FNV-1a over the prompt as the seed of a xorshift.
        let mut state = prompt_token_ids.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
            (hash ^ u64::from(*id)).wrapping_mul(0x0000_0100_0000_01b3)
        }) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        };
        (0..tokens)
            .map(|_| match self.vocabulary.len() {
                0 => 1000 + next() % 30_000,
                words => self.vocabulary[next() as usize % words],
            })
            .collect()
    }

    /// Adds the text of a token.
    pub(crate) fn push_text(&self, token_id: u32, text: &mut String) {
        match self.texts.get(&token_id) {
            Some(word) => text.push_str(word),
            None => {
                text.push_str(" t");
                text.push_str(&token_id.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Words;

    #[test]
    fn equal_prompts_have_equal_outputs() {
        let words = Words::new(None);
        assert_eq!(words.output_token_ids(&[1, 2], 8), words.output_token_ids(&[1, 2], 8));
        assert_ne!(words.output_token_ids(&[1, 2], 8), words.output_token_ids(&[1, 3], 8));
        let mut text = String::new();
        words.push_text(5, &mut text);
        assert_eq!(text, " t5");
    }
}
