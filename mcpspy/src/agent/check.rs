//! `mcpspy check`: what this machine allows, line by line.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use super::containers;
use super::mistakes::{Mistake, Surroundings, judge};
use crate::config::Docker;
use crate::inventory::docker::{DockerInventory, EngineSummary, News};
use crate::source::live::boot_now;
use crate::source::live::preflight::{self, CheckLine, Outcome};

/// How long engines may take: longer than each of them is given.
const PATIENCE: Duration = Duration::from_secs(15);

/// Prints what this machine allows; the exit code is 1 where monitoring is impossible.
pub fn check(docker: &Docker) -> anyhow::Result<u8> {
    let mut lines = preflight::check();
    let foreign_pids =
        lines.iter().any(|line| line.name == "pid namespace" && line.ok == Outcome::Warn);
    let around = look_around(docker, foreign_pids)?;
    lines.extend(container_lines(&around));
    lines.push(CheckLine::ok("standard output", containers::standard_output()));
    // Whoever closed the pipe has what they wanted.
    drop(std::io::stdout().write_all(text(&lines).as_bytes()));
    Ok(u8::from(lines.iter().any(|line| line.ok == Outcome::Fail)))
}

/// Asks the engines that can be reached.
fn look_around(docker: &Docker, foreign_pids: bool) -> anyhow::Result<Surroundings> {
    if docker.disabled {
        return Ok(containers::read(&[], foreign_pids, true));
    }
    let ignore = |_| ControlFlow::Continue(());
    let (inventory, news) =
        DockerInventory::start(&containers::settings(docker), boot_now, ignore)?;
    let settled = loop {
        match news.recv_timeout(PATIENCE) {
            Ok(News::Settled { engines, silent, containers, daemons }) => {
                break Some((engines, silent, containers, daemons));
            }
            Ok(_) => {}
            Err(_) => break None,
        }
    };
    inventory.finish();
    let (engines, silent, containers, daemons) = settled.unwrap_or_default();
    let inits: Vec<_> = containers.iter().filter_map(|(_, init)| *init).collect();
    let mut around = containers::read(&inits, foreign_pids, false);
    around.engines = engines;
    around.silent = silent;
    around.daemons |= daemons;
    Ok(around)
}

/// One line for the engines, and one for each mistake that the other lines do not name.
fn container_lines(around: &Surroundings) -> Vec<CheckLine> {
    let name = "container engine";
    let mut lines = Vec::new();
    let mistakes = judge(around);
    let unreachable = |mistake: &Mistake| [name, "stale socket"].contains(&mistake.section());
    if !mistakes.iter().any(unreachable) {
        let silent =
            around.silent.iter().map(|silent| format!("{}: {}", silent.endpoint, silent.error));
        let engines = around.engines.iter().map(EngineSummary::describe);
        let found: Vec<_> = engines.chain(silent).collect();
        lines.push(CheckLine::ok(
            name,
            match found.as_slice() {
                [] if around.disabled => "not asked".to_owned(),
                [] => "none found, none seems to run".to_owned(),
                found => found.join("\n"),
            },
        ));
    }
    for mistake in mistakes {
        let told = ["pid namespace", "type information", "capabilities"];
        if told.contains(&mistake.section()) {
            continue;
        }
        // A user's engine is none worse.
        let ok = match mistake {
            Mistake::Rootless(_) => Outcome::Ok,
            _ => Outcome::Warn,
        };
        lines.push(CheckLine::bad(
            mistake.section(),
            ok,
            mistake.found(),
            mistake.lost(),
            mistake.fix(),
        ));
    }
    lines
}

fn text(lines: &[CheckLine]) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let mark = match line.ok {
            Outcome::Ok => "ok  ",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
        };
        let mut part = |mark: &str, name: &str, what: &str| {
            let row = format!("{mark}  {name:width$}  {}", what.replace('\n', "\n        "));
            text.push_str(row.trim_end());
            text.push('\n');
        };
        part(mark, line.name, &line.found);
        for (word, what) in [("lost: ", &line.lost), ("fix: ", &line.fix)] {
            if !what.is_empty() {
                part("    ", "", &format!("{word}{what}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_lost_and_how_to_fix_it() {
        let line = |name, ok, found: &str, lost: &str, fix: &str| CheckLine {
            name,
            ok,
            found: found.to_owned(),
            lost: lost.to_owned(),
            fix: fix.to_owned(),
        };
        let lines = [
            line("kernel", Outcome::Ok, "6.1.0", "", ""),
            line("type information", Outcome::Fail, "no file", "everything", "another kernel"),
        ];
        let expected = "\
ok    kernel            6.1.0
FAIL  type information  no file
                        lost: everything
                        fix: another kernel
";
        assert_eq!(text(&lines), expected);
    }
}
