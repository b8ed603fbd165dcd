//! Everything that can happen to the program: the closed list of inputs, and the commands that go
//! back to the kernel.

use std::sync::Arc;

use super::{
    Direction, EndpointFact, EngineFact, ProcessFacts, ProcessId, StreamKey, StreamRef, Timestamp,
};

/// One input of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The kernel saw something.
    Record(Record),
    /// What the kernel counted since the last such input, or a stream's totals.
    Loss(Loss),
    /// The inventory read a process.
    Process(ProcessFacts),
    /// A container engine said something.
    Engine(EngineFact),
    /// Time passed; sent when a deadline of the engine is due and nothing else says so.
    Tick(Timestamp),
}

/// A record of the kernel side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the system call returned.
    pub at: Timestamp,
    /// Who made it.
    pub task: Task,
    /// What happened.
    pub body: RecordBody,
}

/// The task that a record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its process.
    pub process: ProcessId,
    /// Its thread.
    pub tid: u32,
    /// Process id of the parent.
    pub ppid: u32,
    /// Effective user id in the initial user namespace.
    pub uid: u32,
    /// Cgroup v2 id; 1 is the root.
    pub cgroup: u64,
    /// Name of the thread group's leader.
    pub comm: Arc<str>,
    /// It only hands bytes on between a container and its client (`docker`, `dockerd`,
    /// `containerd-shim` ...): the kernel side took it for one by its program's name. Its bytes are
    /// not copied, except the first of a request to an engine.
    pub relay: bool,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordBody {
    /// Bytes moved.
    Data(Data),
    /// The task is at this end of the stream from here on.
    Endpoint(EndpointFact),
    /// A read returned 0 at this position.
    End(EndpointFact),
    /// The process replaced its program; the task has the new name.
    Exec,
    /// The process ended.
    Exit(Exit),
    /// The process created another one.
    Fork(ProcessId),
    /// The first program in this cgroup was started.
    Cgroup(CgroupFact),
}

/// Name of a cgroup, sent once, so that a container is known even if it lives 50 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupFact {
    /// Cgroup v2 id, as in [`Task::cgroup`].
    pub id: u64,
    /// The last components of its path, joined by `/`.
    pub path: Arc<str>,
}

/// Bytes that a task moved through a stream: one call, or a part of a large one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Where they flowed.
    pub stream: StreamRef,
    /// Position of the first byte in this direction of the stream.
    pub offset: u64,
    /// Bytes of this direction ruled out before `offset`, cumulative: a hole of that size is no loss.
    pub skipped: u64,
    /// Bytes that the call moved.
    pub call_len: u64,
    /// Position of the first byte within the call.
    pub call_offset: u64,
    /// The reader's copy, made because no writer was known.
    pub reader_copy: bool,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// What was lost or left out, as the kernel counted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The counters of the kernel side, since they were attached.
    Counters {
        /// When they were read.
        at: Timestamp,
        /// The values.
        counters: KernelCounters,
    },
    /// Totals of one direction of a stream; shows a hole at its end.
    Stream {
        /// When they were read.
        at: Timestamp,
        /// The values.
        total: StreamTotal,
    },
}

/// The kernel's counters, cumulative. Bytes of calls:
/// `admitted = copied + ring_full + fault + scratch_busy + cut`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Records written.
    pub records: u64,
    /// Bytes of calls that were worth copying.
    pub admitted_bytes: u64,
    /// Bytes of those that were written to the ring.
    pub copied_bytes: u64,
    /// Data records that found the ring full.
    pub ring_full: u64,
    /// Their bytes.
    pub ring_full_bytes: u64,
    /// Other records that found the ring full.
    pub ring_full_facts: u64,
    /// Bytes not readable from the task's memory.
    pub fault_bytes: u64,
    /// Bytes of calls that found no scratch buffer.
    pub scratch_busy_bytes: u64,
    /// Bytes beyond what one call may copy.
    pub cut_bytes: u64,
    /// Bytes ruled out by their first bytes (not admitted).
    pub soft_skip_bytes: u64,
    /// Streams not followed: table full.
    pub table_full: u64,
    /// Calls of 32-bit programs on pipes and sockets.
    pub compat_calls: u64,
    /// Calls that move bytes past the monitor (splice, `io_uring`).
    pub unseen_calls: u64,
    /// Bytes of relays and of cgroups that a filter leaves out (not admitted).
    pub muted_bytes: u64,
    /// Relays not taken for one: table full.
    pub relays_full: u64,
    /// Cgroups copied although a filter leaves them out: table full.
    pub muted_full: u64,
}

/// Totals of one direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTotal {
    /// The stream.
    pub stream: StreamRef,
    /// Bytes moved in this direction since `nonce`.
    pub offset: u64,
    /// Bytes of those ruled out.
    pub skipped: u64,
}

/// What the engine decided on one direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Not MCP so far: look only at first bytes.
    Ignore,
    /// MCP: copy all of it.
    Keep,
    /// Its session is over: forget it, unless its kernel entry is younger than this nonce. The inode
    /// of a FIFO may be the next session's by now.
    Forget(u64),
}

/// What the engine asks of the source. The source may not be able to do it (replay): the engine
/// must not rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Apply a verdict to the kernel's table.
    Verdict(StreamKey, Verdict),
    /// Whether to copy the payload of calls by processes in this cgroup (by its v2 id).
    Cgroup {
        /// Which cgroup.
        id: u64,
        /// `false`: a filter leaves its container out.
        copy: bool,
    },
}

impl Input {
    /// The time that the input carries.
    pub const fn at(&self) -> Timestamp {
        match self {
            Self::Record(record) => record.at,
            Self::Loss(Loss::Counters { at, .. } | Loss::Stream { at, .. }) | Self::Tick(at) => *at,
            Self::Process(facts) => facts.at,
            Self::Engine(fact) => fact.at(),
        }
    }
}

impl Data {
    /// Position after the last byte.
    pub const fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// Whether the task wrote the bytes.
    pub const fn written(&self) -> bool {
        matches!(self.stream.direction, Direction::Write)
    }
}
