//! Events as JSON, one object per line: the contract of `docs/events.md` and
//! `docs/events.schema.json`. The only code that knows it.
//!
//! Lines are formatted by hand into one buffer: no tree of values is built, and what came as JSON goes
//! out as the same text, so that numbers beyond 2^53 and duplicate keys survive.

mod container;
mod json;
mod limits;
mod message;

use std::mem;
use std::sync::Arc;

use self::limits::{Limits, Omit, SHORT_NAME, hopeless};
use super::time::WallClock;
use super::{Payload, RunInfo};
use crate::model::{
    Carrier, CloseCause, ContainerInfo, Endpoint, Event, EventBody, Exit, Finding, KernelCounters,
    Lost, LostStage, Peer, ProcessInfo, Quality, RequestId, SessionChange, SessionEvent,
    SessionInfo, Severity, Status, Target, Timestamp, Transport,
};

/// Value of `schema_version`. Raised when a field is removed or changes its meaning; new kinds and
/// new fields do not raise it.
pub const SCHEMA_VERSION: u32 = 1;

/// Appends `,"name":`.
macro_rules! key {
    ($w:expr, $name:literal) => {
        $w.out.extend_from_slice(concat!(",\"", $name, "\":").as_bytes())
    };
}
/// Appends `"name":`, the first member of an object.
macro_rules! first_key {
    ($w:expr, $name:literal) => {
        $w.out.extend_from_slice(concat!("{\"", $name, "\":").as_bytes())
    };
}
use {first_key, key};

/// Writes the events of one run.
pub struct Encoder {
    payload: Payload,
    clock: WallClock,
    version: &'static str,
    /// Where no engine has a name of its host, or the user gave one.
    host: String,
    host_given: bool,
    /// `,"run_id":…,"seq":`
    run: Vec<u8>,
    processes: Fragments<ProcessInfo>,
    containers: Fragments<ContainerInfo>,
    sessions: Fragments<SessionInfo>,
    /// Names of the labels to show.
    labels: Vec<String>,
    /// Longest line, whatever must be left out for that.
    max_line: Option<usize>,
}

impl Encoder {
    /// `payload` says how much of the messages' texts goes out.
    pub fn new(run: &RunInfo, payload: Payload) -> Self {
        let mut fixed = b",\"run_id\":".to_vec();
        json::push_str_cut(&mut fixed, &run.run_id, SHORT_NAME);
        fixed.extend_from_slice(b",\"seq\":");
        Self {
            payload,
            clock: WallClock::new(run.wall_offset_ns, None),
            version: run.version,
            host: run.host.clone(),
            host_given: run.host_given,
            run: fixed,
            processes: Fragments::new(),
            containers: Fragments::new(),
            sessions: Fragments::new(),
            labels: Vec::new(),
            max_line: None,
        }
    }

    /// Shows these labels of containers.
    #[must_use]
    pub fn show_labels(mut self, labels: &[String]) -> Self {
        self.labels = labels.to_vec();
        self
    }

    /// Keeps each line, its end included, below `bytes`, as far as names can be cut for that.
    #[must_use]
    pub fn max_line(mut self, bytes: Option<usize>) -> Self {
        self.max_line = bytes.map(|bytes| bytes.saturating_sub(1));
        self
    }

    /// Appends the event as one line, line end included.
    pub fn encode(&mut self, event: &Event, out: &mut Vec<u8>) {
        let start = out.len();
        let too_long = |out: &Vec<u8>, limit: Option<usize>| {
            limit.is_some_and(|limit| out.len() - start > limit)
        };
        let mut from = self.max_line.map_or(0, |max| hopeless(event, max));
        if from == 0 {
            self.encode_within(event, out, Limits::of(self.payload));
            if !too_long(out, self.max_line) {
                if too_long(out, self.payload.line_limit()) {
                    out.truncate(start);
                    self.encode_within(event, out, Limits::short(self.payload));
                }
                return;
            }
            from = 1;
        }
        for limits in Limits::squeeze(self.payload).into_iter().skip(from - 1) {
            out.truncate(start);
            self.encode_within(event, out, limits);
            if !too_long(out, self.max_line) {
                return;
            }
        }
    }

