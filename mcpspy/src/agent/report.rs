//! What the program says of itself on standard error: how it starts, why it is quiet, both ledgers
//! at the end.

use std::io::Write;

use crate::config::Monitor;
use crate::model::KernelCounters;
use crate::sinks::{DropReason, Report};
use crate::telemetry::{Balance, Counters, SinkLedger, bytes_balance, messages_balance};

/// Writes one line to standard error. Where that is gone there is nobody to tell.
pub fn say(line: &str) {
    let mut text = String::with_capacity(line.len() + 1);
    text.push_str(line);
    text.push('\n');
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// The line at the start.
pub(super) fn start_line(config: &Monitor, backend: &str) -> String {
    let system = rustix::system::uname();
    let watched = match config.command.first() {
        Some(command) => format!("{} and its processes", command.display()),
        None => "all processes of this host".to_owned(),
    };
    format!(
        "mcpspy {}, Linux {} {}, backend {backend}: pipes and Unix sockets of {watched}",
        env!("CARGO_PKG_VERSION"),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
    )
}

/// What to say after a while without any message.
pub(super) fn quiet_line(config: &Monitor) -> String {
    let watched = match config.command.first() {
        Some(command) => format!("{} and its processes", command.display()),
        None => "all processes of this host".to_owned(),
    };
    format!(
        "mcpspy: no MCP message so far. It watches lines of JSON-RPC on pipes and Unix sockets of \
         {watched}, from the next message on; `mcpspy check` says what this machine does not allow"
    )
}

/// What became of everything.
pub(super) struct Summary {
    pub(super) counters: Counters,
    pub(super) kernel: Option<KernelCounters>,
    pub(super) sinks: Vec<Report>,
}

impl Summary {
    /// The two ledgers: one line for bytes, one for messages.
    pub(super) fn ledgers(&self) -> [String; 2] {
        let line = |name: &str, balances: Vec<Balance>| {
            let balances: Vec<_> = balances.iter().map(Balance::to_string).collect();
            format!("{name}: {}", balances.join("; "))
        };
        let (bytes, messages) = self.balances();
        [line("bytes", bytes), line("messages", messages)]
    }

    fn balances(&self) -> (Vec<Balance>, Vec<Balance>) {
        let sinks: Vec<_> = self.sinks.iter().map(ledger).collect();
        (
            bytes_balance(self.kernel.as_ref(), &self.counters),
            messages_balance(&self.counters, &sinks),
        )
    }

    /// One line for each kind of loss, with what helps against it; a ledger that does not add up is
    /// a mistake of the program and is said too.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(kernel) = &self.kernel {
            kernel_warnings(kernel, &mut warnings);
        }
        for sink in &self.sinks {
            for (reason, tally) in sink.dropped.iter().filter(|(_, tally)| tally.messages > 0) {
                let why = match reason {
                    DropReason::QueueFull => "it was too slow; `-o FILE` waits instead",
                    DropReason::WriteFailed => "it could not be written",
                    DropReason::Closed => continue,
                    DropReason::Shutdown => "the end did not wait for it",
                };
                warnings.push(format!(
                    "{} messages were not delivered to {}: {why}",
                    tally.messages, sink.name
                ));
            }
        }
        let (bytes, messages) = self.balances();
        for balance in bytes.iter().chain(&messages).filter(|balance| !balance.holds()) {
            warnings.push(format!("a ledger does not add up, please report it: {balance}"));
        }
        warnings
    }
}

fn kernel_warnings(kernel: &KernelCounters, warnings: &mut Vec<String>) {
    if kernel.ring_full_bytes > 0 || kernel.ring_full_facts > 0 {
        warnings.push(format!(
            "{} bytes and {} facts were lost because the ring was full: a larger --ring-buffer \
             helps against bursts",
            kernel.ring_full_bytes, kernel.ring_full_facts
        ));
    }
    for (count, what) in [
        (kernel.fault_bytes, "bytes could not be read from the memory of their process"),
        (kernel.scratch_busy_bytes, "bytes were lost because no scratch buffer was free"),
        (kernel.cut_bytes, "bytes were beyond what one call may copy"),
        (kernel.table_full, "streams were not followed because the table was full"),
        (kernel.relays_full, "relays were taken for ends because their table was full"),
        (kernel.compat_calls, "calls of 32-bit programs were not looked at"),
    ] {
        if count > 0 {
            warnings.push(format!("{count} {what}"));
        }
    }
}

fn ledger(report: &Report) -> SinkLedger {
    SinkLedger {
        name: report.name.clone(),
        delivered: report.delivered.messages,
        dropped: report.dropped.iter().map(|(why, tally)| (why.name(), tally.messages)).collect(),
    }
}
