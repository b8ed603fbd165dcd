//! The only writer of the ring buffer: claims a scratch buffer, gathers a call's bytes into it and
//! sends them in records of at most [`CHUNK`] bytes.

use core::ffi::c_void;
use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_loop, bpf_probe_read_user, bpf_ringbuf_output, bpf_ringbuf_query,
};
use mcpspy_common::config::StreamKey;
use mcpspy_common::names::counter;
use mcpspy_common::record::{
    CHUNK, CgroupBody, DATA_PREFIX, ExitBody, ForkBody, RecordHeader, StreamBody, flags, kind,
};

use crate::atomic;
use crate::kernel::{Typed, cgroup_names, probe_user};
use crate::maps::{EVENTS, SCRATCH, count, setting};
use crate::task::describe;

/// Most bytes of one call that are copied; the rest is counted as cut. Far beyond any message that
/// is shown, and a bound on how long one run of the program takes.
const MAX_CALL: u64 = 64 << 20;
/// Steps of the copy loop: each copies or sends a chunk, or takes the next piece of a vector.
const MAX_STEPS: u32 = 16384;
/// The same where the kernel has no `bpf_loop` (5.15), which has to look at each step: enough for
/// 6 MiB in one piece.
const MAX_STEPS_UNROLLED: u32 = 400;

const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// Where a call's bytes are in the task's memory.
#[derive(Clone, Copy)]
pub struct Source {
    /// Bytes of the call.
    pub len: u64,
    /// Current piece.
    pub base: u64,
    pub piece: u64,
    /// Further pieces: `struct iovec`.
    pub iov: u64,
    pub iov_left: u64,
    /// Bytes of the current message; a message may fill only a part of its vector.
    pub message: u64,
    /// Further messages: `struct mmsghdr`.
    pub mmsg: u64,
    pub mmsg_left: u64,
}

/// A scratch buffer. The state of the copy loop lives here and not in registers: the verifier
/// forgets what it knows of a value in memory, so that one pass of the loop looks like the next
/// (with registers it ran into its limit of a million instructions).
#[repr(C)]
pub struct Slot {
    busy: u64,
    left: u64,
    base: u64,
    piece: u64,
    iov: u64,
    iov_left: u64,
    message: u64,
    mmsg: u64,
    mmsg_left: u64,
    /// Bytes gathered and not yet sent.
    fill: u64,
    /// Bytes of the record that was sent last.
    sent: u64,
    /// Bytes that could not be read and are not yet reported.
    fault: u64,
    /// Bytes sent since the ring was asked how much waits in it.
    unasked: u64,
    header: RecordHeader,
    body: StreamBody,
    /// Twice the size that is used: the verifier bounds position and length apart.
    data: [u8; 2 * CHUNK],
}

macro_rules! get {
    ($slot:ident.$field:ident) => {
        unsafe { addr_of!((*$slot).$field).read_volatile() }
    };
}
macro_rules! set {
    ($slot:ident.$field:ident, $value:expr) => {
        unsafe { addr_of_mut!((*$slot).$field).write_volatile($value) }
    };
}

/// What a data record says apart from its bytes.
#[derive(Clone, Copy)]
pub struct Origin {
    pub key: StreamKey,
    pub carrier: u8,
    pub peer: u64,
    pub nonce: u64,
    pub offset: u64,
    pub skipped: u64,
    /// Of the whole call.
    pub len: u64,
}

/// Copies a call's bytes. Returns the last byte, or [`NO_BYTE`].
#[inline(always)]
pub fn data(task: Typed, origin: &Origin, source: &Source, record_flags: u16) -> u64 {
    count(counter::ADMITTED_BYTES, origin.len);
    let Some((index, slot)) = claim() else {
        count(counter::SCRATCH_BUSY_BYTES, origin.len);
        return NO_BYTE;
    };
    let take = if origin.len > MAX_CALL { MAX_CALL } else { origin.len };
    unsafe {
        describe(task, addr_of_mut!((*slot).header));
        (*slot).header.kind = kind::DATA;
        (*slot).header.flags = record_flags;
        fill_body(addr_of_mut!((*slot).body), origin);
    }
    // Nearly every call has one piece and fits into one record.
    if source.piece == origin.len && origin.len <= CHUNK as u64 {
        let last = straight(index, source.base, origin.len);
        if last != NO_BYTE {
            return last;
        }
    }
    set!(slot.left, take);
    set!(slot.base, source.base);
    set!(slot.piece, source.piece);
    set!(slot.iov, source.iov);
    set!(slot.iov_left, source.iov_left);
    set!(slot.message, source.message);
    set!(slot.mmsg, source.mmsg);
    set!(slot.mmsg_left, source.mmsg_left);
    set!(slot.fill, 0);
    set!(slot.sent, 0);
    set!(slot.fault, 0);
    let last = copy(index);
    let cut = origin.len - take + get!(slot.left);
    if cut != 0 {
        count(counter::CUT_BYTES, cut);
    }
    release(slot);
    last
}

