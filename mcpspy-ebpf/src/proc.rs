//! Processes: replaced, ended, created.

use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

use crate::emit;
use crate::kernel::{Typed, current, load, probe};
use crate::maps::{CGROUPS, SELF_PID, TREE, offset, setting};
use crate::relay;
use crate::task::{cgroup_of, pid_of};

#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_tp(_ctx: BtfTracePointContext) -> i32 {
    exec()
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_raw(_ctx: RawTracePointContext) -> i32 {
    exec()
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit_tp(_ctx: BtfTracePointContext) -> i32 {
    exit()
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit_raw(_ctx: RawTracePointContext) -> i32 {
    exit()
}

#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork_tp(ctx: BtfTracePointContext) -> i32 {
    let child: Typed = ctx.arg(1);
    fork(load(child, offset!(task_tgid)), load(child, offset!(task_start_boottime)))
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn fork_raw(ctx: RawTracePointContext) -> i32 {
    let child: u64 = ctx.arg(1);
    fork(probe(child, offset!(task_tgid)), probe(child, offset!(task_start_boottime)))
}

/// Whether the process is watched at all.
#[inline(always)]
pub fn watched(pid: u32) -> bool {
    if u64::from(pid) == SELF_PID.get() {
        return false;
    }
    setting!(tree) == 0 || unsafe { TREE.get(pid) }.is_some()
}

/// The tracepoint stands behind the change of name (fs/exec.c, `exec_binprm`).
#[inline(always)]
fn exec() -> i32 {
    let task = current();
    let pid = pid_of(task);
    relay::on_exec(task, pid);
    if watched(pid) {
        let flags = relay::flag(pid);
        name_cgroup(task, flags);
        emit::exec_fact(task, flags);
    }
    0
}

/// Sends the names of the task's cgroup, once.
#[inline(always)]
fn name_cgroup(task: Typed, flags: u16) {
    if setting!(cgroup_names) == 0 {
        return;
    }
    let id = cgroup_of(task);
    if unsafe { CGROUPS.get(id) }.is_none() && emit::cgroup_fact(task, flags) {
        let _ = CGROUPS.insert(id, 1, 0);
    }
}

/// The tracepoint is hit once per thread, when `signal->live` already leaves out the current one
/// and `exit_code` is set (kernel/exit.c, `do_exit`).
#[inline(always)]
fn exit() -> i32 {
    let task = current();
    let signal: Typed = load(task, offset!(task_signal));
    if load::<i32>(signal, offset!(signal_live)) != 0 {
        return 0;
    }
    let pid = pid_of(task);
    let flags = relay::flag(pid);
    relay::on_exit(pid);
    if watched(pid) {
        emit::exit_fact(task, load(task, offset!(task_exit_code)), flags);
        if setting!(tree) != 0 {
            let _ = TREE.remove(pid);
        }
    }
    0
}

/// Hit in the parent, before the child runs (kernel/fork.c, `kernel_clone`).
#[inline(always)]
fn fork(child: u32, child_start: u64) -> i32 {
    let task = current();
    let pid = pid_of(task);
    // The same process: a thread.
    if child == pid {
        return 0;
    }
    relay::on_fork(pid, child);
    if setting!(tree) != 0 && watched(pid) {
        let _ = TREE.insert(child, 1, 0);
        emit::fork_fact(task, child, child_start, relay::flag(pid));
    }
    0
}
