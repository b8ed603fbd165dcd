//! What this machine allows, line by line: what was found, what is lost without it, how to fix it.

use super::load::{BTF_PATH, Kernel, built};
use super::{Backend, BackendChoice, Live, LiveConfig, LiveError};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Something is lost.
    Warn,
    /// mcpspy cannot monitor.
    Fail,
}

/// One line of `mcpspy check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckLine {
    /// What was looked at.
    pub name: &'static str,
    /// How it went.
    pub ok: Outcome,
    /// What was found.
    pub found: String,
    /// What is lost as it is; empty where nothing is.
    pub lost: String,
    /// What to do about it; empty where nothing is to be done.
    pub fix: String,
}

impl CheckLine {
    /// All is well.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        let (lost, fix) = (String::new(), String::new());
        Self { name, ok: Outcome::Ok, found: found.into(), lost, fix }
    }

    /// Something is lost.
    pub fn bad(
        name: &'static str,
        ok: Outcome,
        found: impl Into<String>,
        lost: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { name, ok, found: found.into(), lost: lost.into(), fix: fix.into() }
    }
}

const EVERYTHING: &str = "everything";

/// Capabilities and what each is for; bits as in include/uapi/linux/capability.h.
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Looks at everything that monitoring needs. Loads and attaches each backend for a moment.
pub fn check() -> Vec<CheckLine> {
    let mut lines = vec![programs(), kernel(), architecture(), type_information()];
    lines.extend(capabilities());
    lines.push(lockdown());
    let (tp, tp_pid) = backend(BackendChoice::TpBtf, Backend::TpBtf);
    let (raw, raw_pid) = backend(BackendChoice::RawTp, Backend::RawTp);
    let works = tp.ok == Outcome::Ok || raw.ok == Outcome::Ok;
    for mut line in [tp, raw] {
        if works && line.ok == Outcome::Fail {
            line.ok = Outcome::Warn;
            "nothing, the other one works".clone_into(&mut line.lost);
        }
        lines.push(line);
    }
    lines.push(loops());
    lines.push(cgroup_names());
    lines.push(pid_namespace(tp_pid.or(raw_pid)));
    lines.push(CheckLine::ok(
        "locked memory",
        "no limit to raise: BPF memory is charged to the control group since 5.11",
    ));
    lines.push(ring());
    lines
}

fn programs() -> CheckLine {
    if built() {
        return CheckLine::ok("kernel programs", "part of this binary");
    }
    CheckLine::bad(
        "kernel programs",
        Outcome::Fail,
        "not part of this binary",
        EVERYTHING,
        "cargo xtask setup, then build again",
    )
}

fn kernel() -> CheckLine {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 15) {
        return CheckLine::ok("kernel", release);
    }
    CheckLine::bad(
        "kernel",
        Outcome::Fail,
        release,
        EVERYTHING,
        "a kernel of 5.15 or later (bpf_task_pt_regs, atomic instructions)",
    )
}

fn architecture() -> CheckLine {
    let arch = std::env::consts::ARCH;
    if super::calls::Arch::current().is_some() {
        return CheckLine::ok("architecture", arch);
    }
    CheckLine::bad("architecture", Outcome::Fail, arch, EVERYTHING, "x86_64 or aarch64")
}

fn type_information() -> CheckLine {
    match std::fs::metadata(BTF_PATH) {
        Ok(meta) => CheckLine::ok("type information", format!("{BTF_PATH}, {} bytes", meta.len())),
        Err(error) => CheckLine::bad(
            "type information",
            Outcome::Fail,
            format!("{BTF_PATH}: {error}"),
            EVERYTHING,
            "a kernel built with CONFIG_DEBUG_INFO_BTF; in a container that hides /sys: -v \
             /sys/kernel/btf:/sys/kernel/btf:ro",
        ),
    }
}

