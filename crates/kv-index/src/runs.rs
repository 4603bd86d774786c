use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use smallvec::SmallVec;

use crate::BlockKey;
use crate::key_counts::KeyCounts;
use crate::lookup::common_blocks;
use crate::run::{NO_RUN, Run};

/// Where a block is. Stays found as long as the slot that was given it holds the block, however runs are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) run: u32,
    pub(crate) position: u32,
}

/// All blocks that any slot holds, as runs of successive blocks: a radix tree with long edges, whose branches are found
/// by the key of their first block, since a key stands for all that comes before its block.
///
/// A run's lock is taken before those of its children and before that of a part of the heads, and no other two at a
/// time, but for runs that nobody can reach yet.
pub(crate) struct Runs {
    /// By the key of its first block, the number of each run.
    heads: Box<[CachePadded<Heads>]>,
    /// The first keys of the runs that begin a prompt: most prompts of which nobody holds anything end here.
    roots: KeyCounts,
    /// Four chunks are as large as each other, the next four twice as large, so that a run's number says where it is.
    chunks: Box<[OnceLock<Chunk>]>,
    // What writers write all the time doesn't lie beside what readers read.
    free: CachePadded<Mutex<FreeRuns>>,
    keys: CachePadded<AtomicUsize>,
}

#[derive(Default)]
struct FreeRuns {
    returned: Vec<u32>,
    next_unused: u32,
}

/// Keys of the blocks of a run.
pub(crate) type RunKeys = SmallVec<[BlockKey; 2]>;
type Heads = RwLock<HashMap<BlockKey, u32>>;
type Chunk = Box<[RwLock<Run>]>;
type Locked<'r> = RwLockWriteGuard<'r, Run>;

/// A power of two.
const HEAD_SHARDS: usize = 64;
/// 256 KiB.
const ROOT_COUNTS: usize = 1 << 16;
/// Runs of the first four chunks.
const FIRST_RUNS: u32 = 1 << 10;
/// Enough for all numbers.
const CHUNKS: usize = 4 * 23;
/// How often a reader looks for a run that is being split or replaced before it takes it for gone.
const TRIES: usize = 8;

impl Runs {
    pub(crate) fn new() -> Self {
        Self {
            heads: (0..HEAD_SHARDS).map(|_| CachePadded::default()).collect(),
            roots: KeyCounts::new(ROOT_COUNTS),
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            free: CachePadded::default(),
            keys: CachePadded::default(),
        }
    }

    /// Blocks in all runs.
    pub(crate) fn keys(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// Whether anybody may hold the first block of a prompt. False is certain, and takes no lock.
    pub(crate) fn may_begin_with(&self, first: BlockKey) -> bool {
        self.roots.may_contain(first)
    }

    /// The run that begins with the block, locked for reading.
    pub(crate) fn beginning_with(&self, key: BlockKey) -> Option<RwLockReadGuard<'_, Run>> {
        for _ in 0..TRIES {
            let id = self.head(key)?;
            let run = self.run(id).read();
            if run.begins_with(key) {
                return Some(run);
            }
            // It was split or freed in between.
        }
        None
    }

    /// The key of a block that is held.
    pub(crate) fn key_at(&self, place: Place) -> Option<BlockKey> {
        let mut id = place.run;
        while id != NO_RUN {
            let run = self.run(id).read();
            match place.position.checked_sub(run.start) {
                Some(at) => return run.keys.get(at as usize).copied(),
                None => id = run.parent,
            }
        }
        None
    }

    /// Where a run's positions begin, and the run that comes before it.
    pub(crate) fn start_and_parent(&self, id: u32) -> (u32, u32) {
        let run = self.run(id).read();
        (run.start, run.parent)
    }

    /// The same, and all of its blocks.
    pub(crate) fn copy_of(&self, id: u32) -> (u32, u32, RunKeys) {
        let run = self.run(id).read();
        (run.start, run.parent, run.keys.clone())
    }

