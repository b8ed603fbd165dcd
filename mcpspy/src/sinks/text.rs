//! The line that a person reads: `TIME TRANSPORT FROM → TO KIND METHOD TARGET key=value…`
//!
//! The columns are the same for every transport. Everything that came from traffic passes through
//! [`super::visible`]; a column with blanks in it stands in quotes.

use std::fmt::Write as _;

use super::RunInfo;
use super::time::WallClock;
use super::visible::{push_quoted, push_word};
use crate::model::{
    Anomaly, CloseCause, ContainerInfo, Endpoint, Event, EventBody, Exit, Finding, Lost, LostStage,
    Message, MessageEvent, MessageKind, Outcome, Peer, Quality, RequestId, SessionChange,
    SessionEvent, SessionInfo, Severity, Status, Target, Transport,
};

/// Longest name of a process: the kernel's are 15 bytes, those of other sources may be anything.
const COMM: usize = 32;
/// Longest name of a container, project and service together.
const CONTAINER: usize = 96;
/// Longest method, id, and name or version of a peer.
const NAME: usize = 64;
/// Longest target: URIs are longer than names.
const TARGET: usize = 120;
/// Longest text of an error or a finding.
const DETAIL: usize = 200;
/// From this size on a request or notification shows its size.
const SIZE_SHOWN: u64 = 1000;

/// Colours of the terminal, by their SGR numbers.
#[derive(Clone, Copy)]
enum Colour {
    Dim,
    Red,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Dim => "\x1b[2m",
            Self::Red => "\x1b[31m",
            Self::Green => "\x1b[32m",
            Self::Yellow => "\x1b[33m",
            Self::Blue => "\x1b[34m",
            Self::Magenta => "\x1b[35m",
            Self::Cyan => "\x1b[36m",
        }
    }
}

const RESET: &str = "\x1b[0m";

/// Formats the events of one run.
pub struct TextFormat {
    clock: WallClock,
    version: &'static str,
    color: bool,
}

impl TextFormat {
    /// `utc`: times in UTC and marked with `Z`, else in the zone of the machine.
    pub fn new(run: &RunInfo, color: bool, utc: bool) -> Self {
        let zone = (!utc).then(jiff::tz::TimeZone::system);
        Self { clock: WallClock::new(run.wall_offset_ns, zone), version: run.version, color }
    }

    /// Appends the event as one line, line end included.
    pub fn push(&mut self, out: &mut String, event: &Event) {
        let mut line = Line { out, color: self.color };
        line.start(Colour::Dim);
        self.clock.push_time_of_day(line.out, event.at);
        line.end();
        match &event.body {
            EventBody::Message(message) => line.message(message),
            EventBody::Session(session) => line.session(session),
            EventBody::Finding(finding) => line.finding(finding),
            EventBody::Lost(lost) => line.lost(lost),
            EventBody::Status(status) => line.status(status, self.version),
        }
        line.out.push('\n');
    }
}

/// Stable name of an anomaly; the same in text and JSON.
pub(super) const fn anomaly_name(anomaly: Anomaly) -> &'static str {
    match anomaly {
        Anomaly::DuplicateKey => "duplicate_key",
        Anomaly::ResultAndError => "result_and_error",
        Anomaly::InvalidUtf8 => "invalid_utf8",
        Anomaly::NullId => "null_id",
        Anomaly::Batch => "batch",
        Anomaly::ParamsType => "params_type",
    }
}

struct Line<'a> {
    out: &'a mut String,
    color: bool,
}

