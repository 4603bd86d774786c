//! CPU time, which other load on the machine disturbs far less than wall time.

use std::time::Duration;

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

/// CPU time of the whole process. For steps that run alone in it, whatever threads they may use inside.
pub fn process_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU time of all live threads of this process that are called `name` (the kernel keeps 15 bytes of a name).
///
/// Read from `/proc/self/task/*/schedstat`, whose first number is the time on a CPU in nanoseconds. It is exact for
/// threads that sleep; for a running one it may lag by a scheduler tick.
///
/// # Errors
/// `/proc` isn't there or the kernel keeps no scheduler statistics.
pub fn threads_time(name: &str) -> anyhow::Result<Duration> {
    let mut total_ns = 0;
    for task in std::fs::read_dir("/proc/self/task").context("thread CPU times need Linux's /proc")? {
        let task = task?.path();
        // A thread may end between the listing and the reading.
        let Ok(found) = std::fs::read_to_string(task.join("comm")) else { continue };
        if found.trim_end() != name {
            continue;
        }
        let stat = std::fs::read_to_string(task.join("schedstat"))
            .context("the kernel keeps no scheduler statistics")?;
        let on_cpu = stat.split_ascii_whitespace().next().and_then(|first| first.parse::<u64>().ok());
        total_ns += on_cpu.context("unexpected form of schedstat")?;
    }
    Ok(Duration::from_nanos(total_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_named_threads_grows_with_their_work_only() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (idle, worked) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("cpu-time-test".to_owned())
            .spawn(move || {
                let start = process_time();
                while process_time() - start < Duration::from_millis(30) {
                    std::hint::spin_loop();
                }
                idle.send(()).unwrap();
                let _ = wait.recv();
            })
            .unwrap();
        worked.recv().unwrap();
        while threads_time("cpu-time-test").unwrap() < Duration::from_millis(1) {
            std::thread::yield_now();
        }
        assert_eq!(threads_time("no-such-thread").unwrap(), Duration::ZERO);
        drop(done);
        thread.join().unwrap();
    }
}
