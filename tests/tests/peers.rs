//! The peers prove each other before they judge the monitor: what one end sent is what the other
//! received. Needs neither root nor the monitor.

use std::process::Command;

use anyhow::{Result, ensure};
use mcpspy_e2e::raw::{Channel, Client, How};
use mcpspy_e2e::{Need, Stage, messages, offline, peers};

/// Both logs of each session agree, and hold so many messages in all.
fn agree(stage: &Stage, at_least: usize) -> Result<()> {
    let truth = stage.truth()?;
    for session in &truth.sessions {
        let (client, server) = (&session.client, &session.server);
        ensure!(client.sent == server.received, "{} → {}", client.pid, server.pid);
        ensure!(server.sent == client.received, "{} → {}", server.pid, client.pid);
        ensure!(!messages(&client.sent).is_empty(), "{} said nothing", client.pid);
    }
    let count = truth.message_count();
    ensure!(count >= at_least, "{count} messages, expected at least {at_least}");
    Ok(())
}

#[test]
fn python_v1_peers_agree() {
    offline(&[Need::PythonV1], |stage| {
        stage.play(&mut peers::python(1, "basic"))?;
        agree(stage, 34)
    });
}

#[test]
fn python_v2_peers_agree() {
    offline(&[Need::PythonV2], |stage| {
        stage.play(&mut peers::python(2, "basic"))?;
        agree(stage, 34)
    });
}

#[test]
fn typescript_peers_agree() {
    offline(&[Need::TypeScript], |stage| {
        let mut client = peers::typescript("basic");
        stage.play(client.arg("node").arg(peers::typescript_server()))?;
        agree(stage, 20)
    });
}

#[test]
fn rmcp_peers_agree() {
    offline(&[Need::Rmcp], |stage| {
        stage.play(&mut peers::rmcp("basic"))?;
        agree(stage, 23)
    });
}

#[test]
fn raw_peers_agree_on_every_channel() {
    offline(&[], |stage| {
        let fifos = Channel::Fifos(stage.dir().to_owned());
        let serve: &[&[&str]] = &[
            &[],
            &["--write", "chunks:1"],
            &["--write", "vectored:1024"],
            &["--dup", "--reopen"],
            &["--wrapper"],
        ];
        for channel in [Channel::Pipes, fifos, Channel::SocketPairs, Channel::OneSocketPair] {
            let socket = matches!(channel, Channel::SocketPairs | Channel::OneSocketPair);
            for arguments in serve {
                // A socket cannot be opened anew.
                if socket && arguments.contains(&"--reopen") {
                    continue;
                }
                play_raw(stage, &channel, arguments)?;
            }
            if socket {
                play_raw(stage, &channel, &["--recv", "--write", "sendmsg"])?;
            }
        }
        agree(stage, 100)
    });
}

fn play_raw(stage: &Stage, channel: &Channel, arguments: &[&str]) -> Result<()> {
    let mut client = Client::connect(stage, channel, arguments)?;
    client.initialize()?;
    for (id, how) in [How::Whole, How::Chunks(1), How::Vectored(1024)].into_iter().enumerate() {
        let text = format!("{channel:?} {arguments:?} é👋");
        let text = serde_json::json!({ "text": text }).to_string();
        let line = mcpspy_e2e::raw::call(&id.to_string(), "echo", &text) + "\n";
        client.send(how, line.as_bytes())?;
        ensure!(client.line()?.contains("é👋"), "the echo differs");
    }
    ensure!(client.close()?.success(), "the server failed");
    Ok(())
}

#[test]
fn churn_ends() {
    offline(&[], |stage| stage.play(Command::new(peers::raw_peer()).args(["churn", "2000"])));
}
