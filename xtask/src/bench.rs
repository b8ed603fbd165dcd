//! `cargo xtask bench`: builds mcpspy and the benchmarks, and runs them as root.

use std::process::ExitCode;

use anyhow::Result;

use crate::command::{cargo, must, succeeds, target};
use crate::machine::{as_root, why_not_live};
use crate::setup;

/// Runs the cases with these names, or all.
pub(crate) fn run(names: &[String], short: bool) -> Result<ExitCode> {
    setup::run()?;
    must(cargo().args(["build", "--release", "--package", "mcpspy", "--package", "mcpspy-bench"]))?;
    if let Some(reason) = why_not_live() {
        eprintln!("SKIP bench: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    let release = target().join("release");
    let mut command = as_root(&release.join("mcpspy-bench"))?;
    command.arg("run").args(names).args(short.then_some("--short"));
    command.arg("--monitor").arg(release.join("mcpspy"));
    command.arg("--scratch").arg(target().join("bench"));
    Ok(if succeeds(&mut command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
