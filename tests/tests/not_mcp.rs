//! What is not MCP, and MCP among what is not.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Result, ensure};
use mcpspy_e2e::raw::{Channel, Client, How, INITIALIZE, call};
use mcpspy_e2e::{Need, Stage, live, peers};

#[test]
fn ten_thousand_lines_of_text_before_the_first_message() {
    live(&[Need::PythonV1, Need::PythonV2], |stage| {
        let monitor = stage.monitor(&[])?;
        for major in [1, 2] {
            stage.play(peers::python(major, "basic").env("MCPSPY_NOISE", "10000"))?;
        }
        for channel in [Channel::Pipes, Channel::SocketPairs] {
            let mut client = Client::connect(stage, &channel, &["--noise", "10000"])?;
            client.send_line(INITIALIZE)?;
            for _ in 0..10_001 {
                client.line()?;
            }
            client.call("1", "text", r#"{"size":200000}"#)?;
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn text_between_messages() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        let noise = r#"{"bytes":"listening on 3000\n{\"level\":\"info\"}\n\n[1,2]\n{ half\n"}"#;
        for id in 0..20 {
            client.send_line(&call(&format!("\"v{id}\""), "verbatim", noise))?;
            for _ in 0..5 {
                client.line()?;
            }
            client.call(&id.to_string(), "echo", r#"{"text":"a message"}"#)?;
        }
        client.close()?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn byte_order_mark_crlf_and_blank_lines() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.send(How::Whole, format!("\u{feff}{INITIALIZE}\r\n\r\n\n").as_bytes())?;
        client.line()?;
        client.send(How::Whole, format!("  {}\r\n", call("1", "echo", "{}")).as_bytes())?;
        client.line()?;
        client.close()?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn language_server_is_not_reported() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &["--lsp"])?;
        let server = client.server_pid();
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"processId":1,"rootUri":null,"capabilities":{}}}"#;
        for _ in 0..3 {
            let frame = format!("Content-Length: {}\r\n\r\n{body}", body.len());
            client.send(How::Whole, frame.as_bytes())?;
            for _ in 0..3 {
                client.line()?;
            }
        }
        client.close()?;
        monitor.stop()?.expect_no_message_of(&BTreeSet::from([server]))
    });
}

#[test]
fn other_json_rpc_is_not_reported() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        let server = client.server_pid();
        for id in 0..20 {
            client.send_line(&format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"eth_blockNumber","params":[]}}"#
            ))?;
            client.line()?;
        }
        client.close()?;
        monitor.stop()?.expect_no_message_of(&BTreeSet::from([server]))
    });
}

/// Stored traffic, as `-o` and other tools leave it.
fn stored_traffic() -> String {
    let mut text = format!("{INITIALIZE}\n");
    for id in 1..200 {
        writeln!(text, "{}", call(&id.to_string(), "stored", r#"{"text":"trace-marker"}"#)).ok();
        writeln!(text, r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#).ok();
    }
    text
}

#[test]
fn stored_traffic_through_a_pipe_is_not_a_session() {
    live(&[Need::Program("jq")], |stage| {
        not_reported(stage, "cat trace.jsonl | jq . > /dev/null")?;
        not_reported(stage, "cat trace.jsonl | cat | wc -l > /dev/null")
    });
}

#[test]
fn stored_traffic_to_a_reader_that_is_slow_to_begin_is_not_a_session() {
    live(&[], |stage| not_reported(stage, "cat trace.jsonl | (sleep 3; cat) > /dev/null"));
}

fn not_reported(stage: &Stage, script: &str) -> Result<()> {
    std::fs::write(stage.dir().join("trace.jsonl"), stored_traffic())?;
    let monitor = stage.monitor(&[])?;
    stage.play(Command::new("sh").args(["-c", script]).current_dir(stage.dir()))?;
    let run = monitor.stop()?;
    let count = run.messages().filter(|event| event.raw().contains("trace-marker")).count();
    ensure!(count == 0, "{script}: {count} stored messages reported");
    run.expect_nothing_lost()?;
    Ok(std::fs::remove_file(stage.dir().join("events.jsonl"))?)
}

#[test]
fn stored_traffic_is_shown_with_oneway() {
    live(&[Need::Program("jq")], |stage| {
        std::fs::write(stage.dir().join("trace.jsonl"), stored_traffic())?;
        let monitor = stage.monitor(&["--oneway"])?;
        let script = "cat trace.jsonl | jq . > /dev/null";
        stage.play(Command::new("sh").args(["-c", script]).current_dir(stage.dir()))?;
        let run = monitor.stop()?;
        let count = run.messages().filter(|event| event.raw().contains("trace-marker")).count();
        ensure!(count == 199, "{count} of 199 stored requests reported");
        run.expect_nothing_lost()
    });
}
