//! Which calls are worth copying: the only policy in the kernel.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use mcpspy_common::config::{StreamKey, StreamState, state, verdict};
use mcpspy_common::names::counter;
use mcpspy_common::record::{carrier, direction, flags, kind};

use crate::atomic::{self, Word};
use crate::emit::{self, Origin, Source};
use crate::kernel::{End, Typed, current, peer_of};
use crate::maps::{
    KEPT, KEPT_HINTS, KEPT_HINTS_SIZE, KeptHints, MUTED, SELF_PID, STREAMS, VERDICTS, ZERO, count,
    setting,
};
use crate::relay;
use crate::sniff;
use crate::task::cgroup_of;

/// Bytes at the start of a stream in which small calls are copied whatever they say: a server may
/// print text first, and what is not JSON is needed to judge the stream.
const LOOK: u64 = 64 * 1024;
/// Calls below this size are small.
const SMALL: u64 = 4096;
/// Most bytes that are copied of a relay's request.
const REQUEST: u64 = 4096;

const BPF_NOEXIST: u64 = 1;

/// A call that moved bytes, or the end of a stream where its length is 0.
pub struct Call {
    pub task: Typed,
    pub pid: u32,
    pub end: End,
    pub direction: u8,
    pub source: Source,
}

impl Call {
    #[inline(always)]
    fn key(&self) -> StreamKey {
        StreamKey { ino: self.end.ino, dev: self.end.dev, direction: u32::from(self.direction) }
    }

    #[inline(always)]
    fn origin(&self, key: StreamKey, entry: *mut StreamState, offset: u64) -> Origin {
        unsafe {
            Origin {
                key,
                carrier: self.end.carrier,
                peer: (*entry).peer,
                nonce: (*entry).nonce,
                offset,
                skipped: (*entry).skipped,
                len: self.source.len,
            }
        }
    }
}

#[inline(always)]
pub fn on_call(call: Call) {
    let key = call.key();
    let reads = call.direction == direction::READ;
    if call.source.len == 0 {
        if reads {
            on_end(&call, key);
        }
        return;
    }
    let Some((mut entry, kept)) = entry_of(&call, key) else { return };
    if unsafe { (*entry).verdict } == verdict::NEVER {
        return;
    }
    let mut offset = advance(entry, call.source.len);
    if offset & state::MOVED != 0 {
        // Another CPU keeps the stream at this moment.
        if kept == 0 {
            let Some(kept) = KEPT.get_ptr_mut(key) else { return };
            entry = kept;
            offset = advance(entry, call.source.len);
        }
        if offset & state::MOVED != 0 {
            // It has not yet carried the position over: the bytes count, but are not copied.
            count(counter::TABLE_FULL, 1);
            return;
        }
    }
    if call.end.carrier == carrier::UNIX && unsafe { (*entry).peer } == 0 {
        // Not yet accepted when it was first seen, or closed by now.
        unsafe { (*entry).peer = peer_of(call.end.inode) };
    }
    let judged = if reads && writer_known(&call, key, entry, offset) {
        follow(&call, key, &mut entry);
        OUT
    } else {
        judge(&call, key, &mut entry, offset)
    };
    // A writer's records name it; a reader is told apart, also where its bytes are not copied, and
    // so is a writer whose bytes never are.
    let (pid, decision) = unsafe { ((*entry).pid, (*entry).verdict) };
    if (judged == MUTE || reads && judged == OUT)
        && pid != call.pid
        && decision != verdict::IGNORE
        && decision != verdict::NEVER
    {
        unsafe { (*entry).pid = call.pid };
        let origin = call.origin(key, entry, offset);
        emit::stream_fact(call.task, kind::ENDPOINT, &origin, relay_flag(call.pid));
    }
}

/// The entry that the writer of a reader's stream has.
#[inline(always)]
fn writer_of(call: &Call, key: StreamKey, entry: *mut StreamState) -> StreamKey {
    let ino = if call.end.carrier == carrier::UNIX { unsafe { (*entry).peer } } else { key.ino };
    StreamKey { ino, direction: u32::from(direction::WRITE), ..key }
}

