//! The monitor in a container of its own, as the Compose files start it: it never reports what it
//! prints itself, however that is read.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::docker::IMAGE;
use mcpspy_e2e::raw::{How, call, call_of_size};
use mcpspy_e2e::{
    Docker, Event, Monitor, Need, Place, Run, Server, Truth, live, peers, wait_until,
};

const RAW: Server = Server::Raw(&[]);
/// In every call of [`talk`].
const MARKER: &str = "own-output-marker";
/// Longest line of standard output: where log drivers split.
const LINE: usize = 16 << 10;

/// Words that start the monitor in a container, less its own arguments.
fn contained(docker: &Docker<'_>, options: &[&str]) -> Result<Vec<String>> {
    let binary = peers::monitor_binary()?.canonicalize()?;
    let socket = docker.engine.socket();
    let mut words = vec!["docker".to_owned(), "-H".to_owned(), docker.engine.host()];
    words.extend(["run", "--rm", "--name", "mcpspy", "--network", "none"].map(str::to_owned));
    words.extend(["--cap-drop", "ALL"].map(str::to_owned));
    for capability in ["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"] {
        words.extend(["--cap-add".to_owned(), capability.to_owned()]);
    }
    words.extend(["--security-opt", "apparmor=unconfined"].map(str::to_owned));
    let dir = docker.stage.dir().display();
    for mount in [
        format!("{}:/mcpspy:ro", binary.display()),
        // For a binary that is not static.
        "/usr:/usr:ro".to_owned(),
        format!("{}:/var/run/docker.sock", socket.display()),
        format!("{dir}:{dir}"),
    ] {
        words.extend(["-v".to_owned(), mount]);
    }
    words.extend(options.iter().map(ToString::to_string));
    words.extend([IMAGE.to_owned(), "/mcpspy".to_owned()]);
    Ok(words)
}

/// Starts the monitor in a container, attached.
fn monitor(docker: &Docker<'_>, options: &[&str], arguments: &[&str]) -> Result<Monitor> {
    let words = contained(docker, options)?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(arguments);
    let mut monitor = docker.stage.monitor_with(command)?;
    monitor.set_pid(docker.pid_of("mcpspy")?);
    Ok(monitor)
}

/// Follows the log of a container as people do; ends with the container.
fn follow(docker: &Docker<'_>, container: &str, output: &str) -> Result<Child> {
    let script = r#"docker -H "$0" logs -f "$1" 2>/dev/null | jq . >"$2""#;
    let output = docker.stage.dir().join(output);
    let child = Command::new("sh")
        .args(["-c", script, &docker.engine.host(), container])
        .arg(output)
        // jq says that it is not JSON, where it is not.
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child)
}

