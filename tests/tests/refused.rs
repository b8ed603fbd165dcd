//! Machines that do not allow what the monitor needs: exit code 1, and one message that says what
//! is missing and what to do.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, ensure};
use mcpspy_e2e::{Monitor, Need, Stage, live, peers};

fn refused(stage: &Stage, command: Command, says: &[&str]) -> Result<()> {
    let run = Monitor::start(command, stage.dir(), None)?.wait()?;
    ensure!(run.status.code() == Some(1), "{}: {}", run.status, run.stderr);
    let said = run.stderr.to_lowercase();
    ensure!(says.iter().any(|word| said.contains(word)), "none of {says:?} in: {}", run.stderr);
    ensure!(!said.contains("panicked"), "{}", run.stderr);
    ensure!(run.stderr.lines().count() <= 12, "too many words:\n{}", run.stderr);
    Ok(())
}

#[test]
fn without_root() {
    live(&[], |stage| {
        let binary = std::env::temp_dir().join("mcpspy-e2e-without-root");
        fs::copy(peers::monitor_binary()?, &binary)?;
        let mut command = Command::new(&binary);
        command.uid(65534).gid(65534);
        let result = refused(stage, command, &["root", "sudo", "cap_bpf"]);
        fs::remove_file(binary)?;
        result
    });
}

#[test]
fn without_btf() {
    live(&[Need::Program("unshare")], |stage| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(r#"mount -t tmpfs none /sys/kernel/btf && exec "$0""#);
        command.arg(peers::monitor_binary()?);
        refused(stage, command, &["btf"])
    });
}

#[test]
fn with_loading_refused() {
    live(&[Need::Program("setpriv")], |stage| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-bpf,-sys_admin,-perfmon"]).arg(peers::monitor_binary()?);
        refused(stage, command, &["cap_bpf", "sys_admin", "capabilit"])
    });
}

#[test]
fn check_says_line_by_line_what_the_machine_allows() {
    live(&[], |stage| {
        let mut command = Command::new(peers::monitor_binary()?);
        command.arg("check");
        let run = Monitor::start(command, stage.dir(), None)?.wait()?;
        let said = format!("{}{}", run.stdout, run.stderr).to_lowercase();
        for word in ["kernel", "btf", "tp-btf", "raw-tp", "cap_", "pid namespace"] {
            ensure!(said.contains(word), "nothing about {word}:\n{said}");
        }
        ensure!(run.status.success(), "{}: {said}", run.status);
        Ok(())
    });
}
