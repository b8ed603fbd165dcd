//! What the engine keeps of a stream: its decoder, and what it saw that is not MCP.

use crate::model::{Carrier, Message, ProcessId, StreamId, Timestamp};
use crate::protocol::docker_stream::{Request, Unwrap};
use crate::protocol::jsonrpc::{self, Parsed};
use crate::protocol::mcp::Facts;
use crate::protocol::ndjson::{Decoder, Framing, Line};
use crate::session::Decoded;
use crate::streams::Chunk;

/// Bytes that are not MCP, after which a stream is ruled out: what a chatty program prints before
/// its first message, and more than the few lines that a JSON logger needs to show itself.
const RULE_OUT: u64 = 16 << 10;

/// Shown of a line that is noise, bytes.
const SAMPLE: usize = 120;

/// Something to tell of a stream that carries MCP.
#[derive(Debug)]
pub(super) enum Noise {
    /// Lines that are not JSON-RPC.
    Text { lines: u64, bytes: u64, sample: String },
    /// Messages framed in a way that MCP does not know.
    Framing,
}

/// The lines of one stream.
#[derive(Debug)]
pub(super) struct Lines {
    decoder: Decoder,
    /// Takes off what a container engine's connection puts around the lines; `None` where there is
    /// no such thing.
    unwrap: Option<Box<Unwrap>>,
    /// Position in the stream of the next byte.
    position: u64,
    /// What the stream's client asked an engine for.
    request: Option<Request>,
    news: bool,
    messages: Vec<Message>,
    /// Bytes seen that are not MCP.
    other: u64,
    ruled_out: bool,
    noise_total: u64,
    noise_bytes: u64,
    noise_new: u64,
    /// Tell again when there are so many lines of noise.
    noise_next: u64,
    sample: String,
    broken: u64,
    /// Whether unusual framing was seen, and then whether it was told.
    told_framing: Option<bool>,
}

impl Lines {
    pub(super) fn new(carrier: Carrier, limit: usize) -> Self {
        let unwrap = (carrier == Carrier::Unix).then(|| Box::new(Unwrap::new()));
        Self {
            decoder: Decoder::new(limit),
            unwrap,
            position: 0,
            request: None,
            news: false,
            messages: Vec::new(),
            other: 0,
            ruled_out: false,
            noise_total: 0,
            noise_bytes: 0,
            noise_new: 0,
            noise_next: 1,
            sample: String::new(),
            broken: 0,
            told_framing: None,
        }
    }

    pub(super) fn buffered(&self) -> usize {
        self.decoder.buffered() + self.unwrap.as_ref().map_or(0, |unwrap| unwrap.held())
    }

    /// Takes bytes. `known`: the stream is known to carry MCP.
    pub(super) fn push(
        &mut self,
        id: StreamId,
        chunk: &Chunk<Option<ProcessId>>,
        known: bool,
        out: &mut Vec<(Decoded, bool)>,
    ) {
        if chunk.offset != self.position {
            // Only where a stream is met in its middle.
            self.gap(chunk.offset.saturating_sub(self.position));
        }
        // Not kept: there may be thousands of such streams.
        let mut unwrapped = Vec::new();
        let bytes = match &mut self.unwrap {
            Some(unwrap) if !unwrap.is_plain() => {
                unwrap.push(&chunk.bytes, &mut unwrapped);
                if unwrap.request() != self.request.as_ref() {
                    self.request = unwrap.request().cloned();
                    self.news = self.request.is_some();
                }
                unwrapped.as_slice()
            }
            _ => &chunk.bytes,
        };
        // What was taken off lies before the lines, or between them.
        let shift = self.position.saturating_sub(self.decoder.position());
        self.position += chunk.bytes.len() as u64;
        let mut lines = Vec::new();
        self.decoder.push(bytes, &mut lines);
        for line in &mut lines {
            line.start += shift;
            self.line(id, line, chunk.at, chunk.tag, known, out);
        }

        if !known && self.decoder.buffered() as u64 > RULE_OUT && self.decoder.is_text() {
            self.other += self.decoder.buffered() as u64;
            self.decoder.gap(None);
        }
    }

