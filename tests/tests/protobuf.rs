//! The Rust code of our own protobuf is checked in, so that a build needs no protobuf compiler. This makes it again and
//! compares; `make proto` (which sets WRITE_PROTO) writes it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PROTO: &str = "warmroute/replica/v1/snapshot.proto";
const GENERATED: &str = "crates/warmroute/src/replicas/pb.rs";

#[test]
fn the_generated_code_is_that_of_the_protobuf() {
    let root = Path::new(ROOT);
    let descriptors = protox::compile([PROTO], [root.join("proto")]).unwrap();
    let made = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(made.path())
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .unwrap();
    let code = std::fs::read_to_string(made.path().join("warmroute.replica.v1.rs")).unwrap();
    let path = root.join(GENERATED);
    if std::env::var_os("WRITE_PROTO").is_some() {
        std::fs::write(&path, &code).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == code, "{GENERATED} isn't what proto/{PROTO} makes: run `make proto`");
}
