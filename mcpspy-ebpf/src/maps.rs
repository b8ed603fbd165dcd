//! Every map and global: who writes, who reads, what bounds it.

use crate::atomic::Word;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use mcpspy_common::config::{Offsets, Settings, StreamKey, StreamState, class};
use mcpspy_common::names::counter;
use mcpspy_common::relay::NameKey;

use crate::emit::Slot;

/// Records to user space. Written by `emit` alone. Size set at load.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(32 << 20, 0);

/// State of streams that nobody asked to keep. A flood of short-lived pipes evicts here.
#[map]
pub static STREAMS: LruHashMap<StreamKey, StreamState> = LruHashMap::with_max_entries(65536, 0);

/// State of streams judged MCP, written by the kernel, deleted by user space. Preallocated: memory
/// may not be allocated in every context before 6.1.
#[map]
pub static KEPT: HashMap<StreamKey, StreamState> = HashMap::with_max_entries(8192, 0);

/// Verdicts of the engine. Written by user space alone.
#[map]
pub static VERDICTS: LruHashMap<StreamKey, u32> = LruHashMap::with_max_entries(16384, 0);

/// Processes of the watched tree. User space adds the root, the kernel what it forks.
#[map]
pub static TREE: HashMap<u32, u32> = HashMap::with_max_entries(32768, 0);

/// Names of programs that only hand bytes on. Written by user space alone, before the hooks are
/// attached. Size set at load.
#[map]
pub static RELAY_NAMES: HashMap<NameKey, u32> = HashMap::with_max_entries(64, 0);

/// Processes that run such a program. User space adds those that ran before, the kernel all others.
#[map]
pub static RELAYS: HashMap<u32, u32> = HashMap::with_max_entries(16384, 0);

/// Cgroups whose names were sent. One that is evicted is told of again.
#[map]
pub static CGROUPS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(4096, 0);

/// Cgroups whose processes' bytes are not copied. Written by user space alone. Size set at load.
#[map]
pub static MUTED: HashMap<u64, u32> = HashMap::with_max_entries(16384, 0);

/// Counters, summed over CPUs by user space.
#[map]
static COUNTERS: PerCpuArray<[u64; counter::COUNT]> = PerCpuArray::with_max_entries(1, 0);

/// Buffers in which records are built, claimed for the length of one call. Number set at load.
/// Not a per-CPU array: its values are limited to 32 KiB (`PCPU_MIN_UNIT_SIZE`).
#[map]
pub static SCRATCH: Array<Slot> = Array::with_max_entries(4, 0);

/// Set by user space before the load, frozen: the verifier takes the values for constants.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = unsafe { core::mem::zeroed() };
/// As above.
#[unsafe(no_mangle)]
static SETTINGS: Settings = unsafe { core::mem::zeroed() };
/// As above.
#[unsafe(no_mangle)]
static SYSCALLS: [u8; class::TABLE] = [0; class::TABLE];

/// mcpspy's own process, once it has told; 0 before.
pub static SELF_PID: Word = Word::new();
/// Always 0, which the verifier does not know. It follows each combination of known values apart;
/// a constant that went through this is like any other value of its type.
pub static ZERO: Word = Word::new();

/// What kind of file each `struct file_operations` stands for, learned from the files seen; see
/// `kernel`.
pub static FILE_KINDS: FileKinds = FileKinds([const { Word::new() }; FILE_KINDS_SIZE]);
pub const FILE_KINDS_SIZE: usize = 32;
pub struct FileKinds(pub [Word; FILE_KINDS_SIZE]);
/// Streams that were found among the kept: there they are looked for first. Each look takes some
/// 60 ns. A mark that is out of date costs one look.
pub static KEPT_HINTS: KeptHints = KeptHints([const { Word::new() }; KEPT_HINTS_SIZE]);
pub const KEPT_HINTS_SIZE: usize = 256;
pub struct KeptHints(pub [Word; KEPT_HINTS_SIZE]);
/// `unix_stream_ops` and pipefs' super block, learned from the first stream socket and pipe.
pub static UNIX_STREAM_OPS: Word = Word::new();
pub static PIPE_SUPER: Word = Word::new();

/// Reads one of [`Offsets`]. Volatile, or the compiler would put in the zero it sees here.
macro_rules! offset {
    ($field:ident) => {
        $crate::maps::offsets(core::mem::offset_of!(mcpspy_common::config::Offsets, $field))
    };
}
/// Reads one of [`Settings`].
macro_rules! setting {
    ($field:ident) => {
        $crate::maps::settings(core::mem::offset_of!(mcpspy_common::config::Settings, $field))
    };
}
pub(crate) use {offset, setting};

#[inline(always)]
pub fn offsets(position: usize) -> usize {
    unsafe { read_volatile(addr_of!(OFFSETS).byte_add(position).cast::<u32>()) as usize }
}

#[inline(always)]
pub fn settings(position: usize) -> u32 {
    unsafe { read_volatile(addr_of!(SETTINGS).byte_add(position).cast::<u32>()) }
}

/// Class of a system call, 0 for numbers outside the table.
#[inline(always)]
pub fn class_of(nr: u32) -> u8 {
    if nr as usize >= class::TABLE {
        return 0;
    }
    unsafe { read_volatile(addr_of!(SYSCALLS).cast::<u8>().add(nr as usize)) }
}

/// Adds to a counter of this CPU.
#[inline(always)]
pub fn count(slot: usize, n: u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // Not atomic: another program on this CPU may come between only by preemption, which the
        // tracepoints used here exclude.
        unsafe { (*counters)[slot] = (*counters)[slot].wrapping_add(n) };
    }
}
