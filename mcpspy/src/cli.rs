//! The command line. Only this file sees clap; the rest sees [`crate::config::Config`].

mod docker;
mod resolve;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use self::docker::{ContainerArgs, EngineArgs, HostArgs};
pub use self::resolve::parse;
use crate::config::{Caller, PayloadLimit};
use crate::filter::Globs;

const AFTER_HELP: &str = "\
Examples:
  sudo mcpspy                                  watch all MCP traffic of this host
  sudo mcpspy -- npx some-mcp-server           run a command and watch only it
  sudo mcpspy -o trace.jsonl --tool 'get_*'    only these tools, also to a file
  sudo mcpspy --service 'mcp-*'                only with containers of these Compose services
  sudo mcpspy --format json | jq .method       JSON lines for other programs
  sudo mcpspy --record bug.mcpcap --duration 30s
  mcpspy replay bug.mcpcap                     show a recording; needs no root
  mcpspy check                                 what this machine allows, and how to fix the rest

Each option can be given as a variable of the environment: MCPSPY_ and its name in capitals, such
as MCPSPY_RING_BUFFER=64M. Lists are separated by commas. The command line wins.

Exit status: 0 all is well, 1 cannot monitor, 2 wrong usage; with `-- COMMAND` the command's own
status, or 128 + the number of the signal that ended it.";

const ABOUT: &str = "\
Sees Model Context Protocol traffic on this host: every message, both ends, nothing changed.

Without a command it watches the whole host. With `-- COMMAND` it runs the command as the user who
called sudo and watches only its processes. The command keeps its standard output: text then goes to
standard error, or nowhere when -o names a file. Data goes to standard output, all else to standard
error.";

