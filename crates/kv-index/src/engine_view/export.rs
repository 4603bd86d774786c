//! A view as a snapshot: each block after those before it, with the engine's names.

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::EngineView;
use crate::BlockKey;
use crate::engine_layer::EngineLayer;
use crate::run::NO_RUN;
use crate::runs::{Place, Runs};
use crate::view_snapshot::{BlockRows, LayerRows, ViewOutline, ViewSnapshot};

impl EngineView {
    /// Everything that is known of the engine, in pieces of about so many bytes on the wire. It takes about 0.1 to 0.3 µs
    /// and 40 bytes per block, and waits for no reader; of the index's locks it holds one run's for as long as its keys are
    /// copied.
    pub fn export(&self, piece_bytes: usize) -> ViewSnapshot {
        let layers: SmallVec<[&EngineLayer; 4]> =
            std::iter::once(&self.main).chain(self.further.iter().map(|further| &further.layer)).collect();
        let mut held = Vec::with_capacity(self.entries());
        for (layer, blocks) in (0..).zip(&layers) {
            held.extend(blocks.names().map(|(name, place)| Held { place: packed(place), layer, name }));
        }
        held.sort_unstable_by_key(|held| (held.place, held.layer));
        let mut rows = RowsWriter {
            runs: &self.index.runs,
            written: HashMap::new(),
            last: None,
            blocks: 0,
            piece: BlockRows::default(),
            piece_bytes,
            bytes: 0,
            pieces: Vec::new(),
            next: SmallVec::new(),
        };
        for held in held {
            // A place is found as long as the block is held.
            let Some(number) = rows.number_of(unpacked(held.place)) else { continue };
            let more_copies =
                layers.get(held.layer as usize).map_or(0, |layer| layer.copies_beyond_first(held.name));
            rows.hold(held.layer, number, held.name, more_copies);
        }
        rows.cut();
        ViewSnapshot { outline: self.outline(), rows: rows.pieces }
    }

    fn outline(&self) -> ViewOutline {
        let (groups, main_group) = self.groups.outline();
        ViewOutline {
            block_size_tokens: self.block_size_tokens,
            lookahead_tokens: self.lookahead_tokens,
            is_unchained: self.is_unchained,
            announces_again: self.announces_again,
            groups,
            main_group,
            layers: self.further.iter().map(|further| (further.tier, further.group)).collect(),
        }
    }
}

/// A block that a layer holds.
struct Held {
    place: u64,
    layer: u32,
    name: u64,
}

fn packed(place: Place) -> u64 {
    u64::from(place.run) << 32 | u64::from(place.position)
}

fn unpacked(place: u64) -> Place {
    Place { run: (place >> 32) as u32, position: place as u32 }
}

/// Which blocks of a run have been written: those at the positions from `start` on.
#[derive(Clone, Copy)]
struct Written {
    start: u32,
    len: u32,
    /// The number of the first one.
    first: u32,
}

impl Written {
    fn number_of(&self, position: u32) -> Option<u32> {
        let at = position.checked_sub(self.start)?;
        (at < self.len).then_some(self.first + at)
    }
}

struct RowsWriter<'r> {
    runs: &'r Runs,
    /// By a run's number. What others do to runs meanwhile cuts them in two and nothing else, as long as the engine holds
    /// something behind or in them.
    written: HashMap<u32, Written>,
    /// The one asked for last.
    last: Option<(u32, Written)>,
    /// Written in all.
    blocks: u32,
    piece: BlockRows,
    piece_bytes: usize,
    bytes: usize,
    pieces: Vec<BlockRows>,
    /// Per layer of this piece, the number after its last block.
    next: SmallVec<[u32; 4]>,
}

impl RowsWriter<'_> {
    /// The number of a block that is held, which is written first, with those before it, if it hasn't been.
    fn number_of(&mut self, place: Place) -> Option<u32> {
        if let Some((run, written)) = self.last
            && run == place.run
            && let Some(number) = written.number_of(place.position)
        {
            return Some(number);
        }
        let mut id = place.run;
        while id != NO_RUN {
            let written = match self.written.get(&id) {
                Some(written) => *written,
                None => {
                    let (start, parent) = self.runs.start_and_parent(id);
                    if place.position < start {
                        id = parent;
                        continue;
                    }
                    self.write(id)?
                }
            };
            if let Some(number) = written.number_of(place.position) {
                self.last = Some((id, written));
                return Some(number);
            }
            id = self.runs.start_and_parent(id).1;
        }
        None
    }

    /// Writes a run after all that come before it.
    fn write(&mut self, id: u32) -> Option<Written> {
        let mut path = Vec::new();
        let mut next = id;
        let mut parent = 0;
        while next != NO_RUN {
            if let Some(written) = self.written.get(&next) {
                // What comes before a run is all of its parent.
                parent = written.first + written.len;
                break;
            }
            let (start, above, keys) = self.runs.copy_of(next);
            path.push((next, start, keys));
            next = above;
        }
        let mut last = None;
        for (id, start, keys) in path.into_iter().rev() {
            let written = Written { start, len: keys.len() as u32, first: self.blocks };
            parent = self.write_row(parent, &keys);
            self.written.insert(id, written);
            last = Some(written);
        }
        last
    }

    /// Returns the number of the last block plus 1.
    fn write_row(&mut self, mut parent: u32, mut keys: &[BlockKey]) -> u32 {
        while !keys.is_empty() {
            let room = (self.piece_bytes.saturating_sub(self.bytes) / 8).max(1).min(keys.len());
            let (now, rest) = keys.split_at(room);
            self.piece.lengths.push(now.len() as u32);
            self.piece.parents.push(parent);
            self.piece.keys.extend(now.iter().map(|key| key.0));
            self.blocks += now.len() as u32;
            parent = self.blocks;
            keys = rest;
            self.count(8 * now.len() + 6);
        }
        parent
    }

    fn hold(&mut self, layer: u32, number: u32, name: u64, more_copies: u32) {
        let at = match self.piece.layers.iter().position(|rows| rows.layer == layer) {
            Some(at) => at,
            None => {
                self.piece.layers.push(LayerRows { layer, first: number, ..LayerRows::default() });
                self.next.push(number);
                self.piece.layers.len() - 1
            }
        };
        let (rows, next) = (&mut self.piece.layers[at], &mut self.next[at]);
        let step = i64::from(number) - i64::from(*next);
        if !rows.names.is_empty() && (step != 0 || !rows.steps.is_empty()) {
            rows.steps.resize(rows.names.len() - 1, 0);
            rows.steps.push(step as i32);
        }
        if more_copies > 0 || !rows.more_copies.is_empty() {
            rows.more_copies.resize(rows.names.len(), 0);
            rows.more_copies.push(more_copies);
        }
        rows.names.push(name);
        *next = number + 1;
        let bytes = 8 + usize::from(!rows.steps.is_empty()) + usize::from(!rows.more_copies.is_empty());
        self.count(bytes);
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= self.piece_bytes {
            self.cut();
        }
    }

    /// Ends the piece.
    fn cut(&mut self) {
        let piece = std::mem::take(&mut self.piece);
        self.bytes = 0;
        self.next.clear();
        if !piece.keys.is_empty() || !piece.layers.is_empty() {
            self.pieces.push(piece);
        }
    }
}
