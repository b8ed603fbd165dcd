//! Identity of the current task. Plain loads: nothing is worth caching.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns};
use mcpspy_common::record::RecordHeader;

use crate::kernel::{Typed, load};
use crate::maps::{offset, setting};

/// Process id in the initial namespace.
#[inline(always)]
pub fn pid_of(task: Typed) -> u32 {
    load(task, offset!(task_tgid))
}

/// Fills in who and when. `kind`, `flags` and `len` are the caller's.
#[inline(always)]
pub fn describe(task: Typed, header: *mut RecordHeader) {
    let leader: Typed = load(task, offset!(task_group_leader));
    let parent: Typed = load(task, offset!(task_real_parent));
    let cred: Typed = load(task, offset!(task_cred));
    let comm = offset!(task_comm);
    unsafe {
        (*header).at = bpf_ktime_get_boot_ns();
        (*header).pid = pid_of(task);
        (*header).tid = load(task, offset!(task_pid));
        (*header).start = load(leader, offset!(task_start_boottime));
        (*header).ppid = load(parent, offset!(task_tgid));
        (*header).uid = load(cred, offset!(cred_euid));
        (*header).cgroup = cgroup_of(task);
        let name = addr_of_mut!((*header).comm).cast::<u64>();
        name.write(load(leader, comm));
        name.add(1).write(load(leader, comm + 8));
    }
}

/// Id of the task's cgroup in the v2 tree: what the helper returns, by plain loads where these are
/// allowed, which take a tenth of its time.
#[inline(always)]
pub fn cgroup_of(task: Typed) -> u64 {
    if setting!(direct) == 0 {
        return unsafe { bpf_get_current_cgroup_id() };
    }
    let set: Typed = load(task, offset!(task_cgroups));
    let group: Typed = load(set, offset!(css_set_default));
    let node: Typed = load(group, offset!(cgroup_node));
    load(node, offset!(node_id))
}
