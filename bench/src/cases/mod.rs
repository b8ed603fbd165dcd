//! The cases, one file each.

mod build;
mod footprint;
mod lossless;
mod overload;
mod ping_pong;
mod probes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::Run;
use crate::monitor::{Cpus, Start};
use crate::report::{self, Row};

/// What all cases need.
struct Bench {
    monitor: PathBuf,
    /// A directory for large files.
    scratch: PathBuf,
    /// The monitor's JSONL, written anew in each round: the largest has half a gigabyte.
    output: PathBuf,
    cpus: Cpus,
    short: bool,
}

impl Bench {
    /// The monitor with default options and its JSONL in [`Bench::output`].
    fn monitor(&self) -> Start<'_> {
        Start::new(&self.monitor, self.cpus.monitor, &self.output)
    }

    /// The first in a whole run, the second in a short one.
    fn pick<T>(&self, whole: T, short: T) -> T {
        if self.short { short } else { whole }
    }
}

/// A case: its name, and what measures it.
type Case = (&'static str, fn(&Bench) -> Result<Vec<Row>>);

const CASES: &[Case] = &[
    ("lossless", lossless::run),
    ("ping-pong", ping_pong::run),
    ("probes", probes::run),
    ("build", build::run),
    ("footprint", footprint::run),
    ("overload", overload::run),
];

/// Runs the chosen cases, prints the table, and writes it to the page after a whole run.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "this is what the program is for")]
pub(crate) fn run(run: &Run) -> Result<ExitCode> {
    for name in &run.names {
        if !CASES.iter().any(|(case, _)| case == name) {
            let names: Vec<_> = CASES.iter().map(|(case, _)| *case).collect();
            bail!("no case {name:?}; there are {}", names.join(", "));
        }
    }
    ensure!(run.monitor.is_file(), "{} is not there: build it first", run.monitor.display());
    std::fs::create_dir_all(&run.scratch)?;
    let scratch = run.scratch.canonicalize()?;
    let bench = Bench {
        monitor: run.monitor.canonicalize()?,
        output: scratch.join("events.jsonl"),
        scratch,
        cpus: Cpus::choose()?,
        short: run.short,
    };
    if bench.cpus.load == bench.cpus.monitor {
        eprintln!("one CPU only: load and monitor share it, the figures say little");
    }

    let mut rows = Vec::new();
    for (name, case) in CASES {
        if run.names.is_empty() || run.names.iter().any(|wanted| wanted == name) {
            eprintln!("{name} ...");
            rows.extend(case(&bench).with_context(|| format!("case {name}"))?);
        }
    }
    drop(std::fs::remove_file(&bench.output));

    println!("{}", report::table(&rows));
    if run.names.is_empty() && !run.short {
        report::write_page(&run.page, &rows)?;
        println!("written to {}", run.page.display());
    }
    let broken = rows.iter().filter(|row| row.broken).count();
    let missed = rows.iter().filter(|row| row.goal.is_some_and(|(_, met)| !met)).count();
    println!("bench: {} figures, {missed} goals missed, {broken} broken", rows.len());
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
