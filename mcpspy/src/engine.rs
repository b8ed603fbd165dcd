//! The pure middle of the program: inputs become events.
//!
//! [`Engine::handle`] takes one [`Input`] through the stages in order: streams (bytes in order),
//! protocol (lines, JSON-RPC, MCP), session (who with whom, which answer to which question).
//! It does no I/O, reads no clock and cannot fail; the same inputs give the same events.
//!
//! ```
//! use mcpspy::engine::{Engine, EngineConfig, Out};
//! use mcpspy::model::{Input, Timestamp};
//!
//! let mut engine = Engine::new(EngineConfig::default());
//! let mut out = Out::default();
//! engine.handle(Input::Tick(Timestamp(1)), &mut out);
//! assert!(out.events.is_empty());
//! ```

mod lines;
mod muting;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::attribution::Registry;
use crate::filter::ContainerFilter;
use crate::model::{
    Command, Data, Endpoint, Event, EventBody, Finding, Input, KernelCounters, Loss, Lost,
    LostStage, ProcessId, Quality, Record, RecordBody, Severity, StreamId, StreamRef, StreamTotal,
    Timestamp, Verdict,
};
use crate::protocol::docker_stream;
use crate::session::{Decoded, Emit, Sessions, World};
use crate::streams::{Limits, Piece, Stream, StreamPiece, Table};
use crate::telemetry::{Counter, Counters};
use lines::{Lines, Noise};
use muting::Muting;

/// Streams followed at once. A stream that was ruled out costs some 300 bytes.
const STREAMS: usize = 16_384;

/// Settings of the engine; a recording keeps them, so that a replay is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Bytes kept of one message.
    pub max_message: usize,
    /// Show streams that have no way back, too.
    pub oneway: bool,
    /// Bytes that may wait in unfinished lines, over all streams.
    pub buffer_total: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        // Two messages of the largest size under way at once.
        Self { max_message: 16 << 20, oneway: false, buffer_total: 32 << 20 }
    }
}

/// What one input led to. The caller takes both lists and gives them back empty.
#[derive(Debug, Default)]
pub struct Out {
    /// Events, in causal order.
    pub events: Vec<Event>,
    /// What the source should do.
    pub commands: Vec<Command>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    now: Timestamp,
    seq: u64,
    streams: Table<Lines>,
    processes: Registry,
    sessions: Sessions,
    counters: Counters,
    kernel: KernelCounters,
    muting: Muting,
    /// Streams that have something to give up, by time. Entries may be outdated.
    due: BinaryHeap<Reverse<(Timestamp, StreamId)>>,
    /// Bytes that wait in unfinished lines.
    buffered: usize,
    pieces: Vec<StreamPiece>,
    decoded: Vec<(Decoded, bool)>,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config,
            now: Timestamp(0),
            seq: 0,
            streams: Table::new(Limits { streams: STREAMS }),
            processes: Registry::default(),
            sessions: Sessions::default(),
            counters: Counters::default(),
            kernel: KernelCounters::default(),
            muting: Muting::default(),
            due: BinaryHeap::new(),
            buffered: 0,
            pieces: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// Has the source leave out what this filter does not let pass anyway.
    #[must_use]
    pub fn with_containers(mut self, filter: ContainerFilter) -> Self {
        self.muting = Muting::new(filter);
        self
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input, out: &mut Out) {
        self.now = self.now.max(input.at());
        self.counters.add(Counter::Inputs, 1);
        self.expire(out);
        match input {
            Input::Record(record) => self.record(record, out),
            Input::Loss(Loss::Counters { at, counters }) => self.kernel_counters(at, counters, out),
            Input::Loss(Loss::Stream { total, .. }) => self.total(&total, out),
            Input::Process(facts) => {
                if facts.initial {
                    for fd in facts.fds.iter().flatten() {
                        self.streams.note_initial(fd.dev, fd.ino);
                    }
                }
                let process = facts.id;
                self.processes.facts(facts);
                if let Some(id) = self.processes.container(process) {
                    self.muting.look(id, &self.processes.containers, &mut out.commands);
                }
                let (sessions, world, mut emit) = self.split(out);
                sessions.process_changed(process, &world, &mut emit);
            }
            Input::Engine(fact) => {
                if let Some(id) = self.processes.containers.engine(fact) {
                    if self.processes.containers.has_ended(&id) {
                        self.muting.ended(&id, &mut out.commands);
                    } else {
                        self.muting.look(&id, &self.processes.containers, &mut out.commands);
                    }
                }
                let (sessions, world, mut emit) = self.split(out);
                sessions.engine_said(&world, &mut emit);
            }
            Input::Tick(_) => {}
        }
        self.drop_ended();
    }

