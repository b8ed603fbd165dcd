//! Which calls are worth copying: the only policy in the kernel.

use core::mem::MaybeUninit;
use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_probe_read_user};
use mcpspy_common::config::{StreamKey, StreamState, state, verdict};
use mcpspy_common::names::counter;
use mcpspy_common::record::{carrier, direction, flags, kind};

use crate::atomic;
use crate::emit::{self, Origin, Source};
use crate::kernel::{End, Typed, peer_of, probe_user};
use crate::maps::{KEPT, SELF_PID, STREAMS, VERDICTS, count};

/// Bytes at the start of a stream in which small calls are copied whatever they say: a server may
/// print text first, and what is not JSON is needed to judge the stream.
const LOOK: u64 = 64 * 1024;
/// Calls below this size are small.
const SMALL: u64 = 4096;
/// Bytes of a call that are looked at.
const HEAD: usize = 16;

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
    let Some(mut entry) = entry_of(&call, key) else { return };
    if unsafe { (*entry).verdict } == verdict::NEVER {
        return;
    }
    let mut offset = advance(entry, call.source.len);
    if offset & state::MOVED != 0 {
        // Another CPU keeps the stream at this moment.
        let Some(kept) = KEPT.get_ptr_mut(key) else { return };
        entry = kept;
        offset = advance(entry, call.source.len);
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
    let named = if reads && writer_known(&call, key, entry) {
        follow(&call, key, &mut entry);
        false
    } else {
        judge(&call, key, &mut entry, offset)
    };
    // A writer's records name it; a reader is told apart, also where its bytes are not copied.
    let (pid, decision) = unsafe { ((*entry).pid, (*entry).verdict) };
    if reads
        && !named
        && pid != call.pid
        && decision != verdict::IGNORE
        && decision != verdict::NEVER
    {
        unsafe { (*entry).pid = call.pid };
        emit::stream_fact(call.task, kind::ENDPOINT, &call.origin(key, entry, offset));
    }
}

/// The entry that the writer of a reader's stream has.
#[inline(always)]
fn writer_of(call: &Call, key: StreamKey, entry: *mut StreamState) -> StreamKey {
    let ino = if call.end.carrier == carrier::UNIX { unsafe { (*entry).peer } } else { key.ino };
    StreamKey { ino, direction: u32::from(direction::WRITE), ..key }
}

/// Whether somebody was seen writing what the task reads: then the writer's copy is the copy.
#[inline(always)]
fn writer_known(call: &Call, key: StreamKey, entry: *mut StreamState) -> bool {
    if unsafe { (*entry).flags } & state::WRITER_KNOWN != 0 {
        return true;
    }
    if find(writer_of(call, key, entry)).is_none() {
        return false;
    }
    unsafe { (*entry).flags |= state::WRITER_KNOWN };
    true
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
        emit::stream_fact(call.task, kind::END, &call.origin(key, entry, (*entry).offset));
    }
}

