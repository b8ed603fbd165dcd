//! Why the kernel side could not be started, and what to do about it.

use super::btf::BtfError;

/// Why the kernel side could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The binary was built without the kernel programs.
    #[error(
        "this binary was built without its kernel programs; run `cargo xtask setup` and build again"
    )]
    NotBuilt,
    /// No table of system calls.
    #[error("no support for {0}: mcpspy knows x86_64 and aarch64")]
    Architecture(&'static str),
    /// No permission.
    #[error(
        "the kernel does not let this process load programs: it needs root with CAP_SYS_ADMIN, or \
         CAP_BPF and CAP_PERFMON. Use sudo; in a container: --pid=host --cap-add SYS_ADMIN \
         --cap-add SYS_PTRACE"
    )]
    Permission,
    /// No type information.
    #[error(
        "no type information at {path} ({error}): mcpspy needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF (Debian 11, Ubuntu 20.10, RHEL 8.2 and later have it)"
    )]
    NoBtf {
        /// Where it was looked for.
        path: &'static str,
        /// What reading it said.
        error: std::io::Error,
    },
    /// The type information lacks what is needed.
    #[error("this kernel is not supported: {0}")]
    Btf(#[from] BtfError),
    /// The backend does not exist yet.
    #[error(
        "the fexit backend is not built yet: it comes with a later version; use --backend auto"
    )]
    NoFexit,
    /// The kernel refused each backend that was tried.
    #[error("the kernel refused the programs\n{0}")]
    Refused(String),
    /// A map could not be made or used.
    #[error("the kernel refused a map: {0}")]
    Map(#[from] aya::maps::MapError),
    /// The object could not be read.
    #[error("the kernel programs could not be read: {0}")]
    Object(Box<aya::EbpfError>),
    /// The programs run but do not see this process.
    #[error(
        "the programs were attached, but did not see this process write to a pipe; please report \
         this with the output of `mcpspy check`"
    )]
    Blind,
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came of it.
        error: std::io::Error,
    },
}

impl LiveError {
    pub(super) fn system(what: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |error| Self::System { what, error: error.into() }
    }
}