    /// When a [`Input::Tick`] is due, if nothing else comes before.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let stream = self.due.peek().map(|Reverse((at, _))| *at);
        [stream, self.sessions.next_deadline()].into_iter().flatten().min()
    }

    /// The run ends: everything that waits is decided as it stands.
    pub fn finish(&mut self, at: Timestamp, out: &mut Out) {
        self.now = self.now.max(at);
        self.expire(out);
        let mut ids: Vec<_> = self.streams.iter().map(|stream| stream.id).collect();
        ids.sort_unstable();
        for id in ids {
            self.finish_stream(id, None, out);
        }
        let (sessions, world, mut emit) = self.split(out);
        sessions.finish(&world, &mut emit);
        self.drop_ended();
        self.settle();
    }

    /// Counts what the stages keep count of themselves.
    fn settle(&mut self) {
        self.counters.add(Counter::ProcessesEvicted, self.processes.take_evicted());
    }

    /// The ledgers of user space.
    pub fn telemetry(&self) -> &Counters {
        &self.counters
    }

    /// The kernel's counters as last heard of.
    pub fn kernel(&self) -> &KernelCounters {
        &self.kernel
    }

    /// Puts an event of the program about itself in its place among the others.
    pub fn note(&mut self, body: EventBody, out: &mut Out) {
        let at = self.now;
        let (_, _, mut emit) = self.split(out);
        emit.event(at, body);
    }

    fn record(&mut self, record: Record, out: &mut Out) {
        let Record { at, task, body } = record;
        let process = task.process;
        match body {
            RecordBody::Data(data) if task.relay => {
                // Of what relays say only a request to an engine is copied.
                self.processes.on_stream(&task, at);
                self.counters.add(Counter::DataRecords, 1);
                // The source left all but its first line away.
                self.counters.add(Counter::ReceivedBytes, data.call_len);
                self.counters.add(Counter::IgnoredBytes, data.call_len);
                if let Some(container) = docker_stream::prepares(&data.bytes) {
                    self.sessions.prepares(process, container);
                }
                if let Some(request) = docker_stream::request(&data.bytes) {
                    let (sessions, world, mut emit) = self.split(out);
                    sessions.asked(process, None, request, &world, &mut emit);
                }
            }
            RecordBody::Data(data) => {
                self.processes.on_stream(&task, at);
                self.data(process, at, data, out);
            }
            RecordBody::Endpoint(fact) => {
                self.processes.on_stream(&task, at);
                self.open(&fact.stream, at, out);
                self.at_end_of(&fact.stream.id(), out, |stream| stream.endpoint(process, &fact));
            }
            RecordBody::End(fact) => {
                self.processes.on_stream(&task, at);
                self.open(&fact.stream, at, out);
                self.at_end_of(&fact.stream.id(), out, |stream| stream.endpoint(process, &fact));
                let id = fact.stream.id();
                self.finish_stream(id, None, out);
                let (sessions, world, _) = self.split(out);
                sessions.stream_ended(&id, &world);
            }
            RecordBody::Exec => self.processes.exec(&task, at),
            RecordBody::Cgroup(fact) => {
                let containers = &mut self.processes.containers;
                containers.cgroup(&fact, at);
                if let Some(id) = containers.of_cgroup(fact.id) {
                    self.muting.look(id, containers, &mut out.commands);
                }
            }
            RecordBody::Fork(child) => self.processes.fork(&task, child, at),
            RecordBody::Exit(how) => {
                self.processes.exit(&task, how, at);
                let (sessions, world, mut emit) = self.split(out);
                sessions.process_ended(process, how, &world, &mut emit);
            }
        }
    }

    /// Makes sure that the table knows the stream, in the life that the record speaks of.
    fn open(&mut self, reference: &StreamRef, at: Timestamp, out: &mut Out) {
        let id = reference.id();
        let mut earlier = None;
        if self.streams.is_reused(reference) {
            self.finish_stream(id, None, out);
            let (sessions, world, mut emit) = self.split(out);
            sessions.stream_gone(&id, &world, &mut emit);
            self.sessions.take_ended();
            earlier = self.streams.retire(reference);
            self.forget_lines(earlier.as_ref().map(|stream| &stream.state));
        }
        let limit = self.config.max_message;
        let known = self.streams.len();
        self.streams.open(reference, at, earlier.as_ref(), || Lines::new(id.carrier, limit));
        if self.streams.len() > known {
            self.counters.add(Counter::Streams, 1);
            self.evict(out);
        }
    }

    fn data(&mut self, process: ProcessId, at: Timestamp, data: Data, out: &mut Out) {
        let id = data.stream.id();
        self.counters.add(Counter::DataRecords, 1);
        self.counters.add(Counter::ReceivedBytes, data.bytes.len() as u64);
        self.open(&data.stream, at, out);
        let mut pieces = std::mem::take(&mut self.pieces);
        self.at_end_of(&id, out, |stream| stream.data(process, at, data, &mut pieces));
        self.decode(id, &mut pieces, out);
        self.pieces = pieces;
        self.arm(id);
    }

    /// Changes a stream, and tells the sessions when that made an end known.
    fn at_end_of(&mut self, id: &StreamId, out: &mut Out, change: impl FnOnce(&mut Stream<Lines>)) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let before = (stream.writer(), stream.reader());
        change(stream);
        if before != (stream.writer(), stream.reader()) {
            let (sessions, world, mut emit) = self.split(out);
            sessions.ends_changed(id, &world, &mut emit);
        }
    }

    /// Takes the next pieces of a stream through the protocol and session stages.
    fn decode(&mut self, id: StreamId, pieces: &mut Vec<StreamPiece>, out: &mut Out) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.counters.add(Counter::DuplicateBytes, stream.take_repeated());
        let mut gaps = 0;
        let before = stream.state.buffered();
        let mut decoded = std::mem::take(&mut self.decoded);
        for piece in pieces.drain(..) {
            match piece {
                Piece::Chunk(chunk) => {
                    self.counters.add(Counter::AssembledBytes, chunk.bytes.len() as u64);
                    stream.state.push(id, &chunk, self.sessions.knows(&id), &mut decoded);
                }
                Piece::Skip(bytes) => stream.state.skip(bytes),
                Piece::Gap(bytes) => {
                    self.counters.add(Counter::Gaps, 1);
                    self.counters.add(Counter::GapBytes, bytes);
                    stream.state.skip(bytes);
                    gaps += bytes;
                }
            }
        }
        self.buffered = self.buffered + stream.state.buffered() - before;
        if let Some((request, process)) = stream.state.take_request().zip(stream.writer()) {
            let (sessions, world, mut emit) = self.split(out);
            sessions.asked(process, Some(id), request, &world, &mut emit);
        }
        if gaps > 0 && self.sessions.knows(&id) {
            self.lost(id, "hole", gaps, out);
        }
        self.say(id, &mut decoded, out);
        self.decoded = decoded;
        if self.buffered > self.config.buffer_total {
            self.shed(out);
        }
    }

    /// Hands decoded messages to the sessions, and judges the stream.
    fn say(&mut self, id: StreamId, decoded: &mut Vec<(Decoded, bool)>, out: &mut Out) {
        self.counters.add(Counter::DecodedMessages, decoded.len() as u64);
        for (message, proof) in decoded.drain(..) {
            self.counters.add(Counter::TruncatedMessages, u64::from(message.message.truncated));
            let (sessions, world, mut emit) = self.split(out);
            sessions.message(message, proof, &world, &mut emit);
        }
        let known = self.sessions.knows(&id);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !known {
            if stream.state.rule_out() {
                let (_, world, mut emit) = self.split(out);
                emit.verdict(&world, &id, Verdict::Ignore);
            }
            return;
        }
        self.counters.add(Counter::BrokenLines, stream.state.take_broken());
        if self.sessions.opened(&id).is_some() {
            let (lines, noise) = stream.state.take_noise();
            self.counters.add(Counter::NoiseLines, lines);
            if let Some(noise) = noise {
                self.finding(id, noise, out);
            }
        }
    }

    fn finding(&mut self, id: StreamId, noise: Noise, out: &mut Out) {
        let (from, to) = self.ends(&id);
        let session = self.sessions.opened(&id).cloned();
        let (rule, severity, detail) = match noise {
            Noise::Text { lines, bytes, sample } => (
                "stdio-noise",
                Severity::Warning,
                format!(
                    "{lines} lines ({bytes} bytes) that are not JSON-RPC on a stream that carries \
                     MCP, such as: {sample}"
                ),
            ),
            Noise::Framing => (
                "stdio-framing",
                Severity::Warning,
                "messages are not one line each: MCP over stdio asks for that".to_owned(),
            ),
        };
        let finding = Finding { rule, severity, detail, session, from, to };
        self.note(EventBody::Finding(Box::new(finding)), out);
    }

    fn lost(&mut self, id: StreamId, reason: &'static str, bytes: u64, out: &mut Out) {
        let (from, _) = self.ends(&id);
        let lost = Lost {
            stage: LostStage::Stream,
            reason,
            bytes: Some(bytes),
            messages: None,
            since: None,
            session: self.sessions.opened(&id).cloned(),
            from: Some(from),
        };
        self.note(EventBody::Lost(lost), out);
    }

    fn ends(&self, id: &StreamId) -> (Endpoint, Endpoint) {
        let stream = self.streams.get(id);
        let end = |process| self.processes.endpoint(process, Quality::Exact);
        (end(stream.and_then(Stream::writer)), end(stream.and_then(Stream::reader)))
    }

    /// Gives up everything that a stream waits for: it ends, or the run does.
    fn finish_stream(&mut self, id: StreamId, total: Option<(u64, u64)>, out: &mut Out) {
        let mut pieces = std::mem::take(&mut self.pieces);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.finish(total, &mut pieces);
        }
        self.decode(id, &mut pieces, out);
        self.pieces = pieces;
        let mut decoded = std::mem::take(&mut self.decoded);
        if let Some(stream) = self.streams.get_mut(&id) {
            let before = stream.state.buffered();
            let at = stream.used;
            stream.state.finish(id, at, self.sessions.knows(&id), &mut decoded);
            self.buffered = self.buffered + stream.state.buffered() - before;
        }
        self.say(id, &mut decoded, out);
        self.decoded = decoded;
    }

    fn total(&mut self, total: &StreamTotal, out: &mut Out) {
        let id = total.stream.id();
        let counted = self.streams.get(&id).map(Stream::counted_at);
        if counted == Some(total.stream.direction) && !self.streams.is_reused(&total.stream) {
            self.finish_stream(id, Some((total.offset, total.skipped)), out);
        }
    }

    fn kernel_counters(&mut self, at: Timestamp, counters: KernelCounters, out: &mut Out) {
        let before = std::mem::replace(&mut self.kernel, counters);
        // The kernel counts calls, not bytes, of streams that it had no room to follow.
        let calls = counters.table_full > before.table_full;
        for (reason, now, earlier) in [
            ("ring_full", counters.ring_full_bytes, before.ring_full_bytes),
            ("fault", counters.fault_bytes, before.fault_bytes),
            ("scratch_busy", counters.scratch_busy_bytes, before.scratch_busy_bytes),
            ("cut", counters.cut_bytes, before.cut_bytes),
            ("table_full", u64::from(calls), 0),
        ] {
            if now > earlier {
                let lost = Lost {
                    stage: LostStage::Kernel,
                    reason,
                    bytes: (reason != "table_full").then_some(now - earlier),
                    messages: None,
                    since: None,
                    session: None,
                    from: None,
                };
                let (_, _, mut emit) = self.split(out);
                emit.event(at, EventBody::Lost(lost));
            }
        }
    }

    fn expire(&mut self, out: &mut Out) {
        while let Some(&Reverse((at, id))) = self.due.peek() {
            if at > self.now {
                break;
            }
            self.due.pop();
            let mut pieces = std::mem::take(&mut self.pieces);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.expire(self.now, &mut pieces);
            }
            self.decode(id, &mut pieces, out);
            self.pieces = pieces;
            self.arm(id);
        }
        let (sessions, world, mut emit) = self.split(out);
        sessions.expire(&world, &mut emit);
    }

    fn arm(&mut self, id: StreamId) {
        if let Some(at) = self.streams.get(&id).and_then(Stream::deadline) {
            self.due.push(Reverse((at, id)));
        }
    }

    /// Forgets streams beyond the limit; those of sessions stay.
    fn evict(&mut self, out: &mut Out) {
        for id in self.streams.surplus(|stream| self.sessions.knows(&stream.id)) {
            self.finish_stream(id, None, out);
            let (sessions, world, mut emit) = self.split(out);
            sessions.stream_gone(&id, &world, &mut emit);
            let stream = self.streams.remove(&id);
            self.forget_lines(stream.as_ref().map(|stream| &stream.state));
            self.counters.add(Counter::StreamsEvicted, 1);
        }
    }

    /// Forgets the streams of sessions that ended, but not those that a new reader is at already.
    fn drop_ended(&mut self) {
        for id in self.sessions.take_ended() {
            if self.streams.get(&id).is_some_and(Stream::has_new_reader) {
                continue;
            }
            let stream = self.streams.remove(&id);
            self.forget_lines(stream.as_ref().map(|stream| &stream.state));
        }
    }

    fn forget_lines(&mut self, lines: Option<&Lines>) {
        self.buffered -= lines.map_or(0, Lines::buffered);
    }

    /// Too much waits in unfinished lines: gives up the longest one.
    fn shed(&mut self, out: &mut Out) {
        while self.buffered > self.config.buffer_total {
            let largest =
                self.streams.iter().max_by_key(|stream| (stream.state.buffered(), stream.id));
            let Some(id) = largest.map(|stream| stream.id) else { return };
            let Some(stream) = self.streams.get_mut(&id) else { return };
            let given_up = stream.state.give_up();
            self.buffered -= given_up;
            if given_up == 0 {
                return;
            }
            if self.sessions.knows(&id) {
                self.lost(id, "buffer_total", given_up as u64, out);
            }
        }
    }

    fn split<'a>(&'a mut self, out: &'a mut Out) -> (&'a mut Sessions, World<'a, Lines>, Emit<'a>) {
        (
            &mut self.sessions,
            World {
                streams: &self.streams,
                processes: &self.processes,
                now: self.now,
                oneway: self.config.oneway,
            },
            Emit {
                seq: &mut self.seq,
                events: &mut out.events,
                commands: &mut out.commands,
                counters: &mut self.counters,
            },
        )
    }
}