    /// Notes that the slot holds successive blocks, the first of which comes after `parent`, which the slot holds too,
    /// or is the first of a prompt. Says of each in turn where it is, and whether it is new that the slot holds it.
    pub(crate) fn hold(
        &self,
        parent: Option<Place>,
        keys: &[BlockKey],
        slot: u32,
        mut held: impl FnMut(Place, bool),
    ) {
        let Some(first) = keys.first() else { return };
        let (mut id, mut run, mut at, mut keys) = match parent {
            Some(place) => {
                let (id, run, at) = self.locked(place);
                (id, run, at + 1, keys)
            }
            None => {
                let (id, run, is_new) = self.enter(*first, None, slot);
                held(Place { run: id, position: run.start }, is_new);
                (id, run, 1, &keys[1..])
            }
        };
        loop {
            (at, keys) = self.walk(id, &mut run, at, keys, slot, &mut held);
            let [key, rest @ ..] = keys else { return };
            if at < run.len() {
                (id, run) = self.split(id, run, at);
            }
            if run.begins_with(*key) {
                // It goes round, which takes two blocks with one key; this run is locked already.
                let is_new = !run.holds(slot, 0);
                run.insert(slot, 0, 1);
                held(Place { run: id, position: run.start }, is_new);
                (at, keys) = (1, rest);
                continue;
            }
            // The rest takes long, and every look-up of a prompt that many share comes through here.
            let parent = RwLockWriteGuard::downgrade_to_upgradable(run);
            let (child, child_run, is_new) = self.enter(*key, Some((id, &parent)), slot);
            drop(parent);
            held(Place { run: child, position: child_run.start }, is_new);
            (id, run, at, keys) = (child, child_run, 1, rest);
        }
    }

