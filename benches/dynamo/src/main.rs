//! Times: look-ups, ingest, and look-ups beside a writer. `--quick` for a look at whether it runs, `--10m` for the cells
//! with ten million entries too, `--only lookup|ingest|writer` for a part.

use std::time::Duration;

use dynamo_duel::beside::Beside;
use dynamo_duel::duel::{Duel, Pairs};
use dynamo_duel::queries::cells;
use dynamo_duel::spread::{Percentiles, geometric_mean, median};
use dynamo_duel::workload::{Event, Group, Shape, Workload};

struct Options {
    pairs: usize,
    entries: Vec<usize>,
    only: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let after = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1).cloned();
    let mut options = Options { pairs: 5, entries: vec![1_000_000], only: after("--only") };
    if has("--quick") {
        options = Options { pairs: 1, entries: vec![100_000], ..options };
    }
    if has("--10m") {
        options.entries.push(10_000_000);
    }
    let wants = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    if wants("lookup") {
        for shape in [Shape::Long, Shape::Branching] {
            lookup_table(shape, &options)?;
        }
    }
    if wants("ingest") {
        for shape in [Shape::Long, Shape::Branching] {
            for entries in &options.entries {
                // Both sides take turns within each run too.
                let pairs = if *entries > 1_000_000 { options.pairs.min(3) } else { options.pairs };
                ingest_table(shape, *entries, pairs)?;
            }
        }
    }
    if wants("writer") {
        writer_table(&options)?;
    }
    Ok(())
}

/// Ratios of ours to theirs, pair by pair: the median.
fn ratio<T>(pairs: &Pairs<T>, of: impl Fn(&T) -> f64) -> f64 {
    let ratios: Vec<f64> =
        pairs.ours.iter().zip(&pairs.theirs).map(|(one, other)| of(one) / of(other)).collect();
    median(&ratios)
}

fn middle<T>(values: &[T], of: impl Fn(&T) -> f64) -> f64 {
    median(&values.iter().map(of).collect::<Vec<_>>())
}

fn lookup_table(shape: Shape, options: &Options) -> anyhow::Result<()> {
    let (mut hits, mut misses) = (Vec::new(), Vec::new());
    println!("\n{shape:?}: look-ups, µs p50/p99, and ours ÷ theirs");
    println!("| entries, engines | prompt, held | ours | Dynamo | p50 | p99 |\n|---|---|---|---|---|---|");
    for entries in &options.entries {
        for engines in [8, 64, 256] {
            let groups = Workload::new(shape, engines).groups(*entries);
            let duel = Duel::try_new(engines)?;
            duel.fill(&groups)?;
            for cell in cells(shape, &groups) {
                let found = duel.look_up(&cell, options.pairs)?;
                let show = |values: &[Percentiles]| {
                    let us = |of: fn(&Percentiles) -> f64| middle(values, of) / 1_000.0;
                    format!("{:.3}/{:.3}", us(|found| found.p50_ns), us(|found| found.p99_ns))
                };
                let (p50, p99) = (ratio(&found, |found| found.p50_ns), ratio(&found, |found| found.p99_ns));
                let kind = if cell.name.ends_with(" 0 %") { &mut misses } else { &mut hits };
                kind.push((p50, p99));
                let (ours, theirs) = (show(&found.ours), show(&found.theirs));
                println!(
                    "| {entries}, {engines} | {} | {ours} | {theirs} | {p50:.2} | {p99:.2} |",
                    cell.name
                );
            }
        }
    }
    for (what, ratios) in [("with hits", hits), ("without", misses)] {
        let (p50, p99): (Vec<f64>, Vec<f64>) = ratios.into_iter().unzip();
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        println!(
            "{what}: p50 geometric mean {:.2}, most {:.2}; p99 geometric mean {:.2}, most {:.2}",
            geometric_mean(&p50),
            most(&p50),
            geometric_mean(&p99),
            most(&p99)
        );
    }
    Ok(())
}

