//! Fuzz targets: what must hold for whatever bytes an engine (or who poses as one) sends.
//!
//! Each target is a function that takes bytes and panics if something doesn't hold. `make fuzz` gives them to libFuzzer
//! (`libfuzzer/`, a workspace of its own); `cargo test` replays the corpus in `corpus/<target>` with mutations.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a target fails by panicking")]

mod bytes_left;
mod event_batch;
mod feed_and_view;
mod replay;
mod wire_events;
mod zmtp_session;

/// One thing to fuzz.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, that of its folder in the corpus too.
    pub name: &'static str,
    /// Panics if something doesn't hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target { name: "zmtp_session", run: zmtp_session::run },
    Target { name: "event_batch", run: event_batch::run },
    Target { name: "feed_and_view", run: feed_and_view::run },
    Target { name: "replay", run: replay::run },
];
