//! Starting and stopping what is measured: the monitor, and the load beside it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bpf::{Hook, Runs};
use crate::load::{LoadArgs, Sent};
use crate::probe::{Call, Timed};
use crate::usage;

/// Which CPU has which part.
#[derive(Clone, Copy)]
pub(crate) struct Cpus {
    /// The load: client, server, and the kernel programs that run in their calls.
    pub(crate) load: usize,
    /// The monitor's own threads.
    pub(crate) monitor: usize,
}

impl Cpus {
    /// The first two that this process may use; on a machine with one CPU both are the same.
    pub(crate) fn choose() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .context("no Cpus_allowed_list")?;
        let mut cpus = Vec::new();
        for part in allowed.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            cpus.extend(first.parse::<usize>()?..=last.parse()?);
        }
        let load = *cpus.first().context("no CPU")?;
        Ok(Self { load, monitor: cpus.get(1).copied().unwrap_or(load) })
    }
}

/// A command on one CPU.
pub(crate) fn pinned(cpu: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpu.to_string()]).arg(program);
    command
}

/// Runs the load to its end.
pub(crate) fn load(cpu: usize, args: &LoadArgs) -> Result<Sent> {
    json_of(load_command(cpu, args)?)
}

/// The load as a command.
pub(crate) fn load_command(cpu: usize, args: &LoadArgs) -> Result<Command> {
    let mut command = pinned(cpu, &std::env::current_exe()?);
    command.args(["load", "--seconds", &args.seconds.to_string()]);
    command.args(["--messages", &args.messages.to_string()]);
    command.args(["--size", &args.size.to_string(), "--window", &args.window.to_string()]);
    if let Some(rate) = args.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    Ok(command)
}

/// Makes calls that have nothing to do with MCP.
pub(crate) fn probe(cpu: usize, call: Call, seconds: f64) -> Result<Timed> {
    let mut command = pinned(cpu, &std::env::current_exe()?);
    command.args(["probe", call.name(), "--seconds", &seconds.to_string()]);
    json_of(command)
}

fn json_of<T: serde::de::DeserializeOwned>(mut command: Command) -> Result<T> {
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// How to start the monitor.
pub(crate) struct Start<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its CPU.
    pub(crate) cpu: usize,
    /// Its JSONL.
    pub(crate) output: &'a Path,
    /// Further arguments.
    pub(crate) args: &'a [&'a str],
    /// A file to write its process id to before it starts, to be in that cgroup.
    pub(crate) cgroup: Option<PathBuf>,
}

impl<'a> Start<'a> {
    /// With the default options.
    pub(crate) const fn new(program: &'a Path, cpu: usize, output: &'a Path) -> Self {
        Self { program, cpu, output, args: &[], cgroup: None }
    }
}

/// A running monitor. Ended when dropped.
pub(crate) struct Monitor {
    child: Child,
    stderr: Receiver<String>,
    said: Vec<String>,
    /// From its start until it said that it monitors.
    pub(crate) ready_after: Duration,
    began: Usage,
}

/// What the monitor used up to a moment.
#[derive(Clone, Copy)]
struct Usage {
    cpu: Duration,
    runs: Runs,
}

/// What a monitor used between [`Monitor::begin`] and its end.
pub(crate) struct Used {
    /// User and system time of its process.
    pub(crate) cpu: Duration,
    /// Runs of its kernel programs; zero unless they were counted.
    pub(crate) runs: Runs,
}

impl Monitor {
    /// Starts it and waits until it monitors.
    pub(crate) fn start(start: &Start) -> Result<Self> {
        /// It loads kernel programs and reads all of `/proc`.
        const PATIENCE: Duration = Duration::from_secs(20);
        drop(std::fs::remove_file(start.output));
        let mut command = match &start.cgroup {
            None => pinned(start.cpu, start.program),
            Some(procs) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", r#"echo $$ > "$0" && exec taskset --cpu-list "$@""#]);
                shell.arg(procs).arg(start.cpu.to_string()).arg(start.program);
                shell
            }
        };
        command.arg("--output").arg(start.output).args(start.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let (sender, stderr) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut monitor = Self {
            child,
            stderr,
            said: Vec::new(),
            ready_after: Duration::ZERO,
            began: Usage { cpu: Duration::ZERO, runs: Runs::default() },
        };
        loop {
            match monitor.stderr.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
                Ok(line) => {
                    let ready = line.contains("monitoring");
                    monitor.said.push(line);
                    if ready {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the monitor did not start: {:?}", monitor.said)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the monitor ended at once:\n{}", monitor.said.join("\n"))
                }
            }
        }
        monitor.ready_after = began.elapsed();
        monitor.begin()?;
        Ok(monitor)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it uses counts from here on.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.began = Usage { cpu: usage::cpu_of(self.pid())?, runs: Runs::of(self.pid())? };
        Ok(())
    }

    /// The hook that it uses, from the line it printed at its start.
    pub(crate) fn hook(&self) -> Result<Hook> {
        let name = ["tp_btf", "tp-btf", "raw_tp", "raw-tp"]
            .into_iter()
            .find(|name| self.said.iter().any(|line| line.contains(name)))
            .with_context(|| format!("no backend in {:?}", self.said))?;
        Hook::named(name)
    }

    /// Lets it end and write everything out.
    pub(crate) fn stop(mut self) -> Result<Used> {
        /// It may have a full queue to write to a slow disk.
        const PATIENCE: Duration = Duration::from_secs(60);
        let runs = Runs::of(self.pid())?.since(self.began.runs);
        let children = usage::cpu_of_children()?;
        usage::signal(self.pid(), libc::SIGINT)?;
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(asked.elapsed() < PATIENCE, "the monitor did not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let all = usage::cpu_of_children()?.saturating_sub(children);
        self.said.extend(self.stderr.try_iter());
        ensure!(status.success(), "the monitor failed: {status}\n{}", self.said.join("\n"));
        Ok(Used { cpu: all.saturating_sub(self.began.cpu), runs })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // An error here means that it has ended already, as after `stop`.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
