//! Recordings of real runs give the events that they gave when they were taken, byte for byte.
//!
//! `tests/captures/NAME.mcpcap` is replayed and compared with `NAME.jsonl` and `NAME.txt` beside it.
//! After a change that is meant, `UPDATE_EXPECT=1 cargo test --test golden` writes them anew.
//! `docs/recording.md` says how to take one.

use std::path::{Path, PathBuf};
use std::process::Command;

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