/// Copies and sends a call of one piece and one record, which takes half the time of the loop, and
/// releases the slot. Returns the last byte; [`NO_BYTE`] where the bytes cannot be read: then nothing
/// was done.
///
/// Exported for the same reason as [`copy`].
#[unsafe(no_mangle)]
pub extern "C" fn straight(index: u32, base: u64, len: u64) -> u64 {
    let Some(slot) = SCRATCH.get_ptr_mut(index) else { return NO_BYTE };
    // As in `step`.
    let n = black_box(len);
    if n == 0 || n > CHUNK as u64 {
        return NO_BYTE;
    }
    let data = unsafe { addr_of_mut!((*slot).data).cast::<u8>() };
    if unsafe { bpf_probe_read_user(data.cast(), n as u32, base as *const c_void) } != 0 {
        return NO_BYTE;
    }
    let last = u64::from(unsafe { data.add(n as usize - 1).read_volatile() });
    let size = n + DATA_PREFIX as u64;
    unsafe { (*slot).header.len = size as u32 };
    if write(slot, size) {
        count(counter::RECORDS, 1);
        count(counter::COPIED_BYTES, n);
        // A plain store: the ring is a full barrier once it has taken a record.
        set!(slot.busy, 0);
    } else {
        count(counter::RING_FULL, 1);
        count(counter::RING_FULL_BYTES, n);
        release(slot);
    }
    last
}

/// Copies and sends what the slot of this number says. Returns the last byte, or [`NO_BYTE`].
///
/// Exported, which makes it a global function to the verifier: it is looked at once for any
/// argument, and not again for each way that leads here.
#[unsafe(no_mangle)]
pub extern "C" fn copy(index: u32) -> u64 {
    let Some(slot) = SCRATCH.get_ptr_mut(index) else { return NO_BYTE };
    if setting!(has_loop) != 0 {
        let mut context = slot;
        unsafe {
            bpf_loop(MAX_STEPS, step_callback as *mut c_void, addr_of_mut!(context).cast(), 0);
        }
    } else {
        for _ in 0..MAX_STEPS_UNROLLED {
            if !step(slot) {
                break;
            }
        }
    }
    // What is left where the pieces ended before the bytes did.
    let fill = black_box(get!(slot.fill));
    if fill != 0 {
        send(slot, fill);
    }
    let sent = black_box(get!(slot.sent));
    if sent == 0 || sent > CHUNK as u64 {
        return NO_BYTE;
    }
    u64::from(unsafe { addr_of!((*slot).data).cast::<u8>().add(sent as usize - 1).read_volatile() })
}

/// No byte was copied.
const NO_BYTE: u64 = 256;

/// Sends a record about a stream without bytes.
#[inline(always)]
pub fn stream_fact(task: Typed, record_kind: u16, origin: &Origin, record_flags: u16) {
    let mut record = MaybeUninit::<(RecordHeader, StreamBody)>::uninit();
    let record = record.as_mut_ptr();
    unsafe {
        describe(task, addr_of_mut!((*record).0));
        fill_body(addr_of_mut!((*record).1), origin);
        send_fact(record.cast(), record_kind, record_flags, DATA_PREFIX);
    }
}

/// Sends that the task has replaced its program.
#[inline(always)]
pub fn exec_fact(task: Typed, record_flags: u16) {
    let mut record = MaybeUninit::<RecordHeader>::uninit();
    let record = record.as_mut_ptr();
    unsafe {
        describe(task, record);
        send_fact(record, kind::EXEC, record_flags, size_of::<RecordHeader>());
    }
}

/// Sends how the current process ended.
#[inline(always)]
pub fn exit_fact(task: Typed, status: u32, record_flags: u16) {
    let mut record = MaybeUninit::<(RecordHeader, ExitBody)>::uninit();
    let record = record.as_mut_ptr();
    unsafe {
        describe(task, addr_of_mut!((*record).0));
        (*record).1 = ExitBody { status, reserved: 0 };
        send_fact(record.cast(), kind::EXIT, record_flags, size_of::<(RecordHeader, ExitBody)>());
    }
}

/// Sends which process the current one created.
#[inline(always)]
pub fn fork_fact(task: Typed, child: u32, child_start: u64, record_flags: u16) {
    let mut record = MaybeUninit::<(RecordHeader, ForkBody)>::uninit();
    let record = record.as_mut_ptr();
    unsafe {
        describe(task, addr_of_mut!((*record).0));
        (*record).1 = ForkBody { child_start, child, reserved: 0 };
        send_fact(record.cast(), kind::FORK, record_flags, size_of::<(RecordHeader, ForkBody)>());
    }
}

