//! Plays what no SDK does. `raw-peer serve [OPTIONS]` is an MCP server whose system calls are
//! chosen by options; `raw-peer churn N` opens and closes pipes; `raw-peer inside COMMAND` starts a
//! peer in a container, so that its logs bear the pid that the host knows it by.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mcpspy_e2e::raw::{How, read, write};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(&Options::parse(&arguments[1..])?),
        Some("inside") => inside(&arguments[1..]),
        Some("churn") => churn(arguments.get(1).context("how many?")?.parse()?),
        _ => bail!("usage: raw-peer serve [OPTIONS] | churn N | inside COMMAND"),
    }
}

/// Becomes the command, whose logs go to a directory named by this process's pid as the host knows
/// it: in a pid namespace it cannot know that itself, so it asks the test, which sees it on a socket.
fn inside(command: &[String]) -> Result<ExitCode> {
    let socket = std::env::var_os("MCPSPY_PID_SOCKET").context("MCPSPY_PID_SOCKET")?;
    let mut pid = String::new();
    UnixStream::connect(socket)?.read_to_string(&mut pid)?;
    let truth = PathBuf::from(std::env::var_os("MCPSPY_TRUTH").context("MCPSPY_TRUTH")?).join(pid);
    std::fs::create_dir_all(&truth)?;
    let (program, arguments) = command.split_first().context("inside which command?")?;
    Err(Command::new(program).args(arguments).env("MCPSPY_TRUTH", truth).exec().into())
}

/// How the server behaves.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct Options {
    /// `--write HOW`: calls that write answers.
    write: How,
    /// `--recv`: receives with `recv`.
    recv: bool,
    /// `--noise N`: lines of text before anything else.
    noise: u64,
    /// `--lsp`: a language server: `Content-Length` framing.
    lsp: bool,
    /// `--silent`: never answers.
    silent: bool,
    /// `--dup`: takes its streams to other descriptors and puts others in their place.
    dup: bool,
    /// `--reopen`: opens its output anew through `/proc/self/fd`.
    reopen: bool,
    /// `--wrapper`: another process serves; this one waits for it.
    wrapper: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        let value = |name: &str| {
            arguments.iter().skip_while(|argument| *argument != name).nth(1).map(String::as_str)
        };
        Ok(Self {
            write: value("--write").unwrap_or("whole").parse()?,
            recv: has("--recv"),
            noise: value("--noise").unwrap_or("0").parse()?,
            lsp: has("--lsp"),
            silent: has("--silent"),
            dup: has("--dup"),
            reopen: has("--reopen"),
            wrapper: has("--wrapper"),
        })
    }
}

/// The server's streams, and the log of what went through them.
struct Wire {
    input: OwnedFd,
    output: OwnedFd,
    received: File,
    sent: File,
    write: How,
    recv: bool,
}

impl Wire {
    fn open(options: &Options) -> Result<Self> {
        let truth = PathBuf::from(std::env::var_os("MCPSPY_TRUTH").context("MCPSPY_TRUTH")?);
        let end = truth.join(format!("server-{}-0", std::process::id()));
        let (mut input, mut output) = (
            rustix::stdio::stdin().try_clone_to_owned()?,
            rustix::stdio::stdout().try_clone_to_owned()?,
        );
        if options.dup {
            input = input.try_clone()?;
            output = output.try_clone()?;
            let null = File::options().read(true).write(true).open("/dev/null")?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
        }
        if options.reopen {
            let path = format!("/proc/self/fd/{}", output.as_raw_fd());
            output = File::options().write(true).open(path)?.into();
        }
        Ok(Self {
            input,
            output,
            received: File::create(end.with_extension("received"))?,
            sent: File::create(end.with_extension("sent"))?,
            write: options.write,
            recv: options.recv,
        })
    }