/// Copies the call or rules it out. Whether a record was sent that names the task.
#[inline(always)]
fn judge(call: &Call, key: StreamKey, entry: &mut *mut StreamState, offset: u64) -> bool {
    let len = call.source.len;
    let mut goes_on = false;
    if unsafe { (**entry).verdict } != verdict::KEEP {
        let mut decision = unsafe { (**entry).verdict };
        let mut open = unsafe { (**entry).flags } & state::OPEN != 0;
        let starts = may_start_message(&call.source);
        let small = offset < LOOK && len < SMALL;
        if !starts && !open && (decision != verdict::NONE || !small) {
            return rule_out(*entry, len);
        }
        match verdict_of(key) {
            verdict::SELF_MARK => {
                SELF_PID.set(u64::from(call.pid));
                // User space reads it from here.
                unsafe { (**entry).pid = call.pid };
                return false;
            }
            verdict::NEVER => {
                unsafe { (**entry).verdict = verdict::NEVER };
                return false;
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
    unsafe {
        (**entry).pid = call.pid;
        (**entry).flags &= !state::ENDED;
    }
    let reads = call.direction == direction::READ;
    let record_flags = if reads { flags::READER_COPY } else { 0 };
    let origin = call.origin(key, *entry, offset);
    let last = emit::data(call.task, &origin, &call.source, record_flags);
    // Of a kept stream all is copied, whatever this says.
    unsafe {
        if goes_on && last != Some(b'\n') {
            (**entry).flags |= state::OPEN;
        } else {
            (**entry).flags &= !state::OPEN;
        }
    }
    true
}

#[inline(always)]
fn rule_out(entry: *mut StreamState, len: u64) -> bool {
    atomic::fetch_add(unsafe { addr_of_mut!((*entry).skipped) }, len);
    count(counter::SOFT_SKIP_BYTES, len);
    false
}

#[inline(always)]
fn find(key: StreamKey) -> Option<*mut StreamState> {
    STREAMS.get_ptr_mut(key).or_else(|| KEPT.get_ptr_mut(key))
}

#[inline(always)]
fn verdict_of(key: StreamKey) -> u32 {
    unsafe { VERDICTS.get(key) }.copied().unwrap_or(verdict::NONE)
}

/// The stream's entry, a new one where there is none or its inode is another.
#[inline(always)]
fn entry_of(call: &Call, key: StreamKey) -> Option<*mut StreamState> {
    if let Some(entry) = find(key) {
        if unsafe { (*entry).identity } == call.end.identity {
            return Some(entry);
        }
        let fresh = fresh(call, key);
        unsafe { *entry = fresh };
        return Some(entry);
    }
    let fresh = fresh(call, key);
    // Fails where another CPU was first.
    let _ = STREAMS.insert(key, fresh, BPF_NOEXIST);
    STREAMS.get_ptr_mut(key)
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

/// Whether the call's first bytes may be the start of a message: JSON, or `Content-Length` framing.
#[inline(always)]
fn may_start_message(source: &Source) -> bool {
    let mut base = source.base;
    let mut len = source.piece;
    let mut iov = source.iov;
    let mut left = source.iov_left;
    // The first piece may be empty.
    for _ in 0..4 {
        if len != 0 || left == 0 {
            break;
        }
        let [b, l] = probe_user::<[u64; 2]>(iov);
        base = b;
        len = l;
        iov = iov.wrapping_add(16);
        left -= 1;
    }
    if len > source.message {
        len = source.message;
    }
    let mut words = MaybeUninit::<[u64; HEAD / 8]>::uninit();
    // Word by word: the compiler makes a call to `memset` of an array, which takes longer than all
    // else here.
    let words: *mut u64 = words.as_mut_ptr().cast();
    for i in 0..HEAD / 8 {
        unsafe { words.add(i).write_volatile(0) };
    }
    let size = if len > HEAD as u64 { HEAD as u32 } else { len as u32 };
    let failed = unsafe { bpf_probe_read_user(words.cast(), size, base as *const _) != 0 };
    if failed {
        // Let the copy report what cannot be read.
        return true;
    }
    begins(words)
}

/// As above; bytes beyond the call's end are 0.
#[inline(always)]
fn begins(words: *const u64) -> bool {
    let head: *const u8 = words.cast();
    let byte = |i: usize| unsafe { head.add(i).read_volatile() };
    // Most text is out by its first byte.
    if kind_of(byte(0)) == OTHER {
        return unsafe { words.read() } | LOWER == CONTENT && byte(8) | 0x20 == b'l';
    }
    let mut at = START;
    for i in 0..HEAD {
        at = next(at, byte(i));
    }
    // The 16 bytes may end within the blanks behind a bracket.
    at == ACCEPT || at == BRACE || at == BRACKET
}

/// Start of `Content-Length` framing, which language servers have, and some MCP programs; in lower
/// case, where the hyphen stays as it is.
const CONTENT: u64 = u64::from_ne_bytes(*b"content-");
const LOWER: u64 = 0x2020_2020_2020_2020;

// The first bytes run through a table and not through branches: the verifier would follow each
// combination of branches apart.
const START: u8 = 0;
const BLANK: u8 = 1;
const BRACE: u8 = 2;
const BRACKET: u8 = 3;
const ACCEPT: u8 = 4;
const REJECT: u8 = 5;
/// Kind of a byte that no message begins with.
const OTHER: u8 = 7;

/// What a byte means: blank, `{`, `[`, `"`, `}`, end, byte order mark, anything else.
static KIND_OF: [u8; 256] = {
    let mut kinds = [OTHER; 256];
    kinds[b' ' as usize] = 0;
    kinds[b'\t' as usize] = 0;
    kinds[b'\r' as usize] = 0;
    kinds[b'\n' as usize] = 0;
    kinds[b'{' as usize] = 1;
    kinds[b'[' as usize] = 2;
    kinds[b'"' as usize] = 3;
    kinds[b'}' as usize] = 4;
    kinds[0] = 5;
    kinds[0xef] = 6;
    kinds[0xbb] = 6;
    kinds[0xbf] = 6;
    kinds
};

/// State after a byte of a kind, at `state * 8 + kind`; two unused states fill it up.
static NEXT: [u8; 64] = {
    let mut next = [REJECT; 64];
    let mut kind = 0;
    while kind < 8 {
        next[ACCEPT as usize * 8 + kind] = ACCEPT;
        kind += 1;
    }
    let mut state = START;
    while state <= BLANK {
        next[state as usize * 8] = BLANK;
        next[state as usize * 8 + 1] = BRACE;
        next[state as usize * 8 + 2] = BRACKET;
        state += 1;
    }
    next[START as usize * 8 + 6] = START;
    next[BRACE as usize * 8] = BRACE;
    next[BRACE as usize * 8 + 3] = ACCEPT;
    next[BRACE as usize * 8 + 4] = ACCEPT;
    next[BRACE as usize * 8 + 5] = ACCEPT;
    next[BRACKET as usize * 8] = BRACKET;
    next[BRACKET as usize * 8 + 1] = ACCEPT;
    next[BRACKET as usize * 8 + 5] = ACCEPT;
    next
};

#[inline(always)]
fn kind_of(byte: u8) -> u8 {
    unsafe { KIND_OF.as_ptr().add(byte as usize).read_volatile() }
}

#[inline(always)]
fn next(state: u8, byte: u8) -> u8 {
    let index = (state & 7) * 8 + (kind_of(byte) & 7);
    unsafe { NEXT.as_ptr().add(index as usize & 63).read_volatile() }
}
