//! Prompts to look up.

use crate::workload::{Group, LENGTHS_BLOCKS, Shape, tokens, unknown};

/// Prompts of one kind: a cell of the table.
pub struct Cell {
    /// What they are.
    pub name: String,
    /// Look-ups that are timed together: more than one where one is too short for the clock.
    pub batch: usize,
    /// Their tokens.
    pub prompts: Vec<Vec<u32>>,
}

/// Most prompts of a cell; they take turns.
const PROMPTS: usize = 256;

/// Prompts of which none, half or all blocks are known, for each length of sequence.
pub fn cells(shape: Shape, groups: &[Group]) -> Vec<Cell> {
    let sequences = || groups.iter().flat_map(|group| &group.sequences);
    let lengths = match shape {
        Shape::Long => LENGTHS_BLOCKS.map(|length| (format!("{length} blocks"), length..=length)).to_vec(),
        Shape::Branching => vec![("4–16 blocks".to_owned(), 4..=16)],
    };
    let mut cells = Vec::new();
    for (name, length) in lengths {
        let all: Vec<_> = sequences().filter(|sequence| length.contains(&sequence.len())).collect();
        // Spread over all of them.
        let some: Vec<_> = all.iter().step_by((all.len() / PROMPTS).max(1)).take(PROMPTS).collect();
        for hit_percent in [0, 50, 100] {
            let prompt = |(seed, sequence): (usize, &&&Vec<_>)| {
                let known = sequence.len() * hit_percent / 100;
                tokens(&[&sequence[..known], &unknown(sequence.len() - known, seed as u64)].concat())
            };
            let prompts = some.iter().enumerate().map(prompt).collect();
            let batch = if hit_percent == 0 { 32 } else { 1 };
            cells.push(Cell { name: format!("{name}, {hit_percent} %"), batch, prompts });
        }
    }
    cells
}
