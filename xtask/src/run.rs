//! `cargo xtask run`: builds as the user, starts the monitor as root.

use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};

use crate::command::{cargo, must, target};
use crate::machine::as_root;
use crate::setup;

/// Builds mcpspy and runs it with these arguments.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    setup::run()?;
    must(cargo().args(["build", "--release", "--package", "mcpspy"]))?;
    let program = target().join("release/mcpspy");
    let needs_root = !matches!(
        args.first().map(String::as_str),
        Some("replay" | "completions" | "help" | "--help" | "-h" | "--version" | "-V")
    );
    let mut command = if needs_root { as_root(&program)? } else { Command::new(&program) };
    let status = command.args(args).status().with_context(|| program.display().to_string())?;
    Ok(exit_code(status))
}

/// The same code for us; what was ended by a signal counts as failed.
fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
