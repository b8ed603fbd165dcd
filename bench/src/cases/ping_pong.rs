//! A client that calls as fast as the server answers: how much of its rate is left.

use anyhow::Result;

use super::Bench;
use crate::capture::Captured;
use crate::load::{LoadArgs, Sent};
use crate::monitor::{self, Monitor};
use crate::report::Row;
use crate::stats::Samples;
use crate::usage;

const CASE: &str = "ping-pong";

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    let args = LoadArgs {
        rate: None,
        seconds: bench.pick(3.0, 1.0),
        messages: u64::MAX,
        size: 300,
        window: 1,
    };
    let mut without = Vec::new();
    let mut with = Vec::new();
    let mut cpu_without = Vec::new();
    let mut cpu_with = Vec::new();
    let (mut sent_all, mut captured_all, mut complete) = (0, 0, true);
    for _ in 0..bench.pick(7, 2) {
        let (sent, cpu) = load(bench, &args)?;
        without.push(sent.rate() / 2.0);
        cpu_without.push(cpu);

        let monitor = Monitor::start(&bench.monitor())?;
        let (sent, cpu) = load(bench, &args)?;
        monitor.stop()?;
        cpu_with.push(cpu);
        with.push(sent.rate() / 2.0);
        let captured = Captured::read(&bench.output, &sent)?;
        complete &= captured.is_complete(&sent);
        sent_all += sent.messages;
        captured_all += captured.messages;
    }
    let kept: Samples = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let per_call: Samples =
        cpu_without.iter().zip(&cpu_with).map(|(without, with)| without / with).collect();
    let thousands = |rates: &[f64]| rates.iter().map(|rate| rate / 1000.0).collect::<Samples>();
    Ok(vec![
        Row::told(CASE, "thousand calls a second without", thousands(&without).show(1)),
        Row::told(CASE, "thousand calls a second with", thousands(&with).show(1)),
        Row::goal(CASE, "rate kept", kept.show(2), "at least 0.75", kept.median() >= 0.75)
            .broken_if(kept.median() < 0.2),
        Row::told(
            CASE,
            "CPU of client and server per call, µs, without; with",
            format!(
                "{}; {}",
                cpu_without.iter().copied().collect::<Samples>().show(2),
                cpu_with.iter().copied().collect::<Samples>().show(2)
            ),
        ),
        Row::told(CASE, "the same as a ratio, true on a busy machine, too", per_call.show(2)),
        Row::goal(
            CASE,
            "captured of sent",
            format!("{captured_all} of {sent_all}"),
            "all, once",
            complete,
        ),
    ])
}

/// The load, and its CPU time for each call in µs.
fn load(bench: &Bench, args: &LoadArgs) -> Result<(Sent, f64)> {
    let before = usage::cpu_of_children()?;
    let sent = monitor::load(bench.cpus.load, args)?;
    let used = usage::cpu_of_children()?.saturating_sub(before);
    let per_call = used.as_secs_f64() * 1e6 / sent.calls as f64;
    Ok((sent, per_call))
}