    fn read(&mut self) -> Result<Vec<u8>> {
        let bytes = read(self.input.as_fd(), self.recv)?;
        self.received.write_all(&bytes)?;
        Ok(bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        // The log first: it must hold what a killed server had handed over.
        self.sent.write_all(bytes)?;
        write(self.output.as_fd(), self.write, bytes)
    }

    fn send_line(&mut self, line: &str) -> Result<()> {
        self.send(format!("{line}\n").as_bytes())
    }
}

fn serve(options: &Options) -> Result<ExitCode> {
    if options.wrapper {
        let arguments = std::env::args().skip(1).filter(|argument| argument != "--wrapper");
        let status = Command::new(std::env::current_exe()?).args(arguments).status()?;
        return Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1))?));
    }
    let mut wire = Wire::open(options)?;
    for line in 0..options.noise {
        wire.send_line(&format!("{line}: starting up {{ [ \"not a message\""))?;
    }
    if options.lsp {
        return serve_lsp(&mut wire);
    }
    let mut unread = Vec::new();
    loop {
        let bytes = wire.read()?;
        if bytes.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        // Only what is new is searched: a line may have 16 MiB.
        let mut searched = unread.len();
        unread.extend_from_slice(&bytes);
        while let Some(end) = unread[searched..].iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=searched + end).collect();
            searched = 0;
            if options.silent {
                continue;
            }
            if let Some(code) = answer(&mut wire, &String::from_utf8_lossy(&line))? {
                return Ok(code);
            }
        }
    }
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
}

/// Answers one line. `Some` where the server shall end.
fn answer(wire: &mut Wire, line: &str) -> Result<Option<ExitCode>> {
    let line = line.trim_start_matches('\u{feff}').trim();
    let Ok(request) = serde_json::from_str::<Request<'_>>(line) else { return Ok(None) };
    let (Some(id), Some(method)) = (request.id.map(RawValue::get), request.method) else {
        return Ok(None);
    };
    let respond = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
    let text = |text: &str| {
        let text = Value::from(text);
        respond(&format!(r#"{{"content":[{{"type":"text","text":{text}}}]}}"#))
    };
    let arguments = &request.params["arguments"];
    let number = |name: &str| arguments[name].as_u64().unwrap_or(0);
    let answer = match (&*method, request.params["name"].as_str().unwrap_or_default()) {
        ("initialize", _) => respond(concat!(
            r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"#,
            r#""serverInfo":{"name":"raw-server","version":"9.9"}}"#
        )),
        ("tools/call", "echo") => text(arguments["text"].as_str().unwrap_or_default()),
        ("tools/call", "length") => {
            text(&arguments["text"].as_str().unwrap_or_default().len().to_string())
        }
        ("tools/call", "text") => text(&"é".repeat(usize::try_from(number("size"))? / 2)),
        ("tools/call", "slow") => {
            std::thread::sleep(Duration::from_millis(number("ms")));
            text("done")
        }
        ("tools/call", "ask") => {
            // A request in the other direction with the client's own id, answered before its own.
            wire.send_line(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"roots/list"}}"#))?;
            text("asked")
        }
        // Bytes as they are; the test says which.
        ("tools/call", "verbatim") => {
            wire.send(arguments["bytes"].as_str().unwrap_or_default().as_bytes())?;
            return Ok(None);
        }
        ("tools/call", "die") => return Ok(Some(ExitCode::from(u8::try_from(number("code"))?))),
        ("tools/call", "killed") => {
            rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            )?;
            text("unreachable")
        }
        ("tools/list", _) => {
            respond(r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#)
        }
        ("ping", _) => respond("{}"),
        _ => format!(
            r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"Method not found"}}}}"#
        ),
    };
    wire.send_line(&answer)?;
    Ok(None)
}

/// A language server: answers each `Content-Length` frame with one of its own.
fn serve_lsp(wire: &mut Wire) -> Result<ExitCode> {
    let mut unread = Vec::new();
    loop {
        let bytes = wire.read()?;
        if bytes.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        unread.extend_from_slice(&bytes);
        let text = String::from_utf8_lossy(&unread).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length: usize = head.trim_start_matches("Content-Length: ").parse()?;
        if body.len() < length {
            continue;
        }
        unread.drain(..head.len() + 4 + length);
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"capabilities":{"hoverProvider":true}}}"#;
        wire.send(format!("Content-Length: {}\r\n\r\n{answer}\n", answer.len() + 1).as_bytes())?;
    }
}

/// Opens pipes, moves something that looks like JSON through each, closes them.
fn churn(count: u64) -> Result<ExitCode> {
    for number in 0..count {
        let (reader, writer) = rustix::pipe::pipe()?;
        rustix::io::write(&writer, format!("{{\"churn\":{number}}}\n").as_bytes())?;
        read(reader.as_fd(), false)?;
    }
    Ok(ExitCode::SUCCESS)
}
