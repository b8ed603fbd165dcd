//! CPU time and memory of a process, as the kernel counts them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of all threads of a process, ended ones included.
pub(crate) fn cpu_of(pid: u32) -> io::Result<Duration> {
    /// `CPUCLOCK_SCHED` of the kernel: all CPU time, in ns.
    const SCHED: i32 = 2;
    // How the kernel and libc encode "the CPU clock of that process".
    clock((!pid.cast_signed() << 3) | SCHED)
}

/// CPU time of the calling thread.
pub(crate) fn cpu_of_thread() -> io::Result<Duration> {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(id: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes.
    if unsafe { libc::clock_gettime(id, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
}

/// User and system time of all processes that this one has waited for, and that those waited for.
pub(crate) fn cpu_of_children() -> io::Result<Duration> {
    // SAFETY: `rusage` is a struct of integers; all zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is valid for writes.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let span = |time: libc::timeval| {
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_usec as u32 * 1000)
    };
    Ok(span(usage.ru_utime) + span(usage.ru_stime))
}

/// Sends a signal to a process that we started.
pub(crate) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: `kill` has no preconditions on memory.
    if unsafe { libc::kill(pid.cast_signed(), signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A memory cgroup of its own for the monitor. Counts what `/proc` does not: maps of BPF programs.
pub(crate) struct MemoryGroup {
    path: PathBuf,
    current: &'static str,
    inactive_file: &'static str,
}

impl MemoryGroup {
    /// Makes one, below the version 2 hierarchy or the version 1 memory controller.
    pub(crate) fn create() -> Result<Self> {
        let name = format!("mcpspy-bench-{}", std::process::id());
        let places = [
            ("/sys/fs/cgroup", "memory.current", "inactive_file "),
            ("/sys/fs/cgroup/memory", "memory.usage_in_bytes", "total_inactive_file "),
        ];
        for (root, current, inactive_file) in places {
            let path = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, current, inactive_file };
            if group.path.join(current).exists() {
                return Ok(group);
            }
        }
        anyhow::bail!("no memory cgroup can be made")
    }

    /// The file to write a process id to.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Bytes charged to it, without the page cache that can be given back at once (its output
    /// files), as `docker stats` counts.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let read = |name: &str| -> Result<String> {
            let path = self.path.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let charged: u64 = read(self.current)?.trim().parse()?;
        let stat = read("memory.stat")?;
        let cache = stat.lines().find_map(|line| line.strip_prefix(self.inactive_file));
        Ok(charged.saturating_sub(cache.context("no inactive_file")?.parse()?))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It stays where a process is left in it; nothing can be done about that here.
        drop(std::fs::remove_dir(&self.path));
    }
}

/// Proportional set size of a process in bytes.
pub(crate) fn pss(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .context("no Pss in smaps_rollup")?;
    Ok(kib * 1024)
}
