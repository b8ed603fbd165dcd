//! What the monitor reported: its events, as `docs/events.md` describes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Truth, compare};

/// One event.
#[derive(Clone, Debug)]
pub struct Event(Value);

impl Event {
    /// Reads an event.
    pub fn parse(line: &str) -> Result<Self> {
        let value = serde_json::from_str(line)
            .with_context(|| format!("not JSON: {}", line.chars().take(200).collect::<String>()))?;
        Ok(Self(value))
    }

    /// Reads the whole lines of a file; a last line without its end is still being written.
    pub fn read_file(path: &Path) -> Result<Vec<Self>> {
        let mut reader = BufReader::new(File::open(path)?);
        let mut events = Vec::new();
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            events.push(Self::parse(&line)?);
            line.clear();
        }
        Ok(events)
    }

    /// The value at a JSON pointer; null where there is none.
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// The text at a JSON pointer; empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    /// The number at a JSON pointer; 0 where there is none.
    pub fn number(&self, pointer: &str) -> u64 {
        self.at(pointer).as_u64().unwrap_or(0)
    }

    /// `message`, `session`, `finding`, `lost`, `status`.
    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// Whether it is an MCP message.
    pub fn is_message(&self) -> bool {
        self.kind() == "message"
    }

    /// Position in the run.
    pub fn seq(&self) -> u64 {
        self.number("/seq")
    }

    /// Exact text of the message.
    pub fn raw(&self) -> &str {
        self.text("/raw")
    }

    /// Sender and receiver; 0 where unknown.
    pub fn pids(&self) -> (u32, u32) {
        let pid = |pointer| u32::try_from(self.number(pointer)).unwrap_or(0);
        (pid("/from/pid"), pid("/to/pid"))
    }

    /// Seconds of the day, for spans within a run.
    pub fn seconds(&self) -> f64 {
        let clock = self.text("/timestamp").split(['T', 'Z']).nth(1).unwrap_or_default();
        clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse().unwrap_or(0.0))
    }

    /// Whether one of the ends is this process.
    pub fn concerns(&self, pid: u32) -> bool {
        let (from, to) = self.pids();
        from == pid || to == pid
    }

    /// The whole event.
    pub fn value(&self) -> &Value {
        &self.0
    }
}

/// A run of the monitor that has ended.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// Its events, in the order of the file.
    pub events: Vec<Event>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// The messages.
    pub fn messages(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(|event| event.is_message())
    }

    /// Messages with one of these processes at an end.
    pub fn messages_of(&self, pids: &BTreeSet<u32>) -> Vec<&Event> {
        self.messages()
            .filter(|event| {
                let (from, to) = event.pids();
                pids.contains(&from) || pids.contains(&to)
            })
            .collect()
    }

    /// Session events with this `change` (`opened`, `updated`, `closed`) of a process.
    pub fn session_events(&self, change: &str, pid: u32) -> Vec<&Event> {
        self.events
            .iter()
            .filter(|event| event.kind() == "session" && event.text("/change") == change)
            .filter(|event| event.concerns(pid))
            .collect()
    }

    /// The monitor reported what the peers logged and nothing else of them, every message once,
    /// whole, in order, paired, with its ends, and lost nothing.
    pub fn expect_exactly(&self, truth: &Truth) -> Result<()> {
        self.expect_messages(truth)?;
        if let Some(event) = self.messages().find(|event| event.at("/truncated") == true) {
            bail!("seq {} is truncated", event.seq());
        }
        self.expect_nothing_lost()
    }

    /// As [`Self::expect_exactly`], but messages may be truncated, and the ledgers are not read.
    pub fn expect_messages(&self, truth: &Truth) -> Result<()> {
        self.expect_sequence()?;
        let problems = compare::compare(self, truth);
        if problems.is_empty() {
            return Ok(());
        }
        let shown = problems.len().min(12);
        bail!(
            "the monitor and the peers disagree ({} problems):\n{}\nmonitor said:\n{}",
            problems.len(),
            problems[..shown].join("\n"),
            self.stderr
        );
    }

    /// Sequence numbers count from 1 without a hole, in the order of the file.
    pub fn expect_sequence(&self) -> Result<()> {
        for (index, event) in self.events.iter().enumerate() {
            ensure!(
                event.seq() == index as u64 + 1,
                "event {} of the file has seq {}: {}",
                index + 1,
                event.seq(),
                event.value()
            );
        }
        Ok(())
    }

    /// Nothing was lost, and both ledgers say so and add up.
    pub fn expect_nothing_lost(&self) -> Result<()> {
        if let Some(event) = self.events.iter().find(|event| event.kind() == "lost") {
            bail!("something was lost: {}", event.value());
        }
        let last = self.events.last().context("the run has no events")?;
        ensure!(last.kind() == "status", "the last event is no status: {}", last.value());
        let mut numbers = Vec::new();
        collect_numbers(last.value(), &mut numbers);
        let losses: Vec<_> = numbers
            .iter()
            .filter(|(name, value)| *value > 0 && is_loss(name))
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        ensure!(losses.is_empty(), "the ledger shows losses: {}", losses.join(", "));
        let get = |name: &str| numbers.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
        ensure!(
            get("admitted_bytes").is_some() && get("admitted_bytes") == get("copied_bytes"),
            "the byte ledger of the kernel is not in the last event: {}",
            last.value()
        );
        ensure!(!self.stderr.contains(" != "), "a ledger does not add up:\n{}", self.stderr);
        Ok(())
    }

    /// No message was reported with one of these processes at an end.
    pub fn expect_no_message_of(&self, pids: &BTreeSet<u32>) -> Result<()> {
        let mut shown = String::new();
        for event in self.messages_of(pids).iter().take(5) {
            writeln!(shown, "{}", event.value())?;
        }
        ensure!(shown.is_empty(), "these should not have been reported:\n{shown}");
        Ok(())
    }
}

/// Counters of the last event that are above 0 only where something was lost.
fn is_loss(name: &str) -> bool {
    const LOSSES: &[&str] = &[
        "ring_full",
        "ring_full_bytes",
        "ring_full_facts",
        "fault_bytes",
        "scratch_busy_bytes",
        "cut_bytes",
        "table_full",
        "gaps",
        "gap_bytes",
        "gaps_unknown",
        "queue_full",
    ];
    LOSSES.contains(&name) || name.starts_with("dropped_")
}

fn collect_numbers(value: &Value, found: &mut Vec<(String, u64)>) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value.as_u64() {
            Some(number) => found.push((name.clone(), number)),
            None => collect_numbers(value, found),
        }
    }
}
