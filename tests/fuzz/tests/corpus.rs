//! The corpus, replayed as it is and with mutations.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use warmroute_fuzz::{TARGETS, Target};

/// Mutated inputs per input of the corpus. The same every time: what is to be found by luck, `make fuzz` finds.
const MUTATIONS: usize = 200;

fn inputs(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "{}: {} inputs", folder.display(), paths.len());
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Says which input failed.
fn run(target: Target, name: &str, input: &[u8]) {
    let result = std::panic::catch_unwind(|| (target.run)(input));
    assert!(result.is_ok(), "{} fails on {name}: {input:02x?}", target.name);
}

fn mutate(random: &mut fastrand::Rng, input: &mut Vec<u8>, others: &[(PathBuf, Vec<u8>)]) {
    for _ in 0..random.usize(1..5) {
        let at = random.usize(0..=input.len());
        match random.u8(0..6) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
            2 => input.insert(at, random.u8(..)),
            3 if at < input.len() => drop(input.drain(at..(at + random.usize(1..9)).min(input.len()))),
            4 => input.truncate(at),
            _ => {
                let other = &others[random.usize(0..others.len())].1;
                let from = random.usize(0..=other.len());
                let piece = &other[from..(from + random.usize(0..40)).min(other.len())];
                input.splice(at..at, piece.iter().copied());
            }
        }
    }
}

fn replay(name: &str) {
    let target = TARGETS.into_iter().find(|target| target.name == name).unwrap();
    run(target, "nothing", &[]);
    let inputs = inputs(target);
    let mut random = fastrand::Rng::with_seed(1);
    for (path, input) in &inputs {
        let name = path.display().to_string();
        run(target, &name, input);
        for _ in 0..MUTATIONS {
            let mut mutated = input.clone();
            mutate(&mut random, &mut mutated, &inputs);
            run(target, &format!("a mutation of {name}"), &mutated);
        }
    }
}

#[test]
fn every_target_has_a_test() {
    let names = TARGETS.map(|target| target.name);
    assert_eq!(names, ["zmtp_session", "event_batch", "feed_and_view", "replay"]);
}

#[test]
fn zmtp_session() {
    replay("zmtp_session");
}

#[test]
fn event_batch() {
    replay("event_batch");
}

#[test]
fn feed_and_view() {
    replay("feed_and_view");
}

#[test]
fn replay_answers() {
    replay("replay");
}
