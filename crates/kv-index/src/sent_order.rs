use hashbrown::HashTable;

use crate::BlockKey;
use crate::runs::Place;

/// The blocks of one endpoint in the order in which they were last sent: a doubly linked list in a vector, found by
/// key. About 30 bytes per block.
///
/// Of our own, and without a pointer: of the crates there are, `lru` had two soundness advisories in 2026.
pub(crate) struct SentOrder {
    nodes: Vec<Node>,
    /// Where in `nodes` keys are.
    found: HashTable<u32>,
    newest: u32,
    oldest: u32,
    /// Unused places in `nodes`.
    free: Vec<u32>,
}

struct Node {
    key: BlockKey,
    place: Place,
    newer: u32,
    older: u32,
}

/// In place of a node's number: none.
const NONE: u32 = u32::MAX;

impl Default for SentOrder {
    fn default() -> Self {
        Self { nodes: Vec::new(), found: HashTable::new(), newest: NONE, oldest: NONE, free: Vec::new() }
    }
}

impl SentOrder {
    /// Blocks.
    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    pub(crate) fn contains(&self, key: BlockKey) -> bool {
        self.find(key).is_some()
    }

    /// Makes a block the newest, if it is there.
    pub(crate) fn touch(&mut self, key: BlockKey) {
        if let Some(at) = self.find(key).filter(|at| self.newest != *at) {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    /// Adds a block that isn't there, as the newest; `place` is where the index has it.
    pub(crate) fn push(&mut self, key: BlockKey, place: Place) {
        let node = Node { key, place, newer: NONE, older: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let Self { nodes, found, .. } = self;
        found.insert_unique(key.0, at, |at| nodes[*at as usize].key.0);
        self.link_newest(at);
    }

    /// Takes the oldest block out; returns where the index has it.
    pub(crate) fn pop_oldest(&mut self) -> Option<Place> {
        let at = self.oldest;
        let Node { key, place, .. } = *self.nodes.get(at as usize)?;
        self.unlink(at);
        if let Ok(found) = self.found.find_entry(key.0, |other| *other == at) {
            found.remove();
        }
        self.free.push(at);
        Some(place)
    }

    /// Where the index has the blocks.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.found.iter().map(|at| self.nodes[*at as usize].place)
    }

    fn find(&self, key: BlockKey) -> Option<u32> {
        self.found.find(key.0, |at| self.nodes[*at as usize].key == key).copied()
    }

    fn link_newest(&mut self, at: u32) {
        let before = std::mem::replace(&mut self.newest, at);
        let node = &mut self.nodes[at as usize];
        (node.newer, node.older) = (NONE, before);
        match self.nodes.get_mut(before as usize) {
            Some(before) => before.newer = at,
            None => self.oldest = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Node { newer, older, .. } = self.nodes[at as usize];
        match self.nodes.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SentOrder;
    use crate::BlockKey;
    use crate::runs::Place;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    proptest! {
        /// Against a vector with the oldest first. Few keys, so that all is touched often; `% 4` decides what is done.
        #[test]
        fn it_keeps_the_order_of_a_list(steps in proptest::collection::vec((0..12_u64, any::<u8>()), 0..200)) {
            let (mut order, mut model) = (SentOrder::default(), Vec::new());
            for (key, what) in steps {
                let place = Place { run: key as u32, position: 7 };
                if what % 4 == 0 {
                    let oldest = (!model.is_empty()).then(|| model.remove(0));
                    prop_assert_eq!(order.pop_oldest(), oldest);
                } else {
                    let held = model.iter().position(|other| *other == place);
                    prop_assert_eq!(order.contains(BlockKey(key)), held.is_some());
                    match held {
                        Some(at) => {
                            model.remove(at);
                            order.touch(BlockKey(key));
                        }
                        None => order.push(BlockKey(key), place),
                    }
                    model.push(place);
                }
                prop_assert_eq!(order.places().count(), model.len());
                prop_assert_eq!(order.len(), model.len());
            }
            while let Some(place) = order.pop_oldest() {
                prop_assert_eq!(place, model.remove(0));
            }
            prop_assert_eq!(model.len(), 0);
        }
    }
}
