//! Flags of the llm-d Router EPP that mean something else here, or nothing: a command line written for it is
//! understood, and what it asks for and this version hasn't is refused by name instead of being ignored.
//!
//! Names, defaults and meanings: `pkg/epp/server/options.go` in github.com/llm-d/llm-d-router. Flags that mean the
//! same here are in [`ServeOptions`](crate::cli::ServeOptions).

use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::duration;

/// Flags of the llm-d Router EPP that mean something else here, or nothing.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Flags of the llm-d Router EPP")]
pub struct PeerFlags {
    /// Log verbosity as at the EPP: 0 and 1 warn, 2 info, 3 and 4 debug, 5 and more trace. --log wins.
    #[arg(short = 'v', long = "v", value_name = "N")]
    pub verbosity: Option<u32>,
    /// Log format. --log-json wins.
    #[arg(long, value_name = "json|console")]
    pub zap_encoder: Option<ZapEncoder>,
    /// Log level: debug, info, error, panic, or a verbosity as for -v. Wins over -v.
    #[arg(long, value_parser = zap_level, value_name = "LEVEL")]
    pub zap_log_level: Option<ZapLevel>,
    /// The same as --zap-encoder=console --zap-log-level=debug.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub zap_devel: bool,
    /// Accepted; there are no stack traces in this log.
    #[arg(long, value_parser = ["info", "error", "panic"], value_name = "LEVEL")]
    pub zap_stacktrace_level: Option<String>,
    /// Times in the log are RFC 3339, so only rfc3339, rfc3339nano and iso8601 are accepted.
    #[arg(long, value_name = "ENCODING")]
    pub zap_time_encoding: Option<String>,

    /// Tell the gateway the score of every scored endpoint too, as metadata (envoy.lb,
    /// x-gateway-destination-endpoint-scores).
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub emit_endpoint_scores: bool,

    /// How often the averages over the pool are made that /metrics shows; not below 50ms.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub refresh_prometheus_metrics_interval: Duration,
    /// Largest message taken from the gateway, if that is less than --max-request-body-bytes and 1 MiB; a body in a larger
    /// one is answered 413. A Kubernetes quantity, with or without a trailing B.
    #[arg(long, default_value = "", value_parser = quantity_bytes, value_name = "QUANTITY")]
    pub grpc_max_recv_msg_size: u64,
    /// Accepted; --max-request-body-bytes bounds messages. A Kubernetes quantity, with or without a trailing B.
    #[arg(long, default_value = "", value_parser = quantity_bytes, value_name = "QUANTITY")]
    pub grpc_max_send_msg_size: u64,
    /// Accepted; there is no stage of plugins here that would have to be allowed.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub allow_experimental_plugins: bool,
    /// Trace requests, if OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER says where to.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub tracing: Option<bool>,
    /// Accepted; the ext-proc port always answers health checks.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub health_checking: bool,
    /// Accepted; there is no profiling on the metrics port.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub enable_pprof: Option<bool>,

    /// Show metrics of ext-proc streams too (llm_d_epp_extproc_…).
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub enable_grpc_stream_metrics: bool,

    /// Deprecated at the EPP and refused, there and here.
    #[arg(long, value_name = "NAME", hide = true)]
    pub total_queued_requests_metric: Option<String>,
    /// Deprecated at the EPP and refused, there and here.
    #[arg(long, value_name = "NAME", hide = true)]
    pub total_running_requests_metric: Option<String>,
    /// Deprecated at the EPP and refused, there and here.
    #[arg(long, value_name = "NAME", hide = true)]
    pub kv_cache_usage_percentage_metric: Option<String>,
    /// Deprecated at the EPP and refused, there and here.
    #[arg(long, value_name = "NAME", hide = true)]
    pub lora_info_metric: Option<String>,
    /// Deprecated at the EPP and refused, there and here.
    #[arg(long, value_name = "NAME", hide = true)]
    pub cache_info_metric: Option<String>,
}

/// Log formats by the names of controller-runtime's zap flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ZapEncoder {
    /// One JSON object per line.
    Json,
    /// Lines for people.
    Console,
}

/// A log level by the names of controller-runtime's zap flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZapLevel {
    /// `debug`.
    Debug,
    /// `info`.
    Info,
    /// `error` and `panic`.
    Error,
    /// A verbosity, as for `-v`.
    Verbosity(u32),
}

/// A flag of the EPP asks for what this version hasn't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagRefused {
    /// The flag with its dashes.
    pub flag: &'static str,
    /// The value that it was given.
    pub value: String,
    /// What isn't there and what to do.
    pub why: &'static str,
}

impl fmt::Display for FlagRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} is not available: {}", self.flag, self.value, self.why)
    }
}

/// The flags of the EPP that ask for what this version hasn't: all of them, at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FlagsRefused {
    /// In the order of the EPP's own list, roughly.
    pub flags: Vec<FlagRefused>,
}

impl fmt::Display for FlagsRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, flag) in self.flags.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{flag}")?;
        }
        Ok(())
    }
}

