//! Globals that user space sets before it loads the programs, and the keys and values of maps.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Key of the stream maps: one direction of one inode. 16 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StreamKey {
    /// Inode of the pipe, or of the socket on whose side the call is made.
    pub ino: u64,
    /// Device of the inode, the kernel's encoding.
    pub dev: u32,
    /// One of [`crate::record::direction`].
    pub direction: u32,
}

/// What the kernel remembers of one direction of a stream; the value in
/// [`crate::names::MAP_STREAMS`] and [`crate::names::MAP_KEPT`]. 64 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct StreamState {
    /// Boot clock when the entry was made, ns.
    pub nonce: u64,
    /// Bytes moved in this direction since then, copied or not. [`state::MOVED`] is set once the
    /// entry was replaced by one among the kept.
    pub offset: u64,
    /// Bytes of those that were ruled out.
    pub skipped: u64,
    /// Inode of the peer's socket; 0 for pipes and until it is known. Remembered, because a closed
    /// peer cannot be resolved any more.
    pub peer: u64,
    /// Tells one inode of this number from another: its address and generation.
    pub identity: u64,
    /// Of a reader's entry, not 0: somebody was seen whose writing is copied, so what is read needs
    /// no copy. A word of its own, because the writer takes it back.
    pub writer_known: u64,
    /// Process that was last reported at this end.
    pub pid: u32,
    /// One of [`verdict`], as last seen in [`crate::names::MAP_VERDICTS`].
    pub verdict: u32,
    /// Bits of [`state`].
    pub flags: u32,
    /// One of [`crate::record::carrier`].
    pub carrier: u32,
}

/// Bits of [`StreamState`].
pub mod state {
    /// In [`super::StreamState::offset`]: the entry moved to the kept streams. No stream moves
    /// 2^63 bytes.
    pub const MOVED: u64 = 1 << 63;
    /// The last copied call began like JSON and has no line end yet: the next call goes on with it.
    pub const OPEN: u32 = 1;
    /// The end was reported.
    pub const ENDED: u32 = 2;
    /// What is written here is not copied: the reader's copy counts.
    pub const MUTE: u32 = 4;
    /// The table of kept streams was full when this stream was judged.
    pub const NOT_KEPT: u32 = 8;
    /// Reads were not copied, because a writer was known.
    pub const FOLLOWED: u32 = 16;
}

/// What the engine decided on a stream; the value in [`crate::names::MAP_VERDICTS`].
pub mod verdict {
    /// Nothing yet: look at each call.
    pub const NONE: u32 = 0;
    /// Not MCP so far: copy only calls whose first bytes may start a message.
    pub const IGNORE: u32 = 1;
    /// Never copy (mcpspy's own output).
    pub const NEVER: u32 = 2;
    /// MCP: copy every byte and never forget its state.
    pub const KEEP: u32 = 3;
    /// A write on this pipe tells the kernel who mcpspy is.
    pub const SELF_MARK: u32 = 4;
}

/// What a system call does with bytes; an entry of the table [`crate::names::GLOBAL_SYSCALLS`].
pub mod class {
    /// Bits that say how the call names its bytes; 0 is a call of no interest.
    pub const SHAPE: u8 = 0x0f;
    /// `(fd, buffer, length)`.
    pub const FLAT: u8 = 1;
    /// `(fd, buffer, length, flags)`.
    pub const FLAT_FLAGS: u8 = 2;
    /// `(fd, iovec, count)`.
    pub const VECTOR: u8 = 3;
    /// `(fd, msghdr, flags)`.
    pub const MESSAGE: u8 = 4;
    /// `(fd, mmsghdr, count, flags)`; returns a number of messages.
    pub const MESSAGES: u8 = 5;
    /// Moves bytes where the hook cannot see them.
    pub const UNSEEN: u8 = 6;
    /// The call writes or sends.
    pub const WRITE: u8 = 0x10;
    /// The number means a call that moves bytes in the 32-bit table.
    pub const COMPAT: u8 = 0x80;
    /// Entries of the table. Numbers of both architectures end before 480 today.
    pub const TABLE: usize = 512;
}