impl Line<'_> {
    fn start(&mut self, colour: Colour) {
        if self.color {
            self.out.push_str(colour.code());
        }
    }

    fn end(&mut self) {
        if self.color {
            self.out.push_str(RESET);
        }
    }

    /// A blank and this.
    fn column(&mut self, text: &str) {
        self.out.push(' ');
        self.out.push_str(text);
    }

    fn coloured(&mut self, colour: Colour, text: &str) {
        self.out.push(' ');
        self.start(colour);
        self.out.push_str(text);
        self.end();
    }

    /// A blank and text of unknown origin.
    fn word(&mut self, text: &str, max: usize) {
        self.out.push(' ');
        push_word(self.out, text, max);
    }

    /// A blank and `key=` text of unknown origin.
    fn pair(&mut self, key: &str, text: &str, max: usize) {
        self.column(key);
        self.out.push('=');
        push_word(self.out, text, max);
    }

    fn number(&mut self, key: &str, number: u64) {
        self.column(key);
        // Writing to a `String` cannot fail, here and below.
        let _infallible = write!(self.out, "={number}");
    }

    fn transport(&mut self, transport: Transport) {
        match transport {
            Transport::Stdio(_) => self.column("stdio"),
        }
    }

    /// `node[830]`, in a container `shop/inventory (node[830])`.
    fn endpoint(&mut self, end: &Endpoint) {
        self.out.push(' ');
        match (&end.container, &end.process) {
            (Some(container), Some(_)) => {
                push_word(self.out, &container_label(container), CONTAINER);
                self.out.push_str(" (");
                self.process(end);
                self.out.push(')');
            }
            (Some(container), None) => push_word(self.out, &container_label(container), CONTAINER),
            (None, None) if end.quality == Quality::Outside => {
                self.out.push_str("docker client outside this host");
            }
            (None, _) => self.process(end),
        }
    }

    fn process(&mut self, end: &Endpoint) {
        match &end.process {
            Some(process) => {
                push_word(self.out, &process.comm, COMM);
                let _infallible = write!(self.out, "[{}]", process.id.pid);
                if end.quality == Quality::Unknown {
                    self.out.push('?');
                }
            }
            None => self.out.push('?'),
        }
    }

    fn ends(&mut self, from: &Endpoint, to: &Endpoint) {
        self.endpoint(from);
        self.column("→");
        self.endpoint(to);
    }

    fn message(&mut self, event: &MessageEvent) {
        let message = &event.message;
        self.transport(event.transport);
        self.ends(&event.from, &event.to);
        let (colour, kind) = match (message.kind, &event.outcome) {
            (MessageKind::Request, _) => (Colour::Blue, "REQ "),
            (MessageKind::Notification, _) => (Colour::Cyan, "NOTF"),
            (MessageKind::Response, Some(Outcome::Error(_))) => (Colour::Red, "ERR "),
            (MessageKind::Response, Some(Outcome::ToolError)) => (Colour::Red, "TERR"),
            (MessageKind::Response, _) if message.error.is_some() => (Colour::Red, "ERR "),
            (MessageKind::Response, _) => (Colour::Green, "RESP"),
        };
        self.coloured(colour, kind);
        match event.method() {
            Some(method) => self.word(method, NAME),
            None => self.column("?"),
        }
        if let Some(
            Target::Tool(name)
            | Target::Resource(name)
            | Target::Prompt(name)
            | Target::Other(name),
        ) = &event.target
        {
            self.word(name, TARGET);
        }
        match &message.id {
            Some(RequestId::Integer(id)) => {
                let _infallible = write!(self.out, " id={id}");
            }
            Some(RequestId::Number(id)) => self.pair("id", id, NAME),
            Some(RequestId::String(id)) => {
                self.column("id=");
                push_quoted(self.out, id, NAME);
            }
            None => {}
        }
        if let Some(ns) = event.duration {
            self.out.push(' ');
            push_duration(self.out, ns);
        }
        if message.kind == MessageKind::Response || message.size >= SIZE_SHOWN {
            self.out.push(' ');
            push_size(self.out, message.size);
        }
        self.error(event);
        if message.truncated {
            self.coloured(Colour::Yellow, "truncated");
        }
        if let Some((index, size)) = message.batch {
            let _infallible = write!(self.out, " batch={}/{size}", u64::from(index) + 1);
        }
        for anomaly in message.anomalies.iter().filter(|anomaly| **anomaly != Anomaly::Batch) {
            self.coloured(Colour::Yellow, "!");
            self.out.push_str(anomaly_name(*anomaly));
        }
    }

    fn error(&mut self, event: &MessageEvent) {
        if let Some(Outcome::Error(Some(code))) = event.outcome {
            let _infallible = write!(self.out, " code={code}");
        }
        if let Some(text) = error_text(&event.message, event.outcome.as_ref()) {
            self.out.push(' ');
            push_quoted(self.out, &text, DETAIL);
        }
    }

    fn session(&mut self, event: &SessionEvent) {
        let session = &event.session;
        self.transport(session.transport);
        self.ends(&session.client_end, &session.server_end);
        self.coloured(Colour::Magenta, "SESS");
        match event.change {
            SessionChange::Opened => self.column("opened"),
            SessionChange::Updated => self.column("updated"),
            SessionChange::Closed(_) => self.column("closed"),
        }
        self.session_id(session);
        if let SessionChange::Closed(cause) = event.change {
            self.cause(cause);
            self.number("messages", event.messages);
            self.number("pending", event.pending);
            return;
        }
        if let Some(revision) = &session.revision {
            self.pair("revision", revision, NAME);
        }
        self.peer("client", session.client.as_ref());
        self.peer("server", session.server.as_ref());
    }

    fn session_id(&mut self, session: &SessionInfo) {
        let _infallible = write!(self.out, " s{}", session.id);
    }

    fn peer(&mut self, key: &str, peer: Option<&Peer>) {
        if let Some(peer) = peer {
            self.pair(key, &peer.name, NAME);
            if !peer.version.is_empty() {
                self.out.push('/');
                push_word(self.out, &peer.version, NAME);
            }
        }
    }

    fn cause(&mut self, cause: CloseCause) {
        let (word, exit) = match cause {
            CloseCause::ClientClosed => ("client-closed", None),
            CloseCause::ClientExited(exit) => ("client-exited", Some(exit)),
            CloseCause::ServerExited(exit) => ("server-exited", Some(exit)),
            CloseCause::OpenAtExit => ("open-at-exit", None),
            CloseCause::Forgotten => ("forgotten", None),
        };
        self.column("cause=");
        self.out.push_str(word);
        match exit {
            Some(Exit::Code(0)) => self.column("code=0"),
            Some(Exit::Code(code)) => {
                self.coloured(Colour::Red, "code=");
                let _infallible = write!(self.out, "{code}");
            }
            Some(Exit::Signal(signal)) => {
                self.coloured(Colour::Red, "signal=");
                let _infallible = write!(self.out, "{signal}");
            }
            None => {}
        }
    }

    fn finding(&mut self, finding: &Finding) {
        if let Some(session) = &finding.session {
            self.transport(session.transport);
        } else {
            self.column("-");
        }
        self.ends(&finding.from, &finding.to);
        let colour = match finding.severity {
            Severity::Info => Colour::Cyan,
            Severity::Warning => Colour::Yellow,
        };
        self.coloured(colour, "FIND");
        self.column(finding.rule);
        self.out.push(' ');
        push_quoted(self.out, &finding.detail, DETAIL);
    }

    fn lost(&mut self, lost: &Lost) {
        match (&lost.session, &lost.from) {
            (Some(session), from) => {
                self.transport(session.transport);
                let (client, server) = (&session.client_end, &session.server_end);
                match from {
                    Some(from) if same(from, server) => self.ends(from, client),
                    Some(from) => self.ends(from, server),
                    None => self.ends(client, server),
                }
            }
            (None, Some(from)) => {
                self.column("-");
                self.ends(from, &Endpoint::UNKNOWN);
            }
            (None, None) => self.column("mcpspy"),
        }
        self.coloured(Colour::Red, "LOST");
        self.column(match lost.stage {
            LostStage::Kernel => "kernel",
            LostStage::Stream => "stream",
            LostStage::Sink => "sink",
        });
        self.column(lost.reason);
        match lost.messages {
            Some(messages) => self.number("messages", messages),
            None => self.column("messages=?"),
        }
        match lost.bytes {
            Some(bytes) => self.number("bytes", bytes),
            None if lost.messages.is_none() => self.column("bytes=?"),
            None => {}
        }
        if let Some(session) = &lost.session {
            self.column("session=");
            let _infallible = write!(self.out, "s{}", session.id);
        }
    }

    fn status(&mut self, status: &Status, version: &str) {
        self.column("mcpspy");
        self.coloured(Colour::Magenta, "STAT");
        match status {
            Status::Started { backend } => {
                self.column("started");
                self.pair("version", version, NAME);
                self.pair("backend", backend, NAME);
            }
            Status::Stopped { kernel, counters } => {
                self.column("stopped");
                self.number("records", kernel.records);
                self.number("ring_full", kernel.ring_full);
                // A screen has room for what is not zero; the ledgers stand on stderr and in JSON.
                for (name, value) in counters.iter().filter(|(_, value)| *value > 0) {
                    self.number(name, *value);
                }
            }
        }
    }
}

