//! Engines' KV events under faults, with libzmq as the other side: publishers that die, wires that lose, double, swap
//! and stall, replays that are late or have holes, and peers that mean no good.
//!
//! The publisher (`tests/python/kv_publisher.py`) keeps a model of an engine's prefix cache, so that what the index
//! claims can be laid beside what the engine holds.

mod fleet;
mod followed;
mod peers;
mod picks;
mod publisher;
mod python_peer;
mod replays;
mod restarts;
mod wires;
