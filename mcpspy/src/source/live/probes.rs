//! The table of programs: where each is hooked, whether mcpspy can do without it, and what is lost
//! then.

use mcpspy_common::names::{
    PROG_CALL_RAW, PROG_CALL_TP, PROG_EXEC_RAW, PROG_EXEC_TP, PROG_EXIT_RAW, PROG_EXIT_TP,
    PROG_FORK_RAW, PROG_FORK_TP,
};

use super::Backend;

/// A program and its hook.
#[derive(Debug)]
pub(super) struct Probe {
    /// Tracepoint.
    pub(super) hook: &'static str,
    /// Program for [`Backend::TpBtf`].
    tp: &'static str,
    /// Program for [`Backend::RawTp`].
    raw: &'static str,
    /// Nothing works without it.
    pub(super) required: bool,
    /// What is lost without it.
    pub(super) lost: &'static str,
}

impl Probe {
    /// Name of the program for a backend.
    pub(super) const fn program(&self, backend: Backend) -> &'static str {
        match backend {
            Backend::TpBtf => self.tp,
            Backend::RawTp => self.raw,
        }
    }
}

/// In the order of attaching: a watched tree and the relays must be complete before calls are looked
/// at, by [`CALLS`].
pub(super) static PROBES: [Probe; 4] = [
    Probe {
        hook: "sched_process_fork",
        tp: PROG_FORK_TP,
        raw: PROG_FORK_RAW,
        required: true,
        lost: "children of the watched command, and what a relay does before it starts a program",
    },
    Probe {
        hook: "sched_process_exec",
        tp: PROG_EXEC_TP,
        raw: PROG_EXEC_RAW,
        required: false,
        lost: "the name that a process takes after it was first seen, relays, names of cgroups",
    },
    Probe {
        hook: "sched_process_exit",
        tp: PROG_EXIT_TP,
        raw: PROG_EXIT_RAW,
        required: false,
        lost: "exit codes, and sessions closed by the end of a process",
    },
    Probe { hook: CALLS, tp: PROG_CALL_TP, raw: PROG_CALL_RAW, required: true, lost: "everything" },
];

/// The hook that is attached last.
pub(super) const CALLS: &str = "sys_exit";