/// Whether somebody was seen writing what the task reads, and that is copied: then the writer's copy
/// is the copy. The call's bytes begin at `offset`.
#[inline(always)]
fn writer_known(call: &Call, key: StreamKey, entry: *mut StreamState, offset: u64) -> bool {
    if unsafe { addr_of!((*entry).writer_known).read_volatile() } != 0 {
        return true;
    }
    let writer = writer_of(call, key, entry);
    if copied_writer(writer.ino, writer.dev) != 0 {
        atomic::swap(unsafe { addr_of_mut!((*entry).writer_known) }, 1);
        // See `set_mute`: of two CPUs that are here and there, one sees what the other wrote.
        if copied_writer(writer.ino, writer.dev) != 0 {
            unsafe { (*entry).flags |= state::FOLLOWED };
            return true;
        }
        atomic::swap(unsafe { addr_of_mut!((*entry).writer_known) }, 0);
    }
    if unsafe { (*entry).flags } & state::FOLLOWED != 0 {
        // What was read so far and not copied here is no hole.
        unsafe {
            (*entry).flags &= !state::FOLLOWED;
            (*entry).skipped = offset;
        }
    }
    false
}

/// Whether a stream's writer has an entry, and what it writes is copied.
///
/// Exported for the same reason as [`sniff::first_bytes`].
#[unsafe(no_mangle)]
pub extern "C" fn copied_writer(ino: u64, dev: u32) -> u64 {
    let key = StreamKey { ino, dev, direction: u32::from(direction::WRITE) };
    let Some(writer) = find(key) else { return 0 };
    let flags = unsafe { addr_of!((*writer).flags).read_volatile() };
    u64::from(flags & state::MUTE == 0)
}

/// Makes a stream's reader look again whether its writer is copied.
///
/// Exported for the same reason as [`sniff::first_bytes`].
#[unsafe(no_mangle)]
pub extern "C" fn look_again(ino: u64, dev: u32) -> u64 {
    let key = StreamKey { ino, dev, direction: u32::from(direction::READ) };
    let Some(reader) = find(key) else { return 0 };
    atomic::swap(unsafe { addr_of_mut!((*reader).writer_known) }, 0)
}

/// Notes whether what is written is copied. Where it no longer is, its reader, who may rely on the
/// writer's copy, is told to look again.
#[inline(always)]
fn set_mute(call: &Call, key: StreamKey, entry: *mut StreamState, mute: bool) {
    unsafe {
        let now = (*entry).flags;
        if mute == (now & state::MUTE != 0) {
            return;
        }
        let flags = addr_of_mut!((*entry).flags);
        if !mute {
            flags.write_volatile(now & !state::MUTE);
            return;
        }
        flags.write_volatile((now | state::MUTE) & !state::OPEN);
        // The swap is a full barrier, as is the reader's between its word and its look at the flag.
        let reader = if call.end.carrier == carrier::UNIX { (*entry).peer } else { key.ino };
        look_again(reader, key.dev);
    }
}

/// Lets a reader's entry follow what was decided on the writer's.
#[inline(always)]
fn follow(call: &Call, key: StreamKey, entry: &mut *mut StreamState) {
    if unsafe { (**entry).verdict } != verdict::NONE {
        return;
    }
    match verdict_of(writer_of(call, key, *entry)) {
        verdict::KEEP => *entry = keep(key, *entry),
        other => unsafe { (**entry).verdict = other },
    }
}

/// A read returned 0.
#[inline(always)]
fn on_end(call: &Call, key: StreamKey) {
    let Some(entry) = find(key) else { return };
    unsafe {
        if (*entry).identity != call.end.identity
            || (*entry).flags & state::ENDED != 0
            || (*entry).verdict == verdict::NEVER
            || (*entry).verdict == verdict::IGNORE
        {
            return;
        }
        (*entry).flags |= state::ENDED;
        (*entry).pid = call.pid;
        let origin = call.origin(key, entry, (*entry).offset);
        emit::stream_fact(call.task, kind::END, &origin, relay_flag(call.pid));
    }
}

/// What came of a call: it was ruled out by its bytes, or copied, or is never copied because of who
/// made it.
const OUT: u8 = 0;
const COPIED: u8 = 1;
const MUTE: u8 = 2;

