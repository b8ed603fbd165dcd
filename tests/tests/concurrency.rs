//! Many at once: order, pairs, shared and reused streams.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use mcpspy_e2e::raw::{Channel, Client, call};
use mcpspy_e2e::{Stage, live, logs, messages, peers};

/// A request and its answer, again and again, with nothing between: the kernel delivers answers
/// before the requests that caused them, and readers before their writers.
fn ping_pong(stage: &Stage, channel: &Channel, rounds: usize) -> Result<()> {
    let monitor = stage.monitor(&[])?;
    let mut client = Client::connect(stage, channel, &[])?;
    client.initialize()?;
    for id in 0..rounds {
        client.call(&id.to_string(), "echo", r#"{"text":"ping"}"#)?;
    }
    client.close()?;
    // The comparison fails where a response comes before its request.
    monitor.stop()?.expect_exactly(&stage.truth()?)
}

#[test]
fn events_come_in_causal_order_on_pipes() {
    live(&[], |stage| ping_pong(stage, &Channel::Pipes, 10_000));
}

#[test]
fn events_come_in_causal_order_on_sockets() {
    live(&[], |stage| ping_pong(stage, &Channel::SocketPairs, 10_000));
}

#[test]
fn ids_as_strings_zero_and_large_integers() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        let ids = [
            "0",
            "\"0\"",
            "\"\"",
            "\"id with \\\"quotes\\\" and é\"",
            "9007199254740993",
            "-1",
            "9223372036854775807",
            "18446744073709551615",
        ];
        // All open at once, then answered.
        for id in ids {
            client.send_line(&call(id, "echo", r#"{"text":"x"}"#))?;
        }
        for _ in ids {
            client.line()?;
        }
        client.close()?;
        let run = monitor.stop()?;
        run.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn requests_in_both_directions_with_the_same_ids() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        for channel in [Channel::Pipes, Channel::OneSocketPair] {
            let mut client = Client::connect(stage, &channel, &[])?;
            client.initialize()?;
            for id in 1..50 {
                // The server asks with the id of the request that it is about to answer.
                let asked = client.call(&id.to_string(), "ask", "{}")?;
                ensure!(asked.contains("roots/list"), "{asked}");
                client.send_line(&format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{"roots":[]}}}}"#
                ))?;
                client.line()?;
            }
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn batches_are_taken_apart() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        // The raw server does not answer batches, and none are needed.
        client.send_line(
            r#"[{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}, {"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}]"#,
        )?;
        client.call("1", "echo", r#"{"text":"after the batch"}"#)?;
        client.close()?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn two_programs_that_read_the_same_pipe() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(r#"exec 3<&0; "$0" serve <&3 & "$0" serve <&3 & wait"#);
        command.arg(peers::raw_peer());
        let mut client = Client::connect_to(stage, &Channel::Pipes, command)?;
        client.initialize()?;
        for id in 1..400 {
            client.call(&id.to_string(), "echo", &format!(r#"{{"text":"call {id}"}}"#))?;
        }
        client.close()?;
        let run = monitor.stop()?;

        let logs = logs(&stage.truth_dir())?;
        let client = logs.values().find(|log| log.child.is_some()).context("no client")?;
        let readers: BTreeSet<u32> =
            logs.values().filter(|log| log.child.is_none()).map(|log| log.pid).collect();
        ensure!(readers.len() == 2, "{} readers", readers.len());
        let of_client = run.messages_of(&BTreeSet::from([client.pid]));
        let sent: Vec<_> = of_client.iter().filter(|event| event.pids().0 == client.pid).collect();
        let raws: Vec<_> = sent.iter().map(|event| event.raw()).collect();
        ensure!(raws == messages(&client.sent), "requests: {} reported", raws.len());
        for event in sent {
            // Which of the two took a message is not always known; somebody else never did.
            let to = event.pids().1;
            ensure!(to == 0 || readers.contains(&to), "to {to}: {}", event.value());
        }
        for log in logs.values().filter(|log| log.child.is_none()) {
            let answers: Vec<_> = of_client
                .iter()
                .filter(|event| event.pids().0 == log.pid)
                .map(|event| event.raw())
                .collect();
            ensure!(answers == messages(&log.sent), "answers of {}: {}", log.pid, answers.len());
        }
        run.expect_nothing_lost()
    });
}

#[test]
fn pipe_whose_inode_number_is_reused() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut seen = BTreeSet::new();
        // On a disk a new FIFO gets the number of the one just removed.
        for round in 0..8 {
            let channel = Channel::Fifos(stage.dir().to_owned());
            let mut client = Client::connect(stage, &channel, &[])?;
            let inode = std::fs::metadata(stage.dir().join("to-server"))?.ino();
            client.initialize()?;
            for id in 0..5 {
                client.call(&id.to_string(), "echo", &format!(r#"{{"text":"round {round}"}}"#))?;
            }
            client.close()?;
            seen.insert(inode);
        }
        if seen.len() == 8 {
            bail!("no inode number was reused: this file system cannot show it");
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn twenty_thousand_short_lived_pipes_of_another_process_during_a_session() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        let mut churn = stage.spawn(Command::new(peers::raw_peer()).args(["churn", "20000"]))?;
        let mut id = 0;
        while churn.try_wait()?.is_none() || id < 100 {
            client.call(&id.to_string(), "echo", r#"{"text":"still here"}"#)?;
            id += 1;
        }
        client.close()?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}
