//! The load: a client and a server that speak MCP over two pipes, one system call per message.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::message::{self, Template};

/// Read at once: everything that can wait in a pipe, and more.
const READ: usize = 256 * 1024;

/// How to load.
#[derive(Args, Clone)]
pub(crate) struct LoadArgs {
    /// Messages a second, requests and responses together; without it as many as possible.
    #[arg(long)]
    pub(crate) rate: Option<u64>,
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// Stop after so many messages, if that comes earlier.
    #[arg(long, default_value_t = u64::MAX)]
    pub(crate) messages: u64,
    /// Bytes of a message, line end included.
    #[arg(long, default_value_t = 300)]
    pub(crate) size: usize,
    /// Without a rate: requests that wait for their answer at the same time.
    #[arg(long, default_value_t = 1)]
    pub(crate) window: u64,
}

/// What a load sent, as the client and the server counted it.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    /// The client's process.
    pub(crate) client: u32,
    /// The server's process.
    pub(crate) server: u32,
    /// Calls of the tool.
    pub(crate) calls: u64,
    /// All messages, handshake included.
    pub(crate) messages: u64,
    /// Their bytes, line ends included.
    pub(crate) bytes: u64,
    /// From the first call to the last answer.
    pub(crate) seconds: f64,
}

impl Sent {
    /// Messages a second.
    pub(crate) fn rate(&self) -> f64 {
        2.0 * self.calls as f64 / self.seconds
    }
}

/// Runs the client and prints [`Sent`] as one JSON line.
#[expect(clippy::print_stdout, reason = "this is what the program is for")]
pub(crate) fn client(args: &LoadArgs) -> Result<()> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", "--size", &args.size.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the server")?;
    let mut to_server = server.stdin.take().context("no stdin")?;
    let mut from_server = Answers::new(server.stdout.take().context("no stdout")?);

    to_server.write_all(message::INITIALIZE)?;
    from_server.expect(1)?;
    to_server.write_all(message::READY)?;

    let mut request = Template::request(args.size)?;
    let start = Instant::now();
    let mut calls = 0;
    let enough =
        |calls: u64| 2 * calls >= args.messages || start.elapsed().as_secs_f64() >= args.seconds;
    while !enough(calls) {
        let burst = match args.rate {
            Some(rate) => due(start, rate, calls),
            None => args.window,
        };
        for _ in 0..burst {
            to_server.write_all(request.numbered(calls))?;
            calls += 1;
        }
        from_server.expect(burst)?;
    }
    let seconds = start.elapsed().as_secs_f64();

    let pid = server.id();
    drop(to_server);
    if !server.wait()?.success() {
        bail!("the server failed");
    }
    let handshake = [message::INITIALIZE, message::INITIALIZED, message::READY];
    let sent = Sent {
        client: std::process::id(),
        server: pid,
        calls,
        messages: 2 * calls + handshake.len() as u64,
        bytes: 2 * calls * args.size as u64
            + handshake.iter().map(|line| line.len() as u64).sum::<u64>(),
        seconds,
    };
    println!("{}", serde_json::to_string(&sent)?);
    Ok(())
}

/// Waits until at least one call is due at this rate (of messages: two for a call) and says how many
/// are; at most as many as fit into a pipe.
fn due(start: Instant, rate: u64, calls: u64) -> u64 {
    const AT_ONCE: u64 = 100;
    loop {
        let should = (start.elapsed().as_secs_f64() * rate as f64 / 2.0) as u64;
        if should > calls {
            return (should - calls).min(AT_ONCE);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Counts the lines that come from the server.
struct Answers<R> {
    from: R,
    buffer: Vec<u8>,
    ahead: u64,
}

impl<R: Read> Answers<R> {
    fn new(from: R) -> Self {
        Self { from, buffer: vec![0; READ], ahead: 0 }
    }

    /// Reads until `lines` more lines have come.
    fn expect(&mut self, lines: u64) -> Result<()> {
        while self.ahead < lines {
            let n = self.from.read(&mut self.buffer)?;
            if n == 0 {
                bail!("the server closed its output");
            }
            self.ahead += memchr::memchr_iter(b'\n', &self.buffer[..n]).count() as u64;
        }
        self.ahead -= lines;
        Ok(())
    }
}

/// Runs the server: reads standard input, answers each line with one write.
pub(crate) fn serve(size: usize) -> Result<()> {
    let mut response = Template::response(size)?;
    // Plain files: std's buffers would gather messages into one call.
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; READ + size];
    let mut held = 0;
    loop {
        let n = input.read(&mut buffer[held..])?;
        if n == 0 {
            return Ok(());
        }
        let end = held + n;
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &buffer[start..end]) {
            let line = &buffer[start..start + length];
            start += length + 1;
            if let Some(number) = message::number(line) {
                output.write_all(response.numbered(number))?;
            } else if line.len() + 1 == message::INITIALIZE.len() {
                output.write_all(message::INITIALIZED)?;
            }
        }
        buffer.copy_within(start..end, 0);
        held = end - start;
    }
}
