//! What the tests are made of: engines, a picker, Envoy, and clients of each.

mod authority;
mod client;
mod ext_proc_client;
mod picker;
mod scripted_engine;
mod simulated_engines;
mod stack;

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use warmroute_demo::DemoError;
use warmroute_demo::harness::Tools;
use warmroute_tokenize::ModelTokenizer;

pub(crate) use authority::Authority;
pub(crate) use client::{Answer, Client, bytes_body, chunked_body};
pub(crate) use ext_proc_client::ExtProcClient;
pub(crate) use picker::{Picker, PickerOptions, Policy, Status};
pub(crate) use scripted_engine::{Script, ScriptedEngine, sse_response};
pub(crate) use simulated_engines::{BLOCK_TOKENS, MODEL, SimulatedEngines, clear_cache, send_new_prompt};
pub(crate) use stack::{Stack, StackOptions};

/// Nothing hangs for longer than this. Far more than any test takes: a loaded machine is no failure.
const TEST_LIMIT: Duration = Duration::from_secs(120);

/// The same for one thing that is waited for, so that the failure says which.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// How often a page is read again while a condition isn't met.
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// Runs a test in a runtime of its own, whose end ends everything that it started.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(async { tokio::time::timeout(TEST_LIMIT, test).await });
    runtime.shutdown_background();
    outcome.unwrap_or_else(|_| panic!("not done within {TEST_LIMIT:?}"));
}

/// Makes two tests, one for each recipe, of an async function that takes the recipe.
macro_rules! in_both_recipes {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            #[test]
            fn buffered() {
                crate::fixture::run(super::$test(warmroute_demo::harness::Recipe::Buffered));
            }

            #[test]
            fn full_duplex() {
                crate::fixture::run(super::$test(warmroute_demo::harness::Recipe::FullDuplex));
            }
        }
    )+};
}

/// Waits until `probe` gives something: until `what` has happened.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < WAIT_LIMIT, "waited in vain for this: {what}");
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// Where the programs are, with a folder for the logs.
pub(crate) fn tools() -> Tools {
    // A missing tool's error says what to run.
    let found = |tool: Result<PathBuf, DemoError>| tool.unwrap_or_else(|error| panic!("{error}"));
    Tools {
        root: Tools::root(),
        picker: env!("CARGO_BIN_EXE_warmroute-under-test").into(),
        // Engines run inside the test.
        engine_sim: PathBuf::new(),
        envoy: found(Tools::locate_envoy()),
        tokenizer: found(Tools::locate_tokenizer()),
        logs: concat!(env!("CARGO_TARGET_TMPDIR"), "/e2e").into(),
    }
}

/// A name for a process's log that no other process has, of those that run at the same time.
pub(crate) fn log_name(what: &str) -> String {
    let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
    format!("{test}-{what}")
}

/// The tokenizer, loaded once for all engines of this process.
pub(crate) fn tokenizer() -> Arc<ModelTokenizer> {
    static LOADED: OnceLock<Arc<ModelTokenizer>> = OnceLock::new();
    LOADED.get_or_init(|| Arc::new(ModelTokenizer::load(&tools().tokenizer).unwrap())).clone()
}