/// Sends the names of the task's cgroup; `false` where it could not. The record is too large for the
/// stack.
#[inline(always)]
pub fn cgroup_fact(task: Typed, record_flags: u16) -> bool {
    let Some((_, slot)) = claim() else {
        count(counter::RING_FULL_FACTS, 1);
        return false;
    };
    let sent = unsafe {
        let record: *mut (RecordHeader, CgroupBody) = addr_of_mut!((*slot).header).cast();
        describe(task, addr_of_mut!((*record).0));
        cgroup_names(task, addr_of_mut!((*record).1));
        let len = size_of::<(RecordHeader, CgroupBody)>();
        send_fact(record.cast(), kind::CGROUP, record_flags, len)
    };
    release(slot);
    sent
}

#[inline(always)]
unsafe fn send_fact(
    record: *mut RecordHeader,
    record_kind: u16,
    record_flags: u16,
    len: usize,
) -> bool {
    unsafe {
        (*record).kind = record_kind;
        (*record).flags = record_flags;
        (*record).len = len as u32;
    }
    let sent = output(record.cast(), len as u64);
    count(if sent { counter::RECORDS } else { counter::RING_FULL_FACTS }, 1);
    sent
}

#[inline(always)]
unsafe fn fill_body(body: *mut StreamBody, origin: &Origin) {
    unsafe {
        (*body).dev = origin.key.dev;
        (*body).carrier = origin.carrier;
        (*body).direction = origin.key.direction as u8;
        (*body).reserved = 0;
        (*body).ino = origin.key.ino;
        (*body).peer = origin.peer;
        (*body).nonce = origin.nonce;
        (*body).offset = origin.offset;
        (*body).skipped = origin.skipped;
        (*body).call_len = origin.len;
        (*body).call_offset = 0;
    }
}

/// Takes a free buffer: this CPU's, or one of the spare ones where a program on this CPU was
/// preempted while it held that.
#[inline(always)]
fn claim() -> Option<(u32, *mut Slot)> {
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let last = setting!(scratch).wrapping_sub(1);
    take(cpu).or_else(|| take(last)).or_else(|| take(last.wrapping_sub(1)))
}

#[inline(always)]
fn take(index: u32) -> Option<(u32, *mut Slot)> {
    let slot = SCRATCH.get_ptr_mut(index)?;
    if atomic::swap(unsafe { addr_of_mut!((*slot).busy) }, 1) == 0 {
        Some((index, slot))
    } else {
        None
    }
}

#[inline(always)]
fn release(slot: *mut Slot) {
    // A swap and not a store: it is a full barrier.
    atomic::swap(unsafe { addr_of_mut!((*slot).busy) }, 0);
}

/// Called by `bpf_loop`: `context` points to the pointer to the slot. 0 goes on, 1 stops.
extern "C" fn step_callback(_index: u64, context: *mut *mut Slot) -> i64 {
    i64::from(!step(unsafe { *context }))
}

/// One step of the copy loop; `false` ends it.
#[inline(always)]
fn step(slot: *mut Slot) -> bool {
    let fill = black_box(get!(slot.fill));
    let left = get!(slot.left);
    let fault = get!(slot.fault);
    if fill >= CHUNK as u64 || fault != 0 || left == 0 {
        send(slot, fill);
        return left != 0 || get!(slot.fault) != 0;
    }
    let message = get!(slot.message);
    let piece = get!(slot.piece);
    if message == 0 {
        return next_message(slot);
    }
    if piece == 0 {
        return next_piece(slot);
    }
    let mut n = CHUNK as u64 - fill;
    if n > piece {
        n = piece;
    }
    if n > message {
        n = message;
    }
    if n > left {
        n = left;
    }
    // The compiler knows the bound and would leave the check out, the verifier does not.
    let n = black_box(n);
    if n > CHUNK as u64 {
        return false;
    }
    let base = get!(slot.base);
    set!(slot.left, left.wrapping_sub(n));
    set!(slot.message, message.wrapping_sub(n));
    set!(slot.piece, piece.wrapping_sub(n));
    set!(slot.base, base.wrapping_add(n));
    let failed = unsafe {
        let to = addr_of_mut!((*slot).data).cast::<u8>().add(fill as usize);
        bpf_probe_read_user(to.cast(), n as u32, base as *const c_void) != 0
    };
    if failed {
        set!(slot.fault, n);
    } else {
        set!(slot.fill, fill.wrapping_add(n));
    }
    true
}

