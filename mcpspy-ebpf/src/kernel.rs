//! The only file that walks the kernel's structures. Positions come from its BTF, see
//! [`mcpspy_common::config::Offsets`].

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
    bpf_probe_read_user, bpf_task_pt_regs,
};
use mcpspy_common::config::{CAST_MARK, window};
use mcpspy_common::record::{CGROUP_LEVELS, CGROUP_NAME, CgroupBody, carrier};
use mcpspy_common::relay::KEY;

use crate::atomic::Word;
use crate::maps::{
    FILE_KINDS, FILE_KINDS_SIZE, FileKinds, PIPE_SUPER, UNIX_STREAM_OPS, ZERO, offset, setting,
};

/// `S_IFMT` and two of its values.
const FORMAT: u16 = 0xf000;
const FIFO: u16 = 0x1000;
const SOCKET: u16 = 0xc000;
const AF_UNIX: u16 = 1;
const SOCK_STREAM: u16 = 1;

/// A pointer that the verifier knows the type of; [`load`] reads through it.
pub type Typed = *const u8;

/// Reads a member of a structure that the verifier knows: a plain load where it allows that (about
/// 1 ns), else a helper call (about 20 ns). The position is a constant to the verifier, because the
/// globals are frozen. A null or stale pointer reads as 0, both ways.
#[inline(always)]
pub fn load<T: Copy>(base: Typed, position: usize) -> T {
    if setting!(direct) != 0 {
        unsafe { read_volatile(base.add(position).cast()) }
    } else {
        probe(base as u64, position)
    }
}

/// Reads kernel memory at an address that is only a number to the verifier; see [`load`] for what
/// that costs. `T` is a number of at most 64 bits.
#[inline(always)]
pub fn probe<T: Copy>(base: u64, position: usize) -> T {
    if setting!(number_type) != 0 {
        return unsafe { read_volatile(cast(base.wrapping_add(position as u64)).cast()) };
    }
    let mut value = MaybeUninit::<T>::uninit();
    unsafe {
        // On failure the helper fills with zeros.
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            (base.wrapping_add(position as u64)) as *const c_void,
        );
        value.assume_init()
    }
}

/// Lets the verifier take an address for that of a structure that begins with a number. The call is
/// none when the program runs: the verifier makes an assignment of it. A load through the result
/// reads 0 where nothing is, as the helper does.
#[inline(always)]
fn cast(address: u64) -> Typed {
    type Cast = unsafe extern "C" fn(address: u64, type_id: u32) -> Typed;
    unsafe {
        let cast: Cast = core::mem::transmute(CAST_MARK as usize);
        cast(address, setting!(number_type))
    }
}

/// Reads two members of a structure at once, see [`window`]. `size` is at most [`window::SIZE`],
/// which the verifier sees, because it is a frozen global.
#[inline(always)]
fn pair(base: u64, start: usize, size: usize, first: usize, second: usize) -> (u64, u64) {
    if setting!(number_type) != 0 {
        let base = base.wrapping_add(start as u64);
        return (probe(base, first), probe(base, second));
    }
    if size == 0 {
        return (probe(base, first), probe(base, second));
    }
    let mut bytes = MaybeUninit::<[u64; window::SIZE / 8]>::uninit();
    unsafe {
        bpf_probe_read_kernel(
            bytes.as_mut_ptr().cast(),
            size as u32,
            base.wrapping_add(start as u64) as *const c_void,
        );
        let at = |position| read_volatile(bytes.as_ptr().byte_add(position).cast::<u64>());
        (at(first), at(second))
    }
}

/// Reads the task's memory; zeros where it is not there.
#[inline(always)]
pub fn probe_user<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    unsafe {
        // As above.
        bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        );
        value.assume_init()
    }
}

/// The current task.
#[inline(always)]
pub fn current() -> Typed {
    unsafe { bpf_get_current_task_btf() as Typed }
}

