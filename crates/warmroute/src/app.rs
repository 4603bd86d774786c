//! The program: registration of plugins, the command line, the runtime.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use warmroute_plugin::{DuplicateType, Registry};

use crate::cli::{Cli, Command, ServeOptions};
use crate::{explain, serve};

type Register = fn(&mut Registry) -> Result<(), DuplicateType>;

/// The picker as a program, with the built-in plugins and those that are added.
pub struct Warmroute {
    registers: Vec<Register>,
}

impl Default for Warmroute {
    fn default() -> Self {
        Self::new()
    }
}

impl Warmroute {
    /// With the built-in plugins.
    pub fn new() -> Self {
        Self { registers: vec![warmroute_builtin::register] }
    }

    /// Adds the plugins that `register` registers.
    #[must_use]
    pub fn plugin(mut self, register: Register) -> Self {
        self.registers.push(register);
        self
    }

    /// All plugin types that are linked.
    ///
    /// # Errors
    /// Two plugins have the same type name.
    pub fn registry(&self) -> Result<Registry, DuplicateType> {
        let mut registry = Registry::default();
        for register in &self.registers {
            register(&mut registry)?;
        }
        Ok(registry)
    }

    /// Reads the command line, runs, and prints the chain of an error once.
    pub fn main(self) -> ExitCode {
        let outcome = self.run(Cli::parse());
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                #[allow(clippy::print_stderr, reason = "the one place that tells why the program ends")]
                {
                    eprintln!("warmroute: {error:#}");
                }
                ExitCode::FAILURE
            }
        }
    }

    fn run(self, cli: Cli) -> anyhow::Result<()> {
        let runtime = runtime()?;
        match cli.command {
            Some(Command::Explain(options)) => {
                let text = runtime.block_on(explain::explain(&options))?;
                #[allow(clippy::print_stdout, reason = "the answer of a command")]
                {
                    print!("{text}");
                }
                Ok(())
            }
            Some(Command::Serve(options)) => self.serve(&runtime, *options),
            None => self.serve(&runtime, cli.serve),
        }
    }

    fn serve(self, runtime: &tokio::runtime::Runtime, options: ServeOptions) -> anyhow::Result<()> {
        start_logging(&options)?;
        let registry = self.registry()?;
        runtime.block_on(serve::run(options, std::sync::Arc::new(registry)))
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A thread that encodes text keeps tables and caches of its own, which a new one would have to build again.
        .thread_keep_alive(Duration::from_secs(3600))
        .build()
        .context("no async runtime")
}

fn start_logging(options: &ServeOptions) -> anyhow::Result<()> {
    let filter = match &options.log {
        Some(filter) => EnvFilter::try_new(filter).context("--log is not a log filter")?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE);
    let lines = lines.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = if options.log_json { lines.json().try_init() } else { lines.try_init() };
    started.map_err(|error| anyhow::anyhow!("can't start logging: {error}"))
}
