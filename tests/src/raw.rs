//! A client below any SDK, played by the test itself: what is written in which calls is the point.
//! Its server is the binary `raw-peer`.

use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::monitor::wait_for_exit;
use crate::{Stage, peers};

/// How long a server may take to answer or to end.
const ANSWER: Duration = Duration::from_secs(90);

/// What carries a session.
#[derive(Clone, Debug)]
pub enum Channel {
    /// Two pipes.
    Pipes,
    /// Two socket pairs, as Node makes them.
    SocketPairs,
    /// One socket pair for both directions.
    OneSocketPair,
    /// Two FIFOs, made new in this directory.
    Fifos(PathBuf),
}

/// The calls that move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One `write`.
    Whole,
    /// `write`s of this size.
    Chunks(usize),
    /// `writev` of this many parts.
    Vectored(usize),
    /// `send`.
    Send,
    /// `sendmsg` of two parts.
    SendMsg,
}

impl FromStr for How {
    type Err = anyhow::Error;

    /// `whole`, `send`, `sendmsg`, `chunks:4096`, `vectored:1024`.
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once(':') {
            None if text == "whole" => Self::Whole,
            None if text == "send" => Self::Send,
            None if text == "sendmsg" => Self::SendMsg,
            Some(("chunks", size)) => Self::Chunks(size.parse()?),
            Some(("vectored", parts)) => Self::Vectored(parts.parse()?),
            _ => bail!("no way to write: {text}"),
        })
    }
}

/// Writes all bytes in the calls that `how` says. A call that moves less is repeated for the rest.
pub fn write(fd: BorrowedFd<'_>, how: How, bytes: &[u8]) -> Result<()> {
    match how {
        How::Whole => write_with(bytes, |rest| rustix::io::write(fd, rest)),
        How::Chunks(size) => bytes
            .chunks(size)
            .try_for_each(|part| write_with(part, |rest| rustix::io::write(fd, rest))),
        How::Vectored(parts) => write_with(bytes, |rest| {
            let size = rest.len().div_ceil(parts);
            let parts: Vec<_> = rest.chunks(size).map(IoSlice::new).collect();
            rustix::io::writev(fd, &parts)
        }),
        How::Send => write_with(bytes, |rest| rustix::net::send(fd, rest, SendFlags::empty())),
        How::SendMsg => write_with(bytes, |rest| {
            let (head, tail) = rest.split_at(rest.len() / 2);
            let mut no_control = SendAncillaryBuffer::default();
            let parts = [IoSlice::new(head), IoSlice::new(tail)];
            rustix::net::sendmsg(fd, &parts, &mut no_control, SendFlags::empty())
        }),
    }
}

fn write_with(
    mut rest: &[u8],
    mut call: impl FnMut(&[u8]) -> rustix::io::Result<usize>,
) -> Result<()> {
    while !rest.is_empty() {
        let moved = call(rest)?;
        rest = &rest[moved..];
    }
    Ok(())
}

/// Reads what is there, at most 64 KiB, with `read` or `recv`. Empty at the end.
pub fn read(fd: BorrowedFd<'_>, with_recv: bool) -> Result<Vec<u8>> {
    let mut buffer = vec![MaybeUninit::uninit(); 65536];
    let (bytes, _) = if with_recv {
        rustix::net::recv(fd, &mut buffer, RecvFlags::empty())?.0
    } else {
        rustix::io::read(fd, &mut buffer)?
    };
    Ok(bytes.to_vec())
}

/// Sessions that this process opened so far.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A client, and the server that it started.
#[derive(Debug)]
pub struct Client {
    input: Option<OwnedFd>,
    output: OwnedFd,
    child: Child,
    sent: File,
    received: File,
    unread: Vec<u8>,
    /// Receive with `recv` in place of `read`.
    pub with_recv: bool,
}

impl Client {
    /// Starts `raw-peer serve ARGUMENTS` at the other end of a channel.
    pub fn connect(stage: &Stage, channel: &Channel, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(peers::raw_peer());
        command.arg("serve").args(arguments);
        Self::connect_to(stage, channel, command)
    }