    fn encode_within(&mut self, event: &Event, out: &mut Vec<u8>, limits: Limits) {
        let mut line = Line {
            out,
            clock: &mut self.clock,
            processes: &mut self.processes,
            containers: &mut self.containers,
            sessions: &mut self.sessions,
            labels: &self.labels,
            limits,
            cut: false,
        };
        let kind = match &event.body {
            EventBody::Message(_) => "message",
            EventBody::Session(_) => "session",
            EventBody::Finding(_) => "finding",
            EventBody::Lost(_) => "lost",
            EventBody::Status(_) => "status",
        };
        first_key!(line, "schema_version");
        json::push_u64(line.out, u64::from(SCHEMA_VERSION));
        key!(line, "kind");
        line.word(kind);
        key!(line, "host");
        let engine = if self.host_given { None } else { container::host(&event.body) };
        json::push_str_cut(line.out, engine.unwrap_or(&self.host), SHORT_NAME);
        line.out.extend_from_slice(&self.run);
        json::push_u64(line.out, event.seq);
        key!(line, "timestamp");
        line.time(event.at);
        match &event.body {
            EventBody::Message(message) => line.message(message),
            EventBody::Session(session) => line.session_event(session),
            EventBody::Finding(finding) => line.finding(finding),
            EventBody::Lost(lost) => line.lost(lost, event.at),
            EventBody::Status(status) => line.status(status, self.version),
        }
        if line.cut {
            key!(line, "payload_cut");
            line.out.extend_from_slice(b"true");
        }
        out.extend_from_slice(b"}\n");
    }
}

/// The JSON of things that many events in a row share: half of a message's line is its two processes
/// and its session. The latest few are kept.
struct Fragments<T> {
    slots: Vec<Fragment<T>>,
    next: usize,
}

struct Fragment<T> {
    /// Holds it, so that no other one gets its address.
    of: Arc<T>,
    /// With these limits.
    limit: usize,
    json: Vec<u8>,
    cut: bool,
}

impl<T> Fragments<T> {
    /// Enough for the sessions that are busy at one time; few enough to look through.
    const SLOTS: usize = 16;

    const fn new() -> Self {
        Self { slots: Vec::new(), next: 0 }
    }

    fn find(&self, of: &Arc<T>, limit: usize) -> Option<&Fragment<T>> {
        self.slots.iter().find(|slot| Arc::ptr_eq(&slot.of, of) && slot.limit == limit)
    }

    fn keep(&mut self, fragment: Fragment<T>) {
        if self.slots.len() < Self::SLOTS {
            self.slots.push(fragment);
        } else {
            self.slots[self.next] = fragment;
            self.next = (self.next + 1) % Self::SLOTS;
        }
    }
}

/// One line in the making.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    clock: &'a mut WallClock,
    processes: &'a mut Fragments<ProcessInfo>,
    containers: &'a mut Fragments<ContainerInfo>,
    sessions: &'a mut Fragments<SessionInfo>,
    labels: &'a [String],
    limits: Limits,
    /// Something was cut or left out.
    cut: bool,
}

