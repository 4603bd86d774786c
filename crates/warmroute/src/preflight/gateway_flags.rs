use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::admin_client::PickerAccess;

/// Options of `warmroute doctor gateway`.
///
/// It sends probe requests through a gateway to the picker whose metrics port --address names, and says what was observed on both
/// sides. Real traffic isn't touched. It exits with 0 if nothing is wrong, 1 if there are findings, 2 if it couldn't
/// examine the gateway or the picker's side of it.
#[derive(Clone, Debug, Args)]
pub struct GatewayFlags {
    /// URL of the gateway as clients use it, http:// or https://, with a path if the route has a prefix.
    #[arg(value_name = "URL")]
    pub url: String,
    /// Model to ask for. By default the first of GET /v1/models; without any, engines refuse the prompts, and what needs a
    /// running response isn't examined.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Host name to ask for where it isn't the URL's (the hostname of an HTTPRoute); also checked in its certificate.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Header to send with every probe, for example "Authorization: Bearer …"; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// File with the authorities that the gateway's certificate is trusted by; those of the system if absent.
    #[arg(long, value_name = "FILE")]
    pub gateway_ca_file: Option<PathBuf>,
    /// Take any certificate of the gateway.
    #[arg(long, conflicts_with = "gateway_ca_file")]
    pub gateway_insecure_skip_verify: bool,
    /// Also what costs something: failing streams, to see whether fail-open opens; bodies as large as the picker takes; an
    /// answer of the picker and a generation that take as long as --longest-wait.
    #[arg(long)]
    pub thorough: bool,
    /// Longest wait with --thorough: for the picker's answer (1m at most), and for the end of a long response.
    #[arg(long, default_value = "20s", value_parser = crate::cli::duration, value_name = "DURATION")]
    pub longest_wait: Duration,
    /// The running pickers: --address takes the URLs of several, separated by commas, and of a name all addresses.
    #[command(flatten)]
    pub pickers: PickerAccess,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}