    /// Starts a server of the test's own.
    pub fn connect_to(stage: &Stage, channel: &Channel, mut command: Command) -> Result<Self> {
        let (input, output, child);
        match channel {
            Channel::Pipes => {
                let mut process =
                    stage.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
                input = process.stdin.take().context("stdin")?.into();
                output = process.stdout.take().context("stdout")?.into();
                child = process;
            }
            Channel::SocketPairs => {
                let (ours, theirs) = UnixStream::pair()?;
                let (ours_back, theirs_back) = UnixStream::pair()?;
                command.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(theirs_back));
                child = stage.spawn(&mut command)?;
                (input, output) = (ours.into(), ours_back.into());
            }
            Channel::OneSocketPair => {
                let (ours, theirs) = UnixStream::pair()?;
                command.stdin(OwnedFd::from(theirs.try_clone()?)).stdout(OwnedFd::from(theirs));
                child = stage.spawn(&mut command)?;
                (input, output) = (ours.try_clone()?.into(), ours.into());
            }
            Channel::Fifos(dir) => {
                let open = |name: &str| -> Result<(OwnedFd, OwnedFd)> {
                    let path = dir.join(name);
                    if path.exists() {
                        fs::remove_file(&path)?;
                    }
                    rustix::fs::mknodat(
                        rustix::fs::CWD,
                        &path,
                        rustix::fs::FileType::Fifo,
                        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                        0,
                    )?;
                    // Opened for both first: neither of the others then waits for its peer.
                    let both = File::options().read(true).write(true).open(&path)?;
                    let read = File::open(&path)?;
                    let write = File::options().write(true).open(&path)?;
                    drop(both);
                    Ok((read.into(), write.into()))
                };
                let (their_input, ours) = open("to-server")?;
                let (ours_back, their_output) = open("to-client")?;
                command.stdin(their_input).stdout(their_output);
                child = stage.spawn(&mut command)?;
                (input, output) = (ours, ours_back);
            }
        }
        // The parent's copies of the child's ends live in the command.
        drop(command);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let end = stage.truth_dir().join(format!("client-{}-{number}", std::process::id()));
        fs::write(end.with_extension("child"), child.id().to_string())?;
        Ok(Self {
            input: Some(input),
            output,
            child,
            sent: File::create(end.with_extension("sent"))?,
            received: File::create(end.with_extension("received"))?,
            unread: Vec::new(),
            with_recv: false,
        })
    }

    /// The server's process, or the wrapper's that was started.
    pub fn server_pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, how: How, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_ref().context("the client closed its side")?;
        write(input.as_fd(), how, bytes)?;
        Ok(self.sent.write_all(bytes)?)
    }

    /// Writes a line.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        self.send(How::Whole, format!("{line}\n").as_bytes())
    }

    /// The next line from the server, without its end.
    pub fn line(&mut self) -> Result<String> {
        self.line_within(ANSWER)
    }

    /// The next line, where it comes in time.
    pub fn line_within(&mut self, deadline: Duration) -> Result<String> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=searched + end).collect();
                return Ok(String::from_utf8_lossy(&line[..line.len() - 1]).into_owned());
            }
            searched = self.unread.len();
            let timeout = Timespec::try_from(deadline)?;
            let mut ready = [PollFd::new(&self.output, PollFlags::IN)];
            ensure!(
                poll(&mut ready, Some(&timeout))? > 0,
                "no line from the server in {deadline:?}"
            );
            let bytes = read(self.output.as_fd(), self.with_recv)?;
            ensure!(!bytes.is_empty(), "the server closed its output");
            self.received.write_all(&bytes)?;
            self.unread.extend_from_slice(&bytes);
        }
    }

    /// Opens the session as the revisions up to 2025-11-25 do.
    pub fn initialize(&mut self) -> Result<()> {
        self.send_line(INITIALIZE)?;
        self.line()?;
        self.send_line(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)
    }

    /// Calls a tool and returns the line that answers.
    pub fn call(&mut self, id: &str, tool: &str, arguments: &str) -> Result<String> {
        self.send_line(&call(id, tool, arguments))?;
        self.line()
    }

    /// Closes the client's side and waits for the server's end.
    pub fn close(mut self) -> Result<ExitStatus> {
        self.input = None;
        if rustix::net::sockopt::socket_type(&self.output).is_ok() {
            // With one socket for both directions the other copy would keep it open.
            rustix::net::shutdown(&self.output, rustix::net::Shutdown::Write)?;
        }
        self.wait()
    }

    /// Waits for the server's end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait_for_exit(&mut self.child, ANSWER)?.context("the server did not end")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// An `initialize` request.
pub const INITIALIZE: &str = concat!(
    r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","#,
    r#""capabilities":{},"clientInfo":{"name":"raw-client","version":"0.1"}}}"#
);

/// A `tools/call` request; id and arguments are JSON.
pub fn call(id: &str, tool: &str, arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
    )
}

/// A `tools/call` of `echo` that is exactly `size` bytes long, line end not counted.
pub fn call_of_size(id: &str, size: usize) -> String {
    let empty = call(id, "length", r#"{"text":""}"#).len();
    call(id, "length", &format!(r#"{{"text":"{}"}}"#, "z".repeat(size.saturating_sub(empty))))
}
