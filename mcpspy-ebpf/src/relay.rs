//! Programs that only hand bytes on between a container and its client (`docker`, `dockerd`,
//! `containerd-shim` ...), known by the name of their executable.

use core::mem::MaybeUninit;

use mcpspy_common::names::counter;
use mcpspy_common::record::flags;
use mcpspy_common::relay::{KEY, NameKey, PREFIX, START};

use crate::kernel::{Typed, program_name};
use crate::maps::{RELAY_NAMES, RELAYS, count};

/// Whether the process runs such a program.
#[inline(always)]
pub fn is(pid: u32) -> bool {
    unsafe { RELAYS.get(pid) }.is_some()
}

/// The flag of a record about the process.
#[inline(always)]
pub fn flag(pid: u32) -> u16 {
    if is(pid) { flags::RELAY } else { 0 }
}

/// The task has replaced its program.
#[inline(always)]
pub fn on_exec(task: Typed, pid: u32) {
    set(pid, has_name_of_one(task));
}

/// The process created another one, which runs the same program for now. What stood there of an
/// earlier process of that number goes.
#[inline(always)]
pub fn on_fork(parent: u32, child: u32) {
    set(child, is(parent));
}

/// The process ended.
#[inline(always)]
pub fn on_exit(pid: u32) {
    let _ = RELAYS.remove(pid);
}

#[inline(always)]
fn set(pid: u32, relay: bool) {
    if !relay {
        let _ = RELAYS.remove(pid);
    } else if RELAYS.insert(pid, 1, 0).is_err() {
        count(counter::RELAYS_FULL, 1);
    }
}

#[inline(always)]
fn has_name_of_one(task: Typed) -> bool {
    let mut name = MaybeUninit::<[u64; KEY / 8]>::uninit();
    let name: *mut u64 = name.as_mut_ptr().cast();
    let len = program_name(task, name);
    // A name that fills the buffer may be longer than it.
    if len < KEY as i64 && value(name) != 0 {
        return true;
    }
    // What begins with the one name that is a prefix.
    unsafe {
        let second = name.add(1).read_volatile();
        name.add(1).write_volatile(second & PREFIX_TAIL);
        name.add(2).write_volatile(0);
        name.add(3).write_volatile(0);
    }
    value(name) == START
}

/// Of the second word of a name, the bytes that belong to the prefix.
const PREFIX_TAIL: u64 = {
    assert!(PREFIX.len() > 8 && PREFIX.len() < 16 && cfg!(target_endian = "little"));
    u64::MAX >> (8 * (16 - PREFIX.len()))
};

#[inline(always)]
fn value(name: *const u64) -> u32 {
    let key: &NameKey = unsafe { &*name.cast() };
    unsafe { RELAY_NAMES.get(key) }.copied().unwrap_or(0)
}