/// The registers that the current task entered the kernel with.
#[inline(always)]
pub fn registers(task: Typed) -> Typed {
    unsafe { bpf_task_pt_regs(task as *mut _) as Typed }
}

/// An end of a stream, found behind a file descriptor.
#[derive(Clone, Copy)]
pub struct End {
    /// One of [`carrier`].
    pub carrier: u8,
    pub dev: u32,
    pub ino: u64,
    /// Address of the inode, and for a FIFO in a file system its generation.
    pub identity: u64,
    /// `struct sock`, 0 for pipes.
    pub inode: u64,
}

/// What a file descriptor of the current task refers to, where that is a pipe or a stream socket
/// of `AF_UNIX`.
#[inline(always)]
pub fn end_of(task: Typed, fd: u32) -> Option<End> {
    let files: Typed = load(task, offset!(task_files));
    let fdt: Typed = load(files, offset!(files_fdt));
    if fd >= load::<u32>(fdt, offset!(fdt_max_fds)) {
        return None;
    }
    let table: u64 = load(fdt, offset!(fdt_fd));
    let file: u64 = probe(table.wrapping_add(u64::from(fd) * 8), 0);
    if file == 0 {
        return None;
    }
    let (ops, inode) =
        pair(file, offset!(file_window), offset!(file_size), offset!(file_op), offset!(file_inode));
    let kind = match FILE_KINDS.find(ops) {
        Kind::UNKNOWN => {
            let kind = match probe::<u16>(inode, offset!(inode_mode)) & FORMAT {
                FIFO => Kind::PIPE,
                SOCKET => Kind::SOCKET,
                _ => Kind::OTHER,
            };
            FILE_KINDS.remember(ops, kind);
            kind
        }
        Kind::OTHER => return None,
        kind => kind,
    };
    match kind {
        Kind::PIPE => pipe(inode),
        Kind::SOCKET => socket(inode),
        _ => None,
    }
}

/// What kind of file an address of `struct file_operations` stands for. Pipes, FIFOs and sockets
/// have operations of their own, which no other file has (fs/inode.c, `init_special_inode`), so
/// comparing an address saves reading the inode of every regular file. A pipe and a FIFO differ
/// since 6.14.
struct Kind;

impl Kind {
    const UNKNOWN: u64 = 0;
    const PIPE: u64 = 1;
    const SOCKET: u64 = 2;
    const OTHER: u64 = 3;
    const MASK: u64 = 3;
}

impl FileKinds {
    /// The structures are aligned, so the kind fits into the low bits of the address.
    #[inline(always)]
    fn find(&self, ops: u64) -> u64 {
        let entry = self.at(ops).get();
        if entry & !Kind::MASK == ops { entry & Kind::MASK } else { Kind::UNKNOWN }
    }

    #[inline(always)]
    fn remember(&self, ops: u64, kind: u64) {
        if ops & Kind::MASK == 0 {
            self.at(ops).set(ops | kind);
        }
    }

    #[inline(always)]
    fn at(&self, ops: u64) -> &Word {
        // They lie some 300 bytes apart; a collision costs the look at the inode.
        let slot = (ops >> 5 ^ ops >> 10) as usize & (FILE_KINDS_SIZE - 1);
        unsafe { &*self.0.as_ptr().add(slot) }
    }
}

/// See [`ZERO`].
#[inline(always)]
fn forget(carrier: u8) -> u8 {
    carrier | ZERO.get() as u8
}

