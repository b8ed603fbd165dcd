//! The lines of a recording. Keys are short where they stand in every line.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::engine::{AskedEntry, ConnectedEntry, ContainerEntry, ContainerExecEntry, LostEntry};
use crate::model::{
    Carrier, Direction, Exit, FdFact, FdKind, KernelCounters, ProcessFacts, ProcessId, StreamRef,
    Task, Timestamp,
};

/// The kinds of [`Entry`], as they stand in the file.
pub(super) const KINDS: [&str; 18] = [
    "task",
    "stream",
    "data",
    "seen",
    "end",
    "exec",
    "exit",
    "fork",
    "cgroup",
    "process",
    "engine",
    "engine_asked",
    "engine_lost",
    "container",
    "container_exec",
    "counters",
    "total",
    "tick",
];

/// A line after the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry<'a> {
    /// From here on, this number stands for this task.
    #[serde(borrow)]
    Task(TaskEntry<'a>),
    /// From here on, this number stands for this stream.
    Stream(StreamEntry),
    /// `RecordBody::Data`.
    Data(DataEntry<'a>),
    /// `RecordBody::Endpoint`.
    Seen(EndEntry),
    /// `RecordBody::End`.
    End(EndEntry),
    /// `RecordBody::Exec`.
    Exec(TaskOnly),
    /// `RecordBody::Exit`.
    Exit(ExitEntry),
    /// `RecordBody::Fork`.
    Fork(ForkEntry),
    /// `RecordBody::Cgroup`.
    Cgroup(CgroupEntry<'a>),
    /// `Input::Process`.
    Process(Box<ProcessEntry<'a>>),
    /// `EngineFact::Connected`.
    Engine(ConnectedEntry<'a>),
    /// `EngineFact::Asked`.
    EngineAsked(AskedEntry<'a>),
    /// `EngineFact::Lost`.
    EngineLost(LostEntry<'a>),
    /// `EngineFact::Container`.
    Container(Box<ContainerEntry<'a>>),
    /// `EngineFact::Exec`.
    ContainerExec(ContainerExecEntry<'a>),
    /// `Loss::Counters`.
    Counters(CountersEntry),
    /// `Loss::Stream`.
    Total(TotalEntry),
    /// `Input::Tick`.
    Tick(TickEntry),
}

#[derive(Serialize, Deserialize)]
pub(super) struct TaskEntry<'a> {
    pub t: u32,
    pub pid: u32,
    pub start: u64,
    pub tid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub cgroup: u64,
    #[serde(borrow)]
    pub comm: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relay: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StreamEntry {
    pub s: u32,
    pub carrier: CarrierName,
    pub dev: u32,
    pub ino: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub peer: u64,
    pub direction: DirectionName,
    pub nonce: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CarrierName {
    Pipe,
    Unix,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DirectionName {
    Write,
    Read,
}

#[derive(Serialize, Deserialize)]
pub(super) struct DataEntry<'a> {
    pub at: u64,
    pub t: u32,
    pub s: u32,
    /// Offset in the stream.
    pub o: u64,
    /// Bytes ruled out before it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Size of the call, where these are not all of its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<u64>,
    /// Position in the call.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub call_at: u64,
    /// The reader's copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reader: bool,
    /// The bytes, as text.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub b: Option<Cow<'a, str>>,
    /// The bytes, in base64.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub b64: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EndEntry {
    pub at: u64,
    pub t: u32,
    pub s: u32,
    pub o: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TaskOnly {
    pub at: u64,
    pub t: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ExitEntry {
    pub at: u64,
    pub t: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ForkEntry {
    pub at: u64,
    pub t: u32,
    pub pid: u32,
    pub start: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct CgroupEntry<'a> {
    pub at: u64,
    pub t: u32,
    pub id: u64,
    #[serde(borrow)]
    pub path: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ProcessEntry<'a> {
    pub at: u64,
    pub pid: u32,
    pub start: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<(u32, u64)>,
    #[serde(borrow)]
    pub comm: Cow<'a, str>,
    #[serde(borrow)]
    pub exe: Cow<'a, str>,
    #[serde(borrow)]
    pub cmdline: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<FdEntry>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub initial: bool,
}

/// Kind, device, inode, readable, writable.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct FdEntry(FdName, u32, u64, bool, bool);

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FdName {
    Pipe,
    Socket,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CountersEntry {
    pub at: u64,
    records: u64,
    admitted_bytes: u64,
    copied_bytes: u64,
    ring_full: u64,
    ring_full_bytes: u64,
    ring_full_facts: u64,
    fault_bytes: u64,
    scratch_busy_bytes: u64,
    cut_bytes: u64,
    soft_skip_bytes: u64,
    table_full: u64,
    compat_calls: u64,
    unseen_calls: u64,
    muted_bytes: u64,
    relays_full: u64,
    muted_full: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TotalEntry {
    pub at: u64,
    pub s: u32,
    pub o: u64,
    pub skipped: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TickEntry {
    pub at: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<'a> TaskEntry<'a> {
    pub(super) fn new(t: u32, task: &'a Task) -> Self {
        // Taken apart in full, here and below: a new field cannot be forgotten.
        let Task { process: ProcessId { pid, start }, tid, ppid, uid, cgroup, comm, relay } = task;
        Self {
            t,
            pid: *pid,
            start: *start,
            tid: *tid,
            ppid: *ppid,
            uid: *uid,
            cgroup: *cgroup,
            comm: Cow::Borrowed(comm),
            relay: *relay,
        }
    }

    pub(super) fn into_model(self) -> Task {
        Task {
            process: ProcessId { pid: self.pid, start: self.start },
            tid: self.tid,
            ppid: self.ppid,
            uid: self.uid,
            cgroup: self.cgroup,
            comm: Arc::from(self.comm),
            relay: self.relay,
        }
    }
}

impl StreamEntry {
    pub(super) fn new(s: u32, stream: &StreamRef) -> Self {
        let StreamRef { carrier, dev, ino, peer, direction, nonce } = *stream;
        Self {
            s,
            carrier: match carrier {
                Carrier::Pipe => CarrierName::Pipe,
                Carrier::Unix => CarrierName::Unix,
            },
            dev,
            ino,
            peer,
            direction: match direction {
                Direction::Write => DirectionName::Write,
                Direction::Read => DirectionName::Read,
            },
            nonce,
        }
    }

    pub(super) fn into_model(self) -> StreamRef {
        StreamRef {
            carrier: match self.carrier {
                CarrierName::Pipe => Carrier::Pipe,
                CarrierName::Unix => Carrier::Unix,
            },
            dev: self.dev,
            ino: self.ino,
            peer: self.peer,
            direction: match self.direction {
                DirectionName::Write => Direction::Write,
                DirectionName::Read => Direction::Read,
            },
            nonce: self.nonce,
        }
    }
}

impl ExitEntry {
    pub(super) fn new(at: u64, t: u32, exit: Exit) -> Self {
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        Self { at, t, code, signal }
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match (self.code, self.signal) {
            (Some(code), None) => Some(Exit::Code(code)),
            (None, Some(signal)) => Some(Exit::Signal(signal)),
            _ => None,
        }
    }
}

impl<'a> ProcessEntry<'a> {
    pub(super) fn new(facts: &'a ProcessFacts) -> Self {
        let ProcessFacts { at, id, parent, comm, exe, cmdline, uid, fds, cgroup, initial } = facts;
        let fd = |fact: &FdFact| {
            let FdFact { kind, dev, ino, readable, writable } = *fact;
            let kind = match kind {
                FdKind::Pipe => FdName::Pipe,
                FdKind::Socket => FdName::Socket,
            };
            FdEntry(kind, dev, ino, readable, writable)
        };
        Self {
            at: at.0,
            pid: id.pid,
            start: id.start,
            parent: parent.map(|parent| (parent.pid, parent.start)),
            comm: Cow::Borrowed(comm),
            exe: Cow::Borrowed(exe),
            cmdline: Cow::Borrowed(cmdline),
            uid: *uid,
            fds: fds.as_ref().map(|fds| fds.iter().map(fd).collect()),
            cgroup: cgroup.as_deref().map(Cow::Borrowed),
            initial: *initial,
        }
    }

    pub(super) fn into_model(self) -> ProcessFacts {
        let fd = |FdEntry(kind, dev, ino, readable, writable)| {
            let kind = match kind {
                FdName::Pipe => FdKind::Pipe,
                FdName::Socket => FdKind::Socket,
            };
            FdFact { kind, dev, ino, readable, writable }
        };
        ProcessFacts {
            at: Timestamp(self.at),
            id: ProcessId { pid: self.pid, start: self.start },
            parent: self.parent.map(|(pid, start)| ProcessId { pid, start }),
            comm: Arc::from(self.comm),
            exe: Arc::from(self.exe),
            cmdline: Arc::from(self.cmdline),
            uid: self.uid,
            fds: self.fds.map(|fds| fds.into_iter().map(fd).collect()),
            cgroup: self.cgroup.map(Arc::from),
            initial: self.initial,
        }
    }
}

/// Both directions between the counters of the model and those of the file, which have the same
/// names.
macro_rules! counters {
    ($($field:ident),* $(,)?) => {
        impl CountersEntry {
            pub(super) fn new(at: u64, counters: &KernelCounters) -> Self {
                let KernelCounters { $($field),* } = *counters;
                Self { at, $($field),* }
            }

            pub(super) fn into_model(self) -> KernelCounters {
                let Self { at: _, $($field),* } = self;
                KernelCounters { $($field),* }
            }
        }
    };
}

counters!(
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
);