/// Copies the call or rules it out.
#[inline(always)]
fn judge(call: &Call, key: StreamKey, entry: &mut *mut StreamState, offset: u64) -> u8 {
    let len = call.source.len;
    let reads = call.direction == direction::READ;
    let mut goes_on = false;
    if unsafe { (**entry).verdict } != verdict::KEEP {
        let mut decision = unsafe { (**entry).verdict };
        let mut open = unsafe { (**entry).flags } & state::OPEN != 0;
        let starts = sniff::look(&call.source, call.end.carrier) & sniff::STARTS != 0;
        let small = offset < LOOK && len < SMALL;
        if !starts && !open && (decision != verdict::NONE || !small) {
            return rule_out(*entry, len);
        }
        match verdict_of(key) {
            verdict::SELF_MARK => {
                SELF_PID.set(u64::from(call.pid));
                // User space reads it from here.
                unsafe { (**entry).pid = call.pid };
                return OUT;
            }
            verdict::NEVER => {
                unsafe { (**entry).verdict = verdict::NEVER };
                return OUT;
            }
            verdict::IGNORE if decision == verdict::NONE => {
                decision = verdict::IGNORE;
                open = false;
                unsafe {
                    (**entry).verdict = verdict::IGNORE;
                    (**entry).flags &= !state::OPEN;
                }
            }
            verdict::KEEP => *entry = keep(key, *entry),
            _ => {}
        }
        if decision == verdict::IGNORE && !starts && !open {
            return rule_out(*entry, len);
        }
        goes_on = starts || open;
    }
    // Only here, where a copy would be made: most calls are out before who made them matters.
    let who = standing(call.pid);
    let mut take = len;
    let mut record_flags = if reads { flags::READER_COPY } else { 0 };
    if !reads {
        set_mute(call, key, *entry, who != 0);
    }
    if who != 0 {
        let asks = who == RELAY
            && !reads
            && call.end.carrier == carrier::UNIX
            && sniff::look(&call.source, carrier::UNIX) & sniff::REQUEST != 0;
        if !asks {
            leave_out(*entry, len);
            return MUTE;
        }
        // What a relay asks of an engine is the one thing that says which container it speaks to.
        record_flags = flags::RELAY | ZERO.get() as u16;
        goes_on = false;
        if take > REQUEST {
            take = REQUEST;
        }
    }
    unsafe {
        (**entry).pid = call.pid;
        (**entry).flags &= !state::ENDED;
    }
    let origin = Origin { len: take, ..call.origin(key, *entry, offset) };
    let last = emit::data(call.task, &origin, &call.source, record_flags);
    if take < len {
        leave_out(*entry, len - take);
    }
    // Of a kept stream all is copied, whatever this says.
    unsafe {
        if goes_on && last != u64::from(b'\n') {
            (**entry).flags |= state::OPEN;
        } else {
            (**entry).flags &= !state::OPEN;
        }
    }
    COPIED
}

/// The process runs a program that only hands bytes on.
const RELAY: u64 = 1;
/// It is in a cgroup whose processes' bytes are not copied.
const FILTERED: u64 = 2;

/// The flag of a record about the current task, of this process.
#[inline(always)]
fn relay_flag(pid: u32) -> u16 {
    if standing(pid) == RELAY { flags::RELAY } else { 0 }
}

/// Why calls of the current task, of this process, are not copied; 0 where they are.
///
/// Exported for the same reason as [`sniff::first_bytes`].
#[unsafe(no_mangle)]
pub extern "C" fn standing(pid: u32) -> u64 {
    if relay::is(pid) {
        return RELAY;
    }
    if setting!(cgroup_filter) != 0 && unsafe { MUTED.get(cgroup_of(current())) }.is_some() {
        return FILTERED;
    }
    0
}

#[inline(always)]
fn leave_out(entry: *mut StreamState, len: u64) {
    atomic::fetch_add(unsafe { addr_of_mut!((*entry).skipped) }, len);
    count(counter::MUTED_BYTES, len);
}

#[inline(always)]
fn rule_out(entry: *mut StreamState, len: u64) -> u8 {
    atomic::fetch_add(unsafe { addr_of_mut!((*entry).skipped) }, len);
    count(counter::SOFT_SKIP_BYTES, len);
    OUT
}

#[inline(always)]
fn find(key: StreamKey) -> Option<*mut StreamState> {
    STREAMS.get_ptr_mut(key).or_else(|| KEPT.get_ptr_mut(key))
}

#[inline(always)]
fn verdict_of(key: StreamKey) -> u32 {
    unsafe { VERDICTS.get(key) }.copied().unwrap_or(verdict::NONE)
}

