//! Names of maps, programs and globals, and the slots of the counters.

/// Ring buffer of records.
pub const MAP_EVENTS: &str = "EVENTS";
/// LRU: stream key to kernel state, for streams that nobody asked to keep.
pub const MAP_STREAMS: &str = "STREAMS";
/// Not LRU: stream key to kernel state, for streams judged MCP.
pub const MAP_KEPT: &str = "KEPT";
/// Stream key to the engine's verdict; written by user space only.
pub const MAP_VERDICTS: &str = "VERDICTS";
/// Watched process tree: process id to 1.
pub const MAP_TREE: &str = "TREE";
/// [`crate::relay::NameKey`] to [`crate::relay::WHOLE`] or [`crate::relay::START`]; written by user
/// space only.
pub const MAP_RELAY_NAMES: &str = "RELAY_NAMES";
/// Process id to 1: processes that run a program of such a name.
pub const MAP_RELAYS: &str = "RELAYS";
/// LRU: cgroup id to 1, for those that were told of.
pub const MAP_CGROUPS: &str = "CGROUPS";
/// Cgroup id to 1: what its processes write and read is not copied. Written by user space only.
pub const MAP_MUTED: &str = "MUTED";
/// Per-CPU array of one value: the counters, one slot per [`counter`].
pub const MAP_COUNTERS: &str = "COUNTERS";
/// Pool of buffers in which records are built.
pub const MAP_SCRATCH: &str = "SCRATCH";

/// Global of type [`crate::config::Offsets`].
pub const GLOBAL_OFFSETS: &str = "OFFSETS";
/// Global of type [`crate::config::Settings`].
pub const GLOBAL_SETTINGS: &str = "SETTINGS";
/// Global: [`crate::config::class`] of each system call number.
pub const GLOBAL_SYSCALLS: &str = "SYSCALLS";

/// System calls, as a BTF tracepoint.
pub const PROG_CALL_TP: &str = "call_tp";
/// System calls, as a raw tracepoint.
pub const PROG_CALL_RAW: &str = "call_raw";
/// Program replaced, as a BTF tracepoint.
pub const PROG_EXEC_TP: &str = "exec_tp";
/// Program replaced, as a raw tracepoint.
pub const PROG_EXEC_RAW: &str = "exec_raw";
/// Process ended, as a BTF tracepoint.
pub const PROG_EXIT_TP: &str = "exit_tp";
/// Process ended, as a raw tracepoint.
pub const PROG_EXIT_RAW: &str = "exit_raw";
/// Process created, as a BTF tracepoint.
pub const PROG_FORK_TP: &str = "fork_tp";
/// Process created, as a raw tracepoint.
pub const PROG_FORK_RAW: &str = "fork_raw";

/// Slots of [`MAP_COUNTERS`].
pub mod counter {
    /// Records written to the ring.
    pub const RECORDS: usize = 0;
    /// Payload bytes written to the ring.
    pub const COPIED_BYTES: usize = 1;
    /// Bytes of all calls that were worth copying.
    pub const ADMITTED_BYTES: usize = 2;
    /// Data records that found the ring full.
    pub const RING_FULL: usize = 3;
    /// Payload bytes of those.
    pub const RING_FULL_BYTES: usize = 4;
    /// Other records (endpoint, end, exec, exit, fork, cgroup) that found the ring full.
    pub const RING_FULL_FACTS: usize = 5;
    /// Payload bytes that could not be read from the task's memory.
    pub const FAULT_BYTES: usize = 6;
    /// Bytes of calls for which no scratch buffer was free.
    pub const SCRATCH_BUSY_BYTES: usize = 7;
    /// Bytes beyond what one call may copy.
    pub const CUT_BYTES: usize = 8;
    /// Bytes not copied because they cannot be the start of a message.
    pub const SOFT_SKIP_BYTES: usize = 9;
    /// Streams not followed because the table of kept streams was full.
    pub const TABLE_FULL: usize = 10;
    /// Calls of 32-bit programs on pipes and sockets, which are not decoded.
    pub const COMPAT_CALLS: usize = 11;
    /// Calls that move bytes past this monitor (splice, tee, vmsplice, sendfile, `io_uring_enter`).
    pub const UNSEEN_CALLS: usize = 12;
    /// Bytes of calls by mcpspy itself.
    pub const SELF_BYTES: usize = 13;
    /// Bytes of relays and of muted cgroups, which are not copied on purpose.
    pub const MUTED_BYTES: usize = 14;
    /// Relays that were not taken for one, because their table was full.
    pub const RELAYS_FULL: usize = 15;
    /// Number of slots.
    pub const COUNT: usize = 16;
}
