use std::collections::HashMap;
use std::fs;

use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};

/// What this process takes of its machine, read from `/proc` when the page is made; nothing where there is no `/proc`.
///
/// Names and units are those of Prometheus' own client libraries, so that dashboards made for any process work.
pub(super) struct ProcessCollector {
    descs: Vec<Desc>,
}

/// Name, help text and kind of what is shown, in the order of [`Reading::values`].
const SHOWN: [(&str, &str, MetricType); 7] = [
    ("process_cpu_seconds_total", "User and system CPU time spent, in seconds.", MetricType::COUNTER),
    ("process_resident_memory_bytes", "Resident memory size in bytes.", MetricType::GAUGE),
    ("process_virtual_memory_bytes", "Virtual memory size in bytes.", MetricType::GAUGE),
    (
        "process_start_time_seconds",
        "Start of the process, in seconds since the Unix epoch.",
        MetricType::GAUGE,
    ),
    ("process_threads", "Threads of the process.", MetricType::GAUGE),
    ("process_open_fds", "Open file descriptors.", MetricType::GAUGE),
    ("process_max_fds", "Greatest number of open file descriptors.", MetricType::GAUGE),
];

/// Names of what a [`ProcessCollector`] shows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SHOWN.into_iter().map(|(name, ..)| name)
}

/// One look at the process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Reading {
    cpu_ticks: u64,
    /// Ticks from the boot of the machine to the start of the process.
    start_ticks: u64,
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Reading {
    /// Of the text of `/proc/self/stat`, as proc(5) lays it out; `None` if it is something else.
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold anything; state is the third.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    /// The values of [`SHOWN`], where each is known.
    fn values(self) -> [Option<f64>; SHOWN.len()] {
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_seconds(&text));
        [
            Some(self.cpu_ticks as f64 / per_second),
            Some(self.resident_pages as f64 * rustix::param::page_size() as f64),
            Some(self.virtual_bytes as f64),
            boot.map(|boot| boot + self.start_ticks as f64 / per_second),
            Some(self.threads as f64),
            fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as f64),
            fs::read_to_string("/proc/self/limits").ok().and_then(|text| max_open_files(&text)),
        ]
    }
}

/// The boot of the machine in seconds since the epoch, of the text of `/proc/stat`.
fn boot_seconds(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit, of the text of `/proc/self/limits`.
fn max_open_files(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

impl ProcessCollector {
    pub(super) fn try_new() -> Result<Self, Error> {
        let desc = |(name, help, _): (&str, &str, _)| {
            Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())
        };
        Ok(Self { descs: SHOWN.into_iter().map(desc).collect::<Result<_, _>>()? })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reading = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Reading::parse(&text));
        let Some(values) = reading.map(Reading::values) else { return Vec::new() };
        let shown = SHOWN.into_iter().zip(values);
        shown.filter_map(|((name, help, kind), value)| Some(family(name, help, kind, value?))).collect()
    }
}

fn family(name: &str, help: &str, kind: MetricType, value: f64) -> MetricFamily {
    let mut metric = Metric::default();
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric = Metric::from_gauge(gauge);
    }
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        fields[0] = "S".to_owned();
        let stat = format!("42 (a) b (c) {}", fields.join(" "));
        let expected = Reading {
            cpu_ticks: 14 + 15,
            threads: 20,
            start_ticks: 22,
            virtual_bytes: 23,
            resident_pages: 24,
        };
        assert_eq!(Reading::parse(&stat), Some(expected));
        assert_eq!(Reading::parse("42 (a) S 1 2"), None);
        assert_eq!(Reading::parse(""), None);
    }

    #[test]
    fn limits_and_boot_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(max_open_files(limits), Some(1024.0));
        assert_eq!(max_open_files("Max open files   unlimited  unlimited  files"), Some(f64::INFINITY));
        assert_eq!(max_open_files("Max cpu time 1 2 3"), None);
        assert_eq!(boot_seconds("cpu 1 2 3\nbtime 1700000000\nprocesses 5\n"), Some(1_700_000_000.0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_seen() {
        let families = ProcessCollector::try_new().unwrap().collect();
        assert!(families.iter().map(MetricFamily::name).eq(names()));
        let gauge = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        assert!(gauge("process_resident_memory_bytes") > 1e6);
        assert!(gauge("process_threads") >= 1.0);
        assert!(gauge("process_open_fds") <= gauge("process_max_fds"));
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let started = gauge("process_start_time_seconds");
        // Within a day before now: the kernel rounds the boot to a second.
        assert!(started < now + 2.0 && started > now - 86_400.0, "{started} is not shortly before {now}");
    }
}
