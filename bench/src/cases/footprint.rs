//! Memory, idle CPU, time to the first event, and the longest run of a kernel program.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Bench;
use crate::bpf::{CountingRuns, Runs};
use crate::load::LoadArgs;
use crate::monitor::{self, Monitor, Start};
use crate::report::Row;
use crate::stats::Samples;
use crate::usage::{self, MemoryGroup};

const CASE: &str = "footprint";
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = memory(bench)?;
    rows.push(idle(bench)?);
    rows.push(first_event(bench)?);
    rows.push(longest_run(bench)?);
    Ok(rows)
}

fn memory(bench: &Bench) -> Result<Vec<Row>> {
    let messages = bench.pick(100_000, 10_000);
    let group = MemoryGroup::create();
    let cgroup = group.as_ref().ok().map(MemoryGroup::procs);
    let monitor = Monitor::start(&Start { cgroup, ..bench.monitor() })?;
    let pid = monitor.pid();
    let now = || -> Result<f64> {
        Ok(match &group {
            Ok(group) => group.bytes()?,
            Err(_) => usage::pss(pid)?,
        } as f64
            / MIB)
    };
    let at_start = now()?;
    let args = LoadArgs { rate: Some(20_000), seconds: f64::MAX, messages, size: 300, window: 1 };
    let mut load = monitor::load_command(bench.cpus.load, &args)?
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let mut samples = vec![];
    while load.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(100));
        samples.push(now()?);
    }
    // The first fifth fills the tables and touches each page of the ring.
    let later: Samples = samples.iter().skip(samples.len() / 5).copied().collect();
    let pss = usage::pss(pid)? as f64 / MIB;
    monitor.stop()?;
    let how = if group.is_ok() { "charged to its cgroup" } else { "proportional set size" };
    let largest = later.max().max(at_start);
    Ok(vec![
        Row::goal(
            CASE,
            format!("memory, MiB, {how}, largest over {messages} messages"),
            format!("{largest:.1} ({at_start:.1} at the start; proportional set size {pss:.1})"),
            "at most 96",
            largest <= 96.0,
        )
        .broken_if(largest > 256.0),
        Row::goal(
            CASE,
            "memory, MiB, after the first fifth of them",
            later.show(1),
            "flat within 4",
            later.max() - later.min() <= 4.0,
        ),
    ])
}

fn idle(bench: &Bench) -> Result<Row> {
    let monitor = Monitor::start(&bench.monitor())?;
    // What it does once, at its start, is over then.
    std::thread::sleep(Duration::from_secs(1));
    let before = usage::cpu_of(monitor.pid())?;
    let time = bench.pick(Duration::from_secs(20), Duration::from_secs(2));
    std::thread::sleep(time);
    let used = usage::cpu_of(monitor.pid())?.saturating_sub(before);
    monitor.stop()?;
    let percent = 100.0 * used.as_secs_f64() / time.as_secs_f64();
    Ok(Row::goal(
        CASE,
        "CPU without MCP traffic, %",
        format!("{percent:.2}"),
        "below 0.5",
        percent < 0.5,
    )
    .broken_if(percent > 20.0))
}

fn first_event(bench: &Bench) -> Result<Row> {
    let args = LoadArgs {
        rate: Some(1000),
        seconds: bench.pick(20.0, 6.0),
        messages: u64::MAX,
        size: 300,
        window: 1,
    };
    let mut load = monitor::load_command(bench.cpus.load, &args)?
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let mut times = Vec::new();
    for _ in 0..bench.pick(7, 1) {
        let began = Instant::now();
        let monitor = Monitor::start(&bench.monitor())?;
        wait_for_message(&bench.output)?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        monitor.stop()?;
    }
    load.kill()?;
    load.wait()?;
    let times: Samples = times.into_iter().collect();
    Ok(Row::goal(
        CASE,
        "from its start to the first message in its output, ms, in a session that ran before",
        times.show(0),
        "below 500",
        times.median() < 500.0,
    )
    .broken_if(times.median() > 5000.0))
}

fn wait_for_message(path: &Path) -> Result<()> {
    let began = Instant::now();
    let mut file = std::fs::File::open(path)?;
    while began.elapsed() < Duration::from_secs(10) {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text)?;
        if text.contains(r#""kind":"message""#) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("no message within 10 s")
}

/// The kernel tells the time of all runs together. One call of 16 MiB is the longest run there is:
/// with two such calls and little else, half of the time is one of them.
fn longest_run(bench: &Bench) -> Result<Row> {
    let args =
        LoadArgs { rate: None, seconds: f64::MAX, messages: 2, size: 16 * 1024 * 1024, window: 1 };
    let _counting = CountingRuns::start()?;
    let monitor = Monitor::start(&bench.monitor())?;
    let before = Runs::of(monitor.pid())?;
    monitor::load(bench.cpus.load, &args)?;
    let runs = Runs::of(monitor.pid())?.since(before);
    monitor.stop()?;
    Ok(Row::told(
        CASE,
        "longest run of a kernel program: a message of 16 MiB in one call, ms",
        format!("{:.2}, half of {} runs with two such calls", runs.ns as f64 / 2e6, runs.count),
    ))
}
