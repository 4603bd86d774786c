//! Charts as inline SVG. Colours are CSS classes, so that the page's light and dark styles apply to them.

use super::PolicyReport;

const WIDTH: f64 = 680.0;
/// Room for the names at the left.
const LEFT: f64 = 118.0;
/// Room for the values at the right.
const RIGHT: f64 = 96.0;
const ROW: f64 = 40.0;
const BAR: f64 = 20.0;

/// Text that is safe inside an element or an attribute in double quotes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

fn svg(title: &str, height: f64, content: &str) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\">{content}</svg>\n")
}

/// The class that gives the `index`-th policy its colour.
pub(super) fn colour(index: usize) -> String {
    format!("c{}", index % 6)
}

fn name_label(y: f64, name: &str) -> String {
    format!(
        "<text class=\"name\" x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 12.0,
        escape(name)
    )
}

/// Horizontal bars: hit ratio of each policy, with a mark at the ceiling.
pub(super) fn hit_ratios(policies: &[PolicyReport]) -> String {
    let plot = WIDTH - LEFT - RIGHT;
    let height = policies.len() as f64 * ROW + 34.0;
    let mut content = String::new();
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let x = LEFT + plot * percent / 100.0;
        let bottom = height - 26.0;
        content += &format!("<line class=\"grid\" x1=\"{x:.1}\" y1=\"4\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>");
        let y = height - 8.0;
        content += &format!(
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{percent:.0} %</text>"
        );
    }
    for (index, policy) in policies.iter().enumerate() {
        let top = 8.0 + index as f64 * ROW;
        let middle = top + BAR / 2.0 + 4.5;
        let length = (plot * policy.hit_ratio).max(1.0);
        content += &name_label(middle, &policy.name);
        content += &format!(
            "<rect class=\"{}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"3\"><title>{} of {} prompt tokens</title></rect>",
            colour(index),
            policy.cached_tokens,
            policy.prompt_tokens,
        );
        let x = LEFT + plot * policy.ceiling_ratio().min(1.0);
        let (y1, y2) = (top - 5.0, top + BAR + 5.0);
        content += &format!(
            "<line class=\"ceiling\" x1=\"{x:.1}\" y1=\"{y1:.1}\" x2=\"{x:.1}\" y2=\"{y2:.1}\"><title>ceiling: {:.1} %</title></line>",
            policy.ceiling_ratio() * 100.0,
        );
        let x = LEFT + plot + 14.0;
        content += &format!(
            "<text class=\"value\" x=\"{x:.1}\" y=\"{middle:.1}\">{:.1} %</text>",
            policy.hit_ratio * 100.0
        );
    }
    svg("Hit ratio per policy, with the ceiling", height, &content)
}

/// Cumulative distribution of the time to first token, on a logarithmic time axis.
pub(super) fn ttft_distribution(policies: &[PolicyReport]) -> String {
    let (top, plot_height) = (14.0, 230.0);
    let height = top + plot_height + 46.0;
    let left = 64.0;
    let plot = WIDTH - left - 24.0;
    let values =
        || policies.iter().flat_map(|policy| &policy.ttft_percentiles_ms).copied().filter(|ms| *ms > 0.0);
    let Some(axis) = LogAxis::around(values()) else {
        return "<p class=\"note\">No request succeeded, so there is nothing to draw.</p>\n".to_owned();
    };
    let x = |ms: f64| left + plot * axis.position(ms);
    let y = |share: f64| top + plot_height * (1.0 - share);
    let mut content = String::new();
    for share in [0.0, 0.25, 0.5, 0.75, 0.9, 1.0] {
        let (right, y) = (left + plot, y(share));
        content +=
            &format!("<line class=\"grid\" x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\"/>");
        let (x, y, percent) = (left - 10.0, y + 4.0, share * 100.0);
        content +=
            &format!("<text class=\"tick\" x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{percent:.0} %</text>");
    }
    for tick in axis.ticks() {
        let (x, bottom) = (x(tick), top + plot_height);
        content +=
            &format!("<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>");
        let y = bottom + 18.0;
        let label = if tick < 1000.0 { format!("{tick} ms") } else { format!("{} s", tick / 1000.0) };
        content +=
            &format!("<text class=\"tick\" x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>");
    }
    for (index, policy) in policies.iter().enumerate() {
        let points: Vec<String> = policy
            .ttft_percentiles_ms
            .iter()
            .enumerate()
            .map(|(percent, ms)| format!("{:.1},{:.1}", x(ms.max(axis.low)), y(percent as f64 / 100.0)))
            .collect();
        let (colour, name) = (colour(index), escape(&policy.name));
        content += &format!(
            "<polyline class=\"line {colour}\" points=\"{}\"><title>{name}</title></polyline>",
            points.join(" ")
        );
    }
    let (x, y) = (left + plot / 2.0, height - 6.0);
    content += &format!(
        "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">time to first token (logarithmic)</text>"
    );
    svg("Share of requests answered within a time to first token", height, &content)
}

/// A logarithmic axis in ms from `low` to `high`.
struct LogAxis {
    low: f64,
    high: f64,
}

impl LogAxis {
    /// Around all values, which are above 0; `None` without values.
    fn around(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) =
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), ms| (low.min(ms), high.max(ms)));
        (low <= high).then(|| Self { low: low / 1.1, high: high * 1.1 })
    }

    /// 0 at the left end, 1 at the right one.
    fn position(&self, ms: f64) -> f64 {
        (ms / self.low).ln() / (self.high / self.low).ln()
    }

    /// 1, 2, 5, 10, 20, 50, … as far as they lie on the axis.
    fn ticks(&self) -> Vec<f64> {
        let decades = (-3..7).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10.0_f64.powi(power)));
        decades.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

/// One row per policy, one bar per engine: the prompt tokens that it was given, the cached ones filled.
pub(super) fn engine_spread(policies: &[PolicyReport]) -> String {
    let plot = WIDTH - LEFT - 20.0;
    let (row, bar) = (92.0, 56.0);
    let height = policies.len() as f64 * row + 12.0;
    let shares = || policies.iter().flat_map(|policy| &policy.engines);
    let largest = shares().map(|share| share.prompt_tokens).max().unwrap_or(0).max(1) as f64;
    let mut content = String::new();
    for (index, policy) in policies.iter().enumerate() {
        let base = 10.0 + index as f64 * row + bar;
        content += &name_label(base - bar / 2.0 + 4.5, &policy.name);
        let step = plot / policy.engines.len().max(1) as f64;
        let right = LEFT + plot;
        content += &format!(
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{base:.1}\" x2=\"{right:.1}\" y2=\"{base:.1}\"/>"
        );
        for (number, share) in policy.engines.iter().enumerate() {
            let (x, width) = (LEFT + step * (number as f64 + 0.25), step * 0.5);
            let (whole, cached) =
                (share.prompt_tokens as f64 / largest * bar, share.cached_tokens as f64 / largest * bar);
            let colour = colour(index);
            let title = format!(
                "{}: {} of {} prompt tokens cached",
                share.address, share.cached_tokens, share.prompt_tokens
            );
            content += &format!(
                "<g><title>{}</title><rect class=\"pale {colour}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{whole:.1}\" rx=\"2\"/><rect class=\"{colour}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{cached:.1}\" rx=\"2\"/></g>",
                escape(&title),
                base - whole,
                base - cached,
            );
            let (x, y, thousands) = (x + width / 2.0, base + 16.0, share.prompt_tokens as f64 / 1000.0);
            content += &format!(
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{thousands:.1}k</text>"
            );
        }
    }
    svg("Prompt tokens per engine, cached ones filled", height, &content)
}