impl Line<'_> {
    /// A word of ours: nothing in it to escape.
    fn word(&mut self, word: &'static str) {
        self.out.push(b'"');
        self.out.extend_from_slice(word.as_bytes());
        self.out.push(b'"');
    }

    fn name(&mut self, text: &str) {
        self.cut |= json::push_str_cut(self.out, text, self.limits.name);
    }

    fn time(&mut self, at: Timestamp) {
        self.out.push(b'"');
        self.clock.push_rfc3339(self.out, at);
        self.out.push(b'"');
    }

    fn id(&mut self, id: &RequestId) {
        match id {
            RequestId::Integer(id) => json::push_i64(self.out, *id),
            // As it was written, and of a few bytes unless somebody plays: then as a string.
            RequestId::Number(id) if id.len() <= self.limits.name => json::push_text(self.out, id),
            RequestId::Number(id) | RequestId::String(id) => self.name(id),
        }
    }

    fn transport(&mut self, transport: Transport) {
        let Transport::Stdio(carrier) = transport;
        key!(self, "transport_type");
        self.word("stdio");
        key!(self, "carrier");
        self.word(match carrier {
            Carrier::Pipe => "pipe",
            Carrier::Unix => "unix",
        });
    }

    fn endpoint(&mut self, end: &Endpoint) {
        match &end.process {
            Some(process) => {
                if let Some(known) = self.processes.find(process, self.limits.name) {
                    self.out.extend_from_slice(&known.json);
                    self.cut |= known.cut;
                } else {
                    let (json, cut) = self.apart(|line| line.process(process));
                    let (of, limit) = (Arc::clone(process), self.limits.name);
                    self.processes.keep(Fragment { of, limit, json, cut });
                }
            }
            None => self.out.extend_from_slice(b"{\"pid\":0,\"comm\":\"\""),
        }
        key!(self, "quality");
        self.word(match end.quality {
            Quality::Exact => "exact",
            Quality::Path => "path",
            Quality::Outside => "outside",
            Quality::Unknown => "unknown",
        });
        if let Some(container) = &end.container {
            key!(self, "container");
            if let Some(known) = self.containers.find(container, self.limits.name) {
                self.out.extend_from_slice(&known.json);
                self.cut |= known.cut;
            } else {
                let (json, cut) = self.apart(|line| line.container(container));
                let (of, limit) = (Arc::clone(container), self.limits.name);
                self.containers.keep(Fragment { of, limit, json, cut });
            }
        }
        self.out.push(b'}');
    }

    /// Writes something, and gives a copy of it and whether it was cut.
    fn apart(&mut self, write: impl FnOnce(&mut Self)) -> (Vec<u8>, bool) {
        let (start, before) = (self.out.len(), mem::take(&mut self.cut));
        write(self);
        let cut = self.cut;
        self.cut |= before;
        (self.out[start..].to_vec(), cut)
    }

    fn process(&mut self, process: &ProcessInfo) {
        first_key!(self, "pid");
        json::push_u64(self.out, u64::from(process.id.pid));
        key!(self, "comm");
        self.name(&process.comm);
        if !process.exe.is_empty() {
            key!(self, "exe");
            self.name(&process.exe);
        }
        if !process.cmdline.is_empty() {
            key!(self, "cmdline");
            self.name(&process.cmdline);
        }
        if let Some(uid) = process.uid {
            key!(self, "uid");
            json::push_u64(self.out, u64::from(uid));
        }
        if process.ppid != 0 {
            key!(self, "ppid");
            json::push_u64(self.out, u64::from(process.ppid));
        }
    }

    fn ends(&mut self, from: &Endpoint, to: &Endpoint) {
        key!(self, "from");
        self.endpoint(from);
        key!(self, "to");
        self.endpoint(to);
    }

    fn session(&mut self, session: &Arc<SessionInfo>) {
        key!(self, "session");
        if let Some(known) = self.sessions.find(session, self.limits.name) {
            self.out.extend_from_slice(&known.json);
            self.cut |= known.cut;
            return;
        }
        let (json, cut) = self.apart(|line| line.session_object(session));
        let (of, limit) = (Arc::clone(session), self.limits.name);
        self.sessions.keep(Fragment { of, limit, json, cut });
    }

    fn session_object(&mut self, session: &SessionInfo) {
        first_key!(self, "id");
        self.out.extend_from_slice(b"\"s");
        json::push_u64(self.out, session.id);
        self.out.push(b'"');
        if let Some(revision) = &session.revision {
            key!(self, "revision");
            self.name(revision);
        }
        if let Some(client) = &session.client {
            key!(self, "client");
            self.peer(client);
        }
        if let Some(server) = &session.server {
            key!(self, "server");
            self.peer(server);
        }
        self.out.push(b'}');
    }

    fn peer(&mut self, peer: &Peer) {
        first_key!(self, "name");
        self.name(&peer.name);
        key!(self, "version");
        self.name(&peer.version);
        self.out.push(b'}');
    }

    fn target(&mut self, target: &Target) {
        let name = match target {
            Target::Tool(name) => {
                key!(self, "tool");
                name
            }
            Target::Resource(uri) => {
                key!(self, "resource");
                uri
            }
            Target::Prompt(name) => {
                key!(self, "prompt");
                name
            }
            Target::Other(_) => return,
        };
        self.name(name);
    }

    fn session_event(&mut self, event: &SessionEvent) {
        let session = &event.session;
        key!(self, "change");
        match event.change {
            SessionChange::Opened => self.word("opened"),
            SessionChange::Updated => self.word("updated"),
            SessionChange::Closed(cause) => {
                self.word("closed");
                self.cause(cause);
            }
        }
        self.transport(session.transport);
        self.session(session);
        self.ends(&session.client_end, &session.server_end);
        key!(self, "messages");
        json::push_u64(self.out, event.messages);
        key!(self, "pending");
        json::push_u64(self.out, event.pending);
    }

    fn cause(&mut self, cause: CloseCause) {
        key!(self, "cause");
        let (word, exit) = match cause {
            CloseCause::ClientClosed => ("client_closed", None),
            CloseCause::ClientExited(exit) => ("client_exited", Some(exit)),
            CloseCause::ServerExited(exit) => ("server_exited", Some(exit)),
            CloseCause::OpenAtExit => ("open_at_exit", None),
            CloseCause::Forgotten => ("forgotten", None),
        };
        self.word(word);
        match exit {
            Some(Exit::Code(code)) => {
                key!(self, "exit_code");
                json::push_u64(self.out, u64::from(code));
            }
            Some(Exit::Signal(signal)) => {
                key!(self, "exit_signal");
                json::push_u64(self.out, u64::from(signal));
            }
            None => {}
        }
    }

    fn finding(&mut self, finding: &Finding) {
        key!(self, "rule");
        self.word(finding.rule);
        key!(self, "severity");
        self.word(match finding.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
        });
        key!(self, "detail");
        self.name(&finding.detail);
        if let Some(session) = &finding.session {
            self.session(session);
        }
        self.ends(&finding.from, &finding.to);
    }

    fn lost(&mut self, lost: &Lost, until: Timestamp) {
        key!(self, "stage");
        self.word(match lost.stage {
            LostStage::Kernel => "kernel",
            LostStage::Stream => "stream",
            LostStage::Sink => "sink",
        });
        key!(self, "reason");
        self.word(lost.reason);
        key!(self, "bytes");
        self.number_or_null(lost.bytes);
        key!(self, "messages");
        self.number_or_null(lost.messages);
        if let Some(since) = lost.since {
            key!(self, "since");
            self.time(since);
            key!(self, "until");
            self.time(until);
        }
        if let Some(session) = &lost.session {
            self.session(session);
        }
        if let Some(from) = &lost.from {
            key!(self, "from");
            self.endpoint(from);
        }
    }

    fn number_or_null(&mut self, number: Option<u64>) {
        match number {
            Some(number) => json::push_u64(self.out, number),
            None => self.out.extend_from_slice(b"null"),
        }
    }

    fn status(&mut self, status: &Status, version: &str) {
        key!(self, "state");
        match status {
            Status::Started { backend } => {
                self.word("started");
                key!(self, "version");
                self.name(version);
                key!(self, "backend");
                self.name(backend);
            }
            Status::Stopped { kernel, counters } => {
                self.word("stopped");
                key!(self, "version");
                self.name(version);
                key!(self, "kernel");
                self.counters(&kernel_counters(kernel));
                key!(self, "counters");
                self.counters(counters);
            }
        }
    }

    fn counters(&mut self, counters: &[(&'static str, u64)]) {
        self.out.push(b'{');
        for (at, (name, value)) in counters.iter().enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            self.word(name);
            self.out.push(b':');
            json::push_u64(self.out, *value);
        }
        self.out.push(b'}');
    }
}

