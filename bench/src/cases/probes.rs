//! What those pay who do not speak MCP, for each system call: against the same hook with an empty
//! program, and against none.

use anyhow::Result;

use super::Bench;
use crate::bpf::Empty;
use crate::monitor::{self, Monitor};
use crate::probe::Call;
use crate::report::Row;
use crate::stats::Samples;

const CASE: &str = "system calls";

/// ns per call of one round.
struct Round {
    none: f64,
    empty: f64,
    mcpspy: f64,
}

pub(super) fn run(bench: &Bench) -> Result<Vec<Row>> {
    const CALLS: [Call; 3] = [Call::Getppid, Call::Pipe64, Call::Pipe64k];
    let seconds = bench.pick(0.3, 0.1);
    let measure = || -> Result<Vec<f64>> {
        CALLS.iter().map(|call| Ok(monitor::probe(bench.cpus.load, *call, seconds)?.ns)).collect()
    };
    let mut rounds: [Vec<Round>; 3] = Default::default();
    for _ in 0..bench.pick(15, 2) {
        let monitor = Monitor::start(&bench.monitor())?;
        let hook = monitor.hook()?;
        let mcpspy = measure()?;
        monitor.stop()?;
        let none = measure()?;
        let attached = Empty::attach(hook)?;
        let empty = measure()?;
        drop(attached);
        for (call, rounds) in rounds.iter_mut().enumerate() {
            rounds.push(Round { none: none[call], empty: empty[call], mcpspy: mcpspy[call] });
        }
    }
    let [getppid, pipe, large] = &rounds;
    let mut rows = added("getppid", getppid, 1.0);
    rows.extend(added("write or read of 64 bytes in a pipe", pipe, 2.0));
    rows.extend(rate(large));
    Ok(rows)
}

/// `calls`: how many system calls were timed as one.
fn added(name: &str, rounds: &[Round], calls: f64) -> Vec<Row> {
    let of = |ns: fn(&Round) -> f64| -> Samples { rounds.iter().map(|r| ns(r) / calls).collect() };
    let over_empty = of(|round| round.mcpspy - round.empty);
    vec![
        Row::told(CASE, format!("{name}, ns, no hook"), of(|round| round.none).show(0)),
        Row::told(CASE, format!("{name}, ns, empty program"), of(|round| round.empty).show(0)),
        Row::told(CASE, format!("{name}, ns, mcpspy"), of(|round| round.mcpspy).show(0)),
        Row::goal(
            CASE,
            format!("{name}, ns more than the empty program"),
            over_empty.show(0),
            "at most 120",
            over_empty.median() <= 120.0,
        )
        .broken_if(over_empty.median() > 2000.0),
    ]
}

fn rate(rounds: &[Round]) -> Vec<Row> {
    let kept = |ns: fn(&Round) -> f64| -> Samples {
        rounds.iter().map(|round| round.none / ns(round)).collect()
    };
    let mcpspy = kept(|round| round.mcpspy);
    vec![
        Row::told(
            CASE,
            "64 KiB through a pipe, rate kept with the empty program",
            kept(|round| round.empty).show(3),
        ),
        Row::goal(
            CASE,
            "64 KiB through a pipe, rate kept with mcpspy",
            mcpspy.show(3),
            "at least 0.95",
            mcpspy.median() >= 0.95,
        )
        .broken_if(mcpspy.median() < 0.3),
    ]
}
