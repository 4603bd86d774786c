use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::fixture::{log_name, tools};

/// Nothing that a program is asked to do takes longer.
const STEP_LIMIT: Duration = Duration::from_secs(90);

/// One of the programs in `tests/python`, driven step by step. It ends with this value.
pub(super) struct PythonPeer {
    child: Child,
    steps: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl PythonPeer {
    /// Starts a program, and returns what it says when it is ready.
    pub(super) async fn start(program: &str, options: &Value) -> (Self, Value) {
        let tools = tools();
        let packages = std::env::var_os("WARMROUTE_PYZMQ")
            .map_or_else(|| tools.root.join("target/tools/pyzmq"), PathBuf::from);
        assert!(packages.join("zmq").is_dir(), "no pyzmq in {}: run make setup", packages.display());
        let log = tools.logs.join(format!("{}.log", log_name(program)));
        std::fs::create_dir_all(&tools.logs).unwrap();
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child = Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()))
            .arg("-B")
            .arg(tools.root.join("tests/python").join(program))
            .arg(options.to_string())
            .env("PYTHONPATH", packages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let steps = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut peer = Self { child, steps, answers, log };
        let ready = peer.answer("its start").await;
        (peer, ready)
    }

    /// Has a step done, and returns the answer to it.
    pub(super) async fn step(&mut self, step: Value) -> Value {
        self.begin(&step).await;
        self.answer(&step.to_string()).await
    }

    /// Has a step done without waiting for it.
    pub(super) async fn begin(&mut self, step: &Value) {
        self.steps.write_all(format!("{step}\n").as_bytes()).await.unwrap();
    }

    async fn answer(&mut self, step: &str) -> Value {
        let line = tokio::time::timeout(STEP_LIMIT, self.answers.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => serde_json::from_str(&line).unwrap(),
            _ => panic!("no answer to {step}: {line:?}; its log is {}", self.log.display()),
        }
    }

    /// Ends it with SIGKILL.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A proxy between a subscriber and a publisher that does harm to what the publisher sends.
pub(super) struct Proxy {
    peer: PythonPeer,
    pub(super) port: u16,
}

impl Proxy {
    /// In front of the publisher at a port of 127.0.0.1.
    pub(super) async fn start(port: u16) -> Self {
        Self::with(json!({"host": "127.0.0.1", "port": port})).await
    }

    pub(super) async fn with(options: Value) -> Self {
        let (peer, ready) = PythonPeer::start("zmtp_proxy.py", &options).await;
        let port = ready["port"].as_u64().unwrap() as u16;
        Self { peer, port }
    }

    /// Faults for the next messages, one each: `drop`, `double`, `swap` (with the next one), `cut` (amid the message), or
    /// nothing for none.
    pub(super) async fn harm(&mut self, next: &[&str]) {
        let next: Vec<Option<&str>> =
            next.iter().map(|fault| Some(*fault).filter(|fault| !fault.is_empty())).collect();
        self.peer.step(json!({"do": "faults", "next": next})).await;
    }

    /// `pause`, `resume`, `freeze` or `reset`.
    pub(super) async fn now(&mut self, what: &str) {
        self.peer.step(json!({"do": what})).await;
    }

    /// Waits until as many things have been counted, and returns all counts.
    pub(super) async fn until(&mut self, what: &str, count: u64) -> Value {
        self.peer.step(json!({"do": "await", "counts": {what: count}})).await
    }
}
