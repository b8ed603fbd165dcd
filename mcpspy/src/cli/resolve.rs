//! From the types of the command line to [`Config`]: defaults, contradictions, remarks.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::{
    BackendArg, Cli, ColorArg, EngineArgs, EventArgs, FormatArg, HostArgs, KindArg, LevelArg,
    LogArgs, MonitorArgs, Stop, Surroundings, Verb,
};
use crate::config::{
    Action, Backend, Become, Caller, Config, Console, Docker, Format, Limits, Log, LogLevel,
    MAX_RING, Monitor, Outputs, PathPattern, PayloadLimit, Replay, StandardStream, ring_bytes,
};
use crate::filter::{Filter, Rules};
use crate::model::MessageKind;

/// Reads a command line and the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    around: Surroundings,
) -> Result<Config, Stop> {
    resolve(arguments, around).map_err(|error| Stop(error.with_cmd(&definition())))
}

fn resolve(
    arguments: impl IntoIterator<Item = OsString>,
    around: Surroundings,
) -> Result<Config, clap::Error> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let mut command = ignore_empty(definition());
    let verb = arguments.get(1).is_some_and(|first| command.find_subcommand(first).is_some());
    if verb {
        // A verb has its own options; those of a plain run are not asked for.
        command = command.mut_args(|arg| arg.env(Resettable::Reset));
    }
    let matches = command.try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let mut color = cli.events.color;
    if let Some((verb, _)) = matches.subcommand()
        && let Some(option) = matches.ids().find(|id| given(&matches, id.as_str()))
    {
        let option = option.as_str().replace('_', "-");
        return Err(wrong(&format!("options of `{verb}` stand after it: --{option} before it")));
    }
    let action = match cli.verb {
        None => {
            split_output(&mut cli.events, &matches);
            let mut monitor = monitor(cli.monitor, cli.events, cli.run, around)?;
            containers(&mut monitor, cli.engines, cli.host);
            Action::Monitor(Box::new(monitor))
        }
        Some(Verb::Replay(mut replay)) => {
            if let Some((_, matches)) = matches.subcommand() {
                split_output(&mut replay.events, matches);
            }
            cli.log = replay.log;
            color = replay.events.color;
            Action::Replay(Box::new(Replay {
                file: replay.file,
                speed: replay.speed.0,
                limits: limits(&replay.events),
                outputs: outputs(&replay.events, false, around)?,
                filter: filter(replay.events),
            }))
        }
        Some(Verb::Check(check)) => {
            cli.log = check.log;
            let mut remarks = Vec::new();
            Action::Check(check.engines.resolve(docker_host(), &mut remarks))
        }
        Some(Verb::Health(health)) => {
            cli.log = health.log;
            Action::Health
        }
        Some(Verb::Completions { shell }) => Action::Print(completions(shell)),
        Some(Verb::Become { release, caller, command }) => {
            let caller = caller.split_once(':').and_then(|(uid, gid)| {
                Some(Caller { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
            });
            Action::Become(Become { release, caller, command })
        }
    };
    let color = colored(color, around.stderr_terminal, around);
    Ok(Config { action, log: Log { level: level(&cli.log), color } })
}

/// The command line as clap knows it. The help says once how variables are named, not for each.
fn definition() -> Command {
    fn without_variables(command: Command) -> Command {
        command.mut_args(|arg| arg.hide_env(true)).mut_subcommands(without_variables)
    }
    without_variables(Cli::command())
}

/// A variable that is set but empty counts as not set: Compose files write `${NAME:-}`.
fn ignore_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_env().map(std::env::var_os) {
        Some(Some(value)) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    });
    command.mut_subcommands(ignore_empty)
}

/// Whether the command line itself says so: an argument, not a group, a default or a variable.
fn given(matches: &ArgMatches, id: &str) -> bool {
    let argument = Cli::command().get_arguments().any(|arg| arg.get_id() == id);
    argument && matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// A path on the command line may hold a comma; the variable is a list.
fn split_output(events: &mut EventArgs, matches: &ArgMatches) {
    if matches.value_source("output") == Some(ValueSource::EnvVariable) {
        let list = std::mem::take(&mut events.output);
        let texts = list.iter().filter_map(|path| path.to_str());
        events.output = texts
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .collect();
    }
}

fn wrong(message: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::ValueValidation, format!("{message}\n"))
}

fn monitor(
    args: MonitorArgs,
    events: EventArgs,
    command: Vec<OsString>,
    around: Surroundings,
) -> Result<Monitor, clap::Error> {
    let Some(ring) = ring_bytes(args.ring_buffer) else {
        return Err(wrong(&format!("--ring-buffer can be at most {} MiB", MAX_RING >> 20)));
    };
    let mut remarks = Vec::new();
    if u64::from(ring) != args.ring_buffer {
        remarks.push(format!(
            "--ring-buffer rounded up to {} KiB: the kernel takes powers of two",
            ring >> 10
        ));
    }
    if let Some(record) = &args.record
        && events.output.contains(record)
    {
        return Err(wrong("--record and --output name the same file"));
    }
    Ok(Monitor {
        limits: limits(&events),
        outputs: outputs(&events, !command.is_empty(), around)?,
        filter: filter(events),
        ring_bytes: ring,
        backend: match args.backend {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Fexit => Backend::Fexit,
            BackendArg::TpBtf => Backend::TpBtf,
            BackendArg::RawTp => Backend::RawTp,
        },
        docker: Docker::default(),
        relays: Vec::new(),
        host_name: None,
        record: args.record,
        duration: args.duration,
        command,
        remarks,
    })
}

