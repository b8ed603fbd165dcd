//! What a test stands on: the lock, its scratch directory, what it needs and whether that is there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::docker::Engine;
use crate::monitor::wait_for_exit;
use crate::{Monitor, Truth, peers};

/// How long a peer may play.
const SCENARIO: Duration = Duration::from_secs(150);

/// What a test needs beside root and the monitor's binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The peer with the Python SDK below 2.
    PythonV1,
    /// The peer with the Python SDK from 2 on.
    PythonV2,
    /// Node with the TypeScript SDK and its public servers.
    TypeScript,
    /// The peer with rmcp.
    Rmcp,
    /// A container engine of the tests' own.
    Docker,
    /// A program of this name on the search path.
    Program(&'static str),
}

impl Need {
    /// Why the need is not met.
    fn missing(self) -> Option<String> {
        let installed = |path: PathBuf| {
            (!path.exists()).then(|| format!("{} is not installed", path.display()))
        };
        match self {
            Self::PythonV1 => installed(peers::python_binary(1)),
            Self::PythonV2 => installed(peers::python_binary(2)),
            Self::TypeScript => installed(peers::typescript_dir().join("node_modules")),
            Self::Rmcp => installed(peers::rmcp_binary()),
            Self::Docker => Engine::get().err(),
            Self::Program(name) => {
                let paths = std::env::var_os("PATH").unwrap_or_default();
                let found = std::env::split_paths(&paths).any(|dir| dir.join(name).exists());
                (!found).then(|| format!("no {name} on this machine"))
            }
        }
    }
}

/// Runs one live test: skips it with its reason where this machine cannot run it, fails with the
/// whole chain of reasons and keeps the scratch directory.
///
/// # Panics
///
/// When the test fails, or when it would be skipped and `MCPSPY_REQUIRE_LIVE` is set.
pub fn live<F: FnOnce(&Stage) -> Result<()>>(needs: &[Need], body: F) {
    let monitor = if rustix::process::geteuid().is_root() {
        peers::monitor_binary().map_err(|error| error.to_string()).err()
    } else {
        Some("needs root".to_owned())
    };
    run(monitor, needs, body);
}

/// Runs one test that needs neither root nor the monitor.
///
/// # Panics
///
/// As [`live`].
pub fn offline<F: FnOnce(&Stage) -> Result<()>>(needs: &[Need], body: F) {
    run(None, needs, body);
}

fn run<F: FnOnce(&Stage) -> Result<()>>(missing: Option<String>, needs: &[Need], body: F) {
    // "sdk_python::burst::{{closure}}": with one thread, libtest's thread has no name.
    let path = std::any::type_name::<F>();
    let name = path.trim_end_matches("::{{closure}}").rsplit("::").next().unwrap_or(path);
    if let Some(reason) = missing.or_else(|| needs.iter().find_map(|need| need.missing())) {
        skip(name, &reason);
        return;
    }
    let result = Stage::new(name).and_then(|stage| {
        body(&stage).with_context(|| format!("scratch directory: {}", stage.dir.display()))?;
        stage.clean()
    });
    if let Err(error) = result {
        panic!("{name}: {error:#}");
    }
}

#[expect(clippy::print_stderr, reason = "skips are part of the result of a test run")]
fn skip(name: &str, reason: &str) {
    assert!(
        std::env::var_os("MCPSPY_REQUIRE_LIVE").is_none_or(|value| value == "0"),
        "{name}: {reason}, and MCPSPY_REQUIRE_LIVE is set"
    );
    eprintln!("SKIP {name}: {reason}");
}

/// One running test.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    /// Held as long as the test runs: the monitor sees the whole host.
    _lock: File,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let base = peers::target_dir().join("e2e");
        fs::create_dir_all(&base)?;
        // For the whole host, like what the monitor sees: other build directories share it.
        let path = std::env::temp_dir().join("mcpspy-live.lock");
        let lock = File::options().read(true).open(&path).or_else(|_| File::create(&path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        let dir = base.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("truth"))?;
        Ok(Self { dir, _lock: lock })
    }

    fn clean(self) -> Result<()> {
        if std::env::var_os("MCPSPY_KEEP").is_none() {
            fs::remove_dir_all(&self.dir)?;
        }
        Ok(())
    }

    /// The scratch directory of this test.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the peers of this test write their logs.
    pub fn truth_dir(&self) -> PathBuf {
        self.dir.join("truth")
    }

    /// What the peers logged so far.
    pub fn truth(&self) -> Result<Truth> {
        Truth::read(&self.truth_dir())
    }

    /// The monitor, attached: its events go to a file, its output and messages to files too.
    pub fn monitor(&self, arguments: &[&str]) -> Result<Monitor> {
        let mut command = Command::new(peers::monitor_binary()?);
        command.args(arguments);
        self.monitor_with(command)
    }

    /// The monitor by a command of the test's own, to which `-o FILE` is added.
    pub fn monitor_with(&self, mut command: Command) -> Result<Monitor> {
        let output = self.dir.join("events.jsonl");
        command.arg("-o").arg(&output);
        let monitor = Monitor::start(command, &self.dir, Some(output))?;
        monitor.wait_ready()?;
        Ok(monitor)
    }

    /// Starts a peer; its logs go to this test's directory, its stderr to a file.
    pub fn spawn(&self, command: &mut Command) -> Result<std::process::Child> {
        let log = File::options().append(true).create(true).open(self.dir.join("peers.log"))?;
        command
            .env("MCPSPY_TRUTH", self.truth_dir())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))
    }

    /// Plays a peer to its end.
    pub fn play(&self, command: &mut Command) -> Result<()> {
        let status = self.play_to_end(command)?;
        ensure!(status.success(), "{command:?} ended with {status}; see {}", self.peers_log());
        Ok(())
    }

    /// Plays a peer to its end, which may be a bad one.
    pub fn play_to_end(&self, command: &mut Command) -> Result<ExitStatus> {
        let mut child = self.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let Some(status) = wait_for_exit(&mut child, SCENARIO)? else {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end in {SCENARIO:?}; see {}", self.peers_log());
        };
        Ok(status)
    }

    fn peers_log(&self) -> String {
        self.dir.join("peers.log").display().to_string()
    }
}
