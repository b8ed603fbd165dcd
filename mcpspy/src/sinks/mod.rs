//! Where events go: the terminal, files, `docker logs`.
//!
//! Each sink has a thread and a bounded [`Queue`] of its own, so that a slow disk or a stopped
//! terminal delays nothing but itself. What a queue or a sink could not deliver is counted, with the
//! reason, and said in the output itself as soon as it moves again: see [`queue`].
//!
//! [`schema`] is the only code that knows the form of an event in JSON; [`text`] the only code that
//! knows its form for people.

pub mod console;
pub mod jsonl;
mod lines;
mod path_pattern;
pub mod per_container;
pub mod queue;
#[cfg(test)]
mod samples;
pub mod schema;
pub mod text;
mod time;
pub mod visible;

use std::io;

pub use lines::stdout;
pub use path_pattern::{PathPattern, PatternError};
pub use queue::{DropReason, Limits, Queue, Report, Tally, WhenFull};

use crate::model::Event;

/// What is the same for all events of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// Tells this run from every other one.
    pub run_id: String,
    /// Name of the host that is watched.
    pub host: String,
    /// The user gave that name: then no engine knows better.
    pub host_given: bool,
    /// Version of the program.
    pub version: &'static str,
    /// Wall clock minus boot clock, ns.
    pub wall_offset_ns: i64,
}

/// How much of a message's text goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// All of it.
    Full,
    /// Names and numbers only.
    None,
    /// Texts up to this many bytes. A whole line stays below [`Payload::line_limit`].
    Limit(u64),
}

impl Payload {
    /// What stdout gets unless the user says otherwise: a line then stays below the 16 KiB at which
    /// Docker's log drivers split it.
    pub const STDOUT: Self = Self::Limit(4096);

    /// Longest line, line end included, that [`schema`] writes; `None` where there is no limit.
    ///
    /// Four times the limit of a single text, and never less than 16 KiB: a message of `SIZE` bytes
    /// stands in a line up to twice (`raw`, and `params` or `result`), its request once.
    pub const fn line_limit(self) -> Option<usize> {
        const DOCKER_SPLIT: u64 = 16 * 1024;
        match self {
            Self::Full | Self::None => None,
            Self::Limit(size) => {
                let four = size.saturating_mul(4);
                let limit = if four > DOCKER_SPLIT { four } else { DOCKER_SPLIT };
                Some(limit.saturating_sub(1) as usize)
            }
        }
    }

    /// Most bytes of one text.
    pub const fn text_limit(self) -> usize {
        match self {
            Self::Full => usize::MAX,
            Self::None => 0,
            Self::Limit(size) => size as usize,
        }
    }
}

/// Takes events and writes them somewhere. Called by the thread of its [`Queue`] only.
///
/// [`Sink::write`] may keep what it formatted in memory; what [`Sink::flush`] accepted is delivered.
pub trait Sink: Send {
    /// Takes one event.
    fn write(&mut self, event: &Event) -> Result<(), SinkError>;

    /// Hands everything taken so far to the operating system.
    fn flush(&mut self) -> Result<(), SinkError>;

    /// Closes and opens again what it writes to (SIGHUP). Also tried after a failure.
    fn reopen(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Numbers ([`Event::seq`]) of the events that it took since it was last asked and that do not
    /// get out although it goes on: one of its several files failed. Asked after a flush.
    fn take_lost(&mut self) -> Vec<u64> {
        Vec::new()
    }
}

/// A sink cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {source}")]
pub struct SinkError {
    /// What was tried, with the name of the file.
    pub context: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
    /// Nobody reads any more: an ordinary end, not an error to report.
    pub closed: bool,
    /// Of the events taken and not yet flushed, the event at hand included, how many of the last
    /// ones did not get out.
    pub undelivered: u64,
}
