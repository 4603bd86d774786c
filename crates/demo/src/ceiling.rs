//! [`Ceiling`]: how many prompt tokens could have been hit at best.

use std::collections::HashSet;

use warmroute_kv_index::{BlockKey, KeyExtras, block_keys};

/// Counts what an oracle would have hit: one engine with an unlimited cache, to which every request goes.
///
/// For each request, in the order in which the requests are due (warm-up included), it hits the longest prefix of whole
/// blocks all of which occurred, with the same history, in the prompt of an earlier request. An engine computes at least
/// the last token of a prompt itself, so of a prompt of `n` tokens at most ⌊(n−1)/B⌋ blocks of `B` tokens can be hit.
///
/// It is an upper bound for prompts that do not contain earlier answers: no eviction, no second copy to warm, and a
/// prompt counts as cached from the moment at which its request is due. A policy can come close to it, never above.
#[derive(Debug)]
pub struct Ceiling {
    block_size_tokens: u32,
    seen: HashSet<BlockKey>,
    keys: Vec<BlockKey>,
}

impl Ceiling {
    /// An oracle that has seen nothing. `block_size_tokens` is the engines' block size, above 0.
    pub fn new(block_size_tokens: u32) -> Self {
        Self { block_size_tokens: block_size_tokens.max(1), seen: HashSet::new(), keys: Vec::new() }
    }

    /// The tokens of `prompt` that could have been hit; remembers its blocks for later requests.
    pub fn observe(&mut self, prompt: &[u32]) -> u64 {
        self.keys.clear();
        block_keys(prompt, self.block_size_tokens, &KeyExtras::default(), &mut self.keys);
        let most = prompt.len().saturating_sub(1) / self.block_size_tokens as usize;
        let known = self.keys.iter().take(most).take_while(|key| self.seen.contains(*key)).count();
        self.seen.extend(self.keys.drain(..));
        known as u64 * u64::from(self.block_size_tokens)
    }

    /// Different blocks seen so far: what a cache must hold to lose nothing.
    pub fn distinct_blocks(&self) -> u64 {
        self.seen.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares token by token with every earlier prompt.
    fn brute_force(earlier: &[Vec<u32>], prompt: &[u32], block: usize) -> u64 {
        let common = |other: &Vec<u32>| other.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // Only whole blocks of an earlier prompt are ever in a cache.
        let longest = earlier.iter().map(|other| common(other) / block).max().unwrap_or(0);
        (longest.min(prompt.len().saturating_sub(1) / block) * block) as u64
    }

    #[test]
    fn it_equals_a_comparison_with_every_earlier_prompt() {
        let mut random = fastrand::Rng::with_seed(11);
        for block in [1, 2, 3, 16] {
            let mut ceiling = Ceiling::new(block);
            let mut earlier: Vec<Vec<u32>> = Vec::new();
            for _ in 0..300 {
                // Few distinct tokens and prompts grown from older ones, so that prefixes meet often.
                let mut prompt = match earlier.len() {
                    0 => Vec::new(),
                    n => earlier[random.usize(..n)].clone(),
                };
                prompt.truncate(random.usize(..=prompt.len()));
                prompt.extend((0..random.usize(..40)).map(|_| random.u32(..2)));
                let expected = brute_force(&earlier, &prompt, block as usize);
                assert_eq!(ceiling.observe(&prompt), expected, "block {block}, prompt {prompt:?}");
                earlier.push(prompt);
            }
        }
    }

    #[test]
    fn the_last_token_is_always_computed() {
        let mut ceiling = Ceiling::new(16);
        let prompt: Vec<u32> = (0..32).collect();
        assert_eq!(ceiling.observe(&prompt), 0);
        assert_eq!(ceiling.observe(&prompt), 16);
        let longer: Vec<u32> = (0..33).collect();
        assert_eq!(ceiling.observe(&longer), 32);
    }
}
