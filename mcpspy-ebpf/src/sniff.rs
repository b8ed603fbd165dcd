//! What the first bytes of a call look like.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use mcpspy_common::record::carrier;

use crate::emit::Source;
use crate::kernel::probe_user;

/// Bytes of a call that are looked at.
const HEAD: usize = 16;

/// The call may be the start of a message: JSON, or `Content-Length` framing; on a Unix socket also
/// what is said there before and around messages, see [`begins_in_socket`].
pub const STARTS: u64 = 1;
/// It is a request that changes something at an engine.
pub const REQUEST: u64 = 2;

/// Bit beside the length of a message: it goes through a Unix socket. No call moves 2^63 bytes.
const SOCKET: u64 = 1 << 63;

/// Looks at a call's first bytes: some of the bits above.
#[inline(always)]
pub fn look(source: &Source, over: u8) -> u64 {
    let socket = if over == carrier::UNIX { SOCKET } else { 0 };
    first_bytes(source.base, source.piece, source.iov, source.iov_left, source.message | socket)
}

/// As [`look`]. Exported, which makes it a global function to the verifier: it is looked at once,
/// and not again for each way that leads here.
#[unsafe(no_mangle)]
pub extern "C" fn first_bytes(
    mut base: u64,
    mut len: u64,
    mut iov: u64,
    mut left: u64,
    message: u64,
) -> u64 {
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
    let socket = message & SOCKET != 0;
    let message = message & !SOCKET;
    if len > message {
        len = message;
    }
    let mut words = MaybeUninit::<[u64; HEAD / 8]>::uninit();
    // Word by word: the compiler makes a call to `memset` of an array, which takes longer than all
    // else here.
    let words: *mut u64 = words.as_mut_ptr().cast();
    for i in 0..HEAD / 8 {
        unsafe { words.add(i).write_volatile(0) };
    }
    let size = if len > HEAD as u64 { HEAD as u32 } else { len as u32 };
    if unsafe { bpf_probe_read_user(words.cast(), size, base as *const _) } != 0 {
        // Let the copy report what cannot be read.
        return STARTS;
    }
    if socket {
        if unsafe { words.read_volatile() } & POST_MASK == POST {
            return STARTS | REQUEST;
        }
        if begins_in_socket(words, len) {
            return STARTS;
        }
    }
    if begins(words) { STARTS } else { 0 }
}

/// Whether the bytes are what an engine says on a Unix socket before that carries a container's
/// bytes: the answer that hands the socket over. Where they are the head of a frame of such bytes, this moves what is in it to the
/// front, to be looked at like any other.
///
/// A frame is the number of a stream (0 to 2), three zeros, a length, and that many bytes.
#[inline(always)]
fn begins_in_socket(words: *mut u64, len: u64) -> bool {
    let [first, second] = unsafe { [words.read_volatile(), words.add(1).read_volatile()] };
    if first as u32 <= 2 {
        unsafe {
            words.write_volatile(second);
            words.add(1).write_volatile(0);
        }
        // Some read the head alone; what is in the frame comes with the next call.
        return len == 8 && first >> 32 != 0;
    }
    first == HTTP && second as u32 == SWITCHING
}

const POST: u64 = u64::from_ne_bytes(*b"POST /\0\0");
const POST_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
const HTTP: u64 = u64::from_ne_bytes(*b"HTTP/1.1");
const SWITCHING: u32 = u32::from_ne_bytes(*b" 101");

/// Whether the bytes may be the start of a message; those beyond the call's end are 0.
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
