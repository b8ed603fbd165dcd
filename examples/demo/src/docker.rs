//! As much of `docker exec -i CONTAINER COMMAND…` as an MCP client needs, for images from scratch.
//!
//! Speaks to the engine's socket as the real command does: creates the exec, starts it with an
//! upgrade of the connection, then passes bytes on: standard input as it is, the answer without the
//! eight bytes that the engine puts before each piece.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const SOCKET: &str = "/var/run/docker.sock";

/// First byte of a piece of the server's standard output. Its standard error has 2.
const STDOUT: u8 = 1;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [exec, interactive, container, command @ ..] = &words[..] else { bail!("{USAGE}") };
    ensure!(exec == "exec" && interactive == "-i" && !command.is_empty(), "{USAGE}");

    let wanted = json!({
        "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Cmd": command,
    });
    let created = post(&format!("/containers/{container}/exec"), &wanted, false)?;
    let mut body = String::new();
    created.take(1 << 16).read_to_string(&mut body)?;
    let id: Value = serde_json::from_str(body.trim()).context("the engine's answer")?;
    let id = id["Id"].as_str().with_context(|| format!("the engine says {body}"))?;

    let stream =
        post(&format!("/exec/{id}/start"), &json!({ "Detach": false, "Tty": false }), true)?;
    let mut to_server = stream.get_ref().try_clone()?;
    thread::spawn(move || {
        // Either end may go first; the other one notices by itself.
        drop(pass_on(&mut to_server));
        drop(to_server.shutdown(Shutdown::Write));
    });
    unwrap(stream)
}

const USAGE: &str = "usage: docker exec -i CONTAINER COMMAND...";

/// Sends a request and reads the head of its answer.
fn post(path: &str, body: &Value, upgrade: bool) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(SOCKET).context(SOCKET)?;
    let body = body.to_string();
    // HTTP/1.0 has no chunks, but also no upgrade.
    let (version, connection) =
        if upgrade { ("1.1", "Connection: Upgrade\r\nUpgrade: tcp\r\n") } else { ("1.0", "") };
    let head = format!(
        "POST {path} HTTP/{version}\r\nHost: docker\r\n{connection}Content-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = BufReader::new(stream);
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let mut line = String::from("-");
    while !line.trim().is_empty() {
        line.clear();
        answer.read_line(&mut line)?;
    }
    let code = status.split(' ').nth(1).unwrap_or_default();
    ensure!(["101", "200", "201"].contains(&code), "the engine says {}", status.trim());
    Ok(answer)
}

fn pass_on(to: &mut UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut stdin = io::stdin().lock();
    loop {
        let length = stdin.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
    }
}

/// Passes on what the server says, each piece to its stream.
fn unwrap(mut from: impl Read) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let mut stderr = io::stderr().lock();
    let mut head = [0; 8];
    let mut piece = Vec::new();
    while from.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        piece.resize(length as usize, 0);
        from.read_exact(&mut piece)?;
        let to: &mut dyn Write = if head[0] == STDOUT { &mut stdout } else { &mut stderr };
        to.write_all(&piece)?;
        to.flush()?;
    }
    Ok(())
}
