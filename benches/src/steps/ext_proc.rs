//! Whole streams with token-id prompts, in full duplex: from the gateway's first message to the echoed body.

use super::duel::{Duel, Load, Outcome};
use super::parse::{TOKEN_IDS_START, token_ids_body};
use super::whole_picker::WholePicker;
use crate::gateway::Script;
use crate::report::Report;
use crate::timing::Effort;

const BAR: f64 = 0.4;

/// The two sizes of the prompt, each without and with expected residency. The built-in configuration has it off.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let sizes = [
        ("1KB", 1_000, Load { streams: 6_000, in_flight: 32 }),
        ("400KB", 400_000, Load { streams: 400, in_flight: 8 }),
    ];
    for (size, bytes, load) in sizes {
        let outcome = duel(bytes, load, false, effort)?;
        let name = format!("ext_proc/{size}");
        report.with_bar(format!("{name}_vs_echo"), outcome.cpu_us.ratio, "ratio", BAR);
        report.figure(format!("{name}_picker_cpu"), outcome.cpu_us.ours, "us/stream");
        report.figure(format!("{name}_echo_cpu"), outcome.cpu_us.baseline, "us/stream");
        report.figure(format!("{name}_picker_wall"), outcome.our_rate, "streams/s");
        report.figure(format!("{name}_echo_wall"), outcome.baseline_rate, "streams/s");
        let outcome = duel(bytes, load, true, effort)?;
        report.figure(format!("{name}_expecting_vs_echo"), outcome.cpu_us.ratio, "ratio");
        report.figure(format!("{name}_expecting_picker_cpu"), outcome.cpu_us.ours, "us/stream");
    }
    Ok(())
}

fn duel(body_bytes: usize, load: Load, expects: bool, effort: Effort) -> anyhow::Result<Outcome> {
    let script = Script {
        body: token_ids_body(body_bytes, 99).into_bytes(),
        varies_at: TOKEN_IDS_START.len(),
        response_chunks: Vec::new(),
    };
    let duel = Duel::start(WholePicker::new(expects)?, script)?;
    let outcome = duel.run(load, effort)?;
    duel.finish(Some(1 + load.streams * (effort.pairs + 1)))?;
    Ok(outcome)
}
