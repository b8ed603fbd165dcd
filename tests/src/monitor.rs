//! Starts the monitor, waits for it, stops it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Event, Run};

/// How long the monitor may take to attach, on a busy machine.
const READY: Duration = Duration::from_secs(40);
/// How long it may take to drain and end.
const END: Duration = Duration::from_secs(60);

/// Waits for a condition, looking every 10 ms.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits for the end of a child; `None` where it lives on after the deadline.
pub(crate) fn wait_for_exit(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running monitor. Killed when dropped.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    command: OsString,
    stdout: PathBuf,
    stderr: PathBuf,
    output: Option<PathBuf>,
    /// Process that gets the signals: not the child where the child is a wrapper.
    pid: u32,
}

impl Monitor {
    /// Starts it, its output and messages going to files. `output` is where its `-o` writes.
    pub fn start(command: Command, dir: &Path, output: Option<PathBuf>) -> Result<Self> {
        Self::start_with_input(command, dir, output, Stdio::null())
    }

    /// As [`Self::start`], with a standard input.
    pub fn start_with_input(
        mut command: Command,
        dir: &Path,
        output: Option<PathBuf>,
        input: Stdio,
    ) -> Result<Self> {
        let (stdout, stderr) = (dir.join("stdout.txt"), dir.join("stderr.txt"));
        command.stdin(input).stderr(File::create(&stderr)?);
        command.stdout(File::create(&stdout)?);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id();
        Ok(Self { child, command: format!("{command:?}").into(), stdout, stderr, output, pid })
    }

    /// Waits until it says that it is monitoring.
    pub fn wait_ready(&self) -> Result<()> {
        wait_until("the monitor says that it is monitoring", READY, || {
            let said = self.stderr()?;
            ensure!(
                Path::new(&format!("/proc/{}", self.pid)).exists() && !self.is_zombie(),
                "the monitor ended at start:\n{said}"
            );
            Ok(said.lines().any(|line| line.contains("monitoring")))
        })
        .with_context(|| format!("{} said: {:?}", self.command.display(), self.stderr()))
    }

    fn is_zombie(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    }

    /// The process that gets the signals.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Says which process gets the signals, where the monitor was started through others.
    pub fn set_pid(&mut self, pid: u32) {
        self.pid = pid;
    }

    /// What it printed to standard output so far.
    pub fn stdout(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stdout)?).into_owned())
    }

    /// What it said on standard error so far.
    pub fn stderr(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.stderr)?).into_owned())
    }

    /// The events written so far.
    pub fn events(&self) -> Result<Vec<Event>> {
        match &self.output {
            Some(path) if path.exists() => Event::read_file(path),
            _ => Ok(Vec::new()),
        }
    }

    /// Waits until an event is in the file.
    pub fn wait_event(
        &self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Event) -> bool,
    ) -> Result<()> {
        wait_until(what, deadline, || Ok(self.events()?.iter().any(&mut condition)))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?).context("pid 0")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.pid))
    }

    /// Stops it as a user does, and reads what it wrote. Its exit code must be 0.
    pub fn stop(self) -> Result<Run> {
        self.signal(Signal::INT)?;
        let run = self.wait()?;
        ensure!(run.status.success(), "the monitor ended with {}:\n{}", run.status, run.stderr);
        Ok(run)
    }

    /// Waits for its end, however that comes about.
    pub fn wait(mut self) -> Result<Run> {
        let Some(status) = wait_for_exit(&mut self.child, END)? else {
            bail!("the monitor did not end in {END:?}; it said:\n{}", self.stderr()?);
        };
        Ok(Run { status, events: self.events()?, stdout: self.stdout()?, stderr: self.stderr()? })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing can be done about a failure here, and the test has failed already.
            drop(self.signal(Signal::KILL));
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