/// Positions within the kernel's structures, in bytes, from its BTF; the value of
/// [`crate::names::GLOBAL_OFFSETS`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(missing_docs, reason = "each is named after its structure and member")]
pub struct Offsets {
    pub regs_nr: u32,
    pub regs_arg0: u32,
    pub regs_arg1: u32,
    pub regs_arg2: u32,
    pub regs_arg3: u32,
    /// Word of the task that says whether the call is a 32-bit one.
    pub task_compat: u32,
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_start_boottime: u32,
    pub task_group_leader: u32,
    pub task_real_parent: u32,
    pub task_cred: u32,
    pub task_comm: u32,
    pub task_files: u32,
    pub task_signal: u32,
    pub task_exit_code: u32,
    pub cred_euid: u32,
    pub signal_live: u32,
    pub files_fdt: u32,
    pub fdt_max_fds: u32,
    pub fdt_fd: u32,
    /// First byte and size of the part of `struct file` that is read at once, and the positions of
    /// members within it; see [`window`]. Where they lie too far apart, the size is 0 and the
    /// positions are those within the structure.
    pub file_window: u32,
    pub file_size: u32,
    pub file_op: u32,
    pub file_inode: u32,
    /// The same of `struct inode`.
    pub inode_window: u32,
    pub inode_size: u32,
    pub window_sb: u32,
    pub window_ino: u32,
    pub inode_mode: u32,
    pub inode_ino: u32,
    pub inode_generation: u32,
    pub super_dev: u32,
    /// From `struct socket` to the `struct inode` beside it in `struct socket_alloc`.
    pub socket_to_inode: u32,
    pub socket_type: u32,
    pub socket_ops: u32,
    pub socket_sk: u32,
    pub sock_family: u32,
    pub sock_socket: u32,
    pub unix_peer: u32,
    pub task_cgroups: u32,
    pub css_set_default: u32,
    pub cgroup_node: u32,
    pub node_id: u32,
    pub task_mm: u32,
    pub mm_exe_file: u32,
    pub file_dentry: u32,
    pub dentry_name: u32,
    /// These two only where [`Settings::cgroup_names`] is set.
    pub node_name: u32,
    pub node_parent: u32,
}

/// A part of a kernel structure that is read at once: a helper call costs as much as reading some
/// hundred bytes.
pub mod window {
    /// Most bytes of one; 32 are needed by 6.18 and by 5.15.
    pub const SIZE: usize = 48;
}

/// Settings of the kernel side; the value of [`crate::names::GLOBAL_SETTINGS`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Settings {
    /// Bits of the word at [`Offsets::task_compat`] that mean a 32-bit call.
    pub compat_mask: u32,
    /// Device of pipefs, the kernel's encoding.
    pub pipe_dev: u32,
    /// Device of sockfs.
    pub socket_dev: u32,
    /// Not 0: only processes in [`crate::names::MAP_TREE`] are watched.
    pub tree: u32,
    /// Not 0: the kernel has `bpf_loop` (5.17).
    pub has_loop: u32,
    /// Not 0: kernel structures may be read by plain loads.
    pub direct: u32,
    /// Scratch buffers: one per CPU and a few to spare.
    pub scratch: u32,
    /// Bytes in the ring at which its reader is woken at once; below it polls.
    pub wake_bytes: u32,
    /// Bytes that a scratch buffer sends before it asks how much waits in the ring.
    pub ask_bytes: u32,
    /// Number, in the kernel's type information, of a structure that begins with a number of 64
    /// bits. Not 0: calls marked [`CAST_MARK`] call the kernel's `bpf_rdonly_cast`.
    pub number_type: u32,
    /// Not 0: [`crate::names::MAP_MUTED`] is looked at.
    pub cgroup_filter: u32,
    /// Not 0: names of cgroups can be read.
    pub cgroup_names: u32,
}

/// Stands in the object for the number of the kernel's function `bpf_rdonly_cast` (6.2), which is
/// another one in each kernel: user space puts that in before it loads the programs. No helper has
/// this number, so a call that was left as it is and could be reached would be refused.
pub const CAST_MARK: u32 = 0x6d63_7073;

const _: () = assert!(size_of::<StreamKey>() == 16);
const _: () = assert!(size_of::<StreamState>() == 64);
