//! Taking in a snapshot: as if the blocks had been stored, and those that nobody holds removed again.

use warmroute_kv_events::ExtraKey;

use super::EngineView;
use crate::block_keys::{Adapter, KeyBuffer, KeyChain, chain_seed};
use crate::kv_groups::KvGroups;
use crate::runs::Place;
use crate::view_snapshot::{BlockRows, ImportError, LayerRows, ViewOutline};
use crate::{BlockKey, Tier};

/// A snapshot that is being taken in.
#[derive(Default)]
pub(crate) struct Import {
    /// Where each block is. The main layer holds all of them until the end, so that they stay found.
    places: Vec<Place>,
    /// One bit per block: whether the main layer is to hold it.
    is_held: Vec<u64>,
    /// Where the layers of the snapshot are here; the main one isn't among them.
    layers: Vec<usize>,
}

impl Import {
    fn is_held(&self, number: usize) -> bool {
        self.is_held.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn hold(&mut self, number: usize) {
        if let Some(word) = self.is_held.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// The places that nobody holds, in the order in which they are given back at the least cost.
    pub(crate) fn borrowed(&self) -> Vec<Place> {
        let numbers = (0..self.places.len()).rev();
        numbers.filter(|number| !self.is_held(*number)).map(|number| self.places[number]).collect()
    }
}

fn malformed(what: &'static str) -> ImportError {
    ImportError::Malformed { what }
}

impl EngineView {
    /// Begins to take in what another index knows of the engine. Readers see nothing of it until [`Self::end_import`].
    ///
    /// # Errors
    /// Something is known of the engine already, or the outline is malformed.
    pub fn begin_import(&mut self, outline: &ViewOutline) -> Result<(), ImportError> {
        if self.importing.is_some() || self.entries() > 0 || !self.groups.is_empty() {
            return Err(ImportError::NotEmpty);
        }
        self.index.slots.hide(self.slot());
        self.importing = Some(Box::default());
        match self.restore(outline) {
            Ok(layers) => {
                self.importing = Some(Box::new(Import { layers, ..Import::default() }));
                Ok(())
            }
            Err(error) => {
                self.abandon_import();
                Err(error)
            }
        }
    }

    /// Says where the layers of the snapshot are here.
    fn restore(&mut self, outline: &ViewOutline) -> Result<Vec<usize>, ImportError> {
        let groups = KvGroups::restored(&outline.groups, outline.main_group);
        self.groups =
            groups.ok_or_else(|| malformed("there is no such main group, or there are too many"))?;
        self.take_layers_of_groups();
        let mut layers = Vec::new();
        for (tier, group) in &outline.layers {
            if *tier == Tier::Gpu && self.is_main(*group) {
                return Err(malformed("the main layer is named as another one"));
            }
            let at = self.layer(*tier, *group).ok_or(ImportError::IndexFull)?;
            if layers.contains(&at) {
                return Err(malformed("a layer is named twice"));
            }
            layers.push(at);
        }
        self.block_size_tokens = outline.block_size_tokens;
        self.lookahead_tokens = outline.lookahead_tokens;
        self.index.slots.set_block_size(self.slot(), outline.block_size_tokens);
        self.index.slots.set_lookahead(self.slot(), outline.lookahead_tokens);
        self.is_unchained = outline.is_unchained;
        self.announces_again = outline.announces_again;
        Ok(layers)
    }

    /// Takes in some blocks.
    ///
    /// # Errors
    /// There is no room, or the rows are malformed; the import is over then.
    pub fn import(&mut self, rows: &BlockRows) -> Result<(), ImportError> {
        let Some(mut import) = self.importing.take() else { return Err(malformed("no import has begun")) };
        let mut outcome = self.import_keys(&mut import, rows);
        for layer in &rows.layers {
            if outcome.is_ok() {
                outcome = self.import_layer(&mut import, layer);
            }
        }
        self.importing = Some(import);
        if outcome.is_err() {
            self.abandon_import();
        }
        outcome
    }

    /// Shows readers what was taken in; all of it has to be there.
    pub fn end_import(&mut self) {
        self.give_back_borrowed();
        if self.importing.take().is_some() {
            self.index.slots.show(self.slot());
        }
    }

    /// Forgets what was taken in, and that there was anything.
    pub fn abandon_import(&mut self) {
        if self.importing.is_some() {
            self.clear();
        }
    }

    /// Takes the main layer out of the blocks that it held only for their places.
    pub(super) fn give_back_borrowed(&mut self) {
        if let Some(import) = &mut self.importing {
            let borrowed = import.borrowed();
            import.places.clear();
            self.index.runs.release_all(&borrowed, self.main.slot().index);
        }
    }

    fn import_keys(&mut self, import: &mut Import, rows: &BlockRows) -> Result<(), ImportError> {
        if rows.lengths.len() != rows.parents.len() {
            return Err(malformed("as many rows as parents are needed"));
        }
        let mut keys = rows.keys.as_slice();
        for (length, parent) in rows.lengths.iter().zip(&rows.parents) {
            let Some((now, rest)) = keys.split_at_checked(*length as usize) else {
                return Err(malformed("rows are longer than their keys"));
            };
            let parent = match parent.checked_sub(1) {
                None => None,
                Some(number) => {
                    let place = import.places.get(number as usize).copied();
                    Some(place.ok_or_else(|| malformed("a row comes before its parent"))?)
                }
            };
            let now: Vec<BlockKey> = now.iter().map(|key| BlockKey(*key)).collect();
            let (mut is_new, places) = (true, &mut import.places);
            self.index.runs.hold(parent, &now, self.main.slot().index, |place, is_new_here| {
                is_new &= is_new_here;
                places.push(place);
            });
            if !is_new {
                return Err(malformed("a block comes twice"));
            }
            keys = rest;
        }
        if !keys.is_empty() {
            return Err(malformed("keys are left that are of no row"));
        }
        import.is_held.resize(import.places.len().div_ceil(64), 0);
        Ok(())
    }

    fn import_layer(&mut self, import: &mut Import, rows: &LayerRows) -> Result<(), ImportError> {
        let at = match rows.layer.checked_sub(1) {
            None => None,
            Some(layer) => {
                let at = import.layers.get(layer as usize).copied();
                Some(at.ok_or_else(|| malformed("a layer isn't in the outline"))?)
            }
        };
        let mut next = i64::from(rows.first);
        for (position, name) in rows.names.iter().enumerate() {
            if let Some(step) = position.checked_sub(1).and_then(|before| rows.steps.get(before)) {
                next += i64::from(*step);
            }
            let number = usize::try_from(next).map_err(|_| malformed("a block has a negative number"))?;
            let place = import.places.get(number).copied();
            let place = place.ok_or_else(|| malformed("a name comes before its block"))?;
            let more_copies = rows.more_copies.get(position).copied().unwrap_or(0);
            match at {
                None => {
                    self.main.take_name(*name, place, import.is_held(number), more_copies)?;
                    import.hold(number);
                }
                Some(at) => {
                    let further = self.further.get_mut(at).ok_or_else(|| malformed("a layer is gone"))?;
                    further.layer.take_joined_name(*name, place, more_copies)?;
                }
            }
            next += 1;
        }
        Ok(())
    }
}

/// What keys of blocks come to: two indexes whose keys are made in different ways have different numbers. For whoever
/// passes snapshots on.
pub fn key_check() -> u64 {
    let seed = chain_seed(4, Adapter::Name("adapter"), Some("salt"));
    let mut chain = KeyChain::after(seed);
    let mut buffer = KeyBuffer::EMPTY;
    let extras = [
        ExtraKey::Text("text".into()),
        ExtraKey::Int(-7),
        ExtraKey::Bytes(vec![1, 2, 3].into()),
        ExtraKey::Media { id: "media".into(), offset_tokens: -5 },
        ExtraKey::Other(vec![4, 5].into()),
    ];
    let number = chain_seed(16, Adapter::Number(3), None);
    chain.next_block(&mut buffer, &[number.0 as u32, 1, 2, 3], extras.iter());
    chain.next_block(&mut buffer, &[4, 5, 6, u32::MAX], std::iter::empty()).0
}
