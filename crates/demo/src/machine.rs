//! What the demo runs on, from Linux's `/proc`: the hardware in words, and how busy the processors were.

use std::process::Command;

use crate::harness::Tools;
use crate::report::Machine;

/// Processor time since boot, in clock ticks over all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessorTime {
    busy: u64,
    total: u64,
}

impl ProcessorTime {
    /// Now; `None` where there is no `/proc/stat`.
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// First line of `/proc/stat` (proc_stat(5)): `cpu user nice system idle iowait irq softirq steal …`. Time that other
    /// machines on the same host took (steal) counts as busy: it was not there for us.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
        let total = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
        Some(Self { busy: total - idle, total })
    }

    /// Share of the time since `earlier` in which processors were busy, 0 to 1.
    pub fn busy_since(self, earlier: Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        Some(self.busy.saturating_sub(earlier.busy) as f64 / total as f64)
    }
}

/// Hardware and versions, in words.
pub fn describe(tools: &Tools) -> Machine {
    let proc = |file: &str| std::fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
    let cpu = proc("cpuinfo");
    let model =
        cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory_kib: Option<f64> = proc("meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let memory_gib = memory_kib.map_or_else(String::new, |kib| format!(", {:.0} GiB", kib / 1024.0 / 1024.0));
    let kernel = proc("sys/kernel/osrelease");
    let system = if kernel.is_empty() { String::new() } else { format!(", Linux {}", kernel.trim()) };
    let plural = if cores == 1 { "" } else { "s" };
    let profile = if cfg!(debug_assertions) { "debug build" } else { "optimised build" };
    let mut versions = vec![format!("Warmroute {} ({profile})", env!("CARGO_PKG_VERSION"))];
    versions.extend(envoy_version(tools));
    versions.push("engines: warmroute-engine-sim, all on this machine".to_owned());
    Machine { hardware: format!("{model}, {cores} core{plural}{memory_gib}{system}"), versions }
}

/// "Envoy 1.40.0", out of `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
fn envoy_version(tools: &Tools) -> Option<String> {
    let output = Command::new(&tools.envoy).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split("version:").nth(1)?.trim().split('/').nth(1)?.to_owned();
    Some(format!("Envoy {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_was_not_idle() {
        let before = ProcessorTime::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n").unwrap();
        let after = ProcessorTime::parse("cpu  150 0 70 1400 80 0 5 25 0 0\n").unwrap();
        // user 50, system 20, softirq 5, steal 25 of 730 ticks
        assert!((after.busy_since(before).unwrap() - 100.0 / 730.0).abs() < 1e-12);
        assert_eq!(before.busy_since(before), None);
        assert_eq!(ProcessorTime::parse("intr 1 2 3"), None);
    }
}