    /// Bytes are missing.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.broken += u64::from(self.decoder.buffered() > 0);
        self.gap(bytes);
    }

    fn gap(&mut self, bytes: u64) {
        self.position += bytes;
        self.decoder.gap(Some(bytes));
        if let Some(unwrap) = &mut self.unwrap {
            unwrap.gap();
        }
    }

    /// What the stream's client asked a container engine for, once.
    pub(super) fn take_request(&mut self) -> Option<Request> {
        std::mem::take(&mut self.news).then(|| self.request.clone()).flatten()
    }

    /// Gives up the unfinished line. Returns the bytes freed.
    pub(super) fn give_up(&mut self) -> usize {
        let before = self.buffered();
        self.broken += 1;
        self.decoder.gap(None);
        if let Some(unwrap) = &mut self.unwrap {
            unwrap.gap();
        }
        before - self.buffered()
    }

    /// The stream ends: a last line without line end is a line.
    pub(super) fn finish(
        &mut self,
        id: StreamId,
        at: Timestamp,
        known: bool,
        out: &mut Vec<(Decoded, bool)>,
    ) {
        let mut lines = Vec::new();
        self.decoder.finish(&mut lines);
        for line in &lines {
            self.line(id, line, at, None, known, out);
        }
    }

    /// Whether it is time to rule the stream out; true once.
    pub(super) fn rule_out(&mut self) -> bool {
        let now = self.other > RULE_OUT && !self.ruled_out;
        self.ruled_out |= now;
        now
    }

    /// Lines of noise since the last call, and what to tell about them: the first time, and each
    /// time there are ten times as many.
    pub(super) fn take_noise(&mut self) -> (u64, Option<Noise>) {
        let new = std::mem::take(&mut self.noise_new);
        if self.told_framing == Some(false) {
            self.told_framing = Some(true);
            return (new, Some(Noise::Framing));
        }
        if self.noise_total < self.noise_next {
            return (new, None);
        }
        while self.noise_next <= self.noise_total {
            self.noise_next *= 10;
        }
        let noise = Noise::Text {
            lines: self.noise_total,
            bytes: self.noise_bytes,
            sample: self.sample.clone(),
        };
        (new, Some(noise))
    }

    /// Lines that a hole broke, since the last call.
    pub(super) fn take_broken(&mut self) -> u64 {
        std::mem::take(&mut self.broken)
    }

    fn line(
        &mut self,
        id: StreamId,
        line: &Line<'_>,
        at: Timestamp,
        writer: Option<ProcessId>,
        known: bool,
        out: &mut Vec<(Decoded, bool)>,
    ) {
        let before = out.len();
        let mut messages = std::mem::take(&mut self.messages);
        let parsed = jsonrpc::parse(line, &mut messages);
        let mut proven = false;
        for message in messages.drain(..) {
            let facts = Facts::of(&message);
            let proof = facts.is_mcp(known);
            proven |= proof;
            let decoded = Decoded { stream: id, message, facts, at, offset: line.start, writer };
            out.push((decoded, proof));
        }
        self.messages = messages;
        if !proven {
            self.other += line.size;
        }
        if out.len() > before {
            if line.framing != Framing::Newline && self.told_framing.is_none() {
                self.told_framing = Some(false);
            }
        } else if line.after_gap || (!line.terminated && parsed != Parsed::NotJson) {
            self.broken += 1;
        } else {
            self.noise(line);
        }
    }

    fn noise(&mut self, line: &Line<'_>) {
        if self.sample.is_empty() {
            let end = line.head.len().min(SAMPLE);
            self.sample = String::from_utf8_lossy(&line.head[..end]).into_owned();
        }
        self.noise_total += 1;
        self.noise_new += 1;
        self.noise_bytes += line.size;
    }
}
