//! Settings, resolved and checked: what the rest of the program sees of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::filter::Filter;
pub use crate::sinks::PathPattern;

/// What the program was asked to do.
#[derive(Debug)]
pub struct Config {
    /// Which job.
    pub action: Action,
    /// How it speaks on standard error.
    pub log: Log,
}

/// The jobs.
#[derive(Debug)]
pub enum Action {
    /// Watch the host, or one command.
    Monitor(Box<Monitor>),
    /// Feed a recording.
    Replay(Box<Replay>),
    /// Say what this machine allows.
    Check(Docker),
    /// Ask the monitor that runs here how it is.
    Health,
    /// Print a completion script. The text is made where the command line is known.
    Print(String),
    /// Internal: wait for a byte, give up privileges, become the command.
    Become(Become),
}

/// Watch the host, or one command.
#[derive(Debug)]
pub struct Monitor {
    /// Where events go.
    pub outputs: Outputs,
    /// Which events are wanted.
    pub filter: Filter,
    /// Limits of the engine.
    pub limits: Limits,
    /// Size of the ring buffer: a power of two.
    pub ring_bytes: u32,
    /// How to get at the traffic.
    pub backend: Backend,
    /// Which container engines to ask.
    pub docker: Docker,
    /// Further programs that only hand bytes on, by the names of their executables.
    pub relays: Vec<String>,
    /// Name of this host in events; `None`: what its container engine calls it, else its host name.
    pub host_name: Option<String>,
    /// Where to record the inputs.
    pub record: Option<PathBuf>,
    /// When to end.
    pub duration: Option<Duration>,
    /// The command to run and watch; empty: watch the host.
    pub command: Vec<OsString>,
    /// Remarks on the settings, for standard error.
    pub remarks: Vec<String>,
}

/// Feed a recording.
#[derive(Debug)]
pub struct Replay {
    /// The recording.
    pub file: PathBuf,
    /// How fast; `None`: as fast as it goes.
    pub speed: Option<f64>,
    /// Where events go.
    pub outputs: Outputs,
    /// Which events are wanted.
    pub filter: Filter,
    /// Limits of the engine.
    pub limits: Limits,
}

/// Internal: wait for a byte, give up privileges, become the command.
#[derive(Debug)]
pub struct Become {
    /// Descriptor of the pipe on which the byte comes.
    pub release: i32,
    /// Who to become; `None`: stay.
    pub caller: Option<Caller>,
    /// Program and arguments.
    pub command: Vec<OsString>,
}

/// Which container engines to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Docker {
    /// Their addresses, as `DOCKER_HOST` has them; empty: those that are found.
    pub hosts: Vec<String>,
    /// Ask none.
    pub disabled: bool,
}

/// Limits of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one message; `None`: as the recording says, or the usual.
    pub max_message: Option<usize>,
    /// Show streams without a return path.
    pub oneway: bool,
}

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// What the terminal gets, or the pipe behind it.
    pub console: Option<Console>,
    /// JSONL files; a path may be a [`PathPattern`].
    pub files: Vec<PathBuf>,
    /// Payload in files.
    pub file_payload: PayloadLimit,
    /// Size at which a file is rotated.
    pub max_size: Option<u64>,
    /// How many rotated files are kept.
    pub keep: u32,
    /// Who owns the files; `None`: whoever runs the program.
    pub owner: Option<Caller>,
    /// Labels of containers to show.
    pub show_labels: Vec<String>,
}

/// What the terminal gets, or the pipe behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// On which of the standard streams.
    pub stream: StandardStream,
    /// In which form.
    pub format: Format,
    /// How much of each message.
    pub payload: PayloadLimit,
    /// Longest line, in bytes; `None`: no limit.
    pub max_line: Option<usize>,
    /// Raw JSON below each text line.
    pub buffers: bool,
    /// Colour.
    pub color: bool,
}

/// Standard output or standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardStream {
    /// Standard output.
    Out,
    /// Standard error: with a command, standard output is the command's.
    Err,
}

/// Form of events on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One line for people.
    Text,
    /// JSONL.
    Json,
}

/// How much of a message is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadLimit {
    /// All of it.
    Full,
    /// Nothing.
    None,
    /// At most so many bytes.
    Bytes(u64),
}

/// How to get at the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The best one that loads.
    Auto,
    /// Exits of kernel functions.
    Fexit,
    /// Typed tracepoint of system call exits.
    TpBtf,
    /// Raw tracepoint of system call exits.
    RawTp,
}

/// How the program speaks on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// What is worth a line.
    pub level: LogLevel,
    /// Colour.
    pub color: bool,
}

/// What is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// All.
    Trace,
    /// What helps to find a mistake.
    Debug,
    /// What a user may want to know.
    Info,
    /// What a user should know.
    Warn,
    /// What stops the job.
    Error,
}

/// Who called `sudo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Caller {
    /// Reads `SUDO_UID` and `SUDO_GID`; `None` where there are none or where root called.
    pub fn from_sudo(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name| variable(name)?.parse().ok();
        let uid = number("SUDO_UID").filter(|&uid| uid != 0)?;
        Some(Self { uid, gid: number("SUDO_GID")? })
    }
}

/// Smallest ring: a power of two that is a multiple of every page size (4, 16 and 64 KiB).
pub const MIN_RING: u64 = 64 << 10;
/// Largest ring: beyond it the kernel would refuse, or the machine suffer.
pub const MAX_RING: u64 = 1 << 30;

/// Rounds the size of the ring up to what the kernel takes: a power of two times the page size.
pub fn ring_bytes(asked: u64) -> Option<u32> {
    let rounded = asked.max(MIN_RING).checked_next_power_of_two()?;
    u32::try_from(rounded).ok().filter(|&bytes| u64::from(bytes) <= MAX_RING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_rounded_up() {
        for (asked, expected) in [
            (0, Some(64 << 10)),
            (100_000, Some(128 << 10)),
            (32 << 20, Some(32 << 20)),
            ((32 << 20) + 1, Some(64 << 20)),
            (1 << 30, Some(1 << 30)),
            ((1 << 30) + 1, None),
            (u64::MAX, None),
        ] {
            assert_eq!(ring_bytes(asked), expected, "{asked}");
        }
    }

    #[test]
    fn root_is_no_sudo_caller() {
        let caller = |uid: &'static str, gid: &'static str| {
            Caller::from_sudo(move |name| {
                let value = if name == "SUDO_UID" { uid } else { gid };
                (!value.is_empty()).then(|| value.to_owned())
            })
        };
        assert_eq!(caller("1000", "100"), Some(Caller { uid: 1000, gid: 100 }));
        assert_eq!(caller("0", "0"), None);
        assert_eq!(caller("", ""), None);
        assert_eq!(caller("x", "100"), None);
    }
}
