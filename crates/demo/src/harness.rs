//! Starts engines, pickers and Envoy as processes on loopback addresses, waits until each says that it is ready,
//! and ends them when the value that owns them is dropped.

mod engine_fleet;
mod envoy_proxy;
mod free_ports;
mod http_client;
mod picker;
mod process;
mod stack;
mod tools;

pub use engine_fleet::{EngineFleet, EngineOptions, EngineProcess};
pub use envoy_proxy::{EnvoyConfig, EnvoyProxy, PickerTransport, Recipe};
pub use free_ports::FreePorts;
pub use http_client::{HttpAnswer, HttpClient};
pub use picker::{Picker, PickerOptions, health_status};
pub use process::{Process, READY_WITHIN, wait_until_ready};
pub use stack::{Stack, StackOptions};
pub use tools::Tools;
