//! The backend that sees every system call's exit, as a BTF tracepoint and as a raw one.
//!
//! At the exit the registers still hold the arguments, the return value is the length, and the
//! task's pages are in memory because the call has just used them.

use core::ffi::c_void;
use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use mcpspy_common::config::class;
use mcpspy_common::names::counter;
use mcpspy_common::record::direction;

use crate::admit::{self, Call};
use crate::emit::{Message, Source};
use crate::kernel::{Typed, current, end_of, load, probe_user, registers};
use crate::maps::{SELF_PID, TREE, ZERO, class_of, count, offset, setting};
use crate::task::pid_of;

/// `MSG_PEEK` and `UIO_MAXIOV`.
const MSG_PEEK: u64 = 2;
const MAX_MESSAGES: u32 = 1024;
/// The same where the kernel has no `bpf_loop`.
const MAX_MESSAGES_UNROLLED: u32 = 64;
/// Bit of x32 numbers (arch/x86/include/uapi/asm/unistd.h).
const X32: u32 = 1 << 30;

#[btf_tracepoint(function = "sys_exit")]
pub fn call_tp(ctx: BtfTracePointContext) -> i32 {
    let ret: i64 = ctx.arg(1);
    if ret >= 0 {
        let registers: Typed = ctx.arg(0);
        on_exit(registers, ret as u64);
    }
    0
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn call_raw(ctx: RawTracePointContext) -> i32 {
    let ret: i64 = ctx.arg(1);
    if ret >= 0 {
        on_exit(registers(current()), ret as u64);
    }
    0
}

/// Leaves as early as it can: this runs at every system call of the host.
#[inline(always)]
fn on_exit(regs: Typed, ret: u64) {
    let nr: u32 = load(regs, offset!(regs_nr));
    let what = class_of(nr & !X32);
    if what == 0 {
        return;
    }
    let task = current();
    if nr & X32 != 0 || load::<u32>(task, offset!(task_compat)) & setting!(compat_mask) != 0 {
        // Another ABI: the number means another call, structures have another layout.
        if what & class::COMPAT != 0 && ret != 0 {
            count(counter::COMPAT_CALLS, 1);
        }
        return;
    }
    let shape = what & class::SHAPE;
    if shape == 0 {
        return;
    }
    let pid = pid_of(task);
    if u64::from(pid) == SELF_PID.get() {
        return;
    }
    if setting!(tree) != 0 && unsafe { TREE.get(pid) }.is_none() {
        return;
    }
    if shape == class::UNSEEN {
        if ret != 0 {
            count(counter::UNSEEN_CALLS, 1);
        }
        return;
    }
    let writes = what & class::WRITE != 0;
    if ret == 0 && writes {
        return;
    }
    let Some(end) = end_of(task, load(regs, offset!(regs_arg0))) else { return };
    let arg1: u64 = load(regs, offset!(regs_arg1));
    let arg2: u64 = load(regs, offset!(regs_arg2));
    let flags = match shape {
        class::FLAT_FLAGS | class::MESSAGES => load(regs, offset!(regs_arg3)),
        class::MESSAGE => arg2,
        _ => 0,
    };
    if !writes && flags & MSG_PEEK != 0 {
        return;
    }
    let zero = ZERO.get();
    let mut source = Source {
        len: ret,
        base: zero,
        piece: zero,
        iov: arg1,
        iov_left: arg2,
        message: ret,
        mmsg: zero,
        mmsg_left: zero,
    };
    match shape {
        class::FLAT | class::FLAT_FLAGS => {
            if arg2 == 0 {
                return;
            }
            // With MSG_TRUNC the return value may be larger than the buffer.
            let len = if ret > arg2 { arg2 } else { ret };
            source = Source { len, base: arg1, piece: len, iov_left: zero, message: len, ..source };
        }
        class::MESSAGE => {
            // msg_iov and msg_iovlen of struct user_msghdr.
            let [iov, iov_left] = probe_user::<[u64; 2]>(arg1.wrapping_add(16));
            source.iov = iov;
            source.iov_left = iov_left;
        }
        class::MESSAGES => {
            if ret == 0 {
                return;
            }
            let first = Message::read(arg1);
            source.iov = first.iov;
            source.iov_left = first.iov_left;
            source.message = first.len;
            source.mmsg = arg1.wrapping_add(Message::SIZE);
            source.mmsg_left = ret.wrapping_sub(1);
            source.len = total(arg1, ret);
        }
        _ => {
            if arg2 == 0 {
                return;
            }
        }
    }
    let direction = (if writes { direction::WRITE } else { direction::READ }) | zero as u8;
    admit::on_call(Call { task, pid, end, direction, source });
}

/// Bytes of all messages of a `sendmmsg` or `recvmmsg`.
#[inline(always)]
fn total(first: u64, messages: u64) -> u64 {
    let mut sum = Sum { next: first, left: messages, bytes: 0 };
    if setting!(has_loop) != 0 {
        unsafe {
            bpf_loop(MAX_MESSAGES, add_callback as *mut c_void, addr_of_mut!(sum).cast(), 0);
        }
    } else {
        for _ in 0..MAX_MESSAGES_UNROLLED {
            if add(&mut sum) != 0 {
                break;
            }
        }
    }
    sum.bytes
}

struct Sum {
    next: u64,
    left: u64,
    bytes: u64,
}

/// Called by `bpf_loop`: 0 goes on, 1 stops.
extern "C" fn add_callback(_index: u64, sum: *mut Sum) -> i64 {
    add(unsafe { &mut *sum })
}

#[inline(always)]
fn add(sum: &mut Sum) -> i64 {
    if sum.left == 0 {
        return 1;
    }
    sum.bytes = sum.bytes.wrapping_add(Message::read(sum.next).len);
    sum.next = sum.next.wrapping_add(Message::SIZE);
    sum.left -= 1;
    0
}