/// The stream's entry, a new one where there is none or its inode is another; and whether it is
/// among the kept: not 0, and no constant to the verifier, see [`ZERO`].
#[inline(always)]
fn entry_of(call: &Call, key: StreamKey) -> Option<(*mut StreamState, u64)> {
    let (hint, mark) = KEPT_HINTS.at(call);
    let hinted = if hint.get() == mark { KEPT.get_ptr_mut(key) } else { None };
    let found = if let Some(entry) = hinted {
        Some((entry, 1))
    } else if let Some(entry) = STREAMS.get_ptr_mut(key) {
        Some((entry, 0))
    } else if let Some(entry) = KEPT.get_ptr_mut(key) {
        hint.set(mark);
        Some((entry, 1))
    } else {
        None
    };
    if let Some((entry, kept)) = found {
        if unsafe { (*entry).identity } != call.end.identity {
            let fresh = fresh(call, key);
            unsafe { *entry = fresh };
        }
        return Some((entry, kept | ZERO.get()));
    }
    let fresh = fresh(call, key);
    // Fails where another CPU was first.
    let _ = STREAMS.insert(key, fresh, BPF_NOEXIST);
    Some((STREAMS.get_ptr_mut(key)?, ZERO.get()))
}

impl KeptHints {
    /// Where a call's stream leaves its mark, and the mark.
    #[inline(always)]
    fn at(&self, call: &Call) -> (&Word, u64) {
        let mark = call.end.identity ^ u64::from(call.direction);
        // Inodes lie some hundred bytes apart.
        let slot = (mark ^ mark >> 6 ^ mark >> 11) as usize & (KEPT_HINTS_SIZE - 1);
        (unsafe { &*self.0.as_ptr().add(slot) }, mark)
    }
}

#[inline(always)]
fn fresh(call: &Call, key: StreamKey) -> StreamState {
    let peer = if call.end.carrier == carrier::UNIX { peer_of(call.end.inode) } else { 0 };
    let mut writer = key;
    writer.direction = u32::from(direction::WRITE);
    if key.direction != writer.direction && call.end.carrier == carrier::UNIX {
        writer.ino = peer;
    }
    // What mcpspy prints is not worth following at the reader's end either.
    let never = verdict_of(key) == verdict::NEVER || verdict_of(writer) == verdict::NEVER;
    StreamState {
        nonce: unsafe { bpf_ktime_get_boot_ns() },
        offset: 0,
        skipped: 0,
        peer,
        identity: call.end.identity,
        writer_known: 0,
        pid: 0,
        verdict: if never { verdict::NEVER } else { verdict::NONE },
        flags: 0,
        carrier: u32::from(call.end.carrier),
    }
}

/// Takes the position of the call's bytes.
#[inline(always)]
fn advance(entry: *mut StreamState, len: u64) -> u64 {
    atomic::fetch_add(unsafe { addr_of_mut!((*entry).offset) }, len)
}

/// Moves an entry to the kept streams, where nothing evicts it. The new entry is there before the
/// old one says so, and its position is complete a few instructions later; so a call on another CPU
/// either counts in the old entry before that is closed, or in the new one.
#[inline(always)]
fn keep(key: StreamKey, entry: *mut StreamState) -> *mut StreamState {
    unsafe {
        (*entry).verdict = verdict::KEEP;
        if (*entry).flags & state::NOT_KEPT != 0 {
            return entry;
        }
        let copy = StreamState {
            nonce: (*entry).nonce,
            offset: state::MOVED,
            skipped: (*entry).skipped,
            peer: (*entry).peer,
            identity: (*entry).identity,
            // Looked for again: the writer may take it back at this moment, in the other entry.
            writer_known: 0,
            pid: (*entry).pid,
            verdict: verdict::KEEP,
            flags: (*entry).flags & !state::OPEN,
            carrier: (*entry).carrier,
        };
        let inserted = KEPT.insert(key, copy, BPF_NOEXIST).is_ok();
        let Some(kept) = KEPT.get_ptr_mut(key) else {
            count(counter::TABLE_FULL, 1);
            (*entry).flags |= state::NOT_KEPT;
            return entry;
        };
        if inserted {
            let position = atomic::swap(addr_of_mut!((*entry).offset), state::MOVED);
            atomic::fetch_add(addr_of_mut!((*kept).offset), position.wrapping_sub(state::MOVED));
            let _ = STREAMS.remove(key);
        }
        kept
    }
}
