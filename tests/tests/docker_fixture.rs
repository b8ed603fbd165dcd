//! The fixture proves itself, without the monitor: an engine starts, peers speak through it, and
//! what one end sent is what the other received.

use anyhow::{Result, ensure};
use mcpspy_e2e::raw::{How, call, call_of_size};
use mcpspy_e2e::{Docker, Need, Server, Truth, messages, offline, peers};

fn agree(truth: &Truth, at_least: usize) -> Result<()> {
    for session in &truth.sessions {
        let (client, server) = (&session.client, &session.server);
        ensure!(client.sent == server.received, "{} → {}", client.pid, server.pid);
        ensure!(server.sent == client.received, "{} → {}", server.pid, client.pid);
        ensure!(!messages(&client.sent).is_empty(), "{} said nothing", client.pid);
        ensure!(client.child != Some(server.pid), "the client's child is the server itself");
    }
    let count = truth.message_count();
    ensure!(count >= at_least, "{count} messages, expected at least {at_least}");
    Ok(())
}

#[test]
fn python_and_typescript_speak_by_exec_and_run() {
    offline(&[Need::Docker, Need::PythonV1, Need::PythonV2, Need::TypeScript], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        for server in [Server::Python(1), Server::Python(2), Server::TypeScript] {
            for words in [docker.exec("srv", &server), docker.run(&[], &server)?] {
                let (mut client, at_least) = match server {
                    Server::Python(major) => (peers::python(major, "basic"), 34),
                    _ => (peers::typescript("basic"), 20),
                };
                agree(&docker.play(client.args(words))?, at_least)?;
            }
        }
        Ok(())
    });
}

#[test]
fn raw_peers_speak_with_megabytes() {
    offline(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let server = Server::Raw(&[]);
        for words in [docker.exec("srv", &server), docker.run(&[], &server)?] {
            let mut client = docker.client(&words)?;
            client.initialize()?;
            client.send(How::Whole, format!("{}\n", call_of_size("1", 5_000_000)).as_bytes())?;
            client.line()?;
            client.send_line(&call("2", "text", r#"{"size":5000000}"#))?;
            client.line()?;
            client.call("3", "echo", &format!(r#"{{"text":"{}"}}"#, words.len()))?;
            ensure!(client.close()?.success(), "the server failed");
        }
        agree(&docker.truth()?, 17)
    });
}

#[test]
fn engine_is_restarted_and_containers_live_on() {
    offline(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        docker.session_within("inner")?;
        let mut cut = docker.client(&docker.exec("srv", &Server::Raw(&[])))?;
        cut.initialize()?;
        cut.call("1", "echo", r#"{"text":"before"}"#)?;
        let (daemon, server) = (docker.engine.pid()?, docker.pid_of("srv")?);
        docker.engine.stop()?;
        cut.wait()?;
        docker.engine.start_again()?;
        ensure!(docker.engine.pid()? != daemon, "the daemon was not restarted");
        ensure!(docker.pid_of("srv")? == server, "the container was restarted");
        let inner = docker.end_session_within("inner")?;
        for session in &inner.sessions {
            ensure!(session.client.sent == session.server.received, "the session was cut");
            ensure!(messages(&session.client.sent).len() > 10, "it did not go on");
        }
        agree(&docker.truth()?, 5)
    });
}
