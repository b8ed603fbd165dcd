//! A steady load, captured without loss, and what a message costs.

use anyhow::Result;

use super::Bench;
use crate::bpf::CountingRuns;
use crate::capture::Captured;
use crate::load::LoadArgs;
use crate::monitor::{self, Monitor};
use crate::report::Row;

const CASE: &str = "lossless";

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let rate = bench.pick(50_000, 10_000);
    let args = LoadArgs {
        rate: Some(rate),
        seconds: bench.pick(10.0, 2.0),
        messages: u64::MAX,
        size: 300,
        window: 1,
    };
    let _counting = CountingRuns::start()?;
    let mut monitor = Monitor::start(&bench.monitor())?;
    monitor.begin()?;
    let sent = monitor::load(bench.cpus.load, &args)?;
    let used = monitor.stop()?;
    let captured = Captured::read(&bench.output, &sent)?;

    let per_message = |ns: f64| ns / 1000.0 / captured.messages.max(1) as f64;
    let outside = per_message(used.cpu.as_nanos() as f64);
    let kernel = per_message(used.runs.ns as f64);
    let complete = captured.is_complete(&sent);
    let what = "messages of 300 bytes a second, requests and responses";
    let reached = format!("{:.0} for {:.1} s", sent.rate(), sent.seconds);
    let speed = if bench.short {
        Row::told(CASE, what, reached)
    } else {
        let met = sent.rate() > 0.99 * 50_000.0 && sent.seconds > 9.9;
        Row::goal(CASE, what, reached, "50,000 for 10 s", met)
    };
    Ok(vec![
        speed,
        Row::goal(
            CASE,
            "captured of sent",
            format!("{} of {}, {} twice", captured.messages, sent.messages, captured.twice),
            "all, once",
            complete,
        )
        .broken_if(!complete),
        Row::goal(
            CASE,
            "CPU per captured message",
            format!(
                "{:.1} µs: {outside:.1} in the monitor, {kernel:.1} in the kernel programs",
                outside + kernel
            ),
            "at most 20 µs",
            outside + kernel <= 20.0,
        )
        .broken_if(outside + kernel > 100.0),
        Row::told(
            CASE,
            "runs of the kernel programs",
            format!(
                "{}, {:.0} ns each, {} missed",
                used.runs.count,
                used.runs.ns as f64 / used.runs.count.max(1) as f64,
                used.runs.missed
            ),
        ),
    ])
}
