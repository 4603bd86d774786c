use std::fmt::Write;

use crate::delivered::{LossReport, LossSums};

/// Characters of a bar that stands for the whole prompt.
const BAR: usize = 40;
/// A step that loses less than this share of the prompt tokens needs nothing done about it.
const SMALL_SHARE: f64 = 0.02;

/// Where cached tokens were lost, as a bar per step.
pub(super) struct LossTable {
    newest_s: u64,
    sums: LossSums,
    sampled_share: f64,
}

/// One step: what is left after it, as a share of the prompt tokens, what it lost, and what to do about that.
struct Step {
    name: &'static str,
    left: f64,
    lost: f64,
    what: &'static str,
    advice: &'static str,
}

impl LossTable {
    pub(super) fn of(report: &LossReport) -> Self {
        Self { newest_s: report.newest_s, sums: report.newest, sampled_share: report.sampled_share }
    }

    /// The table in words; nothing without requests.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let LossSums { requests, unknown_requests, prompt_tokens, .. } = self.sums;
        if prompt_tokens > 0 {
            self.bars(&mut text);
        }
        if unknown_requests > 0 {
            let all = requests + unknown_requests;
            line(
                &mut text,
                &format!("  {unknown_requests} of {all} requests have no exact tokens and aren't in this"),
            );
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    fn bars(&self, text: &mut String) {
        let LossSums { requests, prompt_tokens, .. } = self.sums;
        let time = match self.newest_s {
            seconds @ ..120 => format!("{seconds} s"),
            seconds => format!("{} min", seconds / 60),
        };
        line(
            text,
            &format!(
                "where cached tokens are lost: {requests} requests, {prompt_tokens} prompt tokens, last {time}"
            ),
        );
        let steps = self.steps();
        for Step { name, left, lost, what, .. } in &steps {
            let filled = (left * BAR as f64).round().clamp(0.0, BAR as f64) as usize;
            let bar = format!("{}{}", "█".repeat(filled), "·".repeat(BAR - filled));
            let loss = match (lost * 1000.0).round() / 10.0 {
                0.0 => String::new(),
                percent if percent < 0.0 => format!("{:+.1} % more than expected", -percent),
                percent => format!("{:+.1} % {what}", -percent),
            };
            let shown = format!("  {name:<18} {bar} {:5.1} %  {loss}", left * 100.0);
            line(text, shown.trim_end());
        }
        if self.sampled_share < 1.0 {
            let share = self.sampled_share;
            line(text, &format!("  \"seen before\" is estimated from a share of {share} of all blocks"));
        }
        match self.sums.compared_tokens {
            0 => line(
                text,
                "  what was delivered isn't known: no answer told its usage, and no counters could be compared",
            ),
            compared if compared < self.sums.promised_tokens => {
                let share = 100.0 * compared as f64 / self.sums.promised_tokens as f64;
                line(text, &format!("  \"delivered\" is known of {share:.0} % of the expected tokens"));
            }
            _ => {}
        }
        for Step { name, lost, advice, .. } in &steps {
            if *lost > SMALL_SHARE && !advice.is_empty() {
                line(text, &format!("  {name}: {advice}"));
            }
        }
    }

    /// Each step loses something of what the one before it leaves.
    fn steps(&self) -> Vec<Step> {
        let sums = &self.sums;
        let share = |tokens: f64| tokens / sums.prompt_tokens.max(1) as f64;
        let [held, reachable, promised] = [sums.held_tokens, sums.reachable_tokens, sums.promised_tokens]
            .map(|tokens| share(tokens as f64));
        // An engine may hold what came to it from elsewhere.
        let seen = share(sums.seen_tokens.max(0) as f64).clamp(held, 1.0_f64.max(held));
        let mut left = 1.0;
        let mut step = |name, now: f64, what, advice| {
            let lost = left - now;
            left = now;
            Step { name, left: now, lost, what, advice }
        };
        let mut steps = vec![
            step("prompts", 1.0, "", ""),
            step("seen before", seen, "workload: new text, which no cache could serve", ""),
            step(
                "held by an engine",
                held,
                "capacity: evicted, or not known to be held",
                "engines evict what would be used again, or it isn't seen: more memory for KV cache, offloading to CPU or storage, longer prompts to fewer engines; look at trust above",
            ),
            step(
                "at a candidate",
                reachable,
                "filters: held by endpoints that the profile rules out",
                "filters rule out endpoints that hold the prompt: see filtered_by in the receipts",
            ),
            step(
                "at the pick",
                promised,
                "picking: other scores outweighed the prefix",
                "load, or other scores, outweighed the prefix: raise the weight of the prefix scorer, or add endpoints where queues are long",
            ),
        ];
        if sums.compared_tokens > 0 {
            let delivered = promised * sums.delivered_tokens as f64 / sums.compared_tokens as f64;
            steps.push(step(
                "delivered",
                delivered,
                "engines: expected and not delivered",
                "engines deliver less than was expected: see the findings",
            ));
        }
        steps
    }
}

fn line(text: &mut String, words: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> LossReport {
        let newest = LossSums {
            requests: 100,
            unknown_requests: 3,
            prompt_tokens: 10_000,
            seen_tokens: 8000,
            held_tokens: 6000,
            reachable_tokens: 6000,
            promised_tokens: 5000,
            compared_tokens: 4000,
            delivered_tokens: 3600,
        };
        LossReport { newest_s: 1830, newest, all: newest, sampled_share: 1.0 }
    }

    #[test]
    fn each_step_shows_what_is_left_and_what_it_lost() {
        let text = LossTable::of(&report()).text();
        let bar = |filled: usize| format!("{}{}", "█".repeat(filled), "·".repeat(BAR - filled));
        for part in [
            "where cached tokens are lost: 100 requests, 10000 prompt tokens, last 30 min\n".to_owned(),
            format!("  prompts            {} 100.0 %\n", bar(40)),
            format!("  seen before        {}  80.0 %  -20.0 % workload", bar(32)),
            format!("  held by an engine  {}  60.0 %  -20.0 % capacity", bar(24)),
            format!("  at a candidate     {}  60.0 %\n", bar(24)),
            format!("  at the pick        {}  50.0 %  -10.0 % picking", bar(20)),
            format!("  delivered          {}  45.0 %  -5.0 % engines", bar(18)),
            "  \"delivered\" is known of 80 % of the expected tokens\n".to_owned(),
            "  held by an engine: engines evict".to_owned(),
            "  3 of 103 requests have no exact tokens and aren't in this\n".to_owned(),
        ] {
            assert!(text.contains(&part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("  at a candidate: "), "nothing is lost there:\n{text}");
    }

    #[test]
    fn nothing_is_said_without_requests_and_gains_are_no_losses() {
        assert_eq!(LossTable::of(&LossReport::default()).text(), "");
        let mut more = report();
        more.newest.seen_tokens = 0;
        more.newest.delivered_tokens = 4400;
        let text = LossTable::of(&more).text();
        assert!(text.contains("+5.0 % more than expected"), "{text}");
        assert!(text.contains("60.0 %  -40.0 % workload"), "held without having been seen here:\n{text}");
        more.newest.compared_tokens = 0;
        assert!(LossTable::of(&more).text().contains("what was delivered isn't known"));
    }
}
