//! What engines announce: sequences in groups, each with its holders.

use std::collections::{HashSet, VecDeque};

use crate::wire::{WireEvent, payload};

/// Tokens of a block.
pub const BLOCK_SIZE_TOKENS: usize = crate::wire::BLOCK_SIZE_TOKENS as usize;
/// Leading blocks that every sequence of [`Shape::Long`] shares and every engine holds, like a system prompt.
const PROMPT_BLOCKS: usize = 32;
/// Lengths of the sequences of [`Shape::Long`], each with a third of the entries.
pub const LENGTHS_BLOCKS: [usize; 3] = [64, 512, 4096];
/// Sequences of a group: in [`Shape::Long`] they share half of what comes after the prompt.
const GROUP_SEQUENCES: usize = 8;

/// Numbers that look random and are the same in every run (SplitMix64).
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.draw() % (high - low + 1) as u64) as usize
    }
}

/// A block by its number, which stands for it and for all that comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block(pub u64);

impl Block {
    /// The engine's hash of it.
    pub fn engine_hash(self) -> u64 {
        Numbers(self.0).draw()
    }

    /// Its tokens.
    pub fn tokens(self) -> impl Iterator<Item = u32> {
        let mut numbers = Numbers(self.0 ^ 0x5851_f42d_4c95_7f2d);
        (0..BLOCK_SIZE_TOKENS).map(move |_| (numbers.draw() % 150_000) as u32)
    }
}

/// The tokens of successive blocks.
pub fn tokens(blocks: &[Block]) -> Vec<u32> {
    blocks.iter().flat_map(|block| block.tokens()).collect()
}

/// What one engine says in one event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Who says it.
    pub engine: usize,
    /// What it says.
    pub what: What,
}

/// What an event says.
#[derive(Debug, Clone)]
pub enum What {
    /// Successive blocks are there, after `parent`.
    Stored {
        /// The block before the first.
        parent: Option<Block>,
        /// The blocks.
        blocks: Vec<Block>,
    },
    /// Blocks are gone, last first.
    Removed(Vec<Block>),
}

/// One batch with one event that stores blocks, as it stands on the wire; `None` for other events.
///
/// # Errors
/// It can't be encoded.
pub fn stored_payload(event: &Event) -> anyhow::Result<Option<Vec<u8>>> {
    let What::Stored { parent, blocks } = &event.what else { return Ok(None) };
    let hashes = blocks.iter().map(|block| block.engine_hash()).collect();
    payload(vec![WireEvent::stored(hashes, parent.map(Block::engine_hash), tokens(blocks))]).map(Some)
}

/// The events in the order of an engine each, the engines taking turns.
pub fn interleaved(events: Vec<Event>) -> Vec<Event> {
    let mut queues: Vec<VecDeque<Event>> = Vec::new();
    for event in events {
        if queues.len() <= event.engine {
            queues.resize_with(event.engine + 1, VecDeque::new);
        }
        queues[event.engine].push_back(event);
    }
    let mut all = Vec::new();
    while !queues.is_empty() {
        all.extend(queues.iter_mut().filter_map(VecDeque::pop_front));
        queues.retain(|queue| !queue.is_empty());
    }
    all
}

/// What sequences look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 64, 512 and 4,096 blocks, the first 32 on every engine, half of the rest shared by 8, 1 to 4 holders.
    Long,
    /// 4 to 16 blocks, branching every 1 to 4, up to 16 holders.
    Branching,
}

/// Successive blocks that one engine comes to hold at once.
#[derive(Debug, Clone)]
pub struct Chain {
    engine: usize,
    parent: Option<Block>,
    blocks: Vec<Block>,
    /// Blocks before the first one, so that what goes on from a chain has more.
    depth: usize,
}

/// Sequences that share blocks, and who holds them.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// The sequences, whole.
    pub sequences: Vec<Vec<Block>>,
    chains: Vec<Chain>,
}

impl Group {
    /// Several groups as one.
    pub fn of(groups: impl Iterator<Item = Self>) -> Self {
        groups.fold(Self::default(), |mut all, group| {
            all.sequences.extend(group.sequences);
            all.chains.extend(group.chains);
            all
        })
    }

    /// (Block, engine) pairs.
    pub fn entries(&self) -> usize {
        self.chains.iter().map(|chain| chain.blocks.len()).sum()
    }

    /// Stores of everything, so many blocks at a time.
    pub fn stores(&self, event_blocks: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for chain in &self.chains {
            let mut parent = chain.parent;
            for blocks in chain.blocks.chunks(event_blocks) {
                let what = What::Stored { parent, blocks: blocks.to_vec() };
                events.push(Event { engine: chain.engine, what });
                parent = blocks.last().copied();
            }
        }
        events
    }

    /// Removals of everything, so many blocks at a time, the last of each chain first and no block before what goes on
    /// from it.
    pub fn removals(&self, event_blocks: usize) -> Vec<Event> {
        let mut chains: Vec<&Chain> = self.chains.iter().collect();
        chains.sort_by_key(|chain| std::cmp::Reverse(chain.depth));
        let mut events = Vec::new();
        for chain in chains {
            let reversed: Vec<Block> = chain.blocks.iter().rev().copied().collect();
            for blocks in reversed.chunks(event_blocks) {
                events.push(Event { engine: chain.engine, what: What::Removed(blocks.to_vec()) });
            }
        }
        events
    }

