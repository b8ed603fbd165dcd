//! The built program, from outside: what a user sees who makes a mistake. Needs no root.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mcpspy"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MCPSPY_") {
            command.env_remove(name);
        }
    }
    command
}

struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn run(line: &str) -> Said {
    command(line.split_whitespace()).output().expect("the program runs").into()
}

#[test]
fn help_goes_to_stdout() {
    for line in ["--help", "-h", "replay --help", "check --help", "completions --help"] {
        let said = run(line);
        assert_eq!(said.code, Some(0), "{line}");
        assert!(said.stdout.contains("Usage:"), "{line}: {}", said.stdout);
        assert_eq!(said.stderr, "", "{line}");
    }
    let help = run("--help").stdout;
    for part in
        ["Capture:", "Output:", "Filters", "Limits:", "Examples:", "Exit status:", "MCPSPY_"]
    {
        assert!(help.contains(part), "{part} is missing in:\n{help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
}

#[test]
fn the_version_is_this_one() {
    assert_eq!(run("--version").stdout, format!("mcpspy {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    for (line, hint) in [
        ("--format xml", "possible values: auto, text, json"),
        ("--nonsense", "--help"),
        ("replay", "<FILE>"),
        ("--ring-buffer lots", "powers of 1024"),
        ("completions tcsh-ish", "possible values: bash"),
        ("-o - -- true", "the command's"),
        ("-v replay x", "options of `replay` stand after it"),
    ] {
        let said = run(line);
        assert_eq!(said.code, Some(2), "{line}");
        assert!(said.stderr.contains(hint), "{line}: {}", said.stderr);
        assert_eq!(said.stdout, "", "{line}");
    }
}

#[test]
fn completions() {
    for (shell, part) in
        [("bash", "_mcpspy"), ("zsh", "#compdef mcpspy"), ("fish", "complete -c mcpspy")]
    {
        let said = run(&format!("completions {shell}"));
        assert_eq!(said.code, Some(0));
        assert!(said.stdout.contains(part), "{shell}");
        assert!(said.stdout.contains("exclude-server"), "{shell}");
    }
}

#[test]
fn variables_stand_for_options() {
    let with = |name: &str, value: &str, line: &str| -> Said {
        let arguments = line.split_whitespace();
        command(arguments).env(name, value).output().expect("the program runs").into()
    };
    let said = with("MCPSPY_TYPE", "request,call", "replay x");
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("'call'"), "{}", said.stderr);

    // The command line wins, and an empty variable is no variable.
    for (name, value, line) in [
        ("MCPSPY_TYPE", "call", "replay /nonexistent --type request"),
        ("MCPSPY_FORMAT", "", "replay /nonexistent"),
        ("MCPSPY_PID", "", "replay /nonexistent"),
        ("MCPSPY_TOOL", "{a,b},c", "replay /nonexistent"),
        ("MCPSPY_BUFFERS", "1", "replay /nonexistent"),
    ] {
        let said = with(name, value, line);
        assert_eq!(said.code, Some(1), "{name}={value} {line}: {}", said.stderr);
    }
}

#[test]
fn a_recording_that_cannot_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &[u8]| std::fs::write(at(name), text).expect("a file");
    write("empty", b"");
    write("text", b"hello\n");
    write("binary", b"\x7fELF\x00\x01\n");
    let header = r#"{"mcpcap":1,"version":"0.1.0"}"#;
    write("cut", format!("{header}\n{{\"tick\":{{\"at\":1}}}}\n{{\"tick\":{{\"a").as_bytes());
    write("wrong", format!("{header}\n{{\"tick\":{{\"at\":1}}}}\n{{\"what\":1}}\n").as_bytes());
    for (name, hint) in [
        ("missing", "No such file"),
        ("empty", ""),
        ("text", "line 1"),
        ("binary", "line 1"),
        ("cut", "line 3"),
        ("wrong", "line 3"),
    ] {
        let path = at(name);
        let said: Said = command([OsStr::new("replay"), path.as_os_str()])
            .output()
            .expect("the program runs")
            .into();
        assert_eq!(said.code, Some(1), "{name}: {}", said.stderr);
        assert_eq!(said.stderr.lines().count(), 1, "{name}: {}", said.stderr);
        for part in [name, hint] {
            assert!(said.stderr.contains(part), "{name}: {}", said.stderr);
        }
    }
}

#[test]
fn an_output_that_cannot_be_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("r.mcpcap");
    std::fs::write(&recording, "{\"mcpcap\":1,\"version\":\"0.1.0\"}\n").expect("a file");
    let said: Said = command([OsStr::new("replay"), recording.as_os_str()])
        .args(["-o", "/nonexistent/trace.jsonl"])
        .output()
        .expect("the program runs")
        .into();
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("/nonexistent/trace.jsonl"), "{}", said.stderr);
    assert_eq!(said.stderr.matches("No such file").count(), 1, "{}", said.stderr);
}

#[test]
fn a_closed_stdout_ends_quietly() {
    let directory = tempfile::tempdir().expect("a directory");
    let recording = directory.path().join("r.mcpcap");
    let ticks = "{\"tick\":{\"at\":1}}\n".repeat(1000);
    std::fs::write(&recording, format!("{{\"mcpcap\":1,\"version\":\"0.1.0\"}}\n{ticks}"))
        .expect("a file");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let said: Said = command([OsStr::new("replay"), recording.as_os_str()])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("the program runs")
        .into();
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
}

/// Without root the program says so, in one message, whatever it was asked to do.
#[test]
fn without_root() {
    const NOBODY: u32 = 65534;
    let mut command = command(["--duration", "1s"]);
    if rustix::process::geteuid().is_root() {
        // A copy, because the build directory may be closed to others.
        let directory = tempfile::tempdir().expect("a directory");
        let copy = directory.path().join("mcpspy");
        // By a process of its own: a file that this one has open for writing when another test forks
        // cannot be executed ("text file busy").
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_mcpspy")).arg(&copy).status();
        assert!(copied.expect("cp runs").success());
        open_to_all(directory.path());
        command = Command::new(copy);
        command.args(["--duration", "1s"]).uid(NOBODY).gid(NOBODY).current_dir("/");
        check_refused(command);
    } else {
        check_refused(command);
    }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("own file");
}

fn check_refused(mut command: Command) {
    let said: Said = command.output().expect("the program runs").into();
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert_eq!(said.stdout, "");
    let expected = if cfg!(feature = "live") { "root" } else { "live" };
    assert!(said.stderr.contains(expected), "{}", said.stderr);
    assert!(!said.stderr.contains("monitoring"), "{}", said.stderr);
}
