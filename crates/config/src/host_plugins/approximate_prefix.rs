//! `approx-prefix-cache-producer`, `burst-prefix-cache-producer` and `prefix-cache-producer`.

use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;
use crate::{ApproximatePrefixSpec, Place, PrefixLimit};

const DEFAULT_BLOCK_SIZE_TOKENS: u32 = 16;
/// The peer's, of its type for bursts.
const BURST_BLOCK_SIZE_TOKENS: u32 = 64;
const LARGEST_BLOCK_TOKENS: u64 = 65_536;
/// How many characters of a prompt the peer took for a token when block sizes were given in characters.
const CHARACTERS_PER_TOKEN: u64 = 4;
/// More than any engine has.
const MOST_BLOCKS: u64 = 100_000_000;

impl ApproximatePrefixSpec {
    /// A producer with its defaults: the peer's, except that blocks of less than 64 tokens stay as small as they are.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            auto_tune: true,
            block_size_tokens: DEFAULT_BLOCK_SIZE_TOKENS,
            min_block_size_tokens: 1,
            limit: PrefixLimit::Tokens(131_072),
            capacity_blocks: 31_250,
        }
    }
}

/// `approx-prefix-cache-producer` and `prefix-cache-producer`.
pub(crate) fn approximate_prefix(declared: &Declared<'_>, mistakes: &mut Mistakes) -> ApproximatePrefixSpec {
    let mut spec = ApproximatePrefixSpec::new(&declared.name);
    let Some(node) = declared.parameters else { return spec };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((value, _)) = fields.boolean("autoTune", mistakes) {
        spec.auto_tune = value;
    }
    block_size(&mut fields, &mut spec, mistakes);
    if let Some((value, _)) = fields.whole("minBlockSizeTokens", 1..=LARGEST_BLOCK_TOKENS, mistakes) {
        spec.min_block_size_tokens = value as u32;
    }
    let tokens = fields.whole("maxPrefixTokensToMatch", 0..=u64::from(u32::MAX), mistakes);
    let blocks = fields.whole("maxPrefixBlocksToMatch", 0..=u64::from(u32::MAX), mistakes);
    limit(tokens, blocks, &mut spec, mistakes);
    if let Some((value, _)) = fields.whole("lruCapacityPerServer", 1..=MOST_BLOCKS, mistakes) {
        spec.capacity_blocks = value as u32;
    }
    fields.finish(mistakes);
    spec
}

fn block_size(fields: &mut Fields<'_>, spec: &mut ApproximatePrefixSpec, mistakes: &mut Mistakes) {
    let characters = fields.whole("blockSize", 0..=CHARACTERS_PER_TOKEN * LARGEST_BLOCK_TOKENS, mistakes);
    let tokens = fields.whole("blockSizeTokens", 0..=LARGEST_BLOCK_TOKENS, mistakes);
    if let Some((characters, place)) = characters {
        let message = match tokens {
            Some(_) => "blockSize isn't used: blockSizeTokens stands beside it",
            None => "blockSize is deprecated and counts characters, four to a token: use blockSizeTokens",
        };
        mistakes.notice(place, message);
        spec.block_size_tokens = (characters / CHARACTERS_PER_TOKEN) as u32;
    }
    if let Some((tokens, _)) = tokens {
        spec.block_size_tokens = tokens as u32;
    }
    if spec.block_size_tokens == 0 {
        if !spec.auto_tune
            && let Some((_, place)) = tokens.or(characters)
        {
            mistakes.at(place, "without autoTune the block size must be at least 1 token");
        }
        spec.block_size_tokens = DEFAULT_BLOCK_SIZE_TOKENS;
    }
}

/// As at the peer: the number of tokens wins, and 0 of both means all.
fn limit(
    tokens: Option<(u64, Place)>,
    blocks: Option<(u64, Place)>,
    spec: &mut ApproximatePrefixSpec,
    mistakes: &mut Mistakes,
) {
    spec.limit = match (tokens, blocks) {
        (Some((0, _)), Some((0, _))) => PrefixLimit::None,
        (Some((0, _)), Some((blocks, _))) => PrefixLimit::Blocks(blocks as u32),
        // What the peer's deprecated parameter is where it isn't given.
        (Some((0, _)), None) => PrefixLimit::Blocks(2048),
        (Some((tokens, _)), _) => PrefixLimit::Tokens(tokens as u32),
        (None, _) => spec.limit,
    };
    if let Some((_, place)) = blocks {
        let message = match spec.limit {
            PrefixLimit::Tokens(_) => {
                "maxPrefixBlocksToMatch isn't used unless maxPrefixTokensToMatch is 0, as at the llm-d EPP"
            }
            _ => "maxPrefixBlocksToMatch is deprecated: use maxPrefixTokensToMatch",
        };
        mistakes.notice(place, message);
    }
}

/// `burst-prefix-cache-producer`.
pub(crate) fn burst_prefix(declared: &Declared<'_>, mistakes: &mut Mistakes) -> ApproximatePrefixSpec {
    let mut spec = ApproximatePrefixSpec::new(&declared.name);
    (spec.auto_tune, spec.block_size_tokens) = (false, BURST_BLOCK_SIZE_TOKENS);
    spec.limit = PrefixLimit::None;
    let message = format!(
        "{} delays no request: picks are made one after the other, and each sees what was just sent where, so a \
         burst of one prompt stays together without a window",
        declared.name
    );
    mistakes.notice(declared.place, message);
    let Some(node) = declared.parameters else { return spec };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    if let Some((value, _)) = fields.whole("blockSizeTokens", 1..=LARGEST_BLOCK_TOKENS, mistakes) {
        spec.block_size_tokens = value as u32;
    }
    if let Some((value, _)) = fields.whole("maxPrefixTokensToMatch", 0..=u64::from(u32::MAX), mistakes)
        && value > 0
    {
        spec.limit = PrefixLimit::Tokens(value as u32);
    }
    let window = fields.whole("windowDurationMs", 1..=10_000, mistakes).map(|(_, place)| place);
    let batch = fields.whole("maxBatchSize", 1..=u64::MAX, mistakes).map(|(_, place)| place);
    let balance = fields.text("balanceBy", mistakes);
    if let Some((by, place)) = balance
        && !["requests", "tokens"].contains(&by)
    {
        mistakes.at(place, "balanceBy must be requests or tokens");
    }
    for (name, place) in [("windowDurationMs", window), ("maxBatchSize", batch)] {
        if let Some(place) = place {
            mistakes.notice(place, format!("{name} isn't used: requests aren't gathered in a window"));
        }
    }
    let per_replica = fields.number("maxPerReplica", mistakes).map(|(_, place)| place);
    let colocate = fields.whole("minColocateBlocks", 0..=u64::MAX, mistakes).map(|(_, place)| place);
    let balance = balance.map(|(_, place)| place);
    for (name, place) in
        [("maxPerReplica", per_replica), ("minColocateBlocks", colocate), ("balanceBy", balance)]
    {
        if let Some(place) = place {
            let message = format!(
                "{name} isn't used: how a burst is spread is for the profile's scorers of load to decide, whose \
                 counts every pick changes at once"
            );
            mistakes.notice(place, message);
        }
    }
    fields.finish(mistakes);
    spec
}
