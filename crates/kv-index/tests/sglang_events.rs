//! The index fed with what SGLang's own radix cache published predicts what that cache itself matches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use warmroute_kv_events::{DecodeLimits, KvEvent, decode_batch};
use warmroute_kv_index::{
    Applied, EngineView, IndexLimits, KeyExtras, KvIndex, LookupScratch, Match, block_keys,
    predicted_cached_tokens,
};

fn lines(version: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/sglang");
    let path = PathBuf::from(path).join(format!("v{version}.jsonl"));
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|start| u8::from_str_radix(&text[start..start + 2], 16).unwrap()).collect()
}

/// One recorded cache and our view of it.
struct Scenario {
    name: String,
    page_tokens: u32,
    index: Arc<KvIndex>,
    view: EngineView,
    applied: Applied,
    /// Predicted and matched tokens of each request.
    answers: Vec<(u32, u32)>,
}

impl Scenario {
    fn new(head: &Value) -> Self {
        let index = KvIndex::new(IndexLimits::default());
        Self {
            name: head["name"].as_str().unwrap().to_owned(),
            page_tokens: head["page_size"].as_u64().unwrap() as u32,
            view: index.add_engine().unwrap(),
            index,
            applied: Applied::default(),
            answers: Vec::new(),
        }
    }

    fn predicted(&self, step: &Value, tokens: &[u32]) -> u32 {
        let extras = KeyExtras { lora: step["lora_name"].as_str(), cache_salt: step["cache_salt"].as_str() };
        let (mut keys, mut matches) = (Vec::new(), [Match::default()]);
        block_keys(tokens, self.page_tokens, &extras, &mut keys);
        self.index.lookup(&keys, &[self.view.slot()], &mut LookupScratch::default(), &mut matches);
        assert!(matches[0].known_blocks == matches[0].expected_blocks);
        predicted_cached_tokens(matches[0].known_blocks, tokens.len() as u32, self.page_tokens)
    }

    fn step(&mut self, step: &Value) {
        if let Some(prompt) = step["prompt"].as_array() {
            let tokens: Vec<u32> = prompt.iter().map(|token| token.as_u64().unwrap() as u32).collect();
            let cached = step["cached_tokens"].as_u64().unwrap() as u32;
            self.answers.push((self.predicted(step, &tokens), cached));
        }
        for message in step["frames"].as_array().into_iter().flatten() {
            let batch = decode_batch(&unhex(&message[2]), &DecodeLimits::default()).unwrap();
            self.applied += self.view.apply(&batch);
        }
    }
}

fn scenarios(version: &str) -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Vec::new();
    for line in lines(version) {
        if line["name"].is_string() {
            all.push(Scenario::new(&line));
        }
        all.last_mut().unwrap().step(&line);
    }
    all
}

fn hits(answers: &[(u32, u32)]) -> usize {
    answers.iter().filter(|(_, cached)| *cached > 0).count()
}

/// Splits, decoding, eviction, a flush; page size 1 and 16. All but the last token can be cached.
#[test]
fn predicts_what_the_radix_cache_matches() {
    for version in ["0.5.7", "0.5.18", "0.5.23"] {
        let plain = scenarios(version).into_iter().filter(|scenario| scenario.name.starts_with("page"));
        for scenario in plain {
            assert_eq!(scenario.answers.len(), 12);
            assert!(hits(&scenario.answers) >= 8);
            for (at, (predicted, cached)) in scenario.answers.iter().enumerate() {
                assert_eq!(predicted, cached, "{version} {} request {at}", scenario.name);
            }
            let applied = scenario.applied;
            assert_eq!(
                applied.unknown_parents + applied.unknown_removed_blocks + applied.key_conflicts,
                0,
                "{version} {} {applied:?}",
                scenario.name
            );
            assert!(applied.removed_blocks > 3 && applied.cleared == 2, "{applied:?}");
        }
    }
}

/// 0.5.6 takes back what it goes on holding when a node is split, and stores it never again.
#[test]
fn removals_that_were_none_only_make_us_claim_less() {
    for scenario in scenarios("0.5.6").into_iter().filter(|scenario| scenario.name != "salted") {
        let less = scenario.answers.iter().filter(|(predicted, cached)| predicted < cached).count();
        assert!(scenario.answers.iter().all(|(predicted, cached)| predicted <= cached));
        assert!(less > 0 && less < scenario.answers.len(), "{}", scenario.name);
    }
}

