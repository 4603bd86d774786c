//! Memory: live bytes of both indexes, filled and after ten times their content has passed through.

use std::alloc::System;

use cap::Cap;
use dynamo_duel::Subject;
use dynamo_duel::ours::Ours;
use dynamo_duel::theirs::Theirs;
use dynamo_duel::workload::{Event, Group, Shape, Workload, interleaved};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// So few events wait at a time that the channel's own memory doesn't count.
const SLICE: usize = 2_000;
/// How many times its content passes through.
const CHURN: usize = 10;

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let entries = if quick { 100_000 } else { 1_000_000 };
    println!("Live bytes per (block, engine), {entries} entries");
    println!("| workload, events, engines | state | ours | Dynamo | ratio |\n|---|---|---|---|---|");
    for (shape, store_blocks, removal_blocks) in
        [(Shape::Long, 128, 16), (Shape::Long, 1, 1), (Shape::Branching, 128, 16), (Shape::Branching, 1, 1)]
    {
        for engines in [8, 64, 256] {
            let case = Case { shape, engines, entries, store_blocks, removal_blocks };
            let (ours, theirs) = (case.bytes::<Ours>()?, case.bytes::<Theirs>()?);
            for (state, (ours, theirs)) in ["filled", "after churn"].iter().zip(ours.iter().zip(&theirs)) {
                println!(
                    "| {shape:?}, {store_blocks}, {engines} | {state} | {ours:.1} | {theirs:.1} | {:.2} |",
                    ours / theirs
                );
            }
        }
    }
    Ok(())
}

struct Case {
    shape: Shape,
    engines: usize,
    entries: usize,
    store_blocks: usize,
    removal_blocks: usize,
}

impl Case {
    /// Live bytes per entry: filled, and after churn, if there is any.
    fn bytes<S: Subject>(&self) -> anyhow::Result<Vec<f64>> {
        let mut workload = Workload::new(self.shape, self.engines);
        let mut groups = workload.groups(self.entries);
        let before = ALLOCATOR.allocated();
        let subject = S::try_new(self.engines)?;
        for group in &groups {
            apply(&subject, group.stores(self.store_blocks))?;
        }
        let mut entries: usize = groups.iter().map(Group::entries).sum();
        let groups_bytes = ALLOCATOR.allocated();
        let mut found = vec![(groups_bytes - before) as f64 / entries as f64];
        let mut passed = 0;
        // What changes in the memory of the groups themselves is taken off.
        let mut kept: isize = 0;
        let first = 1;
        let mut turn = first;
        while passed < CHURN * self.entries {
            let start = ALLOCATOR.allocated();
            let length_blocks = groups[turn].sequences[0].len();
            let next = workload.group(length_blocks);
            let old = std::mem::replace(&mut groups[turn], next);
            kept += ALLOCATOR.allocated() as isize - start as isize;
            apply(&subject, old.removals(self.removal_blocks))?;
            apply(&subject, groups[turn].stores(self.store_blocks))?;
            passed += groups[turn].entries();
            entries = entries + groups[turn].entries() - old.entries();
            let start = ALLOCATOR.allocated();
            drop(old);
            kept += ALLOCATOR.allocated() as isize - start as isize;
            turn = if turn + 1 == groups.len() { first } else { turn + 1 };
        }
        subject.tidy()?;
        let live = ALLOCATOR.allocated() as isize - before as isize - kept;
        found.push(live as f64 / entries as f64);
        Ok(found)
    }
}

fn apply<S: Subject>(subject: &S, events: Vec<Event>) -> anyhow::Result<()> {
    for slice in interleaved(events).chunks(SLICE) {
        subject.apply(slice.iter().map(S::prepare).collect(), || ())?;
    }
    Ok(())
}
