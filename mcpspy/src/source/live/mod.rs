//! The running kernel as a source: loads the programs, drains their ring, applies verdicts.
//!
//! Everything that needs aya, root or Linux's BPF is in this folder. The kernel side is in the
//! crate `mcpspy-ebpf`, the layout between the two in `mcpspy-common`.

mod btf;
mod calls;
mod control;
mod drain;
mod error;
mod load;
pub mod preflight;
mod probes;
mod record;
mod relays;

use aya::Ebpf;

pub use btf::BtfError;
pub use control::{Control, ProgramRuns};
pub use drain::{Drain, FirstSight};
pub use error::LiveError;
pub use mcpspy_common::relay::MAX_NAME as MAX_RELAY_NAME;

use crate::model::Timestamp;

/// Which hooks to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The first that loads.
    #[default]
    Auto,
    /// The kernel functions behind pipes and sockets.
    Fexit,
    /// The exit of each system call, as a BTF tracepoint.
    TpBtf,
    /// The exit of each system call, as a raw tracepoint.
    RawTp,
}

/// The hooks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// See [`BackendChoice::TpBtf`].
    TpBtf,
    /// See [`BackendChoice::RawTp`].
    RawTp,
}

impl Backend {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp-btf",
            Self::RawTp => "raw-tp",
        }
    }
}

/// Settings of the kernel side.
#[derive(Clone, Debug)]
pub struct LiveConfig {
    /// Which hooks to use.
    pub backend: BackendChoice,
    /// Size of the ring between kernel and user space; rounded up to a power of two.
    pub ring_bytes: u32,
    /// Watch only processes given to [`Live::watch`], and what they fork.
    pub watch_tree: bool,
    /// Pipes and sockets never to copy (mcpspy's own output): device in the kernel's encoding
    /// ([`kernel_dev`]) and inode.
    pub never: Vec<(u32, u64)>,
    /// Further programs that only hand bytes on, by the name of their executable, at most
    /// [`MAX_RELAY_NAME`] bytes each.
    pub relays: Vec<String>,
    /// Obey [`crate::model::Command::Cgroup`]. Without it nothing is looked up.
    pub container_filter: bool,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            ring_bytes: 32 << 20,
            watch_tree: false,
            never: Vec::new(),
            relays: Vec::new(),
            container_filter: false,
        }
    }
}

/// The loaded and attached programs. Dropping it detaches them.
pub struct Live {
    /// Holds the programs and their links.
    _ebpf: Ebpf,
    backend: Backend,
    control: Control,
    drain: Option<Drain>,
    seen_pid: u32,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Live {
    /// Loads and attaches the programs, and makes them know this process, which they never copy
    /// from.
    pub fn start(config: &LiveConfig) -> Result<Self, LiveError> {
        load::start(config)
    }

    /// The hooks in use.
    pub const fn backend(&self) -> Backend {
        self.backend
    }

    /// This process as the kernel sees it: another number than [`std::process::id`] where mcpspy
    /// runs in a pid namespace of its own.
    pub const fn kernel_pid(&self) -> u32 {
        self.seen_pid
    }

    /// Adds a process to the watched tree.
    pub fn watch(&mut self, pid: u32) -> Result<(), LiveError> {
        self.control.watch(pid)
    }

    /// The reader of the ring, once.
    pub const fn take_drain(&mut self) -> Option<Drain> {
        self.drain.take()
    }

    /// What may be asked of the kernel side while it runs.
    pub fn control(&self) -> Control {
        self.control.clone()
    }
}

/// The boot clock, which all records carry.
pub fn boot_now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Timestamp(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}

/// A device number of `stat` in the kernel's encoding, as records have it.
pub fn kernel_dev(st_dev: u64) -> u32 {
    rustix::fs::major(st_dev) << 20 | rustix::fs::minor(st_dev)
}
