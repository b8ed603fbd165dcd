//! The table of what was measured.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The table goes between these lines of the page.
const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// One line of the table.
pub(crate) struct Row {
    /// The case that it belongs to.
    pub(crate) case: &'static str,
    /// What was measured.
    pub(crate) what: String,
    /// What came out.
    pub(crate) measured: String,
    /// What we want, and whether it is so; `None` for what is only told.
    pub(crate) goal: Option<(&'static str, bool)>,
    /// Whether it is so bad that the run fails.
    pub(crate) broken: bool,
}

impl Row {
    /// Something that has no goal.
    pub(crate) fn told(case: &'static str, what: impl Into<String>, measured: String) -> Self {
        Self { case, what: what.into(), measured, goal: None, broken: false }
    }

    /// Something that has a goal.
    pub(crate) fn goal(
        case: &'static str,
        what: impl Into<String>,
        measured: String,
        goal: &'static str,
        met: bool,
    ) -> Self {
        Self { case, what: what.into(), measured, goal: Some((goal, met)), broken: false }
    }

    /// Marks it as broken where `bad`.
    pub(crate) fn broken_if(mut self, bad: bool) -> Self {
        self.broken = bad;
        self
    }
}

/// The rows as a Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| {
        let (goal, verdict) = match (row.goal, row.broken) {
            (goal, true) => (goal.map_or("", |(goal, _)| goal), "**broken**"),
            (Some((goal, true)), _) => (goal, "met"),
            (Some((goal, false)), _) => (goal, "**missed**"),
            (None, _) => ("", ""),
        };
        format!("| {} | {} | {} | {goal} | {verdict} |", row.case, row.what, row.measured)
    });
    let head = ["| case | what | measured | goal | |", "|---|---|---|---|---|"];
    head.into_iter().map(str::to_owned).chain(lines).collect::<Vec<_>>().join("\n")
}

/// Puts the table into the page.
pub(crate) fn write_page(page: &Path, rows: &[Row]) -> Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let (head, rest) = text.split_once(BEGIN).context("the page has no place for the table")?;
    let (_, tail) = rest.split_once(END).context("the place for the table has no end")?;
    let table = table(rows);
    let machine = machine();
    std::fs::write(page, format!("{head}{BEGIN}\n\n{machine}\n\n{table}\n\n{END}{tail}"))?;
    Ok(())
}

/// What was measured on, in a sentence.
fn machine() -> String {
    let first = |path: &str, prefix: &str| -> Option<String> {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(prefix))?;
        Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
    };
    let model = first("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".into());
    let kernel = first("/proc/sys/kernel/osrelease", "").unwrap_or_default();
    let memory = first("/proc/meminfo", "MemTotal").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let load = first("/proc/loadavg", "").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "{} on {}: {cpus} CPUs ({model}), {memory} of memory, Linux {kernel}, load average {load} at the end.",
        version(),
        today(),
    )
}

fn said_by(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn today() -> String {
    said_by("date", &["-u", "+%Y-%m-%d"]).unwrap_or_else(|| "an unknown day".into())
}

fn version() -> String {
    let commit = said_by("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_default();
    format!("mcpspy {} {commit}", env!("CARGO_PKG_VERSION"))
}