/// From 0.5.18 on blocks say which salt they belong to, from 0.5.23 on which adapter.
#[test]
fn salts_and_adapters_are_kept_apart() {
    for (version, name) in [("0.5.18", "salted"), ("0.5.23", "salted"), ("0.5.23", "adapters")] {
        let found = scenarios(version).into_iter().find(|scenario| scenario.name == name);
        let scenario = found.unwrap();
        assert!(scenario.answers.len() == 32 && hits(&scenario.answers) >= 20);
        for (at, (predicted, cached)) in scenario.answers.iter().enumerate() {
            assert_eq!(predicted, cached, "{version} {name} request {at}");
        }
    }
}

/// With EAGLE a page is found only by a prompt that has the token after it too: the last page is not claimed.
#[test]
fn pages_of_pairs_claim_at_most_one_page_less_than_matches() {
    for version in ["0.5.7", "0.5.18", "0.5.23"] {
        let eagle = scenarios(version).into_iter().filter(|scenario| scenario.name.starts_with("eagle"));
        for scenario in eagle {
            assert!(hits(&scenario.answers) >= 8, "{version} {:?}", scenario.answers);
            for (at, (predicted, cached)) in scenario.answers.iter().enumerate() {
                let name = &scenario.name;
                assert!(predicted <= cached, "{version} {name} request {at}: {predicted} of {cached}");
                assert!(cached - predicted <= scenario.page_tokens, "{version} {name} request {at}");
            }
        }
    }
}

/// Before 0.5.6 a name says nothing of what comes before a block.
#[test]
fn unchained_names_claim_nothing() {
    for version in ["0.4.6.post5", "0.5.5"] {
        for scenario in scenarios(version) {
            assert!(scenario.answers.iter().all(|(predicted, _)| *predicted == 0));
            assert!(scenario.view.is_unsupported() && scenario.view.held_blocks() == 0);
            assert!(scenario.applied.unchained_hashes > 8 && scenario.applied.facts().unchained_hashes);
            assert_eq!(scenario.applied.unknown_removed_blocks, 0);
        }
    }
}

/// A page's name is the first 8 bytes of SHA-256 over the digest before it and its tokens (both of each pair), each
/// as 4 little-endian bytes (`get_hash_str`); before a salted sequence stands a digest of the salt.
#[test]
fn names_are_chained_digests() {
    for version in ["0.5.6", "0.5.7", "0.5.18", "0.5.23"] {
        let mut digests = std::collections::HashMap::new();
        let mut checked = 0;
        for line in lines(version) {
            if line["name"].is_string() {
                digests.clear();
            }
            if line["lora_name"].is_string() {
                continue;
            }
            for message in line["frames"].as_array().into_iter().flatten() {
                let batch = decode_batch(&unhex(&message[2]), &DecodeLimits::default()).unwrap();
                for event in &batch.events {
                    let KvEvent::Stored(stored) = event else { continue };
                    let salt = stored.cache_salt.as_deref();
                    let seed =
                        salt.map(|salt| Sha256::digest(format!("sglang-cache-salt-v1\0{salt}")).to_vec());
                    let mut digest = match stored.parent {
                        None => seed.unwrap_or_default(),
                        Some(parent) => digests.get(&parent.low_u64()).cloned().unwrap(),
                    };
                    let size = stored.block_size_tokens as usize;
                    for (at, hash) in stored.hashes.iter().enumerate() {
                        let mut sha = Sha256::new_with_prefix(&digest);
                        for token in at * size..(at + 1) * size {
                            sha.update(stored.token_ids[token].to_le_bytes());
                            if let Some(last) = stored.next_token {
                                let second = stored.token_ids.get(token + 1).copied().unwrap_or(last);
                                sha.update(second.to_le_bytes());
                            }
                        }
                        digest = sha.finalize().to_vec();
                        let name = u64::from_be_bytes(digest[..8].try_into().unwrap());
                        assert_eq!(hash.as_u64(), Some(name), "{version}");
                        digests.insert(name, digest.clone());
                        checked += 1;
                    }
                }
            }
        }
        assert!(checked > 100, "{version}: {checked}");
    }
}
