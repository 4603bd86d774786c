//! Progress lines and the hints at the end.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use warmroute_demo::load::Progress;
use warmroute_demo::run::RunEvent;

/// How often a line is renewed on a terminal, and how often one is added elsewhere.
const RENEW_EVERY: Duration = Duration::from_millis(200);
const ADD_EVERY: Duration = Duration::from_secs(5);

/// Shows one run. On a terminal the line of a phase is renewed in place.
pub(crate) struct Console {
    label: String,
    terminal: bool,
    shown: Option<Instant>,
}

impl Console {
    pub(crate) fn new(scenario: &str, policy: &str) -> Self {
        Self {
            label: format!("{scenario} / {policy}"),
            terminal: std::io::stdout().is_terminal(),
            shown: None,
        }
    }

    pub(crate) fn show(&mut self, event: RunEvent) {
        match event {
            RunEvent::Starting => self.line("starting engines, picker and Envoy …"),
            RunEvent::Ready(after) => self.line(&format!("all ready after {:.1} s", after.as_secs_f64())),
            RunEvent::WarmUp(progress) => self.progress("warm-up ", progress),
            RunEvent::Measuring(progress) => self.progress("measured", progress),
            RunEvent::Stopping => {}
        }
    }

    fn line(&mut self, text: &str) {
        println!("  {:<28} {text}", self.label);
        self.shown = None;
    }

    fn progress(&mut self, phase: &str, progress: Progress) {
        let every = if self.terminal { RENEW_EVERY } else { ADD_EVERY };
        let last = progress.done == progress.total;
        if !last && *self.shown.get_or_insert_with(Instant::now) + every > Instant::now() {
            return;
        }
        self.shown = Some(Instant::now());
        let hits = match progress.prompt_tokens {
            0 => "–".to_owned(),
            all => format!("{:.1} %", 100.0 * progress.cached_tokens as f64 / all as f64),
        };
        let failed =
            if progress.failed == 0 { String::new() } else { format!(", {} failed", progress.failed) };
        let (done, total) = (progress.done, progress.total);
        let text = format!("{phase} {done:>4} of {total:<4} hit ratio {hits}{failed}");
        if self.terminal {
            print!("\r  {:<28} {text}\x1b[K{}", self.label, if last { "\n" } else { "" });
            // A terminal that cannot be written to shows nothing; the results do not depend on it.
            let _ = std::io::stdout().flush();
        } else {
            println!("  {:<28} {text}", self.label);
        }
        if last {
            self.shown = None;
        }
    }
}

/// Commands to copy.
pub(crate) fn try_it(model: &str, gateway: &str, metrics: &str, warmroute: &str) -> String {
    let address =
        if metrics.ends_with(":9090") { String::new() } else { format!(" --address http://{metrics}") };
    format!(
        "  # a completion; sent twice, the second goes where the first went (cached_tokens in its usage)
  curl -s http://{gateway}/v1/completions -H 'content-type: application/json' -H 'x-request-id: try-1' \\
    -d '{{\"model\": \"{model}\", \"max_tokens\": 16, \"prompt\": \"'\"$(seq -s ' ' 100)\"'\"}}'
  # a chat, streamed
  curl -sN http://{gateway}/v1/chat/completions -H 'content-type: application/json' -H 'x-request-id: try-2' \\
    -d '{{\"model\": \"{model}\", \"max_tokens\": 16, \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Good morning\"}}]}}'
  # why it went where it went: one decision in words, and the last ones as JSON
  {warmroute} explain try-1{address}
  curl -s http://{metrics}/debug/decisions
  # the pool and the metrics
  curl -s http://{metrics}/status
  curl -s http://{metrics}/metrics
  # stop
  make demo-down
"
    )
}