fn containers(monitor: &mut Monitor, engines: EngineArgs, host: HostArgs) {
    monitor.docker = engines.resolve(docker_host(), &mut monitor.remarks);
    monitor.relays = host.relay;
    monitor.host_name = host.host_name.filter(|name| !name.is_empty());
}

/// Other programs' variable for the same thing.
fn docker_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok()
}

fn limits(events: &EventArgs) -> Limits {
    let max_message = events.max_message.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    Limits { max_message, oneway: events.oneway }
}

/// Where Docker's log drivers split lines.
const DOCKER_LINE: usize = 16 << 10;

fn outputs(
    events: &EventArgs,
    command: bool,
    around: Surroundings,
) -> Result<Outputs, clap::Error> {
    let mut files = events.output.clone();
    let stdout = files.iter().any(|path| path.as_os_str() == "-");
    files.retain(|path| path.as_os_str() != "-");
    files.sort();
    files.dedup();

    for path in &files {
        PathPattern::parse(path).map_err(|error| wrong(&format!("--output: {error}")))?;
    }
    if stdout && command {
        return Err(wrong(
            "with a command, standard output is the command's: name a file instead of `-o -`",
        ));
    }
    let format = match events.format {
        FormatArg::Text if stdout => {
            return Err(wrong(
                "`-o -` writes JSON lines on standard output: not with --format text",
            ));
        }
        FormatArg::Json => Format::Json,
        FormatArg::Auto if stdout => Format::Json,
        FormatArg::Text | FormatArg::Auto => Format::Text,
    };
    let (stream, terminal, log) = if command {
        (StandardStream::Err, around.stderr_terminal, false)
    } else {
        let log = !around.stdout_terminal && !around.stdout_file;
        (StandardStream::Out, around.stdout_terminal, log)
    };
    let max_line = match events.max_line {
        None => (log && events.payload.is_none()).then_some(DOCKER_LINE),
        Some(bytes) => usize::try_from(bytes).ok().filter(|&bytes| bytes > 0),
    };
    // Where a limit on lines says what goes, messages need no limit of their own.
    let usual = match max_line {
        Some(_) if format == Format::Json => PayloadLimit::Full,
        _ => PayloadLimit::Bytes(4096),
    };
    let console = Console {
        stream,
        format,
        payload: events.payload.unwrap_or(usual),
        max_line,
        buffers: events.buffers,
        color: colored(events.color, terminal, around),
    };
    // A wrapper around a server must be quiet: whoever started it reads its standard error too.
    let console = (!command || files.is_empty()).then_some(console);
    Ok(Outputs {
        console,
        files,
        file_payload: events.payload.unwrap_or(PayloadLimit::Full),
        max_size: events.output_max_size,
        keep: events.output_keep,
        show_labels: events.containers.show_label.clone(),
        owner: around.caller,
    })
}

fn colored(when: ColorArg, terminal: bool, around: Surroundings) -> bool {
    match when {
        ColorArg::Always => true,
        ColorArg::Never => false,
        ColorArg::Auto => terminal && !around.no_color,
    }
}

fn filter(events: EventArgs) -> Filter {
    let kinds = |kinds: Vec<KindArg>| {
        let kind = |kind| match kind {
            KindArg::Request => MessageKind::Request,
            KindArg::Response => MessageKind::Response,
            KindArg::Notification => MessageKind::Notification,
        };
        kinds.into_iter().map(kind).collect()
    };
    Filter {
        include: Rules {
            pid: events.pid,
            comm: events.comm,
            method: events.method,
            kind: kinds(events.kind),
            tool: events.tool,
            server: events.server,
        },
        exclude: Rules {
            pid: events.exclude_pid,
            comm: events.exclude_comm,
            method: events.exclude_method,
            kind: kinds(events.exclude_type),
            tool: events.exclude_tool,
            server: events.exclude_server,
        },
        containers: events.containers.filter(),
    }
}

fn level(log: &LogArgs) -> LogLevel {
    match (log.verbose, log.log_level) {
        (2.., _) | (_, LevelArg::Trace) => LogLevel::Trace,
        (1, _) | (_, LevelArg::Debug) => LogLevel::Debug,
        (_, LevelArg::Info) => LogLevel::Info,
        (_, LevelArg::Warn) => LogLevel::Warn,
        (_, LevelArg::Error) => LogLevel::Error,
    }
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition(), "mcpspy", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
