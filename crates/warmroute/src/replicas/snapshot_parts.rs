//! Snapshots as they go over the wire (`proto/warmroute/replica/v1/snapshot.proto`).

use warmroute_kv_events::{FeedHistory, KnownBatch, TrustReason};
use warmroute_kv_index::{BlockRows, GroupNeed, GroupOutline, LayerRows, Tier, ViewOutline};

use super::pb;
use crate::engine_events::EngineName;

/// Version of what the parts mean; to be counted up when that changes.
pub const FORMAT: u32 = 1;
/// Most engines in one request.
pub const MOST_ENGINES: usize = 4096;
/// Most adapters that are told, and that are taken.
pub(super) const MOST_ADAPTERS: usize = 4096;
/// A part's blocks take about so many bytes.
pub const PIECE_BYTES: usize = 192 * 1024;
/// Longer parts aren't taken.
pub(super) const LONGEST_PART_BYTES: usize = 1 << 20;

/// A part that no sibling of this version sends.
#[derive(Debug, thiserror::Error)]
#[error("a part of the snapshot can't be understood: {0}")]
pub struct BadPart(pub &'static str);

impl From<&EngineName> for pb::EngineName {
    fn from(name: &EngineName) -> Self {
        Self { address: name.address.to_string(), rank: name.rank.into() }
    }
}

impl TryFrom<pb::EngineName> for EngineName {
    type Error = BadPart;

    fn try_from(name: pb::EngineName) -> Result<Self, BadPart> {
        let rank = u16::try_from(name.rank).map_err(|_| BadPart("a rank is too large"))?;
        Ok(Self { address: name.address.into(), rank })
    }
}

impl From<FeedHistory> for pb::History {
    fn from(history: FeedHistory) -> Self {
        let word = |reason: Option<TrustReason>| {
            reason.map_or_else(String::new, |reason| reason.as_str().to_owned())
        };
        Self {
            next_seq: history.next,
            last_ts: history.last_ts,
            recent_seqs: history.recent.iter().map(|batch| batch.seq).collect(),
            recent_ts_bits: history.recent.iter().map(|batch| batch.ts_bits).collect(),
            recent_bytes: history.recent.iter().map(|batch| batch.bytes).collect(),
            doubt: word(history.doubt),
            lack: word(history.lack),
            lasting_lack: word(history.lasting_lack),
            is_cleared: history.is_cleared,
        }
    }
}

impl TryFrom<pb::History> for FeedHistory {
    type Error = BadPart;

    fn try_from(history: pb::History) -> Result<Self, BadPart> {
        let reason = |word: &str| match word {
            "" => Ok(None),
            word => TrustReason::from_name(word).map(Some).ok_or(BadPart("an unknown reason of trust")),
        };
        let pb::History { recent_seqs, recent_ts_bits, recent_bytes, .. } = &history;
        if recent_seqs.len() != recent_ts_bits.len() || recent_seqs.len() != recent_bytes.len() {
            return Err(BadPart("batches have different numbers of columns"));
        }
        let recent = recent_seqs.iter().zip(recent_ts_bits).zip(recent_bytes);
        Ok(Self {
            next: history.next_seq,
            last_ts: history.last_ts,
            recent: recent
                .map(|((seq, ts_bits), bytes)| KnownBatch { seq: *seq, ts_bits: *ts_bits, bytes: *bytes })
                .collect(),
            doubt: reason(&history.doubt)?,
            lack: reason(&history.lack)?,
            lasting_lack: reason(&history.lasting_lack)?,
            is_cleared: history.is_cleared,
        })
    }
}

impl From<&ViewOutline> for pb::Outline {
    fn from(outline: &ViewOutline) -> Self {
        let group = |group: &GroupOutline| {
            let (need, last_blocks) = match group.need {
                GroupNeed::Unsaid => (pb::group::Need::Unsaid, 0),
                GroupNeed::All => (pb::group::Need::All, 0),
                GroupNeed::Last(blocks) => (pb::group::Need::Last, blocks),
                GroupNeed::Unclear => (pb::group::Need::Unclear, 0),
            };
            let GroupOutline { number, block_size_tokens, .. } = *group;
            pb::Group { number, block_size_tokens, need: need.into(), last_blocks }
        };
        let layer =
            |(tier, group): &(Tier, Option<u32>)| pb::Layer { tier: tier.as_str().to_owned(), group: *group };
        Self {
            block_size_tokens: outline.block_size_tokens,
            lookahead_tokens: outline.lookahead_tokens,
            is_unchained: outline.is_unchained,
            announces_again: outline.announces_again,
            groups: outline.groups.iter().map(group).collect(),
            main_group: outline.main_group,
            layers: outline.layers.iter().map(layer).collect(),
        }
    }
}

impl TryFrom<pb::Outline> for ViewOutline {
    type Error = BadPart;

    fn try_from(outline: pb::Outline) -> Result<Self, BadPart> {
        let group = |group: &pb::Group| {
            let need = match group.need() {
                pb::group::Need::Unsaid => GroupNeed::Unsaid,
                pb::group::Need::All => GroupNeed::All,
                pb::group::Need::Last => GroupNeed::Last(group.last_blocks),
                pb::group::Need::Unclear => GroupNeed::Unclear,
            };
            GroupOutline { number: group.number, need, block_size_tokens: group.block_size_tokens }
        };
        let tiers = || std::iter::once(Tier::Gpu).chain(Tier::OFFLOADED);
        let layer = |layer: &pb::Layer| {
            let tier = tiers().find(|tier| tier.as_str() == layer.tier).ok_or(BadPart("an unknown tier"))?;
            Ok((tier, layer.group))
        };
        Ok(Self {
            block_size_tokens: outline.block_size_tokens,
            lookahead_tokens: outline.lookahead_tokens,
            is_unchained: outline.is_unchained,
            announces_again: outline.announces_again,
            groups: outline.groups.iter().map(group).collect(),
            main_group: outline.main_group,
            layers: outline.layers.iter().map(layer).collect::<Result<_, BadPart>>()?,
        })
    }
}

impl From<BlockRows> for pb::BlockRows {
    fn from(rows: BlockRows) -> Self {
        let layer = |layer: LayerRows| {
            let LayerRows { layer, first, steps, names, more_copies } = layer;
            pb::LayerRows { layer, first, steps, names, more_copies }
        };
        let BlockRows { lengths, parents, keys, layers } = rows;
        Self { lengths, parents, keys, layers: layers.into_iter().map(layer).collect() }
    }
}

impl From<pb::BlockRows> for BlockRows {
    fn from(rows: pb::BlockRows) -> Self {
        let layer = |layer: pb::LayerRows| {
            let pb::LayerRows { layer, first, steps, names, more_copies } = layer;
            LayerRows { layer, first, steps, names, more_copies }
        };
        let pb::BlockRows { lengths, parents, keys, layers } = rows;
        Self { lengths, parents, keys, layers: layers.into_iter().map(layer).collect() }
    }
}

/// A part of the stream.
pub(super) fn part(part: impl Into<pb::part::Part>) -> pb::Part {
    pb::Part { part: Some(part.into()) }
}

impl From<pb::Hello> for pb::part::Part {
    fn from(hello: pb::Hello) -> Self {
        Self::Hello(hello)
    }
}

impl From<pb::EngineBegin> for pb::part::Part {
    fn from(begin: pb::EngineBegin) -> Self {
        Self::EngineBegin(begin)
    }
}

impl From<pb::BlockRows> for pb::part::Part {
    fn from(rows: pb::BlockRows) -> Self {
        Self::BlockRows(rows)
    }
}

impl From<pb::EngineEnd> for pb::part::Part {
    fn from(end: pb::EngineEnd) -> Self {
        Self::EngineEnd(end)
    }
}
