//! The beginning and the end: of sessions, of servers, of the monitor.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::raw::{Channel, Client};
use mcpspy_e2e::{Mark, Monitor, Need, Run, Truth, kernel, live, peers, wait_until};
use rustix::process::Signal;

/// The `closed` event of the one session of a server.
fn closed(run: &Run, server: u32) -> Result<&mcpspy_e2e::Event> {
    let events = run.session_events("closed", server);
    ensure!(events.len() == 1, "{} closed events of {server}", events.len());
    Ok(events[0])
}

#[test]
fn session_that_began_before_the_monitor() {
    live(&[], |stage| {
        let mut clients = Vec::new();
        for channel in [Channel::Pipes, Channel::SocketPairs, Channel::OneSocketPair] {
            let mut client = Client::connect(stage, &channel, &[])?;
            client.initialize()?;
            client.call("1", "echo", r#"{"text":"before"}"#)?;
            clients.push(client);
        }
        let mark = Mark::take(&stage.truth_dir())?;
        let monitor = stage.monitor(&[])?;
        for mut client in clients {
            client.call("2", "echo", r#"{"text":"after"}"#)?;
            client.call("3", "ask", "{}")?;
            client.send_line(r#"{"jsonrpc":"2.0","id":3,"result":{"roots":[]}}"#)?;
            client.line()?;
            client.close()?;
        }
        monitor.stop()?.expect_exactly(&Truth::read_since(&stage.truth_dir(), &mark)?)
    });
}

#[test]
fn sdk_session_that_began_before_the_monitor() {
    live(&[Need::PythonV2], |stage| {
        let mut command = peers::python(2, "wait");
        let mut client = stage.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let mut line = String::new();
        BufReader::new(client.stdout.take().context("stdout")?).read_line(&mut line)?;
        let mark = Mark::take(&stage.truth_dir())?;
        let monitor = stage.monitor(&[])?;
        writeln!(client.stdin.take().context("stdin")?, "go on")?;
        ensure!(client.wait()?.success(), "the client failed");
        monitor.stop()?.expect_exactly(&Truth::read_since(&stage.truth_dir(), &mark)?)
    });
}

#[test]
fn request_before_the_monitor_and_its_response_after() {
    live(&[], |stage| {
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        let mark = Mark::take(&stage.truth_dir())?;
        client.send_line(&mcpspy_e2e::raw::call("1", "slow", r#"{"ms":6000}"#))?;
        let monitor = stage.monitor(&[])?;
        client.line()?;
        client.call("2", "echo", r#"{"text":"after"}"#)?;
        let client_pid = std::process::id();
        let server = client.server_pid();
        client.close()?;
        let run = monitor.stop()?;
        let truth = Truth::read_since(&stage.truth_dir(), &mark)?;
        let reported: Vec<_> = run
            .messages()
            .filter(|event| event.pids() == (server, client_pid))
            .map(mcpspy_e2e::Event::raw)
            .collect();
        ensure!(reported == mcpspy_e2e::messages(&truth.sessions[0].server.sent), "{reported:?}");
        run.expect_nothing_lost()
    });
}

#[test]
fn response_that_takes_60_seconds_is_paired() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        client.call("7", "slow", r#"{"ms":61000}"#)?;
        client.close()?;
        let run = monitor.stop()?;
        ensure!(
            run.messages().any(|event| event.at("/duration_ms").as_f64() > Some(60_000.0)),
            "no response with its duration"
        );
        run.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn server_that_exits_closes_its_session_with_the_code() {
    live(&[Need::PythonV2], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        let server = client.server_pid();
        client.initialize()?;
        client.send_line(&mcpspy_e2e::raw::call("1", "die", r#"{"code":3}"#))?;
        ensure!(client.wait()?.code() == Some(3), "the server ended otherwise");
        drop(client);
        stage.play(&mut peers::python(2, "die"))?;
        let run = monitor.stop()?;
        let truth = stage.truth()?;
        for session in &truth.sessions {
            let event = closed(&run, session.server.pid)?;
            ensure!(event.text("/cause") == "server_exited", "{}", event.value());
            ensure!(event.at("/exit_code") == 3, "{}", event.value());
        }
        ensure!(truth.sessions.iter().any(|session| session.server.pid == server));
        run.expect_exactly(&truth)
    });
}

#[test]
fn server_that_is_killed_closes_its_session_with_the_signal() {
    live(&[Need::PythonV1], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(&mut peers::python(1, "killed"))?;
        let run = monitor.stop()?;
        let mut truth = stage.truth()?;
        // Killed between a write and its own note of it: what the client took is the truth.
        let session = &mut truth.sessions[0];
        session.server.sent.clone_from(&session.client.received);
        let event = closed(&run, truth.sessions[0].server.pid)?;
        ensure!(event.text("/cause") == "server_exited", "{}", event.value());
        ensure!(event.at("/exit_signal") == 9, "{}", event.value());
        run.expect_exactly(&truth)
    });
}

#[test]
fn client_that_closes_its_side_and_session_still_open_at_exit() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let mut open = Client::connect(stage, &Channel::Pipes, &[])?;
        open.initialize()?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        let server = client.server_pid();
        client.initialize()?;
        client.call("1", "echo", r#"{"text":"x"}"#)?;
        client.close()?;
        let run = monitor.stop()?;
        let event = closed(&run, server)?;
        ensure!(event.text("/cause") == "client_closed", "{}", event.value());
        let event = closed(&run, open.server_pid())?;
        ensure!(event.text("/cause") == "open_at_exit", "{}", event.value());
        Ok(())
    });
}

#[test]
fn sigterm_and_sigint_drain_and_print_both_ledgers() {
    live(&[], |stage| {
        for signal in [Signal::TERM, Signal::INT] {
            let monitor = stage.monitor(&[])?;
            let mark = Mark::take(&stage.truth_dir())?;
            let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
            client.initialize()?;
            for id in 0..200 {
                client.call(&id.to_string(), "text", r#"{"size":100000}"#)?;
            }
            // At once after the last message.
            monitor.signal(signal)?;
            let run = monitor.wait()?;
            ensure!(run.status.code() == Some(0), "{signal:?}: {}", run.status);
            let ledger = run.stderr.to_lowercase();
            ensure!(
                ledger.contains("bytes") && ledger.contains("messages"),
                "no ledgers on stderr:\n{}",
                run.stderr
            );
            client.close()?;
            run.expect_exactly(&only_new(Truth::read_since(&stage.truth_dir(), &mark)?))?;
            std::fs::remove_file(stage.dir().join("events.jsonl"))?;
        }
        Ok(())
    });
}

/// Without the sessions that said nothing since the mark.
fn only_new(mut truth: Truth) -> Truth {
    truth.sessions.retain(|session| !session.client.sent.is_empty());
    truth
}

#[test]
fn second_signal_ends_at_once() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let start = Instant::now();
        monitor.signal(Signal::INT)?;
        monitor.signal(Signal::TERM)?;
        monitor.wait()?;
        ensure!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
        Ok(())
    });
}

#[test]
fn kill_9_leaves_no_program_or_map_in_the_kernel() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let held = kernel::held_by(monitor.pid())?;
        ensure!(!held.programs.is_empty() && !held.maps.is_empty(), "holds {held:?}");
        monitor.signal(Signal::KILL)?;
        monitor.wait()?;
        wait_until("the kernel forgets programs and maps", Duration::from_secs(10), || {
            Ok(kernel::still_loaded(&held)? == kernel::Held::default())
        })
    });
}