    /// Notes the blocks that are in the run or can be added at its end. Returns where that ended, and the keys that are
    /// left.
    fn walk<'k>(
        &self,
        id: u32,
        run: &mut Run,
        at: usize,
        keys: &'k [BlockKey],
        slot: u32,
        held: &mut impl FnMut(Place, bool),
    ) -> (usize, &'k [BlockKey]) {
        let start = run.start;
        let place = |at: usize| Place { run: id, position: start + at as u32 };
        let alike = common_blocks(run.keys.get(at..).unwrap_or_default(), keys, 0);
        let end = at + alike;
        if run.full().contains(slot) {
            (at..end).for_each(|at| held(place(at), false));
        } else {
            let part = run.part(slot);
            (at..end).for_each(|at| held(place(at), part.is_none_or(|part| !part.holds(at))));
        }
        run.insert(slot, at, end);
        let left = &keys[alike..];
        if left.is_empty() || end < run.len() || !run.takes_more_of(slot) {
            return (end, left);
        }
        run.extend(slot, left);
        self.keys.fetch_add(left.len(), Ordering::Relaxed);
        let after = end + left.len();
        (end..after).for_each(|at| held(place(at), true));
        (after, &[])
    }

    /// Notes that the slot holds the first block of a run, which is made if there is none.
    fn enter(&self, key: BlockKey, parent: Option<(u32, &Run)>, slot: u32) -> (u32, Locked<'_>, bool) {
        loop {
            // Readers wait for whoever writes to the heads, so that is done for new ones only, and last.
            if let Some(id) = self.head(key) {
                let mut run = self.run(id).write();
                if run.begins_with(key) {
                    let is_new = !run.holds(slot, 0);
                    run.insert(slot, 0, 1);
                    return (id, run, is_new);
                }
                // It was split or freed in between.
                continue;
            }
            let id = self.take();
            let mut run = self.run(id).write();
            let parent_id = parent.map_or(NO_RUN, |(parent, _)| parent);
            *run = Run::new(key, parent_id, slot);
            if parent.is_none() {
                self.roots.add(key);
            }
            if let Entry::Vacant(head) = self.head_shard(key).write().entry(key) {
                head.insert(id);
            } else {
                if parent.is_none() {
                    self.roots.remove(key);
                }
                *run = Run::default();
                drop(run);
                self.give_back(id, Vec::new());
                continue;
            }
            if let Some((_, parent)) = parent {
                parent.children.fetch_add(1, Ordering::Relaxed);
            }
            self.keys.fetch_add(1, Ordering::Relaxed);
            return (id, run, true);
        }
    }

    /// Makes the blocks before `at` a run of their own, and returns that one.
    fn split<'r>(&'r self, id: u32, mut run: Locked<'r>, at: usize) -> (u32, Locked<'r>) {
        let front = run.split(at);
        let front_id = self.take();
        let mut front_run = self.run(front_id).write();
        *front_run = front;
        run.parent = front_id;
        for (head, head_id) in [(front_run.keys.first(), front_id), (run.keys.first(), id)] {
            if let Some(key) = head {
                self.head_shard(*key).write().insert(*key, head_id);
            }
        }
        (front_id, front_run)
    }

    /// Notes that the slot holds a block that another one holds, or this one already. Says where it is, and whether that
    /// is new.
    pub(crate) fn join(&self, place: Place, slot: u32) -> (Place, bool) {
        let (id, mut run, at) = self.locked(place);
        let is_new = !run.holds(slot, at);
        run.insert(slot, at, at + 1);
        (Place { run: id, position: place.position }, is_new)
    }

    /// Notes that the slot doesn't hold a block any more that it held. Returns the block's key.
    pub(crate) fn release(&self, place: Place, slot: u32) -> Option<BlockKey> {
        let (id, mut run, at) = self.locked(place);
        let (key, before) = (run.keys.get(at).copied(), run.len());
        run.remove(slot, at, at + 1);
        self.keys.fetch_sub(before - run.len(), Ordering::Relaxed);
        self.tidy(id, run);
        key
    }

    /// Notes that the slot doesn't hold blocks any more that it held. Cheapest from the last to the first.
    pub(crate) fn release_all(&self, places: &[Place], slot: u32) {
        let mut rest = places;
        while let [first, others @ ..] = rest {
            let before = |(last, place): (u32, &Place)| {
                place.run == first.run && place.position + last == first.position
            };
            let row = (1..).zip(others).take_while(|(last, place)| before((*last, place))).count();
            let (id, mut run, at) = self.locked(*first);
            let from = at.saturating_sub(row);
            let blocks = run.len();
            run.remove(slot, from, at + 1);
            self.keys.fetch_sub(blocks - run.len(), Ordering::Relaxed);
            self.tidy(id, run);
            rest = &others[at - from..];
        }
    }

    /// Takes the slot out of the run where a block is or was that it held. For a slot that is to hold nothing.
    pub(crate) fn release_run(&self, place: Place, slot: u32) {
        let mut id = place.run;
        while id != NO_RUN {
            let mut run = self.run(id).write();
            if place.position < run.start {
                id = run.parent;
                continue;
            }
            let before = run.len();
            // If it was none, the run may have passed to others.
            if run.remove_holder(slot) {
                self.keys.fetch_sub(before - run.len(), Ordering::Relaxed);
                self.tidy(id, run);
            }
            return;
        }
    }

    /// Frees the run if nobody holds anything of it and nothing goes on from it, and so on upwards.
    fn tidy<'r>(&'r self, mut id: u32, mut run: Locked<'r>) {
        while !run.is_held() && run.is_last() {
            if let Some(key) = run.keys.first() {
                self.head_shard(*key).write().remove(key);
                if run.parent == NO_RUN {
                    self.roots.remove(*key);
                }
                self.keys.fetch_sub(run.len(), Ordering::Relaxed);
            }
            let (parent, cut_off) = (run.parent, run.start > 0);
            if cut_off {
                // Positions in what was cut off may still be looked for here.
                run.keys = SmallVec::new();
                drop(run);
            } else {
                let empty_children = std::mem::take(&mut *run).empty_children;
                drop(run);
                self.give_back(id, empty_children.into_vec());
            }
            if parent == NO_RUN {
                return;
            }
            let mut above = self.run(parent).write();
            if cut_off {
                above.empty_children.push(id);
            } else {
                *above.children.get_mut() -= 1;
            }
            let before = above.len();
            above.drop_end();
            self.keys.fetch_sub(before - above.len(), Ordering::Relaxed);
            (id, run) = (parent, above);
        }
    }

    /// Where a block is now that the slot holds, locked: the run and the block's index in it.
    fn locked(&self, place: Place) -> (u32, Locked<'_>, usize) {
        let mut id = place.run;
        loop {
            let run = self.run(id).write();
            match place.position.checked_sub(run.start) {
                Some(at) => return (id, run, at as usize),
                None => id = run.parent,
            }
        }
    }

    /// The number of the run that begins with the block, for now.
    fn head(&self, key: BlockKey) -> Option<u32> {
        self.head_shard(key).read().get(&key).copied()
    }

    fn head_shard(&self, key: BlockKey) -> &Heads {
        // Bits that the maps inside hash anyway; any will do.
        &self.heads[(key.0 >> 32) as usize % HEAD_SHARDS]
    }

    fn run(&self, id: u32) -> &RwLock<Run> {
        let numbered = u64::from(id) + u64::from(FIRST_RUNS);
        let octave = numbered.ilog2();
        let size = 1_u64 << (octave - 2);
        let quarter = numbered / size - 4;
        let chunk = 4 * (octave - FIRST_RUNS.ilog2()) as usize + quarter as usize;
        let runs = self.chunks[chunk].get_or_init(|| (0..size).map(|_| RwLock::default()).collect());
        &runs[(numbered % size) as usize]
    }

    /// The number of a free run.
    fn take(&self) -> u32 {
        let mut free = self.free.lock();
        free.returned.pop().unwrap_or_else(|| {
            free.next_unused += 1;
            free.next_unused - 1
        })
    }

    /// Allows a run to be used again that is free, and the empty ones that were kept because of it.
    fn give_back(&self, id: u32, empty: Vec<u32>) {
        let mut rest = empty;
        while let Some(next) = rest.pop() {
            let freed = std::mem::take(&mut *self.run(next).write());
            rest.extend(freed.empty_children.into_vec());
            self.free.lock().returned.push(next);
        }
        self.free.lock().returned.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_comes_after_itself_locks_nobody_out() {
        let runs = Runs::new();
        let hold = |parent: Option<Place>, keys: &[u64]| {
            let keys: Vec<BlockKey> = keys.iter().copied().map(BlockKey).collect();
            let mut held = Vec::new();
            runs.hold(parent, &keys, 0, |place, is_new| held.push((place, is_new)));
            held
        };
        let mut places: Vec<Place> = hold(None, &[1, 2, 3]).into_iter().map(|(place, _)| place).collect();
        // What goes on in two ways isn't just made longer.
        places.push(hold(None, &[1, 2, 4])[2].0);
        let again: Vec<bool> = hold(Some(places[1]), &[1, 2]).into_iter().map(|(_, is_new)| is_new).collect();
        assert_eq!(again, [false, false]);
        for place in places.into_iter().rev() {
            runs.release(place, 0);
        }
        assert_eq!(runs.keys(), 0);
    }

    #[test]
    fn what_nobody_holds_any_more_is_known_to_be_gone_without_a_lock() {
        let (runs, keys) = (Runs::new(), (1..=6).map(BlockKey).collect::<Vec<_>>());
        let mut places: Vec<(u32, Place)> = Vec::new();
        // The second is split off the first, from another first block on.
        for (slot, keys) in [(0, keys.clone()), (1, [&keys[..3], &[BlockKey(7)]].concat())] {
            runs.hold(None, &keys, slot, |place, _| places.push((slot, place)));
            assert!(runs.may_begin_with(BlockKey(1)));
        }
        assert!(
            !runs.may_begin_with(BlockKey(4)) && !runs.may_begin_with(BlockKey(7)),
            "no prompt begins there"
        );
        for (slot, place) in places.into_iter().rev() {
            assert!(runs.may_begin_with(BlockKey(1)));
            runs.release(place, slot);
        }
        assert!(!runs.may_begin_with(BlockKey(1)));
        assert_eq!(runs.keys(), 0);
    }
}