fn capabilities() -> Vec<CheckLine> {
    let effective = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    let Some(effective) = effective else {
        return vec![CheckLine::bad(
            "capabilities",
            Outcome::Warn,
            "/proc/self/status cannot be read",
            "knowing what is allowed",
            "mount /proc",
        )];
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    let one = |name, bit, lost: &str, fix: &str| {
        if has(bit) {
            CheckLine::ok(name, "yes")
        } else {
            CheckLine::bad(name, Outcome::Warn, "no", lost, fix)
        }
    };
    let load = if has(CAP_SYS_ADMIN) {
        CheckLine::ok("right to load programs", "CAP_SYS_ADMIN")
    } else if has(CAP_BPF) && has(CAP_PERFMON) {
        CheckLine::ok("right to load programs", "CAP_BPF and CAP_PERFMON")
    } else {
        CheckLine::bad(
            "right to load programs",
            Outcome::Fail,
            "neither CAP_SYS_ADMIN nor CAP_BPF with CAP_PERFMON",
            EVERYTHING,
            "run as root, or in a container with --cap-add SYS_ADMIN",
        )
    };
    vec![
        load,
        one(
            "CAP_SYS_PTRACE",
            CAP_SYS_PTRACE,
            "files, command lines and open pipes of other users' processes",
            "run as root, or in a container with --cap-add SYS_PTRACE",
        ),
        one(
            "CAP_DAC_READ_SEARCH",
            CAP_DAC_READ_SEARCH,
            "executables below directories of other users",
            "run as root, or in a container with --cap-add DAC_READ_SEARCH",
        ),
    ]
}

fn lockdown() -> CheckLine {
    let name = "lockdown";
    let Ok(text) = std::fs::read_to_string("/sys/kernel/security/lockdown") else {
        return CheckLine::ok(name, "not shown (securityfs is not mounted)");
    };
    let mode = text.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
    if mode != "confidentiality" {
        return CheckLine::ok(name, mode);
    }
    CheckLine::bad(
        name,
        Outcome::Fail,
        mode,
        format!("{EVERYTHING}: programs may not read memory"),
        "boot with lockdown=integrity, or without Secure Boot",
    )
}

/// Loads, attaches and detaches a backend; also says which process it saw.
fn backend(choice: BackendChoice, backend: Backend) -> (CheckLine, Option<u32>) {
    let name = match backend {
        Backend::TpBtf => "backend tp-btf",
        Backend::RawTp => "backend raw-tp",
    };
    let config = LiveConfig { backend: choice, ring_bytes: 1 << 16, ..LiveConfig::default() };
    match Live::start(&config) {
        Ok(live) => {
            let verified: u64 = live.control().program_runs().iter().map(|p| p.verified).sum();
            let found =
                format!("loads, attaches and sees calls ({verified} instructions verified)");
            (CheckLine::ok(name, found), Some(live.kernel_pid()))
        }
        Err(error) => {
            let fix = match &error {
                LiveError::Permission => "run as root",
                _ => "report this with the output of `mcpspy check`",
            };
            (CheckLine::bad(name, Outcome::Fail, error.to_string(), EVERYTHING, fix), None)
        }
    }
}

fn loops() -> CheckLine {
    match Kernel::read() {
        Ok(kernel) if kernel.has_loop => CheckLine::ok("bpf_loop", "yes"),
        Ok(_) => CheckLine::bad(
            "bpf_loop",
            Outcome::Warn,
            "no",
            "what one call moves beyond 6 MiB, or beyond about 200 pieces (counted as cut)",
            "a kernel of 5.17 or later",
        ),
        Err(error) => {
            CheckLine::bad("bpf_loop", Outcome::Fail, error.to_string(), EVERYTHING, "see above")
        }
    }
}

fn cgroup_names() -> CheckLine {
    let name = "cgroup names";
    match Kernel::read() {
        Ok(kernel) if kernel.has_cgroup_names => CheckLine::ok(name, "yes"),
        Ok(_) => CheckLine::bad(
            name,
            Outcome::Warn,
            "no",
            "the container of processes that end before /proc can be read",
            "a kernel whose type information names cgroups",
        ),
        Err(error) => {
            CheckLine::bad(name, Outcome::Fail, error.to_string(), EVERYTHING, "see above")
        }
    }
}

fn pid_namespace(seen: Option<u32>) -> CheckLine {
    let own = std::process::id();
    match seen {
        Some(seen) if seen == own => {
            CheckLine::ok("pid namespace", format!("the host's (this is process {own})"))
        }
        Some(seen) => CheckLine::bad(
            "pid namespace",
            Outcome::Warn,
            format!("another than the host's (process {own} here, {seen} there)"),
            "executables, command lines and parents of processes",
            "docker run --pid=host, in a Compose file `pid: host`",
        ),
        None => CheckLine::bad(
            "pid namespace",
            Outcome::Warn,
            "not known: no backend works",
            "",
            "see above",
        ),
    }
}

fn ring() -> CheckLine {
    let size = u64::from(LiveConfig::default().ring_bytes);
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    let found = format!("{} MiB by default", size >> 20);
    match available {
        Some(kib) if kib * 1024 < size * 4 => CheckLine::bad(
            "ring buffer",
            Outcome::Warn,
            format!("{found}, {} MiB of memory available", kib >> 10),
            "memory of other programs",
            "a smaller --ring-buffer",
        ),
        _ => CheckLine::ok("ring buffer", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_not_ok_says_what_to_do() {
        for line in [programs(), kernel(), architecture(), type_information(), lockdown(), ring()]
            .into_iter()
            .chain(capabilities())
        {
            assert!(line.ok == Outcome::Ok || !line.fix.is_empty(), "{line:?}");
        }
    }

    #[test]
    fn every_line_has_its_section_in_the_troubleshooting_page() {
        let page = include_str!("../../../../docs/troubleshooting.md");
        let (tp, _) = backend(BackendChoice::TpBtf, Backend::TpBtf);
        let (raw, _) = backend(BackendChoice::RawTp, Backend::RawTp);
        let others = [programs(), kernel(), architecture(), type_information(), lockdown(), ring()];
        let last = [tp, raw, loops(), cgroup_names(), pid_namespace(None)];
        for line in others.into_iter().chain(capabilities()).chain(last) {
            assert!(page.contains(&format!("\n### {}\n", line.name)), "{}", line.name);
        }
    }
}
