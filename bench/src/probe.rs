//! System calls that have nothing to do with MCP, to see what the monitor costs those who make them.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::usage;

/// What to call.
#[derive(Clone, Copy, ValueEnum, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `getppid`, about the cheapest system call.
    Getppid,
    /// A write of 64 bytes into a pipe and the read of them, in one thread.
    Pipe64,
    /// The same with 64 KiB.
    Pipe64k,
}

impl Call {
    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Getppid => "getppid",
            Self::Pipe64 => "pipe64",
            Self::Pipe64k => "pipe64k",
        }
    }
}

/// How to call.
#[derive(Args)]
pub(crate) struct ProbeArgs {
    /// What.
    call: Call,
    /// How long.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
}

/// What came out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Timed {
    /// Calls (or pairs of write and read) that were made.
    pub(crate) calls: u64,
    /// CPU time for each.
    pub(crate) ns: f64,
}

/// Makes the calls and prints [`Timed`] as one JSON line.
#[expect(clippy::print_stdout, reason = "this is what the program is for")]
pub(crate) fn run(args: &ProbeArgs) -> Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    let timed = match args.call {
        Call::Getppid => repeat(time, || {
            std::hint::black_box(std::os::unix::process::parent_id());
            Ok(())
        }),
        Call::Pipe64 => through_a_pipe(time, 64),
        Call::Pipe64k => through_a_pipe(time, 64 * 1024),
    }?;
    println!("{}", serde_json::to_string(&timed)?);
    Ok(())
}

fn through_a_pipe(time: Duration, size: usize) -> Result<Timed> {
    let (mut reader, mut writer) = std::io::pipe()?;
    let bytes = vec![b'.'; size];
    let mut buffer = vec![0; size];
    // A pipe has room for 64 KiB, so one thread can do both without waiting for another one.
    let mut once = || {
        ensure!(writer.write(&bytes)? == size && reader.read(&mut buffer)? == size, "short call");
        Ok(())
    };
    // The monitor looks at the first 64 KiB of a stream more closely: not what is measured here.
    for _ in 0..4096 {
        once()?;
    }
    repeat(time, once)
}

fn repeat(time: Duration, mut once: impl FnMut() -> Result<()>) -> Result<Timed> {
    const BETWEEN_CLOCKS: u64 = 1000;
    // CPU time: what others do on this CPU meanwhile is not in it. No call here waits.
    let (start, cpu) = (Instant::now(), usage::cpu_of_thread()?);
    let mut calls = 0;
    while start.elapsed() < time {
        for _ in 0..BETWEEN_CLOCKS {
            once()?;
        }
        calls += BETWEEN_CLOCKS;
    }
    let used = usage::cpu_of_thread()?.saturating_sub(cpu);
    Ok(Timed { calls, ns: used.as_nanos() as f64 / calls as f64 })
}