/// Something to log about an accepted flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagNotice {
    /// Whether an operator would expect otherwise; to be logged as a warning then, else at debug level.
    pub warns: bool,
    /// The text, without full stop.
    pub message: String,
}

const USE_EXTRACTOR: &str = "setting it is an error at the EPP too; remove it: the names of an engine's metrics \
                             are parameters of core-metrics-extractor in the configuration";

impl PeerFlags {
    /// Refuses what this version hasn't.
    ///
    /// # Errors
    /// All flags that ask for something that isn't there, each with what to do.
    pub fn check(&self) -> Result<(), FlagsRefused> {
        let mut flags = self.serving();
        flags.extend(self.metric_names());
        if flags.is_empty() { Ok(()) } else { Err(FlagsRefused { flags }) }
    }

    fn serving(&self) -> Vec<FlagRefused> {
        let encoding = self.zap_time_encoding.as_deref().unwrap_or_default();
        let encoding = if ["rfc3339", "rfc3339nano", "iso8601"].contains(&encoding) { "" } else { encoding };
        [("--zap-time-encoding", encoding, "times in the log are RFC 3339; write rfc3339")]
            .into_iter()
            .filter_map(refused)
            .collect()
    }

    fn metric_names(&self) -> Vec<FlagRefused> {
        [
            ("--total-queued-requests-metric", &self.total_queued_requests_metric),
            ("--total-running-requests-metric", &self.total_running_requests_metric),
            ("--kv-cache-usage-percentage-metric", &self.kv_cache_usage_percentage_metric),
            ("--lora-info-metric", &self.lora_info_metric),
            ("--cache-info-metric", &self.cache_info_metric),
        ]
        .into_iter()
        // Given is given, even if it is empty: so it is at the peer.
        .filter_map(|(flag, value)| {
            value.as_ref().map(|value| FlagRefused { flag, value: value.clone(), why: USE_EXTRACTOR })
        })
        .collect()
    }

    /// What to log about the flags that are accepted and do nothing, or less than one may expect.
    /// `max_body_bytes` is what bounds a body here.
    pub fn notices(&self, max_body_bytes: usize) -> Vec<FlagNotice> {
        let mut notices = Vec::new();
        let mut say = |warns: bool, message: &str| {
            notices.push(FlagNotice { warns, message: message.to_owned() });
        };
        if self.enable_pprof == Some(true) {
            say(true, "there is no profiling on the metrics port, whatever --enable-pprof says");
        }
        if self.health_checking {
            say(false, "the ext-proc port always answers health checks, also without --health-checking");
        }
        if self.allow_experimental_plugins {
            say(false, "every linked plugin is allowed, also without --allow-experimental-plugins");
        }
        if self.zap_stacktrace_level.is_some() {
            say(false, "there are no stack traces in the log, whatever --zap-stacktrace-level says");
        }
        let (recv, limit) = (self.grpc_max_recv_msg_size, max_body_bytes as u64);
        if recv > 0 && recv < limit {
            say(
                true,
                &format!(
                    "--grpc-max-recv-msg-size is below --max-request-body-bytes, which is {limit}: where the gateway sends a body \
                 in one message (BUFFERED), one over {recv} bytes is answered 413"
                ),
            );
        } else if recv > limit {
            say(
                false,
                &format!("--grpc-max-recv-msg-size isn't reached: --max-request-body-bytes is {limit}"),
            );
        }
        if self.grpc_max_send_msg_size > 0 {
            say(
                false,
                "--grpc-max-send-msg-size isn't used: what is sent is what came, in chunks of 62000 bytes",
            );
        }
        notices
    }

    /// The log filter that `--zap-log-level`, `-v` or `--zap-devel` asks for, in this order.
    pub fn log_filter(&self) -> Option<&'static str> {
        // Libraries stay at info: their debug lines are about every frame.
        const DEBUG: &str = "info,warmroute=debug";
        let by_verbosity = |verbosity| match verbosity {
            0 | 1 => "warn",
            2 => "info",
            3 | 4 => DEBUG,
            _ => "info,warmroute=trace",
        };
        match (self.zap_log_level, self.verbosity) {
            (Some(ZapLevel::Debug), _) => Some(DEBUG),
            (Some(ZapLevel::Info), _) => Some("info"),
            (Some(ZapLevel::Error), _) => Some("error"),
            (Some(ZapLevel::Verbosity(verbosity)), _) | (None, Some(verbosity)) => {
                Some(by_verbosity(verbosity))
            }
            (None, None) => self.zap_devel.then_some(DEBUG),
        }
    }

    /// Whether the log is to be JSON.
    pub fn log_json(&self) -> bool {
        self.zap_encoder == Some(ZapEncoder::Json)
    }
}

/// An empty value is the default.
fn refused((flag, value, why): (&'static str, &str, &'static str)) -> Option<FlagRefused> {
    (!value.is_empty()).then(|| FlagRefused { flag, value: value.to_owned(), why })
}

