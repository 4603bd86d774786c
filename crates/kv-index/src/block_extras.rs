//! What besides tokens decides the blocks of a store.

use warmroute_kv_events::{BlocksStored, ExtraKey};

use crate::BlockKey;
use crate::block_keys::{Adapter, chain_seed};

fn extras_of(stored: &BlocksStored, block: usize) -> &[ExtraKey] {
    stored.extra_keys.get(block).and_then(Option::as_deref).unwrap_or_default()
}

/// Where among a block's extra keys the LoRA name is, which comes as a bare string on every block.
fn adapter_position(stored: &BlocksStored, extras: &[ExtraKey]) -> Option<usize> {
    let name = stored.lora_name.as_deref()?;
    extras.iter().position(|extra| matches!(extra, ExtraKey::Text(text) if **text == *name))
}

/// The cache salt of a sequence: the last bare string of its first block that isn't the LoRA name. (An image's
/// identifier is one too in vLLM 0.17 and 0.18; taken for a salt it still keeps the block apart from all text.)
fn salt_in_extras(stored: &BlocksStored) -> Option<(usize, &str)> {
    let extras = extras_of(stored, 0);
    let adapter = adapter_position(stored, extras);
    extras.iter().enumerate().rev().find_map(|(position, extra)| match extra {
        ExtraKey::Text(text) if Some(position) != adapter => Some((position, &**text)),
        _ => None,
    })
}

/// What stands in for the key before the first block of a prompt, and where among that block's extra keys the cache salt
/// is, if it is there.
pub(crate) fn seed_of(stored: &BlocksStored) -> (BlockKey, Option<usize>) {
    let adapter = match (&stored.lora_name, stored.lora_id) {
        (Some(name), _) => Adapter::Name(name),
        (None, Some(number)) => Adapter::Number(number),
        (None, None) => Adapter::None,
    };
    let salt = salt_in_extras(stored);
    let cache_salt = stored.cache_salt.as_deref().or(salt.map(|(_, text)| text));
    let seed = chain_seed(stored.block_size_tokens, adapter, cache_salt);
    (seed, salt.map(|(position, _)| position))
}

/// The extra keys of a block without those that the chain's seed holds.
pub(crate) fn block_extras(
    stored: &BlocksStored,
    block: usize,
    salt_position: Option<usize>,
) -> impl Iterator<Item = &ExtraKey> {
    let extras = extras_of(stored, block);
    let adapter = adapter_position(stored, extras);
    extras
        .iter()
        .enumerate()
        .filter(move |(position, _)| Some(*position) != adapter && Some(*position) != salt_position)
        .map(|(_, extra)| extra)
}
