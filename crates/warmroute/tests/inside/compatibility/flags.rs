//! The command line of the peer, and what each of its flags means here: said by the command line itself.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory};
use warmroute::cli::Cli;

use super::page::cell;

/// Its flags with their defaults (`pkg/epp/server/options.go`). zap's have no default of its own.
const FLAGS: &[(&str, &str)] = &[
    ("grpc-port", "9002"),
    ("grpc-health-port", "9003"),
    ("metrics-port", "9090"),
    ("pool-name", ""),
    ("pool-namespace", ""),
    ("pool-group", "inference.networking.k8s.io"),
    ("endpoint-selector", ""),
    ("endpoint-target-ports", ""),
    ("disable-endpoint-subset-filter", "false"),
    ("emit-endpoint-scores", "false"),
    ("refresh-metrics-interval", "50ms"),
    ("refresh-prometheus-metrics-interval", "5s"),
    ("metrics-staleness-threshold", "2s"),
    ("ha-enable-leader-election", "false"),
    ("drain-timeout", "30s"),
    ("grpc-max-recv-msg-size", ""),
    ("grpc-max-send-msg-size", ""),
    ("config-file", ""),
    ("config-text", ""),
    ("allow-experimental-plugins", "false"),
    ("v", "2"),
    ("zap-devel", ""),
    ("zap-encoder", ""),
    ("zap-log-level", ""),
    ("zap-stacktrace-level", ""),
    ("zap-time-encoding", ""),
    ("tracing", "true"),
    ("health-checking", "false"),
    ("enable-pprof", "true"),
    ("secure-serving", "true"),
    ("cert-path", ""),
    ("enable-cert-reload", "false"),
    ("tls-min-version", ""),
    ("tls-cipher-suites", ""),
    ("metrics-endpoint-auth", "true"),
    ("metrics-cert-dir", ""),
    ("metrics-client-ca-file", ""),
    ("enable-grpc-stream-metrics", "false"),
    ("total-queued-requests-metric", ""),
    ("total-running-requests-metric", ""),
    ("kv-cache-usage-percentage-metric", ""),
    ("lora-info-metric", ""),
    ("cache-info-metric", ""),
];

fn default_of(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    values.join(",")
}

/// All flags of the peer.
pub(super) fn table() -> String {
    let command = Cli::command();
    let mut table = "| Flag | Default there | Here |\n| --- | --- | --- |\n".to_owned();
    for (flag, default) in FLAGS {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
        let arg = arg.unwrap_or_else(|| panic!("--{flag} is no flag"));
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.trim_end_matches('.');
        let is_shared = arg.get_help_heading().is_none();
        let own = default_of(arg);
        let here = match is_shared {
            true if own.is_empty() || own == *default => format!("the same: {help}"),
            true => format!("the same, by default {own}: {help}"),
            false => help.to_owned(),
        };
        let shown = if default.is_empty() { String::new() } else { format!("`{default}`") };
        // Writing to a String can't fail.
        let _ = writeln!(table, "| `--{flag}` | {shown} | {} |", cell(&here));
    }
    table
}

#[test]
fn every_flag_under_the_peers_heading_is_in_the_table() {
    let command = Cli::command();
    for arg in command.get_arguments().filter(|arg| arg.get_help_heading().is_some()) {
        let long = arg.get_long().unwrap();
        assert!(FLAGS.iter().any(|(flag, _)| *flag == long), "--{long}");
    }
}
