use warmroute_kv_events::ExtraKey;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Our name of one KV block: a hash over its tokens, everything before it, its block size and what else decides its
/// content. Equal keys mean equal content, up to the collisions of a 64-bit hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(pub u64);

/// What besides tokens decides the KV blocks of a whole prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyExtras<'a> {
    /// The LoRA adapter's name.
    pub lora: Option<&'a str>,
    /// The request's `cache_salt`; the empty salt is none. Engines hash it into the first block only, which by the
    /// chain is the same as into all.
    pub cache_salt: Option<&'a str>,
}

/// Blocks up to this many tokens are hashed from one buffer on the stack.
const BUFFERED_TOKENS: usize = 256;
const PARENT_BYTES: usize = 8;

/// Where a block's tokens stand behind the key before them, to be hashed.
pub(crate) struct KeyBuffer([u8; PARENT_BYTES + 4 * BUFFERED_TOKENS]);

impl KeyBuffer {
    pub(crate) const EMPTY: Self = Self([0; PARENT_BYTES + 4 * BUFFERED_TOKENS]);
}

/// Appends the keys of all full blocks of a prompt, first block first. Nothing is appended for a block size of 0.
///
/// The key of a block is XXH3-64 over the key before it and the block's tokens, all little endian; before the first
/// block stands a seed made of the block size and `extras`. XXH3: <https://github.com/Cyan4973/xxHash>.
pub fn block_keys(tokens: &[u32], block_size_tokens: u32, extras: &KeyExtras<'_>, keys: &mut Vec<BlockKey>) {
    let block_size = block_size_tokens as usize;
    if block_size == 0 || tokens.len() < block_size {
        return;
    }
    keys.reserve(tokens.len() / block_size);
    let mut parent = chain_seed(block_size_tokens, Adapter::of_name(extras.lora), extras.cache_salt);
    let mut buffer = KeyBuffer::EMPTY;
    for block in tokens.chunks_exact(block_size) {
        parent = next_key(parent, block, &mut buffer);
        keys.push(parent);
    }
}

/// The cached tokens that vLLM reports for a prompt when it holds the `matched_blocks` leading blocks of it:
/// min(matched, ⌊(n − 1) / B⌋) · B, because the last token is always computed.
pub fn predicted_cached_tokens(matched_blocks: u32, prompt_tokens: u32, block_size_tokens: u32) -> u32 {
    let Some(reusable_blocks) = prompt_tokens.saturating_sub(1).checked_div(block_size_tokens) else {
        return 0;
    };
    matched_blocks.min(reusable_blocks) * block_size_tokens
}

/// The LoRA adapter of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Adapter<'a> {
    None,
    Name(&'a str),
    /// Known by the engine's number only, so that no request can match it.
    Number(i64),
}

impl<'a> Adapter<'a> {
    pub(crate) fn of_name(name: Option<&'a str>) -> Self {
        name.map_or(Self::None, Self::Name)
    }
}

/// What stands in for the parent of a chain's first block.
pub(crate) fn chain_seed(block_size_tokens: u32, adapter: Adapter<'_>, cache_salt: Option<&str>) -> BlockKey {
    let mut hash = Xxh3::new();
    hash.update(b"warmroute block key 1");
    hash.update(&block_size_tokens.to_le_bytes());
    match adapter {
        Adapter::None => hash.update(b"-"),
        Adapter::Name(name) => update_piece(&mut hash, b'l', name.as_bytes()),
        Adapter::Number(number) => update_piece(&mut hash, b'n', &number.to_le_bytes()),
    }
    match cache_salt.filter(|salt| !salt.is_empty()) {
        None => hash.update(b"-"),
        Some(salt) => update_piece(&mut hash, b's', salt.as_bytes()),
    }
    BlockKey(hash.digest())
}

/// A tagged piece with its length, so that no two lists of pieces give the same bytes.
pub(crate) fn update_piece(hash: &mut Xxh3, tag: u8, bytes: &[u8]) {
    hash.update(&[tag]);
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

pub(crate) fn next_key(parent: BlockKey, block: &[u32], buffer: &mut KeyBuffer) -> BlockKey {
    let end = PARENT_BYTES + 4 * block.len();
    let Some(used) = buffer.0.get_mut(..end) else { return next_long_key(parent, block) };
    let (head, body) = used.split_at_mut(PARENT_BYTES);
    head.copy_from_slice(&parent.0.to_le_bytes());
    for (bytes, token) in body.as_chunks_mut::<4>().0.iter_mut().zip(block) {
        *bytes = token.to_le_bytes();
    }
    BlockKey(xxh3_64(used))
}

/// The same value as [`next_key`]'s for blocks that don't fit its buffer.
fn next_long_key(parent: BlockKey, block: &[u32]) -> BlockKey {
    let mut hash = Xxh3::new();
    hash.update(&parent.0.to_le_bytes());
    for token in block {
        hash.update(&token.to_le_bytes());
    }
    BlockKey(hash.digest())
}

/// The keys of announced blocks, one after the other.
pub(crate) struct KeyChain {
    parent: BlockKey,
}

impl KeyChain {
    /// A chain that goes on after `parent`, a key or a [`chain_seed`].
    pub(crate) fn after(parent: BlockKey) -> Self {
        Self { parent }
    }

    /// The key of the next block. `extras` are what the block depends on besides its tokens and what the seed holds;
    /// a block with any has a key that no prompt of text gets.
    pub(crate) fn next_block<'e>(
        &mut self,
        buffer: &mut KeyBuffer,
        block: &[u32],
        extras: impl Iterator<Item = &'e ExtraKey>,
    ) -> BlockKey {
        let mut key = next_key(self.parent, block, buffer);
        let mut extras = extras.peekable();
        if extras.peek().is_some() {
            let mut hash = Xxh3::new();
            hash.update(b"warmroute extra keys");
            hash.update(&key.0.to_le_bytes());
            extras.for_each(|extra| update_extra(&mut hash, extra));
            key = BlockKey(hash.digest());
        }
        self.parent = key;
        key
    }
}

