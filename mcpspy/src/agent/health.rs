//! `mcpspy health`: whether the monitor of this container, or of this host, is well.
//!
//! The monitor listens on an abstract Unix socket: it needs no directory, so it works in a container
//! whose root is read-only, and it belongs to the network namespace, so each container has its own.
//! Who connects is told one line of JSON and can say nothing.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::net::sockopt::socket_peercred;

use super::pipeline::{Pulse, Work};

/// Name of the socket. Any process of the network namespace can take it first: then there is no
/// answer, and the client does not believe a stranger.
const NAME: &str = "mcpspy.health";

/// An engine that has not moved for so long is stuck: a file on a dead disk, for example.
const STUCK: Duration = Duration::from_secs(10);

/// How long the engine has for a sign of life when it is asked for one.
const SIGN: Duration = Duration::from_secs(1);

/// How often it is looked whether the sign came.
const LOOK: Duration = Duration::from_millis(5);

/// How long the client waits for the whole answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Longest answer that the client reads.
const LONGEST: u64 = 4096;

/// Answers who asks, on a thread of its own, for as long as the program runs. A monitor that cannot
/// answer monitors all the same.
pub(super) fn serve(pulse: Arc<Pulse>, work: SyncSender<Work>) {
    let listener = match address().and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::debug!("`mcpspy health` is answered by another process: {error}");
            return;
        }
    };
    let spawned = std::thread::Builder::new().name("health".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            // The line fits in any socket's buffer: nobody can make this wait. Who has gone away
            // does not want it any more.
            match stream {
                Ok(mut stream) => drop(stream.write_all(status(&pulse, &work).as_bytes())),
                // No descriptors left, for example. Not asked again in a busy loop.
                Err(_) => std::thread::sleep(SIGN),
            }
        }
    });
    if let Err(error) = spawned {
        tracing::debug!("`mcpspy health` is not answered: {error}");
    }
}

fn address() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// An engine without work does not move, so it is given some: nothing.
fn status(pulse: &Pulse, work: &SyncSender<Work>) -> String {
    let asked = Instant::now();
    // Full: it is at work, and the time of its last movement says whether it comes forward.
    if work.try_send(Work::Inputs(Vec::new())).is_ok() {
        while pulse.moved() < asked && asked.elapsed() < SIGN {
            std::thread::sleep(LOOK);
        }
    }
    line(pulse.begun().elapsed(), pulse.moved().elapsed(), pulse.messages())
}

fn line(uptime: Duration, still: Duration, messages: u64) -> String {
    let status = if still < STUCK { "ok" } else { "stuck" };
    format!(
        "{{\"status\":\"{status}\",\"uptime_s\":{},\"last_tick_ms\":{},\"captured\":{messages}}}\n",
        uptime.as_secs(),
        still.as_millis(),
    )
}

/// Asks the monitor of this network namespace. The exit code is 0 where it is well.
pub fn health() -> anyhow::Result<u8> {
    let (answer, answered) = channel();
    // Also connecting can take for ever, where a stranger has the name and accepts nobody.
    std::thread::spawn(move || drop(answer.send(ask())));
    let line = answered
        .recv_timeout(ANSWER)
        .map_err(|_| anyhow::anyhow!("no answer within {} s", ANSWER.as_secs()))??;
    // Whoever closed the pipe has what they wanted.
    drop(std::io::stdout().write_all(line.as_bytes()));
    if line.starts_with(r#"{"status":"ok","#) {
        return Ok(0);
    }
    bail!("the monitor runs, but its engine has not moved for {} s or more", STUCK.as_secs());
}

fn ask() -> anyhow::Result<String> {
    let stream = UnixStream::connect_addr(&address()?)
        .context("no monitor runs in this network namespace, or it has just started")?;
    let uid = socket_peercred(&stream).context("who answers?")?.uid;
    let us = rustix::process::geteuid();
    ensure!(uid.is_root() || uid == us, "user {uid} answers in the monitor's place");
    let mut line = String::new();
    stream.take(LONGEST).read_to_string(&mut line).context("the answer cannot be read")?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn the_line_says_whether_the_engine_moves() {
        let well = line(Duration::from_secs(61), Duration::from_millis(9_999), 7);
        let expected = "{\"status\":\"ok\",\"uptime_s\":61,\"last_tick_ms\":9999,\"captured\":7}\n";
        assert_eq!(well, expected);
        let stuck = line(Duration::from_secs(61), STUCK, 7);
        assert!(stuck.starts_with(r#"{"status":"stuck","#), "{stuck}");
    }

    #[test]
    fn an_idle_engine_is_given_work_to_show_that_it_lives() {
        let pulse = Pulse::new();
        let (work, inbox) = sync_channel(1);
        // Nobody takes the work: the answer comes all the same, after the time for a sign.
        let status = status(&pulse, &work);
        assert!(status.starts_with(r#"{"status":"ok","#), "{status}");
        assert!(matches!(inbox.try_recv(), Ok(Work::Inputs(inputs)) if inputs.is_empty()));
    }
}
