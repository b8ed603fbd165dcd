//! The monitor never reports what it prints itself.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::raw::{Channel, Client};
use mcpspy_e2e::{Need, Run, Stage, live, peers, wait_until};

/// A session with enough to print, and the proof that the monitor reported it once and nothing
/// else that looks like it: its texts carry a marker.
fn talk(stage: &Stage) -> Result<()> {
    let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
    client.initialize()?;
    for id in 0..300 {
        client.call(&id.to_string(), "echo", r#"{"text":"own-output-marker"}"#)?;
    }
    client.close()?;
    Ok(())
}

fn expect_only_the_session(run: &Run, stage: &Stage) -> Result<()> {
    let truth = stage.truth()?;
    let pids = truth.pids();
    let strangers: Vec<_> = run
        .messages()
        .filter(|event| event.raw().contains("own-output-marker"))
        .filter(|event| !pids.contains(&event.pids().0))
        .collect();
    ensure!(strangers.is_empty(), "{} copies, first: {}", strangers.len(), strangers[0].value());
    run.expect_exactly(&truth)
}

#[test]
fn own_text_output_with_raw_messages_through_a_pipe() {
    live(&[], |stage| {
        let script = r#""$0" -b "$@" | cat > piped.txt"#;
        let run = through_a_shell(stage, script)?;
        expect_only_the_session(&run, stage)?;
        let piped = std::fs::read_to_string(stage.dir().join("piped.txt"))?;
        ensure!(piped.contains("own-output-marker"), "nothing went through the pipe");
        Ok(())
    });
}

#[test]
fn own_json_output_through_jq_and_cat() {
    live(&[Need::Program("jq")], |stage| {
        let script = r#""$0" --format json "$@" | jq -r .raw | cat > piped.txt"#;
        let run = through_a_shell(stage, script)?;
        expect_only_the_session(&run, stage)?;
        let piped = std::fs::read_to_string(stage.dir().join("piped.txt"))?;
        ensure!(piped.contains("own-output-marker"), "nothing went through the pipe");
        Ok(())
    });
}

/// The monitor in a pipeline; signals go to the monitor itself.
fn through_a_shell(stage: &Stage, script: &str) -> Result<Run> {
    let mut command = Command::new("bash");
    command.arg("-c").arg(script).arg(peers::monitor_binary()?).current_dir(stage.dir());
    let mut monitor = stage.monitor_with(command)?;
    let inner = monitor_below(monitor.pid()).context("no monitor below the shell")?;
    monitor.set_pid(inner);
    talk(stage)?;
    wait_until("the end of the session is in the file", Duration::from_secs(10), || {
        Ok(monitor.events()?.iter().any(|event| event.text("/change") == "closed"))
    })?;
    monitor.stop()
}

/// The monitor's process below another one.
fn monitor_below(of: u32) -> Option<u32> {
    let binary = peers::monitor_binary().ok()?.canonicalize().ok()?;
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find_map(|child: u32| {
        let exe = std::fs::read_link(format!("/proc/{child}/exe")).ok();
        if exe.as_deref() == Some(&*binary) { Some(child) } else { monitor_below(child) }
    })
}

#[test]
fn monitor_in_a_pid_namespace_of_its_own() {
    live(&[Need::Program("unshare")], |stage| {
        let mut command = Command::new("bash");
        command.arg("-c").arg(
            r#"unshare --pid --fork --mount-proc "$0" -b --format text "$@" | cat > piped.txt"#,
        );
        command.arg(peers::monitor_binary()?).current_dir(stage.dir());
        let mut monitor = stage.monitor_with(command)?;
        let inner = monitor_below(monitor.pid()).context("no monitor below unshare")?;
        monitor.set_pid(inner);
        talk(stage)?;
        let run = monitor.stop()?;
        expect_only_the_session(&run, stage)?;
        let piped = std::fs::read_to_string(stage.dir().join("piped.txt"))?;
        ensure!(piped.contains("own-output-marker"), "nothing went through the pipe");
        Ok(())
    });
}
