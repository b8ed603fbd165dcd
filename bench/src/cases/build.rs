//! A real build: this workspace's smallest crate with its dependencies, from nothing.

use std::process::Stdio;

use anyhow::{Result, ensure};

use super::Bench;
use crate::monitor::{Monitor, pinned};
use crate::report::Row;
use crate::stats::Samples;
use crate::usage;

const CASE: &str = "build";

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    build(bench)?; // Fetches what is missing and warms the page cache.
    let pairs = bench.pick(15, 2);
    let mut without = Vec::new();
    let mut with = Vec::new();
    let mut measure_with = || -> Result<()> {
        let monitor = Monitor::start(&bench.monitor())?;
        with.push(build(bench)?);
        monitor.stop()?;
        Ok(())
    };
    for pair in 0..pairs {
        // Which comes first changes, so that a drift of the machine does not look like a cost.
        if pair % 2 == 0 {
            without.push(build(bench)?);
            measure_with()?;
        } else {
            measure_with()?;
            without.push(build(bench)?);
        }
    }
    let more: Samples =
        with.iter().zip(&without).map(|(with, without)| 100.0 * (with / without - 1.0)).collect();
    let without: Samples = without.into_iter().collect();
    let (low, high) = more.interval();
    Ok(vec![
        Row::told(CASE, "user and system CPU without, s", without.show(2)),
        Row::goal(
            CASE,
            format!("CPU more with, %, mean of {pairs} pairs with 95 % certainty"),
            format!("{low:.2} to {high:.2}"),
            "1 or less in it",
            low <= 1.0,
        ),
        Row::goal(CASE, "CPU more with, %", more.show(2), "no pair above 3", more.max() <= 3.0)
            .broken_if(more.median() > 50.0),
    ])
}

/// Builds and says how much CPU time it took, in seconds.
fn build(bench: &Bench) -> Result<f64> {
    let target = bench.scratch.join("build");
    drop(std::fs::remove_dir_all(&target));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let before = usage::cpu_of_children()?;
    let status = pinned(bench.cpus.load, cargo.as_ref())
        .args(["build", "--quiet", "--locked", "--package", "mcpspy-common", "--target-dir"])
        .arg(&target)
        .env("CARGO_BUILD_JOBS", "1")
        .env("CARGO_INCREMENTAL", "0")
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "the build failed: {status}");
    Ok(usage::cpu_of_children()?.saturating_sub(before).as_secs_f64())
}
