//! The texts that are tokenised: those in `benches/corpus`, or in `$WARMROUTE_BENCH_CORPUS` under the same names, and
//! the sources of this repository.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A text of one kind.
#[derive(Debug)]
pub struct Corpus {
    /// What it is: `prose`, `code`, `chinese` or `sources`.
    pub name: &'static str,
    text: String,
}

impl Corpus {
    /// Reads one of the texts.
    ///
    /// # Errors
    /// Its file can't be read.
    pub fn read(name: &'static str) -> anyhow::Result<Self> {
        let dir = std::env::var_os("WARMROUTE_BENCH_CORPUS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"), PathBuf::from);
        let path = dir.join(format!("{name}.txt"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        Ok(Self { name, text })
    }

    /// All Rust sources of this repository's crates, in the order of their paths: long, and written by people.
    ///
    /// # Errors
    /// One of them can't be read.
    pub fn sources() -> anyhow::Result<Self> {
        let mut paths = Vec::new();
        let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    paths.push(path);
                }
            }
        }
        paths.sort();
        let texts: Result<Vec<String>, _> = paths.iter().map(std::fs::read_to_string).collect();
        Ok(Self { name: "sources", text: texts.context("the sources can't be read")?.concat() })
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text in consecutive pieces of at most `piece_bytes`, cut between characters.
    pub fn pieces(&self, piece_bytes: usize) -> Vec<&str> {
        let (mut pieces, mut rest) = (Vec::new(), self.text.as_str());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(piece_bytes.max(4)));
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

/// Folder with the tokenizer files of the model that is measured: `qwen2.5` in `$WARMROUTE_TOKENIZERS`, by default in
/// `target/tokenizers`, where `make setup` puts it.
pub fn tokenizer_dir() -> PathBuf {
    let root = std::env::var_os("WARMROUTE_TOKENIZERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tokenizers"), PathBuf::from);
    root.join("qwen2.5")
}

/// Pseudo-random numbers (SplitMix64, by Steele, Lea and Flood), the same in every run.
#[derive(Clone, Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Ids of tokens that a vocabulary of Qwen2.5's size has.
    pub fn token_ids(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| (self.draw() % 151_643) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_text() {
        let corpus = Corpus { name: "test", text: "aé漢字b".repeat(10) };
        let pieces = corpus.pieces(7);
        assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= 7));
        assert_eq!(pieces.concat(), corpus.text());
    }
}
