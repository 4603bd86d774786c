//! Runs the main job live: simulated engines, a real Envoy and pickers as processes, a load, a report.
//!
//! - [`harness`]: starts and stops the processes, and waits until each is ready.
//! - [`scenario`]: which engines and which requests; the same for the same seed.
//! - [`load`]: sends the requests at their times and measures what comes back.
//! - [`scrape`]: what the engines and the picker counted meanwhile.
//! - [`ceiling`]: what could have been hit at best.
//! - [`report`]: the table, `report.json` and `report.html`.
//! - [`policy`]: the picker configurations that are compared.
//! - [`run`]: one scenario under one policy, from start to stop.
//! - [`machine`]: what it ran on, and how busy that was.
//! - [`running`]: the processes that `up` leaves behind, and how `down` finds them.
//!
//! The end-to-end tests use the harness and the load generator too.

pub mod ceiling;
pub mod error;
pub mod harness;
pub mod load;
pub mod machine;
pub mod policy;
pub mod report;
pub mod run;
pub mod running;
pub mod scenario;
pub mod scrape;

pub use error::DemoError;
