//! The command line. Flags that the llm-d Router EPP has keep its names, spellings and defaults.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::admin_client::PickerAccess;
use crate::kubernetes::KubernetesFlags;
use crate::objectives::{ObjectiveArg, objective_arg};
use crate::peer_flags::PeerFlags;
use crate::preflight::GatewayFlags;
use crate::replicas::ReplicaFlags;
use crate::tls::TlsFlags;

/// An endpoint picker for LLM inference: sends each request to the engine whose KV cache is warmest.
///
/// Without a sub-command it serves.
#[derive(Debug, Parser)]
#[command(name = "warmroute", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; serve if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of serving.
    #[command(flatten)]
    pub serve: ServeOptions,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve (the same as no sub-command).
    Serve(Box<ServeOptions>),
    /// Explain a decision of a running picker: why this request went where it went.
    Explain(ExplainOptions),
    /// Examine the engines of a running picker: what is known of each, what is wrong, and what to do.
    Doctor(DoctorOptions),
    /// Check a configuration without serving: every mistake with its place, and what to know of it.
    Check(CheckOptions),
    /// List the plugin types that are linked into this binary, with their parameters.
    Plugins(PluginsOptions),
}

/// Options of `warmroute check`.
///
/// It exits with 0 if the configuration is taken, 1 if it has mistakes, 2 if the file can't be read.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// File with an EndpointPickerConfig (YAML or JSON).
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print what is in effect too: the whole configuration with every default filled in.
    #[arg(long)]
    pub effective: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
    /// The directory that the picker will be given as --tokenizer: checks that it loads.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
}

/// Options of `warmroute plugins`.
#[derive(Debug, Args)]
pub struct PluginsOptions {
    /// Print the list as JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Options of `warmroute explain`.
#[derive(Debug, Args)]
pub struct ExplainOptions {
    /// Number of the decision, or the request's x-request-id; `last` for the newest.
    pub id: String,
    /// The running picker.
    #[command(flatten)]
    pub picker: PickerAccess,
    /// Print the receipt as JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Options of `warmroute doctor`.
///
/// It exits with 0 if there is nothing to find, 1 if there are findings or the picker can't be asked.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DoctorOptions {
    /// What to examine; the engines if absent.
    #[command(subcommand)]
    pub command: Option<DoctorCommand>,
    /// The running picker.
    #[command(flatten)]
    pub picker: PickerAccess,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What the doctor can examine beside the engines.
#[derive(Debug, Subcommand)]
pub enum DoctorCommand {
    /// Examine the gateway before a running picker: which settings it has, what they do, and what to change.
    Gateway(Box<GatewayFlags>),
}

/// Options of serving.
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// Address that all listeners bind; with the default, IPv6 and IPv4 where the system maps them.
    #[arg(long, default_value = "::", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port of the ext-proc gRPC service; it also answers gRPC health checks.
    #[arg(long, default_value_t = 9002, value_name = "PORT")]
    pub grpc_port: u16,
    /// Port of the gRPC health service, always plaintext.
    #[arg(long, default_value_t = 9003, value_name = "PORT")]
    pub grpc_health_port: u16,
    /// Port of /metrics, /status and /debug/decisions.
    #[arg(long, default_value_t = 9090, value_name = "PORT")]
    pub metrics_port: u16,

    /// Endpoints to pick from, as host:port, separated by commas; an IPv6 host stands in brackets. host:port#N is
    /// data-parallel rank N, with a port of its own.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,…")]
    pub endpoints: Vec<String>,
    /// Which pods of a Kubernetes cluster are picked from instead.
    #[command(flatten)]
    pub kubernetes: KubernetesFlags,
    /// Data-parallel ranks behind each address of --endpoints; each is picked by itself. By default those that the
    /// engine lists (vLLM 0.32: GET /kv_event_sources), else one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(warmroute_config::MAX_RANKS)))]
    pub data_parallel_size: Option<u16>,
    /// Pin requests to the picked data-parallel rank of an address of --endpoints, by the header x-data-parallel-rank.
    /// Without it the engine chooses, and what all ranks hold is predicted.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub data_parallel_pinning: bool,
    /// Directory with the model's tokenizer.json and tokenizer_config.json. Without it prompts that are text
    /// can't be matched against KV caches; token-id prompts can.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// File with an EndpointPickerConfig (YAML or JSON).
    #[arg(long, value_name = "FILE", conflicts_with = "config_text")]
    pub config_file: Option<PathBuf>,
    /// An EndpointPickerConfig given as text.
    #[arg(long, value_name = "TEXT")]
    pub config_text: Option<String>,

    /// Take changes of --config-file while serving; a bad one is refused and the last good one stays.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub watch_config: bool,

    /// What is served over TLS, and to whom.
    #[command(flatten)]
    pub tls: TlsFlags,

    /// Interval at which each engine's metrics are fetched; not below 50ms.
    #[arg(long, default_value = "50ms", value_parser = duration, value_name = "DURATION")]
    pub refresh_metrics_interval: Duration,
    /// Metrics older than this are stale: they no longer count as load figures.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    pub metrics_staleness_threshold: Duration,

