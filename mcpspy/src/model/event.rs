//! What the program says: events, as the sinks get them. `docs/events.md` is their public form.

use std::sync::Arc;

use super::{
    Carrier, ContainerInfo, Exit, KernelCounters, Message, MessageKind, ProcessInfo, RequestId,
    Timestamp,
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Position in this run, from 1, without holes.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub body: EventBody,
}

/// The closed list of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventBody {
    /// An MCP message.
    Message(Box<MessageEvent>),
    /// A session was opened, learned something, or was closed.
    Session(Box<SessionEvent>),
    /// Something worth a person's attention.
    Finding(Box<Finding>),
    /// Bytes or messages were lost.
    Lost(Lost),
    /// The monitor itself: start, end.
    Status(Status),
}

/// How sure an attribution is. Unknown is a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quality {
    /// Seen at its end of the stream.
    Exact,
    /// Seen at the other leg of a path through relays (`docker exec -i`), which was matched to this
    /// one.
    Path,
    /// Beyond a container engine's relay, and not on this host: nobody was seen at the other leg.
    Outside,
    /// Nobody was seen at this end in time.
    Unknown,
}

/// One end of a message or a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The process, where it is known.
    pub process: Option<Arc<ProcessInfo>>,
    /// The container that the process runs in, where it runs in one.
    pub container: Option<Arc<ContainerInfo>>,
    /// How it is known.
    pub quality: Quality,
}

impl Endpoint {
    /// An end where nobody was seen.
    pub const UNKNOWN: Self = Self { process: None, container: None, quality: Quality::Unknown };
}

/// How a message travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Standard input and output of a server, or any stream of lines.
    Stdio(Carrier),
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `params.name` of `tools/call`.
    Tool(Arc<str>),
    /// `params.uri` of `resources/*`.
    Resource(Arc<str>),
    /// `params.name` of `prompts/get`.
    Prompt(Arc<str>),
    /// `params.taskId`, `params.ref`, `params.level`, `params.requestId` and the like: shown, not
    /// filtered.
    Other(Arc<str>),
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A result.
    Ok,
    /// A JSON-RPC error with this code, where it has one.
    Error(Option<i64>),
    /// A tool's result with `isError: true`.
    ToolError,
    /// No answer yet (requests).
    Pending,
}

/// The request that a response answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRef {
    /// When it was seen.
    pub at: Timestamp,
    /// [`Event::seq`] of its event.
    pub seq: u64,
    /// Its id.
    pub id: RequestId,
    /// Its method.
    pub method: Arc<str>,
    /// Text of its `params`, where it had any and they were below 8 KiB.
    pub params: Option<Arc<str>>,
    /// What it was about.
    pub target: Option<Target>,
}

/// An MCP message with everything known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageEvent {
    /// The message.
    pub message: Message,
    /// How it travelled.
    pub transport: Transport,
    /// Who sent it.
    pub from: Endpoint,
    /// Who received it.
    pub to: Endpoint,
    /// Its session as known when the event was made.
    pub session: Arc<SessionInfo>,
    /// What it is about; of a response: what its request was about.
    pub target: Option<Target>,
    /// How the request went; `None` for notifications.
    pub outcome: Option<Outcome>,
    /// Of a response: the request that it answers, where that was seen.
    pub request: Option<Arc<RequestRef>>,
    /// Of a paired response: ns from the request to it.
    pub duration: Option<u64>,
}

impl MessageEvent {
    /// The method: of a response, its request's, where that is known.
    pub fn method(&self) -> Option<&Arc<str>> {
        self.message.method.as_ref().or(self.request.as_ref().map(|request| &request.method))
    }

    /// Request, response or notification.
    pub fn kind(&self) -> MessageKind {
        self.message.kind
    }
}

/// Name and version that a peer gave itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// `clientInfo.name` or `serverInfo.name`.
    pub name: Arc<str>,
    /// Its version; empty where it gave none.
    pub version: Arc<str>,
}

/// What is known of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Unique in this run.
    pub id: u64,
    /// How its messages travel.
    pub transport: Transport,
    /// Protocol revision agreed on or used last, where known.
    pub revision: Option<Arc<str>>,
    /// What the client calls itself.
    pub client: Option<Peer>,
    /// What the server calls itself.
    pub server: Option<Peer>,
    /// The client's process.
    pub client_end: Endpoint,
    /// The server's process.
    pub server_end: Endpoint,
}

/// Why a session ended, as the kernel saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The server read the end of its input while it lived.
    ClientClosed,
    /// The client's process ended.
    ClientExited(Exit),
    /// The server's process ended.
    ServerExited(Exit),
    /// The monitor ended first.
    OpenAtExit,
    /// It was the longest unused one of too many at once, or the inode of its stream became another
    /// one's before its end was seen.
    Forgotten,
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// Its first message was seen.
    Opened,
    /// An end, a name or the revision became known after it was opened.
    Updated,
    /// It ended.
    Closed(CloseCause),
}

/// A session changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEvent {
    /// What happened.
    pub change: SessionChange,
    /// The session.
    pub session: Arc<SessionInfo>,
    /// Messages seen in it so far.
    pub messages: u64,
    /// Requests without an answer so far.
    pub pending: u64,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Probably a mistake.
    Warning,
}

/// Something worth a person's attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name of what was found, such as `stdio-noise`.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// In words, for a person. May hold bytes of the traffic: sinks escape it.
    pub detail: String,
    /// Where it was seen.
    pub session: Option<Arc<SessionInfo>>,
    /// Who sent it.
    pub from: Endpoint,
    /// Who received it.
    pub to: Endpoint,
}

/// Where something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostStage {
    /// In the kernel: the ring was full, memory could not be read, a table was full.
    Kernel,
    /// A hole or a limit in a stream.
    Stream,
    /// A sink's queue was full.
    Sink,
}

/// Something was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Where.
    pub stage: LostStage,
    /// Why, a stable name such as `ring_full`.
    pub reason: &'static str,
    /// How many bytes; `None` where that is unknown.
    pub bytes: Option<u64>,
    /// How many messages; `None` where that is unknown (a hole in a stream).
    pub messages: Option<u64>,
    /// When the loss began, where that is known; it ended at [`Event::at`].
    pub since: Option<Timestamp>,
    /// The session that was hit, where known.
    pub session: Option<Arc<SessionInfo>>,
    /// Writer's side of the stream that was hit.
    pub from: Option<Endpoint>,
}

/// The monitor itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Monitoring began.
    Started {
        /// Which backend, for example `tp_btf`, or `replay`.
        backend: String,
    },
    /// Monitoring ended; the last event of a run.
    Stopped {
        /// The byte ledger of the kernel side.
        kernel: KernelCounters,
        /// The ledgers of user space, name and value, in the order of `telemetry.rs`.
        counters: Vec<(&'static str, u64)>,
    },
}
