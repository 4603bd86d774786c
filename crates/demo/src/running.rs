//! What `up` leaves running, written to a file for `down`.
//!
//! Envoy asks the kernel to end it together with the process that started it, so something has to stay: `up` starts this
//! program a second time, which starts the stack, writes the file and waits until it is told to end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::DemoError;
use crate::harness::Stack;

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningProcess {
    /// As its log is named.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// When it was started, in clock ticks since boot: tells it from a later process with the same id.
    pub start_ticks: u64,
}

/// A stack that was left running.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The processes; the one that holds the others is the first.
    pub processes: Vec<RunningProcess>,
    /// `host:port` of the gateway.
    pub gateway: String,
    /// `host:port` of the first picker's metrics and debug pages.
    pub metrics: String,
    /// `host:port` of each engine.
    pub engines: Vec<String>,
}

impl Running {
    /// Where the file is, in the source tree at `root`.
    pub fn path(root: &Path) -> PathBuf {
        root.join("target/demo/up.json")
    }

    /// Notes a stack and this process, which holds it.
    pub fn of(stack: &Stack) -> Self {
        let own = ("warmroute-demo".to_owned(), std::process::id());
        let metrics = stack.pickers.first().map(|picker| picker.metrics.to_string());
        Self {
            processes: noted(std::iter::once(own).chain(stack.processes())),
            gateway: stack.gateway().to_string(),
            metrics: metrics.unwrap_or_default(),
            engines: stack.fleet.addresses().iter().map(ToString::to_string).collect(),
        }
    }

    /// What the file says, with the processes that still run; none if there is no file.
    ///
    /// # Errors
    /// [`DemoError::File`] if there is one but it cannot be read.
    pub fn load(path: &Path) -> Result<Self, DemoError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(DemoError::file("read", path)(error)),
        };
        let mut running: Self = serde_json::from_slice(&bytes)
            .map_err(|error| DemoError::file("read", path)(std::io::Error::other(error)))?;
        running.processes.retain(RunningProcess::is_alive);
        Ok(running)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`DemoError::File`].
    pub fn save(&self, path: &Path) -> Result<(), DemoError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(DemoError::file("create", folder))?;
        }
        let json = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        json.and_then(|json| std::fs::write(path, json)).map_err(DemoError::file("write", path))
    }

    /// Asks each to end, waits, and kills what is left; returns how many were running.
    pub async fn stop(&self) -> usize {
        let alive: Vec<_> = self.processes.iter().filter(|process| process.is_alive()).collect();
        for process in &alive {
            process.signal(Signal::TERM);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && alive.iter().any(|process| process.is_alive()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for process in &alive {
            process.signal(Signal::KILL);
        }
        alive.len()
    }
}

impl RunningProcess {
    /// Whether it still runs, and is the same process.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), i32::try_from(self.pid).ok().and_then(Pid::from_raw)) {
            // It may end at this very moment, which is as good.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Those of the processes, by name and id, that have not ended yet.
fn noted(processes: impl IntoIterator<Item = (String, u32)>) -> Vec<RunningProcess> {
    let noted = |(name, pid)| start_ticks(pid).map(|start_ticks| RunningProcess { name, pid, start_ticks });
    processes.into_iter().filter_map(noted).collect()
}

/// When a process was started: field 22 of `/proc/PID/stat` (proc_pid_stat(5)); `None` once it has ended, and for a
/// zombie. The second field is the program's name in parentheses and may hold anything, so fields count from its end.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (*fields.first()? != "Z").then_some(())?;
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper(child: &Child) -> Running {
        Running { processes: noted([("sleeper".to_owned(), child.id())]), ..Running::default() }
    }

    #[tokio::test]
    async fn what_was_saved_can_be_stopped_by_somebody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo/up.json");
        assert_eq!(Running::load(&path).unwrap(), Running::default());

        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        sleeper(&child).save(&path).unwrap();
        let found = Running::load(&path).unwrap();
        assert_eq!(found.processes.len(), 1);
        assert_eq!(found.stop().await, 1);
        assert!(!child.wait().unwrap().success());
        assert_eq!(Running::load(&path).unwrap().processes, []);
    }

    #[tokio::test]
    async fn another_process_with_the_same_id_is_left_alone() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let mut running = sleeper(&child);
        running.processes[0].start_ticks += 1;
        assert_eq!(running.stop().await, 0);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
