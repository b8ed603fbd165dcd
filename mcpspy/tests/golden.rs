//! Recordings of real runs give the events that they gave when they were taken, byte for byte.
//!
//! `tests/captures/NAME.mcpcap` is replayed and compared with `NAME.jsonl` and `NAME.txt` beside it.
//! After a change that is meant, `UPDATE_EXPECT=1 cargo test --test golden` writes them anew.
//! `docs/recording.md` says how to take one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn captures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found: Vec<_> = ["tests/captures", "examples"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).expect("the folder is there"))
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "mcpcap"))
        .collect();
    found.sort();
    found
}

fn replay(capture: &Path, format: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mcpspy"))
        .args(["replay", "--format", format, "--payload", "full", "--color", "never"])
        .arg(capture)
        .env("TZ", "UTC")
        .output()
        .expect("mcpspy runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", capture.display());
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

fn compare(expected: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        return std::fs::write(expected, actual).map_err(|error| error.to_string());
    }
    let wanted = std::fs::read_to_string(expected).unwrap_or_default();
    if wanted == actual {
        return Ok(());
    }
    let line = wanted.lines().zip(actual.lines()).take_while(|(a, b)| a == b).count();
    Err(format!(
        "{}, line {}:\n  expected {}\n  got      {}",
        expected.display(),
        line + 1,
        wanted.lines().nth(line).unwrap_or("the end"),
        actual.lines().nth(line).unwrap_or("the end"),
    ))
}

#[test]
fn captures_give_the_events_they_gave() {
    let captures = captures();
    assert!(!captures.is_empty(), "no captures");
    let mut wrong = Vec::new();
    for capture in captures {
        for (format, extension) in [("json", "jsonl"), ("text", "txt")] {
            let actual = replay(&capture, format);
            wrong.extend(compare(&capture.with_extension(extension), &actual).err());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A recording without all that was seen of these processes, as where they are not on this host.
fn without(capture: &str, pids: &HashSet<u64>) -> String {
    let mut tasks = HashMap::new();
    let mut kept = String::new();
    for line in capture.lines() {
        let record: Value = serde_json::from_str(line).expect("a line is JSON");
        let (key, body) = record.as_object().and_then(|one| one.iter().next()).expect("one member");
        let pid = match key.as_str() {
            "task" => {
                tasks.insert(body["t"].as_u64(), body["pid"].as_u64());
                body["pid"].as_u64()
            }
            "process" => body["pid"].as_u64(),
            _ => tasks.get(&body["t"].as_u64()).copied().flatten(),
        };
        if pid.is_none_or(|pid| !pids.contains(&pid)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn messages(events: &str) -> Vec<Value> {
    let events = events.lines().map(|line| serde_json::from_str(line).expect("an event is JSON"));
    events.filter(|event: &Value| event["kind"] == "message").collect()
}

#[test]
fn server_alone_tells_what_a_client_on_another_host_said() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let whole = root.join("tests/captures/docker-exec.mcpcap");
    let with_client = messages(&replay(&whole, "json"));
    let recorded = std::fs::read_to_string(&whole).expect("readable");
    let mut client = HashSet::new();
    for line in recorded.lines() {
        let process = &serde_json::from_str::<Value>(line).expect("a line is JSON")["process"];
        let text = |name: &str| process[name].as_str().unwrap_or_default();
        if text("comm") == "docker" || text("cmdline").contains("client.py") {
            client.extend(process["pid"].as_u64());
        }
    }
    assert_eq!(client.len(), 2, "the client and its docker command: {client:?}");

    let folder = tempfile::tempdir().expect("a place for a file");
    let cut = folder.path().join("server-alone.mcpcap");
    std::fs::write(&cut, without(&recorded, &client)).expect("writable");
    let alone = messages(&replay(&cut, "json"));

    let raw =
        |events: &[Value]| events.iter().map(|event| event["raw"].clone()).collect::<Vec<_>>();
    assert!(!alone.is_empty(), "no messages");
    assert_eq!(raw(&alone), raw(&with_client));
    for (event, before) in alone.iter().zip(&with_client) {
        assert_eq!(event["type"], before["type"]);
        let ends = |event: &Value| [event["from"].clone(), event["to"].clone()];
        for (end, before) in ends(event).iter().zip(ends(before)) {
            let is_client = before["pid"].as_u64().is_some_and(|pid| client.contains(&pid));
            if is_client {
                assert_eq!(end["quality"], "outside", "{event}");
                assert_eq!(end["pid"], 0, "{event}");
                assert_eq!(end["comm"], "", "{event}");
            } else {
                assert_eq!(end["quality"], "exact", "{event}");
                assert_eq!(end["container"], before["container"], "{event}");
            }
        }
    }
    let text = replay(&cut, "text");
    let shown = text.lines().filter(|line| line.contains("docker client outside this host"));
    // Of each message, and of the session: opened, updated, closed.
    assert_eq!(shown.count(), alone.len() + 3, "{text}");
}
