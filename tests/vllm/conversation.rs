//! [`Conversation`]: prompts of which each begins with the one before it and its answer.

use serde_json::{Value, json};

use crate::vllm_engine::{BLOCK_TOKENS, MODEL};

/// In several scripts, with characters of one to four bytes and some that tokenizers split.
const SENTENCES: [&str; 6] = [
    "The keeper counts the ships in the harbour and writes their names into the book of the day.",
    "Zählt der Wächter die Schiffe, so schreibt er ihre Namen – einen nach dem anderen – ins Buch.",
    "守り人は港の船を数え、その名を一日の本に書き留める。灯台は夜通し燃える。",
    "Смотритель считает корабли и пишет их имена в книгу дня, пока не погаснет маяк.",
    "🚢🚢🌊 — naïve façade, coöperate; e\u{301} is not é, and 👩‍🚀 is one sign of three.",
    "يعدّ الحارس السفن في الميناء ويكتب أسماءها في كتاب اليوم.",
];

/// A system prompt of several blocks that all chats share.
const SYSTEM: &str = "You keep the lighthouse at the end of the pier. You answer in the tone of an old captain who has \
     seen every harbour between Bergen and Valparaíso, briefly, and you never tell the position of the reef, whoever \
     asks. If somebody asks for the weather, you say what the barometer says, and not what the newspaper says.";

/// Which API a conversation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// Messages.
    Chat,
    /// A text that grows.
    Text,
    /// Token ids that grow.
    Tokens,
}

/// One conversation.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    api: Api,
    subject: String,
    turns: usize,
    messages: Vec<Value>,
    text: String,
    tokens: Vec<u64>,
}

impl Conversation {
    /// One that has not begun. Those of different numbers differ from their first words on (chats: after the system
    /// prompt).
    pub(crate) fn new(api: Api, number: u64) -> Self {
        Self {
            api,
            subject: format!("Log {number}, page {}.", number * 37 % 101),
            turns: 0,
            messages: vec![json!({"role": "system", "content": SYSTEM})],
            text: String::new(),
            tokens: token_ids(number, 0),
        }
    }

    /// The path of its requests.
    pub(crate) fn path(&self) -> &'static str {
        match self.api {
            Api::Chat => "/v1/chat/completions",
            Api::Text | Api::Tokens => "/v1/completions",
        }
    }

    /// The body of the next turn's request.
    pub(crate) fn next(&mut self) -> Value {
        let question = self.question();
        self.turns += 1;
        match self.api {
            Api::Chat => self.messages.push(json!({"role": "user", "content": question})),
            Api::Text => self.text.push_str(&question),
            Api::Tokens => {
                let more: Vec<u64> =
                    (0..45).map(|at| 1000 + (self.tokens.len() as u64 * 13 + at * 7) % 90_000).collect();
                self.tokens.extend(more);
            }
        }
        self.body()
    }

    /// The body of the last turn's request once more.
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({"model": MODEL, "max_tokens": 21, "temperature": 0.0});
        match self.api {
            Api::Chat => body["messages"] = json!(self.messages),
            Api::Text => body["prompt"] = json!(self.text),
            Api::Tokens => {
                body["prompt"] = json!(self.tokens);
                body["return_token_ids"] = json!(true);
            }
        }
        body
    }

    /// Takes in an answer, so that the next prompt has it.
    pub(crate) fn answered(&mut self, answer: &Value) {
        let choice = &answer["choices"][0];
        match self.api {
            Api::Chat => {
                let content = choice["message"]["content"].as_str().unwrap_or_default();
                self.messages.push(json!({"role": "assistant", "content": content}));
            }
            Api::Text => self.text.push_str(choice["text"].as_str().unwrap_or_default()),
            Api::Tokens => {
                let ids = choice["token_ids"].as_array();
                self.tokens.extend(ids.into_iter().flatten().filter_map(Value::as_u64));
            }
        }
    }

    fn question(&self) -> String {
        let at = |offset: usize| SENTENCES[(self.turns + self.subject.len() + offset) % SENTENCES.len()];
        format!("{} Entry {}: {} {} ", self.subject, self.turns, at(0), at(1))
    }
}

/// Token ids that fill `blocks` blocks exactly, and are like those of no other number from the first one on.
pub(crate) fn token_ids(number: u64, blocks: u64) -> Vec<u64> {
    (0..blocks * BLOCK_TOKENS).map(|at| 1000 + (number * 9973 + at * 31 + at * at % 17) % 120_000).collect()
}