    /// Says that an engine holds a sequence: whatever of it it doesn't hold yet.
    fn hold(
        &mut self,
        engine: usize,
        sequence: &[Block],
        cut_blocks: usize,
        held: &mut HashSet<(usize, Block)>,
    ) {
        let first = sequence.iter().position(|block| !held.contains(&(engine, *block)));
        let Some(first) = first else { return };
        held.extend(sequence[first..].iter().map(|block| (engine, *block)));
        // Cut where others of the group may go on, so that chains can be removed apart from each other.
        for (from, to) in [(first, cut_blocks.max(first)), (cut_blocks.max(first), sequence.len())] {
            if from < to {
                let parent = from.checked_sub(1).map(|before| sequence[before]);
                self.chains.push(Chain { engine, parent, blocks: sequence[from..to].to_vec(), depth: from });
            }
        }
    }
}

/// Makes groups, one after the other, without end and without a block twice.
pub struct Workload {
    shape: Shape,
    engines: usize,
    numbers: Numbers,
    next_block: u64,
    prompt: Vec<Block>,
}

impl Workload {
    /// For so many engines.
    pub fn new(shape: Shape, engines: usize) -> Self {
        let mut workload = Self { shape, engines, numbers: Numbers(7), next_block: 1, prompt: Vec::new() };
        if shape == Shape::Long {
            workload.prompt = workload.new_blocks(PROMPT_BLOCKS);
        }
        workload
    }

    /// What every engine holds.
    pub fn prompt(&self) -> Group {
        let chain = |engine| Chain { engine, parent: None, blocks: self.prompt.clone(), depth: 0 };
        let engines = if self.prompt.is_empty() { 0 } else { self.engines };
        Group { sequences: Vec::new(), chains: (0..engines).map(chain).collect() }
    }

    /// The next group; sequences of [`Shape::Long`] have `length_blocks`.
    pub fn group(&mut self, length_blocks: usize) -> Group {
        match self.shape {
            Shape::Long => self.long(length_blocks),
            Shape::Branching => self.branching(),
        }
    }

    /// Groups with at least so many entries, and with the prompt in front; a third of them for each length.
    pub fn groups(&mut self, entries: usize) -> Vec<Group> {
        let mut groups = vec![self.prompt()];
        let (shares, total) = match self.shape {
            Shape::Long => (LENGTHS_BLOCKS.as_slice(), entries - groups[0].entries().min(entries)),
            Shape::Branching => ([0].as_slice(), entries),
        };
        for length_blocks in shares {
            let mut taken = 0;
            while taken < total / shares.len() {
                let group = self.group(*length_blocks);
                taken += group.entries();
                groups.push(group);
            }
        }
        groups
    }

    fn long(&mut self, length_blocks: usize) -> Group {
        let own_blocks = (length_blocks - PROMPT_BLOCKS) / 2;
        let shared = self.new_blocks(length_blocks - PROMPT_BLOCKS - own_blocks);
        let (mut group, mut held) = (Group::default(), HashSet::new());
        for _ in 0..GROUP_SEQUENCES {
            let own = self.new_blocks(own_blocks);
            let sequence = [self.prompt.as_slice(), &shared, &own].concat();
            let most = self.numbers.between(1, 4);
            for engine in self.holders(most) {
                held.extend(self.prompt.iter().map(|block| (engine, *block)));
                group.hold(engine, &sequence, PROMPT_BLOCKS + shared.len(), &mut held);
            }
            group.sequences.push(sequence);
        }
        group
    }

    fn branching(&mut self) -> Group {
        let mut branches = vec![Vec::new()];
        let (mut group, mut held) = (Group::default(), HashSet::new());
        while let Some(sequence) = branches.pop() {
            if sequence.len() >= 16 || (sequence.len() >= 4 && self.numbers.between(0, 3) == 0) {
                let most = self.numbers.between(1, 16);
                for engine in self.holders(most) {
                    group.hold(engine, &sequence, 0, &mut held);
                }
                group.sequences.push(sequence);
                continue;
            }
            let blocks = if sequence.is_empty() { 1 } else { self.numbers.between(2, 3) };
            for _ in 0..blocks {
                let more_blocks = self.numbers.between(1, 4).min(16 - sequence.len());
                let more = self.new_blocks(more_blocks);
                branches.push([sequence.as_slice(), &more].concat());
            }
        }
        group
    }

    /// At most so many different engines.
    fn holders(&mut self, most: usize) -> Vec<usize> {
        let mut holders: Vec<usize> = Vec::new();
        for _ in 0..most {
            let engine = self.numbers.between(0, self.engines - 1);
            if !holders.contains(&engine) {
                holders.push(engine);
            }
        }
        holders
    }

    fn new_blocks(&mut self, count: usize) -> Vec<Block> {
        let first = self.next_block;
        self.next_block += count as u64;
        (first..self.next_block).map(Block).collect()
    }
}

/// Blocks that nobody holds.
pub fn unknown(count: usize, seed: u64) -> Vec<Block> {
    (0..count as u64).map(|at| Block(1 << 63 | seed << 32 | at)).collect()
}