#[test]
fn duration_ends_the_run() {
    live(&[], |stage| {
        let monitor = stage.monitor(&["--duration", "2s"])?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        client.close()?;
        let run = monitor.wait()?;
        ensure!(run.status.success(), "{}", run.status);
        run.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn closed_stdout_ends_quietly() {
    live(&[], |stage| {
        let mut command = Command::new("bash");
        command.args(["-c", r#""$0" --format json | head -3 > /dev/null; exit ${PIPESTATUS[0]}"#]);
        command.arg(peers::monitor_binary()?);
        let monitor = Monitor::start(command, stage.dir(), None)?;
        monitor.wait_ready()?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        for id in 0..100 {
            client.call(&id.to_string(), "echo", r#"{"text":"x"}"#)?;
        }
        client.close()?;
        let run = monitor.wait()?;
        ensure!(run.status.code() == Some(0), "{}: {}", run.status, run.stderr);
        let said = run.stderr.to_lowercase();
        ensure!(!said.contains("panic") && !said.contains("broken pipe"), "{}", run.stderr);
        Ok(())
    });
}

#[test]
fn unwritable_output_is_one_clear_error() {
    live(&[], |stage| {
        let path = stage.dir().join("no/such/directory/events.jsonl");
        let mut command = Command::new(peers::monitor_binary()?);
        command.arg("-o").arg(&path);
        let run = Monitor::start(command, stage.dir(), None)?.wait()?;
        ensure!(run.status.code() == Some(1), "{}", run.status);
        ensure!(run.stderr.contains(&path.display().to_string()), "{}", run.stderr);
        ensure!(!run.stderr.contains("panicked"), "{}", run.stderr);
        Ok(())
    });
}

#[test]
fn full_disk_is_one_clear_error_and_the_console_goes_on() {
    live(&[Need::Program("mount")], |stage| {
        let disk = Tmpfs::mount(stage.dir().join("disk"))?;
        let mut command = Command::new(peers::monitor_binary()?);
        command.arg("-o").arg(disk.0.join("events.jsonl"));
        let monitor = Monitor::start(command, stage.dir(), None)?;
        monitor.wait_ready()?;
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        for id in 0..300 {
            client.call(&id.to_string(), "echo", &format!(r#"{{"text":"n{id:0900}"}}"#))?;
        }
        client.close()?;
        wait_until("the last call is on the console", Duration::from_secs(10), || {
            Ok(monitor.stdout()?.contains("id=299"))
        })?;
        monitor.signal(Signal::INT)?;
        let run = monitor.wait()?;
        let errors: Vec<_> =
            run.stderr.lines().filter(|line| line.to_lowercase().contains("space")).collect();
        ensure!(errors.len() == 1, "{} errors about space:\n{}", errors.len(), run.stderr);
        let shown = run.stdout.lines().filter(|line| line.contains("tools/call echo")).count();
        ensure!(shown == 600, "{shown} of 600 lines on the console");
        Ok(())
    });
}

/// A small file system; unmounted when dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: std::path::PathBuf) -> Result<Self> {
        std::fs::create_dir(&path)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path);
        ensure!(mount.status()?.success(), "cannot mount a tmpfs");
        Ok(Self(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn sighup_opens_the_output_anew() {
    live(&[], |stage| {
        let monitor = stage.monitor(&[])?;
        let (path, old) = (stage.dir().join("events.jsonl"), stage.dir().join("old.jsonl"));
        let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
        client.initialize()?;
        monitor.wait_event("the first session", Duration::from_secs(10), |event| {
            event.text("/method") == "notifications/initialized"
        })?;
        std::fs::rename(&path, &old)?;
        monitor.signal(Signal::HUP)?;
        wait_until("a new file", Duration::from_secs(10), || Ok(path.exists()))?;
        client.call("1", "echo", r#"{"text":"x"}"#)?;
        client.close()?;
        let mut run = monitor.stop()?;
        let mut events = mcpspy_e2e::Event::read_file(&old)?;
        events.append(&mut run.events);
        run.events = events;
        let mode = std::os::unix::fs::MetadataExt::mode(&File::open(&path)?.metadata()?);
        ensure!(mode & 0o777 == 0o600, "mode {mode:o}");
        run.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn each_backend_captures_a_session() {
    live(&[], |stage| {
        for backend in ["tp-btf", "raw-tp"] {
            let mark = Mark::take(&stage.truth_dir())?;
            let monitor = stage.monitor(&["--backend", backend])?;
            for channel in [Channel::Pipes, Channel::OneSocketPair] {
                let mut client = Client::connect(stage, &channel, &["--write", "vectored:7"])?;
                client.initialize()?;
                client.call("1", "text", r#"{"size":300000}"#)?;
                client.close()?;
            }
            let run = monitor.stop()?;
            ensure!(run.stderr.contains(backend), "{backend}: {}", run.stderr);
            run.expect_exactly(&only_new(Truth::read_since(&stage.truth_dir(), &mark)?))?;
            std::fs::remove_file(stage.dir().join("events.jsonl"))?;
        }
        Ok(())
    });
}