fn ingest_table(shape: Shape, entries: usize, pairs: usize) -> anyhow::Result<()> {
    let groups = Workload::new(shape, 64).groups(entries);
    let entries: usize = groups.iter().map(Group::entries).sum();
    println!(
        "\n{shape:?}: ingest, 64 engines, {entries} entries, million blocks per core-second, and ours ÷ theirs"
    );
    println!("| events | ours | Dynamo | ratio |\n|---|---|---|---|");
    let stores = |blocks| move |group: &Group| group.stores(blocks);
    let removals = |blocks| move |group: &Group| group.removals(blocks);
    let all = |events: &dyn Fn(&Group) -> Vec<Event>| groups.iter().flat_map(events).collect::<Vec<_>>();
    let names = [
        "stores of 1 block",
        "removals of 1 block",
        "stores of 128 blocks",
        "removals of 16 blocks",
        "stores of 1 block from the wire",
        "stores of 128 blocks from the wire",
    ];
    let mut times = names.map(|_| Pairs::<Duration> { ours: Vec::new(), theirs: Vec::new() });
    for pair in 0..=pairs {
        let mut round = Vec::new();
        let duel = Duel::try_new(64)?;
        round.push(duel.apply(all(&stores(1)))?);
        round.push(duel.apply(all(&removals(1)))?);
        let duel = Duel::try_new(64)?;
        round.push(duel.apply(all(&stores(128)))?);
        round.push(duel.apply(all(&removals(16)))?);
        round.push(Duel::try_new(64)?.apply_wire(all(&stores(1)))?);
        round.push(Duel::try_new(64)?.apply_wire(all(&stores(128)))?);
        for (times, (ours, theirs)) in times.iter_mut().zip(round).filter(|_| pair > 0) {
            times.ours.push(ours);
            times.theirs.push(theirs);
        }
    }
    for (name, times) in names.iter().zip(&times) {
        let rate = |time: &Duration| entries as f64 / time.as_secs_f64() / 1e6;
        let (ours, theirs) = (middle(&times.ours, rate), middle(&times.theirs, rate));
        println!("| {name} | {ours:.2} | {theirs:.2} | {:.2} |", ratio(times, rate));
    }
    Ok(())
}

fn writer_table(options: &Options) -> anyhow::Result<()> {
    println!(
        "\nLook-ups beside a writer of single blocks at full speed, 64 engines, µs p50/p99, and ratios of p99"
    );
    println!(
        "| prompt, held | index | quiet | beside a loop | writer elsewhere | writer here | loop ÷ quiet | elsewhere ÷ quiet | here ÷ elsewhere | here ÷ quiet |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut workload = Workload::new(Shape::Long, 64);
    let groups = workload.groups(options.entries[0]);
    let written = Group::of((0..60).map(|_| workload.group(512)));
    let (duel, elsewhere) = (Duel::try_new(64)?, Duel::try_new(64)?);
    duel.fill(&groups)?;
    elsewhere.fill(&groups)?;
    for cell in cells(Shape::Long, &groups).iter().filter(|cell| cell.name.ends_with(" 100 %")) {
        let found = duel.look_up_beside_writer(cell, &elsewhere, &written, options.pairs)?;
        for (name, times) in [("ours", found.ours), ("Dynamo", found.theirs)] {
            let show = |of: fn(&Beside) -> Percentiles| {
                let us = |percentile: fn(&Percentiles) -> f64| {
                    middle(&times, |beside| percentile(&of(beside))) / 1_000.0
                };
                format!("{:.3}/{:.3}", us(|found| found.p50_ns), us(|found| found.p99_ns))
            };
            let p99 = |one: fn(&Beside) -> Percentiles, other: fn(&Beside) -> Percentiles| {
                middle(&times, |beside| one(beside).p99_ns / other(beside).p99_ns)
            };
            println!(
                "| {} | {name} | {} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} |",
                cell.name,
                show(|beside| beside.quiet),
                show(|beside| beside.spinning),
                show(|beside| beside.elsewhere),
                show(|beside| beside.same),
                p99(|beside| beside.spinning, |beside| beside.quiet),
                p99(|beside| beside.elsewhere, |beside| beside.quiet),
                p99(|beside| beside.same, |beside| beside.elsewhere),
                p99(|beside| beside.same, |beside| beside.quiet),
            );
        }
    }
    Ok(())
}
