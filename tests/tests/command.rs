//! `mcpspy -- COMMAND…`: its own process tree and nothing else, as the user who called sudo.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use mcpspy_e2e::raw::{Channel, Client};
use mcpspy_e2e::{Monitor, Need, Run, Stage, live, peers};

/// Runs a command below the monitor.
fn monitored(stage: &Stage, command: &[&str]) -> Result<Run> {
    let output = stage.dir().join("events.jsonl");
    let mut monitor = Command::new(peers::monitor_binary()?);
    monitor.arg("-o").arg(&output).arg("--").args(command);
    monitor.env("MCPSPY_TRUTH", stage.truth_dir()).current_dir(stage.dir());
    Monitor::start(monitor, stage.dir(), Some(output))?.wait()
}

#[test]
fn command_is_captured_from_its_first_message_and_its_exit_code_returned() {
    live(&[Need::PythonV2], |stage| {
        let client = peers::source_dir().join("peers/python/client.py").display().to_string();
        let python = peers::python_binary(2).display().to_string();
        let script = format!("'{python}' '{client}' basic; exit 7");
        let run = monitored(stage, &["sh", "-c", &script])?;
        ensure!(run.status.code() == Some(7), "{}: {}", run.status, run.stderr);
        run.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn command_killed_by_a_signal() {
    live(&[], |stage| {
        let run = monitored(stage, &["sh", "-c", "kill -TERM $$"])?;
        ensure!(run.status.code() == Some(128 + 15), "{}", run.status);
        Ok(())
    });
}

#[test]
fn command_that_does_not_exist() {
    live(&[], |stage| {
        let run = monitored(stage, &["no-such-program-here"])?;
        ensure!(run.status.code().is_some_and(|code| code != 0), "{}", run.status);
        ensure!(run.stderr.contains("no-such-program-here"), "{}", run.stderr);
        Ok(())
    });
}

#[test]
fn command_runs_as_the_sudo_caller_and_the_output_is_his() {
    live(&[], |stage| {
        let output = stage.dir().join("events.jsonl");
        let mut monitor = Command::new(peers::monitor_binary()?);
        monitor.arg("-o").arg(&output).args(["--", "sh", "-c"]);
        monitor.arg("echo user=$(id -u) group=$(id -g) groups=$(id -G)");
        monitor.envs([("SUDO_UID", "65534"), ("SUDO_GID", "65534"), ("SUDO_USER", "nobody")]);
        let run = Monitor::start(monitor, stage.dir(), Some(output.clone()))?.wait()?;
        ensure!(run.status.success(), "{}: {}", run.status, run.stderr);
        ensure!(run.stdout.contains("user=65534 group=65534 groups=65534"), "{}", run.stdout);
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(output)?);
        ensure!(owner == 65534, "the output belongs to {owner}");
        Ok(())
    });
}

#[test]
fn only_the_process_tree_of_the_command_is_watched() {
    live(&[], |stage| {
        let output = stage.dir().join("events.jsonl");
        let mut command = Command::new(peers::monitor_binary()?);
        command.arg("-o").arg(&output).args(["--", "sh", "-c", "read line"]);
        // The command waits for its input, which ends when the other session has been played.
        let (reader, writer) = std::io::pipe()?;
        let monitor = Monitor::start_with_input(command, stage.dir(), Some(output), reader.into())?;
        monitor.wait_ready()?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        let server = client.server_pid();
        client.initialize()?;
        client.call("1", "echo", r#"{"text":"not below the command"}"#)?;
        client.close()?;
        drop(writer);
        let run = monitor.wait()?;
        run.expect_no_message_of(&BTreeSet::from([server]))
    });
}
