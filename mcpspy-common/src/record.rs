//! Layout of the records in the ring buffer: a [`RecordHeader`], a body that depends on its kind,
//! and for [`kind::DATA`] the bytes themselves.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a record says; the value of [`RecordHeader::kind`].
pub mod kind {
    /// Bytes that a task moved through a stream: [`super::StreamBody`], then the bytes.
    pub const DATA: u16 = 1;
    /// A task was seen for the first time (or again after another one) at its end of a stream:
    /// [`super::StreamBody`] without bytes.
    pub const ENDPOINT: u16 = 2;
    /// A read returned 0: the stream ends at [`super::StreamBody::offset`].
    pub const END: u16 = 3;
    /// The task replaced its program; no body, the header has the new name.
    pub const EXEC: u16 = 4;
    /// The last thread of the process ended: [`super::ExitBody`].
    pub const EXIT: u16 = 5;
    /// The task created a process: [`super::ForkBody`]. Sent only while a process tree is watched.
    pub const FORK: u16 = 6;
    /// A program was started in a cgroup for the first time, of which the header has the id:
    /// [`super::CgroupBody`].
    pub const CGROUP: u16 = 7;
}

/// What carries a stream; the value of [`StreamBody::carrier`].
pub mod carrier {
    /// An anonymous pipe or a FIFO.
    pub const PIPE: u8 = 1;
    /// A connected `AF_UNIX` stream socket.
    pub const UNIX: u8 = 2;
}

/// Which way the recorded task moved the bytes; the value of [`StreamBody::direction`].
pub mod direction {
    /// The task wrote or sent.
    pub const WRITE: u8 = 0;
    /// The task read or received.
    pub const READ: u8 = 1;
}

/// Bits of [`RecordHeader::flags`].
pub mod flags {
    /// The bytes are the reader's copy: no writer was known when they were read.
    pub const READER_COPY: u16 = 1;
    /// Bytes could not be read from the task's memory. The record has none; its offset is the
    /// position after the hole.
    pub const FAULT: u16 = 2;
    /// The task runs a program that only hands bytes on, see [`crate::relay`].
    pub const RELAY: u16 = 4;
}

/// Starts every record. 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecordHeader {
    /// One of [`kind`].
    pub kind: u16,
    /// Bits of [`flags`].
    pub flags: u16,
    /// Bytes of the whole record, this header included.
    pub len: u32,
    /// Boot clock at the system call's exit, ns (`bpf_ktime_get_boot_ns`).
    pub at: u64,
    /// Process (kernel `tgid`), in the initial pid namespace.
    pub pid: u32,
    /// Thread (kernel `pid`), in the initial pid namespace.
    pub tid: u32,
    /// `start_boottime` of the thread group's leader, ns: tells a reused pid apart.
    pub start: u64,
    /// Process id of the parent (`real_parent->tgid`).
    pub ppid: u32,
    /// Effective user id in the initial user namespace.
    pub uid: u32,
    /// Cgroup v2 id; 1 is the root.
    pub cgroup: u64,
    /// Name of the thread group's leader, padded with NUL.
    pub comm: [u8; 16],
}

/// Body of [`kind::DATA`], [`kind::ENDPOINT`] and [`kind::END`]. 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StreamBody {
    /// Device of the inode, the kernel's encoding (major << 20 | minor).
    pub dev: u32,
    /// One of [`carrier`].
    pub carrier: u8,
    /// One of [`direction`].
    pub direction: u8,
    /// Always 0.
    pub reserved: u16,
    /// Inode of the pipe, or of the recorded task's own socket.
    pub ino: u64,
    /// Inode of the peer's socket, 0 for pipes and where it was closed before it was seen.
    pub peer: u64,
    /// Boot clock when the stream's kernel entry was made, ns. Another value for the same inode and
    /// direction means a reused inode or an evicted entry: what lies between is unknown.
    pub nonce: u64,
    /// Position in this direction of the stream, in bytes since its kernel entry was made.
    pub offset: u64,
    /// Bytes of this direction that were ruled out before `offset` and not copied on purpose.
    pub skipped: u64,
    /// Bytes that the system call moved.
    pub call_len: u64,
    /// Position of the record's first byte within the call.
    pub call_offset: u64,
}

/// Body of [`kind::EXIT`]. 8 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ExitBody {
    /// Wait status as `waitpid` gives it: exit code << 8, or the signal in the low 7 bits.
    pub status: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Body of [`kind::FORK`]. 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ForkBody {
    /// `start_boottime` of the child, ns.
    pub child_start: u64,
    /// Process id of the child.
    pub child: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Body of [`kind::CGROUP`]. 384 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CgroupBody {
    /// The cgroup's name, its parent's and so on up to the root, whose name is empty; each ends with
    /// a NUL and is cut to fit.
    pub names: [[u8; CGROUP_NAME]; CGROUP_LEVELS],
}

/// Names in a [`CgroupBody`].
pub const CGROUP_LEVELS: usize = 4;
/// Bytes for one of them.
pub const CGROUP_NAME: usize = 96;

/// Header and stream body together: what stands before the bytes of a data record.
pub const DATA_PREFIX: usize = size_of::<RecordHeader>() + size_of::<StreamBody>();

/// Most payload bytes in one record. Larger calls become several records.
///
/// A record is built in a scratch buffer before `bpf_ringbuf_output`; 32 KiB keeps one CPU's
/// scratch small and is still large enough that the 128-byte prefix does not count.
pub const CHUNK: usize = 32 * 1024;

const _: () = assert!(size_of::<RecordHeader>() == 64);
const _: () = assert!(size_of::<StreamBody>() == 64);
const _: () = assert!(size_of::<ExitBody>() == 8);
const _: () = assert!(size_of::<ForkBody>() == 16);
const _: () = assert!(size_of::<CgroupBody>() == 384);
const _: () = assert!(DATA_PREFIX.is_multiple_of(8));
