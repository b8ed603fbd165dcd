//! More than the monitor can take: a small ring, and all on one CPU. What is lost must be counted
//! to the byte.

use anyhow::Result;

use super::Bench;
use crate::capture::Captured;
use crate::load::LoadArgs;
use crate::monitor::{self, Monitor, Start};
use crate::report::Row;

const CASE: &str = "overload";

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let args = LoadArgs {
        rate: None,
        seconds: bench.pick(5.0, 1.0),
        messages: u64::MAX,
        size: 300,
        window: 64,
    };
    let monitor = Monitor::start(&Start {
        cpu: bench.cpus.load,
        args: &["--ring-buffer", "64KiB"],
        ..bench.monitor()
    })?;
    let sent = monitor::load(bench.cpus.load, &args)?;
    monitor.stop()?;
    let captured = Captured::read(&bench.output, &sent)?;

    let bytes = captured.bytes + captured.lost_bytes;
    let bytes_agree = bytes == sent.bytes && captured.lost_unknown == 0;
    let lost_messages = captured.lost_bytes as f64 / args.size as f64;
    let counter = |name| captured.counter(name).unwrap_or(0);
    // The kernel counts for the whole host, so others that speak MCP or look like it are in it, too.
    let parts =
        ["copied_bytes", "ring_full_bytes", "fault_bytes", "scratch_busy_bytes", "cut_bytes"];
    let admitted = counter("admitted_bytes");
    let kernel_agrees = admitted == parts.iter().map(|name| counter(name)).sum::<u64>();
    Ok(vec![
        Row::told(
            CASE,
            "thousand messages a second sent, ring of 64 KiB, one CPU for all",
            format!("{:.0}", sent.rate() / 1000.0),
        ),
        Row::goal(
            CASE,
            "bytes sent = captured + lost",
            format!("{} = {} + {}", sent.bytes, captured.bytes, captured.lost_bytes),
            "exactly",
            bytes_agree,
        )
        .broken_if(!bytes_agree),
        Row::goal(
            CASE,
            "bytes admitted = copied + lost, in the kernel",
            format!("{admitted} = {} + {}", counter(parts[0]), admitted - counter(parts[0])),
            "exactly",
            kernel_agrees && admitted > 0,
        )
        .broken_if(!kernel_agrees || admitted == 0),
        // Each message is one call of one size, so lost bytes are lost messages.
        Row::goal(
            CASE,
            "messages sent = captured + lost bytes / 300",
            format!("{} = {} + {lost_messages:.2}", sent.messages, captured.messages),
            "exactly",
            (captured.messages as f64 + lost_messages - sent.messages as f64).abs() < 1e-6,
        ),
        Row::goal(CASE, "messages twice", captured.twice.to_string(), "none", captured.twice == 0)
            .broken_if(captured.twice > 0),
    ])
}