    /// Port on each endpoint's host where its engine publishes KV events, a data-parallel rank at this port plus its
    /// number; 0 turns subscriptions off. A config file's kvEventsConfig.podDiscoveryConfig.socketPort wins. If neither
    /// is given: where the engine says (GET /kv_event_sources), else 5557.
    #[arg(long, value_name = "PORT")]
    pub kv_events_port: Option<u16>,
    /// Port on each endpoint's host where its engine answers replay requests for KV events; 0 turns replays off. A
    /// config file's kvEventsConfig.podDiscoveryConfig.replaySocketPort wins. If neither is given: where the engine
    /// says, else none.
    #[arg(long, value_name = "PORT")]
    pub kv_replay_port: Option<u16>,
    /// Ask engines where they publish KV events and which data-parallel ranks they have: GET /kv_event_sources on the
    /// port on which they serve.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub kv_event_sources: bool,
    /// Most (block, engine) pairs that the KV index holds; stores beyond it are refused and counted.
    #[arg(long, default_value_t = 20_000_000, value_name = "N")]
    pub kv_index_max_entries: usize,

    /// Longest time spent on a prompt's tokens and block keys; after it the request is picked without a match.
    #[arg(long, default_value = "200ms", value_parser = duration, value_name = "DURATION")]
    pub tokenize_deadline: Duration,
    /// Prompts that are turned into tokens at the same time; by default one per core.
    #[arg(long, value_name = "N")]
    pub tokenize_concurrency: Option<usize>,
    /// Largest request body; a larger one is answered 413.
    #[arg(long, default_value_t = 32 * 1024 * 1024, value_name = "BYTES")]
    pub max_request_body_bytes: usize,

    /// Priority of an inference objective, which clients name in the header x-llm-d-inference-objective; may be given
    /// several times. Requests of priority below 0 are refused while the pool is saturated; unknown objectives have 0.
    /// It counts before an InferenceObjective of the same name.
    #[arg(long, value_parser = objective_arg, value_name = "NAME=PRIORITY")]
    pub inference_objective: Vec<ObjectiveArg>,
    /// Ignore the subset of endpoints that the gateway's metadata names: pick from all.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub disable_endpoint_subset_filter: bool,
    /// Decisions kept for /debug/decisions and `warmroute explain`.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub decisions_kept: usize,
    /// After SIGTERM: time in which new streams are still served while health says NOT_SERVING.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// Show metrics also under the names that the llm-d Router EPP deprecates (inference_objective_…,
    /// inference_pool_…, inference_extension_…), with the same values.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub deprecated_metrics: bool,
    /// Log lines as JSON.
    #[arg(long)]
    pub log_json: bool,
    /// Log filter, for example `info` or `warmroute=debug`; RUST_LOG is used if this is absent.
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// Flags of a picker that isn't alone.
    #[command(flatten)]
    pub replicas: ReplicaFlags,
    /// Flags of the llm-d Router EPP that mean something else here, or nothing.
    #[command(flatten)]
    pub peer: PeerFlags,
}

/// A duration as Go and Kubernetes write it: `1h30m`, `2s`, `50ms`, `1.5s`, `0`.
///
/// # Errors
/// Text that says what is wrong, for the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit_end = rest[number..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| number + at);
        let seconds_per_unit = match &rest[number..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            "" => return Err(format!("{text:?} lacks a unit: write for example 500ms, 2s or 1m30s")),
            other => return Err(format!("unknown unit {other:?}: use h, m, s, ms, us or ns")),
        };
        let count: f64 = rest[..number].parse().map_err(|_| format!("{text:?} is not a duration"))?;
        let part = Duration::try_from_secs_f64(count * seconds_per_unit)
            .map_err(|_| format!("{text:?} is too long a duration"))?;
        total = total.checked_add(part).ok_or_else(|| format!("{text:?} is too long a duration"))?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err("a duration is needed, for example 2s".to_owned()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_read_as_in_go() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "-2s", "1..5s", "3 s", "1e400s", "9999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn flags_are_spelt_as_at_the_peer() {
        let cli = Cli::parse_from([
            "warmroute",
            "--secure-serving=false",
            "--grpc-port",
            "19002",
            "--endpoints",
            "127.0.0.2:8000,[::1]:8000",
            "--refresh-metrics-interval=100ms",
            "--inference-objective",
            "batch=-1",
            "--inference-objective=chat=10",
        ]);
        let objectives =
            cli.serve.inference_objective.iter().map(|given| (given.name.as_str(), given.priority));
        assert_eq!(objectives.collect::<Vec<_>>(), [("batch", -1), ("chat", 10)]);
        assert!(!cli.serve.tls.secure_serving);
        assert_eq!(cli.serve.endpoints.len(), 2);
        assert_eq!(cli.serve.refresh_metrics_interval, Duration::from_millis(100));
        assert!(Cli::parse_from(["warmroute", "--secure-serving"]).serve.tls.secure_serving);
    }

    #[test]
    fn explain_takes_an_id() {
        let cli = Cli::parse_from(["warmroute", "explain", "17"]);
        assert!(matches!(cli.command, Some(Command::Explain(options)) if options.id == "17"));
    }
}
