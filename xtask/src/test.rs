//! `cargo xtask test`: all tests that this machine can run, from cheap to dear.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, must, succeeds, target};
use crate::docker::CONFIG;
use crate::image::{self, Arch};
use crate::machine::{as_root, why_not_live};
use crate::setup;

/// Runs them; all of them even when some fail.
pub(crate) fn run(no_live: bool, filter: Option<&str>) -> Result<ExitCode> {
    let mut failed = Vec::new();
    if no_live {
        check(&mut failed, "tests", tests(filter)?);
        println!("SKIP end-to-end tests: --no-live");
        return Ok(finish(&failed));
    }
    setup::for_tests(false)?;
    check(&mut failed, "tests", tests(filter)?);
    must(cargo().args(["build", "--release", "--package", "mcpspy"]))?;
    match why_not_live() {
        Some(reason) => println!("SKIP end-to-end tests: {reason}"),
        None => check(&mut failed, "end-to-end tests", end_to_end(filter)?),
    }
    Ok(finish(&failed))
}

fn check(failed: &mut Vec<&'static str>, name: &'static str, succeeded: bool) {
    if !succeeded {
        failed.push(name);
    }
}

fn finish(failed: &[&str]) -> ExitCode {
    if failed.is_empty() {
        println!("test: ok");
        ExitCode::SUCCESS
    } else {
        println!("test: FAILED: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}

/// Tests of all crates but the end-to-end ones: without peers and network.
fn tests(filter: Option<&str>) -> Result<bool> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--exclude", "mcpspy-ebpf", "--exclude", "mcpspy-e2e"]);
    command.args(filter);
    succeeds(&mut command)
}

/// Tests with kernel programs and real peers: built as the user, run as root.
fn end_to_end(filter: Option<&str>) -> Result<bool> {
    must(cargo().args(["build", "--package", "mcpspy-e2e", "--bins"]))?;
    // A machine that can load kernel programs has no excuse to skip a test.
    let root = std::env::current_dir()?;
    let absolute = |path: PathBuf| root.join(path);
    let peers = absolute(target().join("peers"));
    let mut install = cargo();
    install.args(["run", "--quiet", "--package", "mcpspy-e2e", "--bin", "install-peers"]);
    install.env("MCPSPY_REQUIRE_LIVE", "1").env("MCPSPY_PEERS", &peers);
    must(&mut install)?;

    // For containers: without a C library around it.
    let in_containers = image::binaries("mcpspy", Arch::here()?)?.join("mcpspy");

    let mut all = true;
    for test in executables()? {
        let test = absolute(test);
        let settings = [
            ("MCPSPY_REQUIRE_LIVE", "1".into()),
            ("MCPSPY_BIN", absolute(target().join("release/mcpspy")).display().to_string()),
            ("MCPSPY_PEERS", peers.display().to_string()),
            ("MCPSPY_STATIC_BIN", absolute(in_containers.clone()).display().to_string()),
            ("MCPSPY_COMPOSE_V2", absolute(PathBuf::from(CONFIG)).display().to_string()),
        ];
        let mut command = as_root(Path::new("env"))?;
        command.args(settings.map(|(name, value)| format!("{name}={value}")));
        command.arg(&test).args(["--test-threads=1", "--nocapture"]).args(filter);
        command.current_dir("tests");
        all &= succeeds(&mut command)?;
    }
    Ok(all)
}

/// Builds the end-to-end tests and asks cargo where they are.
fn executables() -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--package", "mcpspy-e2e", "--no-run", "--message-format=json"]);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the end-to-end tests cannot be built");
    let lines = String::from_utf8(output.stdout).context("cargo's messages")?;
    let found = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .collect();
    Ok(found)
}