#[inline(always)]
fn pipe(inode: u64) -> Option<End> {
    let (sb, ino) = pair(
        inode,
        offset!(inode_window),
        offset!(inode_size),
        offset!(window_sb),
        offset!(window_ino),
    );
    let known = PIPE_SUPER.get();
    if sb == known && sb != 0 {
        let dev = setting!(pipe_dev);
        return Some(End { carrier: forget(carrier::PIPE), dev, ino, identity: inode, inode });
    }
    let dev: u32 = probe(sb, offset!(super_dev));
    if dev == setting!(pipe_dev) {
        PIPE_SUPER.set(sb);
    }
    // A file system may give a deleted FIFO's inode, number and address to the next one.
    let generation: u32 = probe(inode, offset!(inode_generation));
    let identity = inode ^ (u64::from(generation) << 32);
    Some(End { carrier: forget(carrier::PIPE), dev, ino, identity, inode })
}

#[inline(always)]
fn socket(inode: u64) -> Option<End> {
    let socket = inode.wrapping_sub(offset!(socket_to_inode) as u64);
    let ops: u64 = probe(socket, offset!(socket_ops));
    let known = UNIX_STREAM_OPS.get();
    if known == 0 || ops == 0 {
        let sk: u64 = probe(socket, offset!(socket_sk));
        if probe::<u16>(sk, offset!(sock_family)) != AF_UNIX
            || probe::<u16>(socket, offset!(socket_type)) != SOCK_STREAM
        {
            return None;
        }
        UNIX_STREAM_OPS.set(ops);
    } else if ops != known {
        return None;
    }
    let ino: u64 = probe(inode, offset!(inode_ino));
    let dev = setting!(socket_dev);
    Some(End { carrier: forget(carrier::UNIX), dev, ino, identity: inode, inode })
}

/// Inode of the socket that a Unix socket is connected to; 0 where it is closed or not yet
/// accepted.
#[inline(always)]
pub fn peer_of(inode: u64) -> u64 {
    let socket = inode.wrapping_sub(offset!(socket_to_inode) as u64);
    let sk: u64 = probe(socket, offset!(socket_sk));
    let peer: u64 = probe(sk, offset!(unix_peer));
    if peer == 0 {
        return 0;
    }
    let peer_socket: u64 = probe(peer, offset!(sock_socket));
    if peer_socket == 0 {
        return 0;
    }
    probe(peer_socket, offset!(socket_to_inode) + offset!(inode_ino))
}

/// Name of the file that the task executes, padded with NUL and cut at the size of a key. Returns
/// its length with one NUL, or a negative number.
///
/// A task has changed its memory, and with it this file, before the kernel says that it has a new
/// program (fs/exec.c, `begin_new_exec` and `exec_binprm`).
#[inline(always)]
pub fn program_name(task: Typed, to: *mut u64) -> i64 {
    let mm: u64 = probe(task as u64, offset!(task_mm));
    let file: u64 = probe(mm, offset!(mm_exe_file));
    let dentry: u64 = probe(file, offset!(file_dentry));
    let name: u64 = probe(dentry, offset!(dentry_name));
    clear(to, KEY / 8);
    unsafe { bpf_probe_read_kernel_str(to.cast(), KEY as u32, name as *const c_void) }
}

/// Names of the task's cgroup in the v2 tree and of those above it.
#[inline(always)]
pub fn cgroup_names(task: Typed, to: *mut CgroupBody) {
    let set: u64 = probe(task as u64, offset!(task_cgroups));
    let group: u64 = probe(set, offset!(css_set_default));
    let mut node: u64 = probe(group, offset!(cgroup_node));
    clear(to.cast(), size_of::<CgroupBody>() / 8);
    for level in 0..CGROUP_LEVELS {
        // Above the root there is nothing, which reads as an empty name.
        let name: u64 = probe(node, offset!(node_name));
        unsafe {
            let to = core::ptr::addr_of_mut!((*to).names[level]);
            bpf_probe_read_kernel_str(to.cast(), CGROUP_NAME as u32, name as *const c_void);
        }
        node = probe(node, offset!(node_parent));
    }
}

/// Word by word, or the compiler would make a call to `memset` of it.
#[inline(always)]
fn clear(to: *mut u64, words: usize) {
    for i in 0..words {
        unsafe { to.add(i).write_volatile(0) };
    }
}
