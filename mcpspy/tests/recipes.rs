//! The recipes of `docs/recipes.md` work and print what the page says. `UPDATE_EXPECT=1` writes that
//! anew. Needs jq.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mcpspy::model;
use mcpspy::model::{Event, EventBody, MessageEvent, Outcome, SessionChange, SessionEvent};
use mcpspy::sinks::schema::Encoder;
use mcpspy::sinks::{Payload, RunInfo};

#[allow(dead_code, reason = "shared with the unit tests of the sinks, which use more of it")]
#[path = "../src/sinks/samples.rs"]
mod samples;

/// A session of an agent with a server in a container, and one loss.
fn with_container() -> Vec<Event> {
    let (client, server) = (samples::path_client(), samples::contained_server());
    let mut session = Arc::unwrap_or_clone(samples::session_of(&client, &server));
    session.id = 2;
    let session = Arc::new(session);
    let answer = |event: MessageEvent| MessageEvent {
        from: server.clone(),
        to: client.clone(),
        session: Arc::clone(&session),
        ..event
    };
    let ask = |event: MessageEvent| MessageEvent { session: Arc::clone(&session), ..event };
    let opened = SessionEvent {
        change: SessionChange::Opened,
        session: Arc::clone(&session),
        messages: 0,
        pending: 0,
    };
    let result = format!(r#"{{"content":[{{"type":"text","text":"{}"}}]}}"#, "x".repeat(20_000));
    let between = || samples::call_between(client.clone(), server.clone());
    vec![
        samples::at(100, 0, EventBody::Session(Box::new(opened))),
        samples::wrap(3, 0, ask(between())),
        samples::wrap(101, 101, answer(samples::answer("result", &result, Outcome::Ok))),
        samples::wrap(102, 110, answer(samples::error())),
        samples::wrap(103, 120, ask(between())),
        samples::at(104, 420, samples::lost_in_queue()),
    ]
}

fn events(first: &str) -> String {
    let run = RunInfo {
        run_id: "01jnq3v8k2".into(),
        host: "workstation".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let labels = samples::LABELS.map(str::to_owned);
    let mut encoder =
        Encoder::new(&run, Payload::Full).show_labels(&labels).max_line(Some(16 * 1024));
    let mut out = first.as_bytes().to_vec();
    for event in with_container() {
        encoder.encode(&event, &mut out);
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn each_recipe_prints_what_the_page_says() {
    if Command::new("jq").arg("--version").output().is_err() {
        println!("SKIP each_recipe_prints_what_the_page_says: there is no jq");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = tempfile::tempdir().unwrap();
    let first = fs::read_to_string(root.join("examples/first.jsonl")).unwrap();
    fs::write(dir.path().join("events.jsonl"), events(&first)).unwrap();

    let path = root.join("docs/recipes.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut parts = page.split("```sh\n");
    let mut written = parts.next().unwrap().to_owned();
    let mut recipes = 0;
    for part in parts {
        recipes += 1;
        let (recipe, rest) = part.split_once("```\n").unwrap();
        let run = Command::new("sh")
            .args(["-c", recipe])
            .current_dir(dir.path())
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && errors.is_empty(), "{recipe}{errors}");
        let printed = String::from_utf8(run.stdout).unwrap();
        assert!(!printed.is_empty(), "prints nothing:\n{recipe}");
        write!(written, "```sh\n{recipe}```\n").unwrap();
        let Some(rest) = rest.strip_prefix("\n```text\n") else {
            written.push_str(rest);
            continue;
        };
        let (_, rest) = rest.split_once("```\n").unwrap();
        write!(written, "\n```text\n{printed}```\n{rest}").unwrap();
    }
    assert!(recipes > 10);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, written).unwrap();
    } else {
        assert_eq!(written, page, "UPDATE_EXPECT=1 writes what they print anew");
    }
}
