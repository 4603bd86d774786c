//! [`Process`]: a child process with its log, ended with its owner.

use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::DemoError;

/// How long a process may take to become ready before the harness gives up. Generous: a loaded machine is no error.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// How often readiness is asked for.
const PROBE_EVERY: Duration = Duration::from_millis(20);

/// How much of a log's end goes into an error.
const TAIL_BYTES: u64 = 4096;

/// A running child process. Its output goes to `<logs>/<name>.log`. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    detached: bool,
}

impl Process {
    /// Starts `command` with stdout and stderr in a fresh log file.
    ///
    /// The process gets a group of its own, so that Ctrl-C in the terminal reaches the demo alone, which then ends its
    /// processes in order.
    ///
    /// # Errors
    /// [`DemoError::File`] for the log, [`DemoError::Start`] for the process.
    pub fn spawn(name: &str, mut command: Command, logs: &Path) -> Result<Self, DemoError> {
        std::fs::create_dir_all(logs).map_err(DemoError::file("create", logs))?;
        let log = logs.join(format!("{name}.log"));
        let out = std::fs::File::create(&log).map_err(DemoError::file("create", &log))?;
        let err = out.try_clone().map_err(DemoError::file("open", &log))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|source| DemoError::Start { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), log, child, detached: false })
    }

    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let mut tail = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.log) {
            let length = file.metadata().map_or(0, |meta| meta.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)));
            let _ = file.read_to_end(&mut tail);
        }
        String::from_utf8_lossy(&tail).trim_end().to_owned()
    }

    /// Fine while it runs.
    ///
    /// # Errors
    /// [`DemoError::EndedEarly`] with the end of its log once it has ended.
    pub fn check(&mut self) -> Result<(), DemoError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended_early(status.to_string())),
            Err(error) => Err(self.ended_early(error.to_string())),
        }
    }

    fn ended_early(&self, status: String) -> DemoError {
        DemoError::EndedEarly {
            name: self.name.clone(),
            status,
            log: self.log.clone(),
            tail: self.log_tail(),
        }
    }

    /// Asks it to end (SIGTERM), waits for up to `grace`, then kills it.
    pub async fn stop(mut self, grace: Duration) {
        self.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Kills it at once (SIGKILL) and waits for its end: what a node failure looks like.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it run on after this value is gone. Not for Envoy, which ends with the process that started it.
    pub fn detach(mut self) {
        self.detached = true;
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself, which is as good.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.kill();
        }
    }
}

/// Waits until `probe` answers `Ok`, as long as `process` runs and `within` has not passed.
///
/// # Errors
/// [`DemoError::EndedEarly`] if the process ends, [`DemoError::NotReady`] with the probe's last words if time is up.
pub async fn wait_until_ready<F, P>(
    process: &mut Process,
    within: Duration,
    mut probe: F,
) -> Result<(), DemoError>
where
    F: FnMut() -> P,
    P: Future<Output = Result<(), String>>,
{
    let started = Instant::now();
    loop {
        process.check()?;
        let last = match tokio::time::timeout(Duration::from_secs(5), probe()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(last)) => last,
            Err(_) => "no answer within 5 s".to_owned(),
        };
        if started.elapsed() > within {
            return Err(DemoError::NotReady {
                name: process.name().to_owned(),
                waited: within,
                last,
                log: process.log().to_owned(),
                tail: process.log_tail(),
            });
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn an_early_end_is_an_error_with_the_end_of_the_log() {
        let logs = tempfile::tempdir().unwrap();
        let mut process =
            Process::spawn("broken", shell("echo no such flag >&2; exit 3"), logs.path()).unwrap();
        let error = wait_until_ready(&mut process, READY_WITHIN, || async { Err("not yet".to_owned()) })
            .await
            .unwrap_err();
        let DemoError::EndedEarly { name, status, tail, .. } = error else { panic!("{error}") };
        assert_eq!(name, "broken");
        assert!(status.contains('3'), "{status}");
        assert_eq!(tail, "no such flag");
    }

    #[tokio::test]
    async fn a_process_that_never_gets_ready_is_told_with_the_last_probe() {
        let logs = tempfile::tempdir().unwrap();
        let mut process = Process::spawn("slow", shell("echo loading; sleep 600"), logs.path()).unwrap();
        let error = wait_until_ready(&mut process, Duration::ZERO, || async { Err("503".to_owned()) })
            .await
            .unwrap_err();
        assert!(matches!(error, DemoError::NotReady { ref last, .. } if last == "503"), "{error}");
    }

    #[tokio::test]
    async fn dropping_kills_and_stopping_waits() {
        let logs = tempfile::tempdir().unwrap();
        let process = Process::spawn("dropped", shell("exec sleep 600"), logs.path()).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap();
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());

        let marker = logs.path().join("ended");
        let script =
            format!("trap 'touch {}; exit 0' TERM; echo up; while :; do sleep 0.02; done", marker.display());
        let mut process = Process::spawn("stopped", shell(&script), logs.path()).unwrap();
        let log = process.log().to_owned();
        wait_until_ready(&mut process, READY_WITHIN, || {
            let up = std::fs::read_to_string(&log).unwrap_or_default() == "up\n";
            async move { if up { Ok(()) } else { Err("silent".to_owned()) } }
        })
        .await
        .unwrap();
        process.stop(READY_WITHIN).await;
        assert!(marker.exists(), "it was killed before it could end by itself");
    }
}
