//! Who is at the ends: wrappers, forks, descriptors in other places; sessions and their names.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::raw::{Channel, Client};
use mcpspy_e2e::{Need, Run, Stage, Truth, live, peers};

fn plays(stage: &Stage, client: &mut Command) -> Result<(Run, Truth)> {
    let monitor = stage.monitor(&[])?;
    stage.play(client)?;
    let run = monitor.stop()?;
    let truth = stage.truth()?;
    run.expect_exactly(&truth)?;
    Ok((run, truth))
}

#[test]
fn server_behind_sh_c() {
    live(&[Need::PythonV1], |stage| {
        let [python, server] = peers::python_server(1);
        // The command after it keeps the shell from replacing itself.
        let script = format!("'{}' '{}'; exit $?", python.display(), server.display());
        let mut client = peers::python(1, "basic");
        let (_, truth) = plays(stage, client.args(["sh", "-c", &script]))?;
        let session = &truth.sessions[0];
        ensure!(session.client.child != Some(session.server.pid), "the shell was replaced");
        Ok(())
    });
}

#[test]
fn server_behind_npx() {
    live(&[Need::TypeScript, Need::Program("npx")], |stage| {
        let mut client = peers::typescript("everything");
        // The public server's name: npx finds it in the node modules and starts it below itself.
        client.args(["npx", "--offline", "--no", "mcp-server-everything"]);
        plays(stage, client.current_dir(peers::typescript_dir()))?;
        Ok(())
    });
}

#[test]
fn server_behind_a_wrapper_that_forks_as_uvx_does() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &["--wrapper"])?;
        client.initialize()?;
        client.call("1", "echo", r#"{"text":"through the wrapper"}"#)?;
        client.close()?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn server_behind_a_wrapper_that_execs() {
    live(&[Need::PythonV2], |stage| {
        let [python, server] = peers::python_server(2);
        let script = format!("exec '{}' '{}'", python.display(), server.display());
        let mut client = peers::python(2, "basic");
        let (run, truth) = plays(stage, client.args(["sh", "-c", &script]))?;
        let server = truth.sessions[0].server.pid;
        // Named by what it became, not by the shell that it was.
        let named = run.messages().find(|event| event.pids().1 == server).context("no message")?;
        ensure!(named.text("/to/comm").contains("python"), "{}", named.at("/to"));
        Ok(())
    });
}

#[test]
fn client_that_forks() {
    live(&[Need::PythonV2], |stage| {
        plays(stage, &mut peers::python(2, "fork"))?;
        Ok(())
    });
}

#[test]
fn descriptors_duplicated_and_opened_anew() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        for (channel, arguments) in [
            (Channel::Pipes, &["--dup", "--reopen"][..]),
            (Channel::Pipes, &["--reopen"]),
            (Channel::OneSocketPair, &["--dup"]),
            (Channel::Fifos(stage.dir().to_owned()), &["--dup", "--reopen"]),
        ] {
            let mut client = Client::connect(stage, &channel, arguments)?;
            client.initialize()?;
            client.call("1", "echo", r#"{"text":"elsewhere"}"#)?;
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn both_ends_are_named_with_program_and_command_line() {
    live(&[Need::PythonV2], |stage| {
        let (run, truth) = plays(stage, &mut peers::python(2, "basic"))?;
        let session = &truth.sessions[0];
        let request = run
            .messages()
            .find(|event| event.pids() == (session.client.pid, session.server.pid))
            .context("no message")?;
        for (end, script) in [("/from", "client.py"), ("/to", "server.py")] {
            let end = request.at(end);
            ensure!(end["exe"].as_str().is_some_and(|exe| exe.contains("python")), "{end}");
            ensure!(end["cmdline"].as_str().is_some_and(|line| line.contains(script)), "{end}");
            ensure!(end["quality"] == "exact", "{end}");
        }
        let transport = request.at("/stdio_transport");
        ensure!(transport["from_pid"] == session.client.pid, "{transport}");
        ensure!(transport["to_pid"] == session.server.pid, "{transport}");
        Ok(())
    });
}

#[test]
fn session_is_opened_with_revision_and_names() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::SocketPairs, &[])?;
        let server = client.server_pid();
        client.initialize()?;
        client.call("1", "echo", r#"{"text":"x"}"#)?;
        client.close()?;
        let run = monitor.stop()?;
        ensure!(run.session_events("opened", server).len() == 1, "not opened once");
        let closed = run.session_events("closed", server);
        let closed = closed.first().context("not closed")?;
        let session = closed.at("/session");
        ensure!(session["revision"] == "2025-06-18", "{session}");
        ensure!(session["client"]["name"] == "raw-client", "{session}");
        ensure!(session["server"]["name"] == "raw-server", "{session}");
        ensure!(session["server"]["version"] == "9.9", "{session}");
        Ok(())
    });
}

#[test]
fn request_that_is_never_answered_is_shown_within_2_seconds() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        for channel in [Channel::Pipes, Channel::SocketPairs] {
            let mut client = Client::connect(stage, &channel, &["--silent"])?;
            let server = client.server_pid();
            let start = Instant::now();
            client.send_line(mcpspy_e2e::raw::INITIALIZE)?;
            // Two seconds in the engine, and the way to the file on a busy machine.
            monitor.wait_event(
                "the request of a silent server",
                Duration::from_secs(4),
                |event| event.is_message() && event.pids().1 == server,
            )?;
            ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}