#[derive(Debug, Parser)]
#[command(name = "mcpspy", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
#[command(disable_help_subcommand = true, disable_help_flag = true)]
#[command(
    override_usage = "mcpspy [OPTIONS] [-- COMMAND…]\n       mcpspy replay FILE [OPTIONS]\n       \
                            mcpspy check | health | completions SHELL"
)]
struct Cli {
    #[command(flatten)]
    monitor: MonitorArgs,
    #[command(flatten)]
    engines: EngineArgs,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    events: EventArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Command to run and watch
    #[arg(last = true, value_name = "COMMAND", hide = true)]
    run: Vec<OsString>,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort, global = true, help_heading = "Options")]
    help: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a recording as if it happened now; needs no root
    Replay(Box<ReplayArgs>),
    /// Say line by line what this machine allows, what is lost without it, and the fix
    Check(Box<MachineArgs>),
    /// Ask the monitor that runs in this container or on this host whether it is well
    Health(CheckArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Internal: becomes the command once it is watched
    #[command(name = BECOME, hide = true)]
    Become {
        release: i32,
        /// `UID:GID` to become, or `-` to stay.
        caller: String,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Name of the internal verb; `agent` starts it.
pub const BECOME: &str = "become-command";

#[derive(Debug, Args)]
struct MachineArgs {
    #[command(flatten)]
    engines: EngineArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// Recording made with --record
    file: PathBuf,
    /// How fast: 1x as it happened, 10x ten times as fast, max as fast as it goes
    #[arg(long, value_name = "SPEED", default_value = "max", value_parser = speed)]
    speed: Speed,
    #[command(flatten)]
    events: EventArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Capture")]
struct MonitorArgs {
    /// End after this time, such as 30s, 5m or 1h
    #[arg(long, value_name = "TIME", env = "MCPSPY_DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Record everything that the program sees, to be shown again by `mcpspy replay`
    #[arg(long, value_name = "FILE.mcpcap", env = "MCPSPY_RECORD")]
    record: Option<PathBuf>,
    /// Buffer between kernel and program, rounded up to a power of two, at most 1G
    #[arg(
        long, value_name = "SIZE", env = "MCPSPY_RING_BUFFER", default_value = "32M",
        value_parser = size
    )]
    ring_buffer: u64,
    /// How to get at the traffic
    #[arg(long, env = "MCPSPY_BACKEND", default_value = "auto")]
    backend: BackendArg,
    /// Full-screen view on a terminal; accepted, without effect so far
    #[arg(
        long, value_name = "BOOL", env = "MCPSPY_TUI", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    tui: Option<bool>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
struct EventArgs {
    /// Append events to FILE as JSON lines; may be repeated; `-` is standard output. With {project},
    /// {service}, {container} or {id} in its path: a file for each container
    #[arg(short, long, value_name = "FILE", env = "MCPSPY_OUTPUT")]
    output: Vec<PathBuf>,
    /// Start a new file when FILE has reached SIZE; the old one becomes FILE.1
    #[arg(long, value_name = "SIZE", env = "MCPSPY_OUTPUT_MAX_SIZE", value_parser = size)]
    output_max_size: Option<u64>,
    /// How many old files to keep
    #[arg(long, value_name = "COUNT", env = "MCPSPY_OUTPUT_KEEP", default_value = "5")]
    output_keep: u32,
    /// Form of the events on standard output; auto is text
    #[arg(long, env = "MCPSPY_FORMAT", default_value = "auto")]
    format: FormatArg,
    /// How much of each message: full, none or a SIZE [default: full in files and in JSON with
    /// --max-line, else 4K]
    #[arg(long, value_name = "full|none|SIZE", env = "MCPSPY_PAYLOAD", value_parser = payload)]
    payload: Option<PayloadLimit>,
    /// Longest line on standard output: of a longer message raw goes first, then params and result;
    /// 0 is no limit [default: 16K in a pipe or a container's log, unless --payload is given]
    #[arg(long, value_name = "SIZE", env = "MCPSPY_MAX_LINE", value_parser = max_line)]
    max_line: Option<u64>,
    /// Show the raw JSON below each line of text
    #[arg(short, long, env = "MCPSPY_BUFFERS", value_parser = BoolishValueParser::new())]
    buffers: bool,
    /// Colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", env = "MCPSPY_COLOR", default_value = "auto")]
    color: ColorArg,

    /// Only messages from or to this process id
    #[arg(long, help_heading = FILTERS, value_name = "PID", env = "MCPSPY_PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// Only messages from or to processes of this name
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_COMM")]
    comm: Vec<Globs>,
    /// Only this method, such as 'tools/*'; a response has its request's
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_METHOD")]
    method: Vec<Globs>,
    /// Only messages of this type
    #[arg(
        long = "type", help_heading = FILTERS, value_name = "TYPE", env = "MCPSPY_TYPE",
        value_delimiter = ','
    )]
    kind: Vec<KindArg>,
    /// Only calls of this tool, and their results
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_TOOL")]
    tool: Vec<Globs>,
    /// Only sessions with this server: the name it gives itself, or its process
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_SERVER")]
    server: Vec<Globs>,
    /// Not from or to this process id
    #[arg(
        long, help_heading = FILTERS, value_name = "PID", env = "MCPSPY_EXCLUDE_PID",
        value_delimiter = ','
    )]
    exclude_pid: Vec<u32>,
    /// Not from or to processes of this name
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_EXCLUDE_COMM")]
    exclude_comm: Vec<Globs>,
    /// Not this method
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_EXCLUDE_METHOD")]
    exclude_method: Vec<Globs>,
    /// Not messages of this type
    #[arg(
        long, help_heading = FILTERS, value_name = "TYPE", env = "MCPSPY_EXCLUDE_TYPE",
        value_delimiter = ','
    )]
    exclude_type: Vec<KindArg>,
    /// Not calls of this tool
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_EXCLUDE_TOOL")]
    exclude_tool: Vec<Globs>,
    /// Not sessions with this server
    #[arg(long, help_heading = FILTERS, value_name = "GLOB", env = "MCPSPY_EXCLUDE_SERVER")]
    exclude_server: Vec<Globs>,
    /// Also show messages on streams on which nobody can answer, such as a log that holds MCP
    #[arg(
        long, help_heading = FILTERS, env = "MCPSPY_ONEWAY",
        value_parser = BoolishValueParser::new()
    )]
    oneway: bool,
    /// Largest message kept whole; of a larger one the head is kept and it is marked [default: 16M,
    /// or what the recording says]
    #[arg(
        long, help_heading = "Limits", value_name = "SIZE", env = "MCPSPY_MAX_MESSAGE",
        value_parser = size
    )]
    max_message: Option<u64>,
    #[command(flatten)]
    containers: ContainerArgs,
}