/// A server by `docker exec`, one by `docker run` whose log is followed, 5 MB in between.
fn talk(docker: &Docker<'_>) -> Result<()> {
    let own = docker.run(&["--name", "logged"], &RAW)?;
    for (name, words) in [("srv", docker.exec("srv", &RAW)), ("logged", own)] {
        let mut client = docker.client(&words)?;
        client.initialize()?;
        let follower =
            if name == "logged" { Some(follow(docker, name, "server.txt")?) } else { None };
        for id in 0..150 {
            client.call(&id.to_string(), "echo", &format!(r#"{{"text":"{MARKER} {name}"}}"#))?;
        }
        client.send(How::Whole, format!("{}\n", call_of_size("900", 5_000_000)).as_bytes())?;
        client.line()?;
        client.send_line(&call("901", "text", r#"{"size":5000000}"#))?;
        client.line()?;
        client.call("902", "echo", &format!(r#"{{"text":"{MARKER} {name} at the end"}}"#))?;
        client.close()?;
        if let Some(mut follower) = follower {
            follower.wait()?;
        }
    }
    Ok(())
}

/// No message of anybody else was reported, such as a copy of the log.
fn expect_only(run: &Run, truth: &Truth) -> Result<()> {
    run.expect_exactly(truth)?;
    run.expect_once(truth)?;
    let pids = truth.pids();
    let copies: Vec<_> = run
        .messages()
        .filter(|event| event.raw().contains(MARKER) && !pids.contains(&event.pids().0))
        .collect();
    ensure!(copies.is_empty(), "{} copies, first: {}", copies.len(), copies[0].value());
    // Nor was a session made of one.
    let sessions = run.events.iter().filter(|event| event.kind() == "session");
    for event in sessions.filter(|event| event.text("/change") == "opened") {
        let comms = [event.text("/from/comm"), event.text("/to/comm")];
        for comm in ["jq", "mcpspy", "docker", "dockerd", "containerd-shim"] {
            ensure!(!comms.contains(&comm), "a session of {comm}: {}", event.value());
        }
    }
    Ok(())
}

fn reports_sessions_but_not_itself(options: &[&str], arguments: &[&str], json: bool) {
    live(&[Need::Docker, Need::Program("jq")], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = monitor(&docker, &[&["--pid", "host"], options].concat(), arguments)?;
        let mut follower = follow(&docker, "mcpspy", "followed.txt")?;
        talk(&docker)?;
        let last = format!("{MARKER} logged at the end");
        monitor.wait_event("the last call", Duration::from_secs(20), |event| {
            event.raw().contains(&last) && event.text("/type") == "response"
        })?;
        let run = monitor.stop()?;
        follower.wait()?;
        let truth = docker.truth()?;
        expect_only(&run, &truth)?;
        for name in ["srv", "logged"] {
            let one = truth.with(&format!("{MARKER} {name}"))?;
            run.expect_places(&one, Place::Host, Place::Container(name))?;
        }
        ensure!(run.stdout.contains(MARKER), "nothing was printed");
        if json {
            expect_short_json_lines(&run.stdout)?;
            // `docker logs` gave jq the same, line by line.
            let taken = fs::read_to_string(stage.dir().join("followed.txt"))?;
            ensure!(taken.contains(MARKER), "jq took nothing from the log");
        }
        Ok(())
    });
}

fn expect_short_json_lines(stdout: &str) -> Result<()> {
    let mut cut = 0;
    for line in stdout.lines() {
        let shown = line.chars().take(200).collect::<String>();
        ensure!(line.len() < LINE, "{} bytes: {shown}", line.len());
        let event = Event::parse(line)?;
        cut += usize::from(event.number("/size_bytes") > 4_000_000);
    }
    ensure!(cut == 4, "{cut} messages of 5 MB among the lines");
    Ok(())
}

#[test]
fn own_text_with_bodies_in_docker_logs() {
    reports_sessions_but_not_itself(&[], &["-b"], false);
}

#[test]
fn own_json_in_docker_logs_is_short_lines() {
    reports_sessions_but_not_itself(&["-e", "MCPSPY_FORMAT=json"], &[], true);
}

#[test]
fn without_the_hosts_pids_it_says_so_and_goes_on() {
    live(&[Need::Docker, Need::Program("jq")], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = monitor(&docker, &[], &["-b"])?;
        let mut follower = follow(&docker, "mcpspy", "followed.txt")?;
        let mut client = docker.client(&docker.exec("srv", &RAW))?;
        client.initialize()?;
        for id in 0..100 {
            client.call(&id.to_string(), "echo", &format!(r#"{{"text":"{MARKER} {id}"}}"#))?;
        }
        client.close()?;
        monitor.wait_event("the last call", Duration::from_secs(20), |event| {
            event.raw().contains(&format!("{MARKER} 99")) && event.text("/type") == "response"
        })?;
        let run = monitor.stop()?;
        follower.wait()?;
        let said = run.stderr.to_lowercase();
        ensure!(said.contains("pid: host") || said.contains("--pid"), "not said:\n{}", run.stderr);
        // Who speaks is known less well: programs that ran before are not known as relays, because
        // their files cannot be found by the kernel's numbers, so that a message may be told on each
        // hop of its way. None is missing.
        let truth = docker.truth()?;
        let mut count: BTreeMap<String, i64> = BTreeMap::new();
        let session = truth.sessions.first().context("no session")?;
        for sent in [&session.client.sent, &session.server.sent] {
            for message in mcpspy_e2e::messages(sent) {
                *count.entry(message.to_owned()).or_default() -= 1;
            }
        }
        for event in run.messages().filter(|event| event.raw().contains(MARKER)) {
            *count.entry(event.raw().to_owned()).or_default() += 1;
        }
        count.retain(|message, balance| message.contains(MARKER) && *balance < 0);
        ensure!(count.is_empty(), "not reported: {count:?}");
        run.expect_sequence()
    });
}

/// The container's standard output is not read for ten seconds of load.
#[test]
fn stalled_output_loses_what_it_says_and_stops_nothing() {
    live(&[Need::Docker], |stage| {
        const STALL: Duration = Duration::from_secs(10);
        const BATCHES: u64 = 200;
        const BATCH: u64 = 40;
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let (go, piped) = (stage.dir().join("go"), stage.dir().join("piped.txt"));
        let script = r#"go=$1 piped=$2; shift 2
            "$@" | (until [ -e "$go" ]; do sleep 0.1; done; cat) >"$piped""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "stalled"]).args([&go, &piped]);
        command.args(contained(&docker, &["--pid", "host", "-e", "MCPSPY_FORMAT=json"])?);
        let mut monitor = stage.monitor_with(command)?;
        monitor.set_pid(docker.pid_of("mcpspy")?);
        let start = Instant::now();
        let mut client = docker.client(&docker.exec("srv", &RAW))?;
        client.initialize()?;
        // More than the queue before the output takes: printed whole, and many.
        let text = "s".repeat(3500);
        for batch in 0..BATCHES {
            for id in 0..BATCH {
                let arguments = format!(r#"{{"text":"{id} {text}"}}"#);
                client.send_line(&call(&(batch * BATCH + id).to_string(), "echo", &arguments))?;
            }
            for _ in 0..BATCH {
                client.line()?;
            }
        }
        let end = BATCHES * BATCH - 1;
        monitor.wait_event("capture goes on", Duration::from_secs(30), |event| {
            event.number("/id") == end && event.text("/type") == "response"
        })?;
        std::thread::sleep(STALL.saturating_sub(start.elapsed()));
        fs::write(&go, "")?;
        wait_until("the output moves again", Duration::from_secs(20), || {
            Ok(fs::read_to_string(&piped).is_ok_and(|text| text.contains("\"lost\"")))
        })?;
        client.call("\"last\"", "echo", r#"{"text":"after the stall"}"#)?;
        client.close()?;
        let run = monitor.stop()?;
        run.expect_messages(&docker.truth()?)?;
        let printed = printed(&piped)?;
        let (lost, messages): (Vec<_>, Vec<_>) = printed
            .iter()
            .filter(|event| event.is_message() || event.kind() == "lost")
            .partition(|event| event.kind() == "lost");
        let told: u64 = lost.iter().map(|event| event.number("/messages")).sum();
        ensure!(lost.iter().all(|event| event.text("/stage") == "sink"), "{lost:?}");
        ensure!(told > 0, "the output was never full: the load was too small");
        let captured = run.messages().count() as u64;
        ensure!(
            messages.len() as u64 + told == captured,
            "{} printed and {told} told as lost, of {captured}",
            messages.len()
        );
        Ok(())
    });
}

fn printed(path: &PathBuf) -> Result<Vec<Event>> {
    fs::read_to_string(path)?.lines().map(Event::parse).collect()
}
