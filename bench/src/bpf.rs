//! An empty program at the monitor's hook, to compare with; and the kernel's count of run time.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use aya_obj::btf::{Btf, BtfKind};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type, bpf_stats_type};

/// Where the monitor is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// `tp_btf/sys_exit`.
    TpBtf,
    /// `raw_tp/sys_exit`.
    RawTp,
}

impl Hook {
    /// By the name that the monitor gives its backend.
    pub(crate) fn named(name: &str) -> Result<Self> {
        match name.replace('-', "_").as_str() {
            "tp_btf" => Ok(Self::TpBtf),
            "raw_tp" => Ok(Self::RawTp),
            other => bail!("no empty program for the backend {other:?}"),
        }
    }
}

/// An attached program that returns 0. Detached when dropped.
pub(crate) struct Empty {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Attaches it.
    pub(crate) fn attach(hook: Hook) -> Result<Self> {
        let program = load_empty(hook).context("loading an empty program")?;
        let mut attr = zeroed();
        attr.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
        // A tp_btf program knows its tracepoint; a raw one is told by name.
        if hook == Hook::RawTp {
            attr.raw_tracepoint.name = c"sys_exit".as_ptr() as u64;
        }
        let link = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
            .context("attaching an empty program")?;
        Ok(Self { _program: program, _link: link })
    }
}

fn load_empty(hook: Hook) -> Result<OwnedFd> {
    /// `r0 = 0` (64-bit ALU, move, immediate) and `exit`.
    const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];

    let mut attr = zeroed();
    // SAFETY: any bytes are valid in this all-integer member of the union.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.insns = INSTRUCTIONS.as_ptr() as u64;
    load.insn_cnt = INSTRUCTIONS.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    match hook {
        Hook::RawTp => load.prog_type = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT as u32,
        Hook::TpBtf => {
            load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
            load.expected_attach_type = bpf_attach_type::BPF_TRACE_RAW_TP as u32;
            load.attach_btf_id =
                Btf::from_sys_fs()?.id_by_type_name_kind("btf_trace_sys_exit", BtfKind::Typedef)?;
        }
    }
    Ok(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?)
}

/// While it lives the kernel counts the run time of all BPF programs, which itself costs some 20 ns
/// a run.
pub(crate) struct CountingRuns(#[expect(dead_code, reason = "held open")] OwnedFd);

impl CountingRuns {
    /// Starts to count.
    pub(crate) fn start() -> Result<Self> {
        let mut attr = zeroed();
        attr.enable_stats.type_ = bpf_stats_type::BPF_STATS_RUN_TIME as u32;
        let fd = bpf(bpf_cmd::BPF_ENABLE_STATS, &mut attr).context("BPF_ENABLE_STATS")?;
        Ok(Self(fd))
    }
}

/// Runs of the programs of one process while they were counted.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Runs {
    /// How many.
    pub(crate) count: u64,
    /// Their time together, ns.
    pub(crate) ns: u64,
    /// Runs that did not happen because the program was already running on that CPU.
    pub(crate) missed: u64,
}

impl Runs {
    /// Of all programs that the process holds, as its open files say.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let mut programs = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // A file that was closed meanwhile is none of ours.
            let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
            let field = |name: &str| -> Option<u64> {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            if let (Some(id), Some(count)) = (field("prog_id:"), field("run_cnt:")) {
                let ns = field("run_time_ns:").unwrap_or(0);
                let missed = field("recursion_misses:").unwrap_or(0);
                programs.insert(id, Self { count, ns, missed });
            }
        }
        Ok(programs.values().fold(Self::default(), |sum, one| Self {
            count: sum.count + one.count,
            ns: sum.ns + one.ns,
            missed: sum.missed + one.missed,
        }))
    }

    /// What came since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count - earlier.count,
            ns: self.ns - earlier.ns,
            missed: self.missed - earlier.missed,
        }
    }
}

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of structs of integers; all zero is valid for each.
    unsafe { std::mem::zeroed() }
}

/// `bpf(2)` for the commands that return a file descriptor.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is valid for its size, and what it points to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    match i32::try_from(result) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel just made this descriptor for us.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
