//! Who runs: identity and facts of processes.

use std::sync::Arc;

use super::Timestamp;

/// A process, never a bare pid: numbers are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Process id (kernel `tgid`) in the initial pid namespace.
    pub pid: u32,
    /// Start of its first thread in hundredths of a second since boot: what `/proc/PID/stat` field
    /// 22 says, and the kernel's `start_boottime` divided by 10 ms (`USER_HZ` is 100 on x86-64 and
    /// arm64), so that both sources name a process alike.
    pub start: u64,
}

/// What an open file descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FdKind {
    /// Pipe or FIFO.
    Pipe,
    /// Any socket.
    Socket,
}

/// An open pipe or socket of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdFact {
    /// What it is.
    pub kind: FdKind,
    /// Device of the inode, the kernel's encoding.
    pub dev: u32,
    /// Inode.
    pub ino: u64,
    /// Opened for reading.
    pub readable: bool,
    /// Opened for writing.
    pub writable: bool,
}

/// What the inventory read of a process, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// When it was read.
    pub at: Timestamp,
    /// Which process.
    pub id: ProcessId,
    /// Its parent, where that could be read.
    pub parent: Option<ProcessId>,
    /// Name (`/proc/PID/comm`).
    pub comm: Arc<str>,
    /// Path of the executable, as its own mount namespace names it; empty where unreadable.
    pub exe: Arc<str>,
    /// Command line, arguments joined by blanks, at most 4 KiB; empty where unreadable.
    pub cmdline: Arc<str>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Its pipes and sockets; `None` where the table could not be read (gone, or no permission).
    pub fds: Option<Vec<FdFact>>,
    /// Path of its cgroup: of the v2 hierarchy where that names a container, else of any other
    /// that does; `None` where it could not be read.
    pub cgroup: Option<Arc<str>>,
    /// Read by the scan at start: its pipes are older than the monitor.
    pub initial: bool,
}

/// What an event says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Which process.
    pub id: ProcessId,
    /// Name to show.
    pub comm: Arc<str>,
    /// Path of the executable; empty where unknown.
    pub exe: Arc<str>,
    /// Command line; empty where unknown.
    pub cmdline: Arc<str>,
    /// Process id of the parent; 0 where unknown.
    pub ppid: u32,
    /// Effective user id, where known.
    pub uid: Option<u32>,
}
