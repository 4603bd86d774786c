//! [`Tools`]: where the programs and files are that the harness starts.

use std::path::{Path, PathBuf};

use crate::DemoError;

const SETUP: &str = "run `make setup`, or set the environment variable in parentheses";

/// The programs and files that a stack is made of.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The root of the source tree, which the templates and scenarios are read from.
    pub root: PathBuf,
    /// `warmroute`.
    pub picker: PathBuf,
    /// `warmroute-engine-sim`.
    pub engine_sim: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
    /// The folder with the model's `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Where the logs of the processes go.
    pub logs: PathBuf,
}

impl Tools {
    /// Finds everything, in this order: the environment (`WARMROUTE_ROOT`, `WARMROUTE_BIN_DIR`, `WARMROUTE_ENVOY`,
    /// `WARMROUTE_TOKENIZER`), beside the running program, in `target` of the source tree.
    ///
    /// # Errors
    /// [`DemoError::ToolMissing`] names the first thing that is not there and what to do.
    pub fn locate() -> Result<Self, DemoError> {
        let root = Self::root();
        let beside = std::env::current_exe().ok().and_then(|exe| {
            let dir = exe.parent()?;
            // The binaries of tests live one folder deeper.
            Some(if dir.ends_with("deps") { dir.parent()?.to_owned() } else { dir.to_owned() })
        });
        let bin = |name: &str| {
            let dirs = [from_env("WARMROUTE_BIN_DIR"), beside.clone(), Some(root.join("target/quick"))];
            let mut places = dirs.into_iter().flatten().map(|dir| dir.join(name));
            places.clone().find(|path| path.is_file()).or_else(|| places.next()).unwrap_or_default()
        };
        let build = "build it: cargo build --profile quick -p warmroute -p warmroute-engine-sim";
        Ok(Self {
            picker: existing("warmroute", bin("warmroute"), build)?,
            engine_sim: existing("warmroute-engine-sim", bin("warmroute-engine-sim"), build)?,
            envoy: Self::locate_envoy()?,
            tokenizer: Self::locate_tokenizer()?,
            logs: root.join("target/demo/logs"),
            root,
        })
    }

    /// The root of the source tree: `WARMROUTE_ROOT`, else the one this program was built from.
    pub fn root() -> PathBuf {
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        from_env("WARMROUTE_ROOT").unwrap_or_else(|| built_from.canonicalize().unwrap_or(built_from))
    }

    /// Envoy: `WARMROUTE_ENVOY`, else what `deploy/setup/envoy.sh` installed.
    ///
    /// # Errors
    /// [`DemoError::ToolMissing`].
    pub fn locate_envoy() -> Result<PathBuf, DemoError> {
        let default = || Self::root().join("target/tools/envoy/envoy");
        existing("Envoy (WARMROUTE_ENVOY)", from_env("WARMROUTE_ENVOY").unwrap_or_else(default), SETUP)
    }

    /// The tokenizer's folder: `WARMROUTE_TOKENIZER`, else `qwen2.5` in `WARMROUTE_TOKENIZERS`, else where
    /// `deploy/setup/tokenizer.sh` puts it.
    ///
    /// # Errors
    /// [`DemoError::ToolMissing`].
    pub fn locate_tokenizer() -> Result<PathBuf, DemoError> {
        let all =
            || from_env("WARMROUTE_TOKENIZERS").unwrap_or_else(|| Self::root().join("target/tokenizers"));
        let folder = from_env("WARMROUTE_TOKENIZER").unwrap_or_else(|| all().join("qwen2.5"));
        existing("tokenizer (WARMROUTE_TOKENIZER)", folder.join("tokenizer.json"), SETUP)?;
        Ok(folder)
    }
}

fn from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn existing(what: &'static str, path: PathBuf, hint: &'static str) -> Result<PathBuf, DemoError> {
    if path.is_file() { Ok(path) } else { Err(DemoError::ToolMissing { what, path, hint }) }
}
