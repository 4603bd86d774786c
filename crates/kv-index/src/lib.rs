//! Block keys and the concurrent prefix index.
//!
//! The index knows, for every engine, which KV blocks it announced and has not withdrawn. Blocks go by our own
//! [`BlockKey`], a hash chain over token ids and whatever else decides a block's content, so that it matters neither
//! how an engine hashes nor with which seed. Engines' own hashes are opaque names that each [`EngineView`] maps to
//! our keys.
//!
//! - The write side: one [`EngineView`] per engine, owned by whoever reads that engine's events.
//! - The read side: [`block_keys`] of a prompt, then [`KvIndex::lookup`] for all engines at once.
//! - Between pick and event: [`KvIndex::expect`].
//! - From one index to another: [`EngineView::export`].
//! - Where there are no events: [`ApproximateIndex`], which knows what was sent to an endpoint.

mod announcements;
mod applied;
mod approximate_index;
mod block_extras;
mod block_keys;
mod block_names;
mod engine_layer;
mod engine_view;
mod expectation;
mod expected_chains;
mod holders;
mod key_counts;
mod kv_groups;
mod kv_index;
mod layered_lookup;
mod layers;
mod lookup;
mod part;
mod run;
mod runs;
mod sent_order;
mod slots;
mod spans;
mod unchained_hash;
mod view_snapshot;
pub mod vllm_hash;

pub use applied::Applied;
pub use approximate_index::{ApproximateExtras, ApproximateIndex, SentBlocks, approximate_keys};
pub use block_keys::{BlockKey, KeyExtras, block_keys, predicted_cached_tokens};
pub use engine_view::{EngineView, key_check};
pub use expectation::Expectation;
pub use kv_index::{IndexError, IndexLimits, IndexStats, KvIndex};
pub use layered_lookup::OffloadedBlocks;
pub use layers::Tier;
pub use lookup::{LookupScratch, Match};
pub use slots::EngineSlot;
pub use view_snapshot::{
    BlockRows, GroupNeed, GroupOutline, ImportError, LayerRows, ViewOutline, ViewSnapshot,
};
