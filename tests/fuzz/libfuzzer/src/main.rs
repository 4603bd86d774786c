//! Gives libFuzzer one target of `warmroute-fuzz`: the one that the environment variable `WARMROUTE_FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use warmroute_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    let name = std::env::var("WARMROUTE_FUZZ_TARGET").unwrap_or_default();
    let names = TARGETS.map(|target| target.name);
    let found = TARGETS.into_iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("WARMROUTE_FUZZ_TARGET is {name:?}, and must be one of {names:?}"))
}

fuzz_target!(|data: &[u8]| (TARGET.get_or_init(target).run)(data));
