//! The program: registration of plugins, the command line, the runtime.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use warmroute_plugin::{DuplicateType, Registry};

use crate::check::CheckReport;
use crate::cli::{CheckOptions, Cli, Command, DoctorCommand, DoctorOptions, PluginsOptions, ServeOptions};
use crate::plugin_list::PluginList;
use crate::{doctor, explain, preflight, serve};

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
        Self { registers: vec![warmroute_builtin::register, warmroute_expression::register] }
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
            Ok(code) => code,
            Err(error) => {
                tell(&error);
                ExitCode::FAILURE
            }
        }
    }

    fn run(self, cli: Cli) -> anyhow::Result<ExitCode> {
        match cli.command {
            Some(Command::Explain(options)) => {
                answer(&runtime()?.block_on(explain::explain(&options))?)?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Doctor(DoctorOptions { command: Some(DoctorCommand::Gateway(flags)), .. })) => {
                let preflight = match runtime()?.block_on(preflight::examine(&flags)) {
                    Ok(preflight) => preflight,
                    Err(error) => {
                        tell(&error);
                        return Ok(ExitCode::from(2));
                    }
                };
                answer(&if flags.json { preflight.to_json()? } else { preflight.text() })?;
                Ok(preflight.exit_code())
            }
            Some(Command::Doctor(options)) => {
                let examination = runtime()?.block_on(doctor::examine(&options))?;
                answer(&if options.json { examination.to_json()? } else { examination.text() })?;
                Ok(examination.exit_code())
            }
            Some(Command::Check(options)) => self.check(&options),
            Some(Command::Plugins(options)) => self.plugins(&options),
            Some(Command::Serve(options)) => self.serve(*options),
            None => self.serve(cli.serve),
        }
    }

    fn check(&self, options: &CheckOptions) -> anyhow::Result<ExitCode> {
        let report = CheckReport::new(options, &Arc::new(self.registry()?));
        answer(&if options.json { report.to_json()? } else { report.text()? })?;
        Ok(report.exit_code())
    }

    fn plugins(&self, options: &PluginsOptions) -> anyhow::Result<ExitCode> {
        let list = PluginList::new(&self.registry()?);
        answer(&if options.json { list.to_json()? } else { list.table() })?;
        Ok(ExitCode::SUCCESS)
    }

    fn serve(&self, options: ServeOptions) -> anyhow::Result<ExitCode> {
        options.peer.check()?;
        start_logging(&options)?;
        for notice in options.peer.notices(options.max_request_body_bytes) {
            match notice.warns {
                true => tracing::warn!("{}", notice.message),
                false => tracing::debug!("{}", notice.message),
            }
        }
        let registry = self.registry()?;
        runtime()?.block_on(serve::run(options, Arc::new(registry)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints the chain of an error.
#[allow(clippy::print_stderr, reason = "the one place that tells why the program ends")]
fn tell(error: &anyhow::Error) {
    eprintln!("warmroute: {error:#}");
}

/// Prints the answer of a command. A reader that has seen enough (`| head`) is no mistake.
fn answer(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("can't print"),
        _ => Ok(()),
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
    let filter = match (&options.log, options.peer.log_filter()) {
        (Some(filter), _) => EnvFilter::try_new(filter).context("--log is not a log filter")?,
        (None, Some(filter)) => EnvFilter::new(filter),
        (None, None) => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE);
    let lines = lines.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started =
        if options.log_json || options.peer.log_json() { lines.json().try_init() } else { lines.try_init() };
    started.map_err(|error| anyhow::anyhow!("can't start logging: {error}"))
}