/// The kernel's counters with their names.
fn kernel_counters(kernel: &KernelCounters) -> [(&'static str, u64); 16] {
    // Taken apart, so that a new counter cannot be forgotten here.
    let KernelCounters {
        records,
        admitted_bytes,
        copied_bytes,
        ring_full,
        ring_full_bytes,
        ring_full_facts,
        fault_bytes,
        scratch_busy_bytes,
        cut_bytes,
        soft_skip_bytes,
        table_full,
        compat_calls,
        unseen_calls,
        muted_bytes,
        relays_full,
        muted_full,
    } = *kernel;
    [
        ("records", records),
        ("admitted_bytes", admitted_bytes),
        ("copied_bytes", copied_bytes),
        ("ring_full", ring_full),
        ("ring_full_bytes", ring_full_bytes),
        ("ring_full_facts", ring_full_facts),
        ("fault_bytes", fault_bytes),
        ("scratch_busy_bytes", scratch_busy_bytes),
        ("cut_bytes", cut_bytes),
        ("soft_skip_bytes", soft_skip_bytes),
        ("table_full", table_full),
        ("compat_calls", compat_calls),
        ("unseen_calls", unseen_calls),
        ("muted_bytes", muted_bytes),
        ("relays_full", relays_full),
        ("muted_full", muted_full),
    ]
}

#[cfg(test)]
mod tests;