/// Whether both are the same end of a stream, as far as that can be seen.
fn same(a: &Endpoint, b: &Endpoint) -> bool {
    let process = |end: &Endpoint| end.process.as_ref().map(|process| process.id);
    process(a) == process(b)
}

/// What people call a container: `project/service` of Compose, with `#N` from the second one of a
/// service on; else its name, else the short id. What runs in a container of another container
/// stands behind that one's name or short id.
fn container_label(container: &ContainerInfo) -> String {
    let mut label = String::new();
    // No engine gives a name with a slash: such a one begins with the outer container's already.
    let names_outer = container.name.as_ref().is_some_and(|name| name.contains('/'));
    if let Some(outer) = container.outer.as_ref().filter(|_| !names_outer) {
        label.push_str(outer.short());
        label.push('/');
    }
    match (&container.project, &container.service, &container.name) {
        (Some(project), Some(service), _) => {
            label.push_str(project);
            label.push('/');
            label.push_str(service);
            let number = container.label("com.docker.compose.container-number");
            if let Some(number) =
                number.and_then(|text| text.parse::<u32>().ok()).filter(|&n| n > 1)
            {
                let _infallible = write!(label, "#{number}");
            }
        }
        (_, _, Some(name)) => label.push_str(name),
        (_, _, None) => label.push_str(container.id.short()),
    }
    label
}