const FILTERS: &str = "Filters (repeatable; of several values of one option any, of several options all \
                       must match)";

#[derive(Debug, Args)]
#[command(next_help_heading = "Messages of the program itself (on standard error)")]
struct LogArgs {
    /// Say more: -v is --log-level debug, -vv is trace
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
    /// What is worth a line
    #[arg(short, long, value_name = "LEVEL", env = "MCPSPY_LOG_LEVEL", default_value = "info")]
    log_level: LevelArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Auto,
    Text,
    #[value(aliases = ["jsonl", "ndjson"])]
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ColorArg {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    /// The best one that loads
    Auto,
    /// Exits of kernel functions
    Fexit,
    /// Typed tracepoint at the end of system calls
    TpBtf,
    /// Raw tracepoint at the end of system calls
    RawTp,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    Request,
    Response,
    Notification,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LevelArg {
    Trace,
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    #[value(aliases = ["fatal", "panic"])]
    Error,
}

#[derive(Clone, Copy, Debug)]
struct Speed(Option<f64>);

fn speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed(None));
    }
    match text.strip_suffix('x').unwrap_or(text).parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(Speed(Some(factor))),
        _ => Err("a number above 0 and an x, such as 1x or 0.5x, or max".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size::Config::new().with_binary().parse_size(text).map_err(|error| {
        format!("{error}; a size is a number with or without K, M, G (powers of 1024)")
    })
}

/// Less than this a line cannot have: what it says besides the message takes as much.
const SHORTEST_LINE: u64 = 4096;

fn max_line(text: &str) -> Result<u64, String> {
    match size(text)? {
        1..SHORTEST_LINE => Err("4K or more, or 0 for no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

fn payload(text: &str) -> Result<PayloadLimit, String> {
    match text {
        "full" => Ok(PayloadLimit::Full),
        "none" => Ok(PayloadLimit::None),
        _ => size(text).map(PayloadLimit::Bytes).map_err(|error| format!("full, none, or {error}")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("the time must be above 0".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; a time is written 30s, 5m or 1h 30m")),
    }
}

/// Facts about the surroundings that settings depend on.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Standard output is a terminal.
    pub stdout_terminal: bool,
    /// Standard output is a regular file.
    pub stdout_file: bool,
    /// Standard error is a terminal.
    pub stderr_terminal: bool,
    /// `NO_COLOR` is set, or the terminal is dumb.
    pub no_color: bool,
    /// Who called sudo.
    pub caller: Option<Caller>,
}

impl Surroundings {
    /// Looks around.
    pub fn look() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            stdout_terminal: std::io::stdout().is_terminal(),
            stdout_file: std::fs::metadata("/proc/self/fd/1").is_ok_and(|file| file.is_file()),
            stderr_terminal: std::io::stderr().is_terminal(),
            no_color: variable("NO_COLOR").is_some()
                || variable("TERM").is_some_and(|t| t == "dumb"),
            caller: Caller::from_sudo(variable),
        }
    }
}

/// A command line that is wrong, or that asked for help.
#[derive(Debug)]
pub struct Stop(clap::Error);

impl Stop {
    /// Prints it where it belongs and returns the exit code: 0 for help, 2 for an error.
    pub fn show(&self) -> u8 {
        // Nobody is left to tell where the terminal is gone.
        drop(self.0.print());
        u8::try_from(self.0.exit_code()).unwrap_or(2)
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.render().fmt(f)
    }
}
