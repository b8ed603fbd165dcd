//! A recorded run, played again: the same events, without root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::raw::{Channel, Client, How, call_of_size};
use mcpspy_e2e::{Event, Need, live, peers};

/// A user without rights.
const NOBODY: u32 = 65534;

/// `mcpspy replay` as nobody, in a directory that nobody may use.
fn replay(capture: &Path, dir: &Path, arguments: &[&str]) -> Result<Output> {
    fs::create_dir_all(dir)?;
    fs::copy(capture, dir.join("run.mcpcap"))?;
    fs::set_permissions(dir.join("run.mcpcap"), Permissions::from_mode(0o644))?;
    fs::set_permissions(dir, Permissions::from_mode(0o777))?;
    // The build directory may be closed to others: the binary goes along.
    let binary = dir.join("mcpspy");
    fs::copy(peers::monitor_binary()?, &binary)?;
    let output = Command::new(binary)
        .args(["replay", "run.mcpcap"])
        .args(arguments)
        .current_dir(dir)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()?;
    Ok(output)
}

/// A directory that users without rights can reach.
fn open_dir(name: &str) -> Result<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("mcpspy-e2e-{name}"));
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The lines of messages, sessions, findings and losses, without what names the run.
fn lines(text: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let event = Event::parse(line)?;
        if event.kind() != "status" {
            lines.push(line.replace(event.text("/run_id"), "RUN"));
        }
    }
    Ok(lines)
}

#[test]
fn recorded_run_replays_byte_for_byte_without_root() {
    live(&[Need::PythonV2, Need::TypeScript], |stage| {
        let capture = stage.dir().join("run.mcpcap");
        let monitor = stage.monitor(&["--record", &capture.display().to_string()])?;
        stage.play(&mut peers::python(2, "basic"))?;
        stage.play(peers::typescript("basic").arg("node").arg(peers::typescript_server()))?;
        let mut client = Client::connect(stage, &Channel::OneSocketPair, &["--noise", "100"])?;
        client.send_line(&call_of_size("1", 1 << 20))?;
        for _ in 0..101 {
            client.line()?;
        }
        client.send(How::Whole, b"\xff\xfe not text\n")?;
        client.call("2", "text", r#"{"size":300000}"#)?;
        client.close()?;
        let run = monitor.stop()?;
        run.expect_exactly(&stage.truth()?)?;
        let mode = fs::metadata(&capture)?.mode() & 0o777;
        ensure!(mode == 0o600, "the capture has mode {mode:o}");

        let dir = open_dir("replay")?;
        let output = replay(&capture, &dir, &["-o", "again.jsonl"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let live = lines(&fs::read_to_string(stage.dir().join("events.jsonl"))?)?;
        let again = lines(&fs::read_to_string(dir.join("again.jsonl"))?)?;
        let differs = live.iter().zip(&again).position(|(live, again)| live != again);
        if let Some(index) = differs {
            let cut = |line: &str| line.chars().take(600).collect::<String>();
            anyhow::bail!(
                "line {index} differs\n  live   {}\n  replay {}",
                cut(&live[index]),
                cut(&again[index])
            );
        }
        ensure!(live.len() == again.len(), "{} lines live, {} again", live.len(), again.len());
        fs::remove_dir_all(dir)?;
        Ok(())
    });
}

#[test]
fn cut_and_unreadable_captures_are_named_by_line_and_reason() {
    live(&[], |stage| {
        let capture = stage.dir().join("run.mcpcap");
        let monitor = stage.monitor(&["--record", &capture.display().to_string()])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        client.call("1", "echo", r#"{"text":"x"}"#)?;
        client.close()?;
        monitor.stop()?;
        let whole = fs::read_to_string(&capture)?;
        let count = whole.lines().count();
        ensure!(count > 5, "only {count} lines recorded");

        let dir = open_dir("broken")?;
        let bad = stage.dir().join("bad.mcpcap");
        let cut = &whole[..whole.trim_end().len() - 5];
        let fourth = whole.match_indices('\n').nth(2).context("third line")?.0 + 1;
        let garbled = format!("{}garbage\n{}", &whole[..fourth], &whole[fourth..]);
        for (text, line) in [(cut, count), (&*garbled, 4), ("not a capture\n", 1), ("", 1)] {
            fs::write(&bad, text)?;
            let output = replay(&bad, &dir, &["-o", "again.jsonl"])?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
            ensure!(
                said.contains(&format!("line {line}")) || said.contains(&format!(":{line}:")),
                "should name line {line}: {said}"
            );
            ensure!(!said.contains("panicked"), "{said}");
        }
        fs::remove_dir_all(dir)?;
        Ok(())
    });
}