/// What the peer said about the error: of a tool's error, the first text of its result.
fn error_text(message: &Message, outcome: Option<&Outcome>) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Error {
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct ToolResult {
        content: Vec<Content>,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        text: Option<String>,
    }
    if outcome == Some(&Outcome::ToolError) {
        let result = serde_json::from_str(message.text(message.result.as_ref()?)).ok()?;
        let ToolResult { content } = result;
        return content.into_iter().find_map(|content| content.text);
    }
    let Error { message } = serde_json::from_str(message.text(message.error.as_ref()?)).ok()?;
    Some(message)
}

/// `340µs`, `1.2ms`, `101ms`, `1.5s`, `2m05s`.
fn push_duration(out: &mut String, ns: u64) {
    let us = ns / 1000;
    let _infallible = match us {
        0..1_000 => write!(out, "{us}µs"),
        1_000..10_000 => write!(out, "{}.{}ms", us / 1000, us % 1000 / 100),
        10_000..1_000_000 => write!(out, "{}ms", us / 1000),
        1_000_000..60_000_000 => write!(out, "{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
        _ => write!(out, "{}m{:02}s", us / 60_000_000, us / 1_000_000 % 60),
    };
}

/// `87B`, `1.2kB`, `16.8MB`.
fn push_size(out: &mut String, bytes: u64) {
    let _infallible = match bytes {
        0..1_000 => write!(out, "{bytes}B"),
        1_000..1_000_000 => write!(out, "{}.{}kB", bytes / 1000, bytes % 1000 / 100),
        1_000_000..1_000_000_000 => {
            write!(out, "{}.{}MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
        }
        _ => write!(out, "{}.{}GB", bytes / 1_000_000_000, bytes % 1_000_000_000 / 100_000_000),
    };
}