/// Goes on to the next `struct iovec`.
#[inline(always)]
fn next_piece(slot: *mut Slot) -> bool {
    let more = get!(slot.iov_left);
    if more == 0 {
        // Shorter than the call says: end the message, what is missing counts as cut.
        set!(slot.message, 0);
        return get!(slot.mmsg_left) != 0;
    }
    let iov = get!(slot.iov);
    let [base, len] = probe_user::<[u64; 2]>(iov);
    set!(slot.base, base);
    set!(slot.piece, len);
    set!(slot.iov, iov.wrapping_add(16));
    set!(slot.iov_left, more.wrapping_sub(1));
    true
}

/// Goes on to the next `struct mmsghdr`.
#[inline(always)]
fn next_message(slot: *mut Slot) -> bool {
    let more = get!(slot.mmsg_left);
    if more == 0 {
        return false;
    }
    let mmsg = get!(slot.mmsg);
    let message = Message::read(mmsg);
    set!(slot.iov, message.iov);
    set!(slot.iov_left, message.iov_left);
    set!(slot.message, message.len);
    set!(slot.piece, 0);
    set!(slot.mmsg, mmsg.wrapping_add(Message::SIZE));
    set!(slot.mmsg_left, more.wrapping_sub(1));
    true
}

/// One message of `sendmmsg` or `recvmmsg`.
pub struct Message {
    pub iov: u64,
    pub iov_left: u64,
    pub len: u64,
}

impl Message {
    /// `sizeof(struct mmsghdr)`: a `struct user_msghdr` of 56 bytes, a length, padding.
    pub const SIZE: u64 = 64;

    /// Reads a `struct mmsghdr` of the task.
    #[inline(always)]
    pub fn read(address: u64) -> Self {
        // msg_iov and msg_iovlen stand behind a pointer and an int, in every 64-bit ABI.
        let [iov, iov_left] = probe_user::<[u64; 2]>(address.wrapping_add(16));
        let len = u64::from(probe_user::<u32>(address.wrapping_add(56)));
        Self { iov, iov_left, len }
    }
}

/// Sends what is gathered; where nothing is, reports the bytes that could not be read.
#[inline(always)]
fn send(slot: *mut Slot, fill: u64) {
    let done = unsafe { (*slot).body.call_offset };
    let offset = unsafe { (*slot).body.offset };
    let mut moved = fill;
    let record_flags = unsafe { (*slot).header.flags };
    if fill == 0 {
        moved = get!(slot.fault);
        if moved == 0 {
            return;
        }
        set!(slot.fault, 0);
        count(counter::FAULT_BYTES, moved);
        unsafe {
            (*slot).header.flags = record_flags | flags::FAULT;
            (*slot).body.offset = offset.wrapping_add(moved);
            (*slot).body.call_offset = done.wrapping_add(moved);
        }
    }
    let size = black_box(fill.wrapping_add(DATA_PREFIX as u64));
    if size < DATA_PREFIX as u64 || size > (DATA_PREFIX + CHUNK) as u64 {
        return;
    }
    unsafe { (*slot).header.len = size as u32 };
    if write(slot, size) {
        count(counter::RECORDS, 1);
        count(counter::COPIED_BYTES, fill);
    } else {
        count(counter::RING_FULL, 1);
        count(counter::RING_FULL_BYTES, fill);
    }
    set!(slot.fill, 0);
    if fill != 0 {
        set!(slot.sent, fill);
    }
    unsafe {
        (*slot).header.flags = record_flags;
        (*slot).body.offset = offset.wrapping_add(moved);
        (*slot).body.call_offset = done.wrapping_add(moved);
    }
}

/// Writes the slot's record to the ring. Whether much is waiting is not asked for each.
#[inline(always)]
fn write(slot: *mut Slot, size: u64) -> bool {
    let record = unsafe { addr_of_mut!((*slot).header) }.cast();
    let unasked = get!(slot.unasked).wrapping_add(size);
    if unasked < u64::from(setting!(ask_bytes)) {
        set!(slot.unasked, unasked);
        let ring = addr_of!(EVENTS) as *mut c_void;
        return unsafe { bpf_ringbuf_output(ring, record, size, BPF_RB_NO_WAKEUP) == 0 };
    }
    set!(slot.unasked, 0);
    output(record, size)
}

/// Writes to the ring. Its reader polls every few milliseconds and is woken only when much is
/// waiting: a wake-up costs the writing task more than the copy.
#[inline(always)]
fn output(record: *mut c_void, size: u64) -> bool {
    let ring = addr_of!(EVENTS) as *mut c_void;
    unsafe {
        let waiting = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);
        let wake = if waiting >= u64::from(setting!(wake_bytes)) {
            BPF_RB_FORCE_WAKEUP
        } else {
            BPF_RB_NO_WAKEUP
        };
        bpf_ringbuf_output(ring, record, size, wake) == 0
    }
}