fn zap_level(text: &str) -> Result<ZapLevel, String> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Ok(ZapLevel::Debug),
        "info" => Ok(ZapLevel::Info),
        "error" | "panic" => Ok(ZapLevel::Error),
        number => number
            .parse()
            .map(ZapLevel::Verbosity)
            .map_err(|_| "write debug, info, error, panic or a number from 0".to_owned()),
    }
}

/// Bytes as a Kubernetes quantity, with or without a trailing `B`: `4Mi`, `4MiB`, `16M`, `1e6`, `1048576`. Empty is 0.
///
/// Format: "Resource quantities" in Kubernetes' API conventions (`apimachinery/pkg/api/resource/quantity.go`).
///
/// # Errors
/// Text that says what is wrong, for the command line.
pub fn quantity_bytes(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let wrong = || format!("{text:?} is not a quantity: write for example 16Mi, 16MB or 16777216");
    let quantity = text.strip_suffix('B').unwrap_or(text);
    let end = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(end);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        exponent => {
            let power = exponent.strip_prefix(['e', 'E']).and_then(|power| power.parse::<i32>().ok());
            10f64.powi(power.ok_or_else(wrong)?)
        }
    };
    let bytes = (number * factor).ceil();
    // 2⁶³ bytes: more is no size.
    if bytes < 9_223_372_036_854_775_808.0 { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn flags(arguments: &[&str]) -> PeerFlags {
        let arguments = std::iter::once("warmroute").chain(arguments.iter().copied());
        Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).serve.peer
    }

    #[test]
    fn quantities_read_as_in_kubernetes() {
        for (text, bytes) in [
            ("", 0),
            ("4194304", 4 << 20),
            ("4Mi", 4 << 20),
            ("4MiB", 4 << 20),
            ("16MB", 16_000_000),
            ("16M", 16_000_000),
            ("1.5Ki", 1536),
            ("100B", 100),
            ("1e6", 1_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("2k", 2000),
        ] {
            assert_eq!(quantity_bytes(text), Ok(bytes), "{text:?}");
        }
        for wrong in ["B", "Mi", "-1", "4mi", "4MiBB", "1e", "10E", "1e400", "four", "4 Mi", "1..5"] {
            assert!(quantity_bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn verbosity_becomes_a_log_filter() {
        let filter = |arguments: &[&str]| flags(arguments).log_filter();
        assert_eq!(filter(&[]), None);
        assert_eq!(filter(&["-v", "2"]), Some("info"));
        assert_eq!(filter(&["--v=3"]), Some("info,warmroute=debug"));
        assert_eq!(filter(&["-v=4"]), Some("info,warmroute=debug"));
        assert_eq!(filter(&["--v", "5"]), Some("info,warmroute=trace"));
        assert_eq!(filter(&["-v1"]), Some("warn"));
        assert_eq!(filter(&["--zap-log-level", "error", "-v", "5"]), Some("error"));
        assert_eq!(filter(&["--zap-log-level=4"]), Some("info,warmroute=debug"));
        assert_eq!(filter(&["--zap-devel"]), Some("info,warmroute=debug"));
        assert!(flags(&["--zap-encoder=json"]).log_json());
        assert!(!flags(&["--zap-encoder", "console"]).log_json());
    }

    #[test]
    fn what_is_not_there_is_refused_by_name_and_all_at_once() {
        assert_eq!(flags(&[]).check(), Ok(()));
        let refused = flags(&["--zap-time-encoding", "epoch", "--cache-info-metric="]);
        let refused = refused.check().unwrap_err();
        let names: Vec<&str> = refused.flags.iter().map(|flag| flag.flag).collect();
        assert_eq!(names, ["--zap-time-encoding", "--cache-info-metric"]);
        let text = refused.to_string();
        assert!(text.contains("--zap-time-encoding=epoch is not available: "), "{text}");
        assert!(text.contains("write rfc3339\n--cache-info-metric= is"), "{text}");
        assert!(text.contains("core-metrics-extractor"), "{text}");
    }

    #[test]
    fn accepted_flags_without_effect_are_said() {
        assert_eq!(flags(&[]).notices(1 << 20), []);
        let asked = flags(&[
            "--enable-pprof=true",
            "--health-checking",
            "--grpc-max-recv-msg-size=512Ki",
            "--grpc-max-send-msg-size=1Mi",
        ]);
        let asked = asked.notices(1 << 20);
        let warns = asked.iter().filter(|notice| notice.warns).map(|notice| notice.message.as_str());
        let warns: Vec<&str> = warns.collect();
        assert_eq!((warns.len(), asked.len()), (2, 4), "{asked:?}");
        assert!(warns[0].contains("--enable-pprof"));
        assert!(
            warns[1].contains("--grpc-max-recv-msg-size is below") && warns[1].contains("over 524288 bytes")
        );
        let unreached = flags(&["--grpc-max-recv-msg-size=2Mi"]).notices(1 << 20);
        assert!(!unreached[0].warns && unreached[0].message.contains("isn't reached"), "{unreached:?}");
    }
}