fn update_extra(hash: &mut Xxh3, extra: &ExtraKey) {
    match extra {
        ExtraKey::Text(text) => update_piece(hash, b't', text.as_bytes()),
        ExtraKey::Int(number) => update_piece(hash, b'i', &number.to_le_bytes()),
        ExtraKey::Bytes(bytes) => update_piece(hash, b'b', bytes),
        ExtraKey::Media { id, offset_tokens } => {
            update_piece(hash, b'm', id.as_bytes());
            hash.update(&offset_tokens.to_le_bytes());
        }
        ExtraKey::Other(raw) => update_piece(hash, b'o', raw),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Adapter, BUFFERED_TOKENS, BlockKey, KeyBuffer, KeyChain, KeyExtras, block_keys, chain_seed, next_key,
        next_long_key, predicted_cached_tokens,
    };
    use std::collections::HashSet;
    use warmroute_kv_events::ExtraKey;

    fn keys(tokens: &[u32], block_size: u32, extras: KeyExtras<'_>) -> Vec<BlockKey> {
        let mut keys = Vec::new();
        block_keys(tokens, block_size, &extras, &mut keys);
        keys
    }

    #[test]
    fn only_full_blocks_have_keys_and_prefixes_share_them() {
        let tokens: Vec<u32> = (0..100).collect();
        let all = keys(&tokens, 16, KeyExtras::default());
        assert_eq!(all.len(), 6);
        assert_eq!(keys(&tokens[..64], 16, KeyExtras::default()), all[..4]);
        assert_eq!(keys(&tokens[..15], 16, KeyExtras::default()), []);
        assert_eq!(keys(&tokens, 0, KeyExtras::default()), []);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 6);
    }

    #[test]
    fn everything_that_decides_the_content_decides_the_key() {
        let tokens = [7; 64];
        let variants = [
            KeyExtras::default(),
            KeyExtras { lora: Some("a"), cache_salt: None },
            KeyExtras { lora: None, cache_salt: Some("a") },
            KeyExtras { lora: Some("a"), cache_salt: Some("b") },
            KeyExtras { lora: Some("ab"), cache_salt: None },
            KeyExtras { lora: Some(""), cache_salt: None },
        ];
        let mut seen = HashSet::new();
        for extras in variants {
            for block_size in [1, 2, 16, 32] {
                for key in keys(&tokens, block_size, extras) {
                    assert!(seen.insert(key), "{extras:?} {block_size}");
                }
            }
        }
        let empty_salt = KeyExtras { lora: None, cache_salt: Some("") };
        assert_eq!(keys(&tokens, 16, empty_salt), keys(&tokens, 16, KeyExtras::default()));
    }

    #[test]
    fn long_blocks_hash_the_same_way() {
        let block: Vec<u32> = (0..BUFFERED_TOKENS as u32).map(|token| token * 977).collect();
        let mut buffer = KeyBuffer::EMPTY;
        for len in [1, 16, 59, 60, 255, 256] {
            let parent = BlockKey(len as u64);
            assert_eq!(next_key(parent, &block[..len], &mut buffer), next_long_key(parent, &block[..len]));
        }
        assert_eq!(keys(&[1; 1024], 512, KeyExtras::default()).len(), 2);
    }

    #[test]
    fn a_chain_without_extras_gives_the_keys_of_a_prompt() {
        let tokens: Vec<u32> = (0..64).collect();
        let mut buffer = KeyBuffer::EMPTY;
        let mut chain = KeyChain::after(chain_seed(16, Adapter::None, None));
        let chained: Vec<BlockKey> =
            tokens.chunks(16).map(|block| chain.next_block(&mut buffer, block, std::iter::empty())).collect();
        assert_eq!(chained, keys(&tokens, 16, KeyExtras::default()));
    }

    #[test]
    fn extra_keys_change_a_block_and_all_after_it() {
        let media = |offset_tokens| ExtraKey::Media { id: "img".into(), offset_tokens };
        let extras = [
            media(0),
            media(-1),
            ExtraKey::Text("img".into()),
            ExtraKey::Bytes([0; 32].into()),
            ExtraKey::Int(1),
        ];
        let mut seen: HashSet<BlockKey> = keys(&[0; 32], 16, KeyExtras::default()).into_iter().collect();
        for extra in &extras {
            let mut buffer = KeyBuffer::EMPTY;
            let mut chain = KeyChain::after(chain_seed(16, Adapter::None, None));
            assert!(seen.insert(chain.next_block(&mut buffer, &[0; 16], std::iter::once(extra))));
            assert!(seen.insert(chain.next_block(&mut buffer, &[0; 16], std::iter::empty())));
        }
    }

    #[test]
    fn the_last_token_is_never_cached() {
        assert_eq!(predicted_cached_tokens(8, 128, 16), 112);
        assert_eq!(predicted_cached_tokens(8, 129, 16), 128);
        assert_eq!(predicted_cached_tokens(3, 129, 16), 48);
        assert_eq!(predicted_cached_tokens(3, 0, 16), 0);
        assert_eq!(predicted_cached_tokens(3, 10, 0), 0);
    }
}
