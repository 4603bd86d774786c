//! Response chunks that pass through the picker in full duplex, as some gateways dictate.

use super::duel::{Duel, Load};
use super::whole_picker::WholePicker;
use crate::gateway::Script;
use crate::report::Report;
use crate::timing::{Effort, Spread};

const CHUNKS: usize = 100;
const CHUNK_BYTES: usize = 200;
const BAR: f64 = 0.6;

/// Streams without a request body whose response is 100 server-sent events, each sent when the one before is back.
pub(super) fn run(effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let script =
        Script { body: Vec::new(), varies_at: 0, response_chunks: (0..CHUNKS).map(sse_chunk).collect() };
    let duel = Duel::start(WholePicker::new(false)?, script)?;
    let outcome = duel.run(Load { streams: 768, in_flight: 64 }, effort)?;
    duel.finish(None)?;
    let per_chunk = |cost: Spread| {
        let by = CHUNKS as f64;
        Spread { median: cost.median / by, low: cost.low / by, high: cost.high / by }
    };
    report.with_bar("response_chunks/vs_echo", outcome.cpu_us.ratio, "ratio", BAR);
    report.figure("response_chunks/picker_cpu", per_chunk(outcome.cpu_us.ours), "us/chunk");
    report.figure("response_chunks/echo_cpu", per_chunk(outcome.cpu_us.baseline), "us/chunk");
    report.figure("response_chunks/picker_wall", outcome.our_rate, "streams/s");
    report.figure("response_chunks/echo_wall", outcome.baseline_rate, "streams/s");
    Ok(())
}

/// One event of a streamed chat completion, of about [`CHUNK_BYTES`].
fn sse_chunk(index: usize) -> Vec<u8> {
    let start = "data: {\"id\":\"chatcmpl-0f1e2d3c4b5a\",\"object\":\"chat.completion.chunk\",\"created\":1795168818,\
                 \"model\":\"qwen2.5\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"";
    let end = "\"},\"finish_reason\":null}]}\n\n";
    let word =
        format!(" word{index:0width$}", width = CHUNK_BYTES.saturating_sub(start.len() + end.len() + 5));
    [start, &word, end].concat().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_of_the_size_they_say() {
        assert!((0..CHUNKS).all(|index| sse_chunk(index).len() == CHUNK_BYTES));
    }
}
