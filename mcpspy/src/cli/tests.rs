use std::ffi::OsStr;

use clap::CommandFactory;

use super::*;
use crate::config::{Action, Config, Format, Limits, LogLevel, Monitor, StandardStream};

const AROUND: Surroundings = Surroundings {
    stdout_terminal: true,
    stdout_file: false,
    stderr_terminal: false,
    no_color: false,
    caller: Some(Caller { uid: 1000, gid: 100 }),
};

fn try_parse(line: &str) -> Result<Config, String> {
    let arguments = std::iter::once("mcpspy").chain(line.split_whitespace()).map(OsString::from);
    parse(arguments, AROUND).map_err(|stop| stop.to_string())
}

fn monitor_of(line: &str) -> Monitor {
    match try_parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).action {
        Action::Monitor(monitor) => *monitor,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    try_parse(line).expect_err(line)
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn without_arguments_it_is_text() {
    let monitor = monitor_of("");
    let console = monitor.outputs.console.expect("a console");
    assert_eq!((console.stream, console.format), (StandardStream::Out, Format::Text));
    assert_eq!(console.payload, PayloadLimit::Bytes(4096));
    assert!(console.color);
    assert_eq!(monitor.ring_bytes, 32 << 20);
    assert_eq!(monitor.limits, Limits { max_message: None, oneway: false });
    assert!(monitor.command.is_empty() && monitor.remarks.is_empty());
}

#[test]
fn outputs() {
    let of = |line: &str| monitor_of(line).outputs;
    let json = of("-o -");
    assert_eq!(json.console.expect("a console").format, Format::Json);
    assert!(json.files.is_empty());
    for name in ["json", "jsonl", "ndjson"] {
        let outputs = of(&format!("--format {name}"));
        assert_eq!(outputs.console.expect("a console").format, Format::Json, "{name}");
    }
    let both = of("-o b -o a -o b -o a,c --payload 1k");
    assert_eq!(both.files, [PathBuf::from("a"), "a,c".into(), "b".into()]);
    assert_eq!(both.file_payload, PayloadLimit::Bytes(1024));
    assert_eq!(both.console.expect("a console").payload, PayloadLimit::Bytes(1024));
    assert_eq!(both.owner, AROUND.caller);
    assert!(refused("-o - --format text").contains("not with --format text"));
}

#[test]
fn lines_are_short_where_docker_would_split_them() {
    let console = |line: &str, around: Surroundings| {
        let arguments =
            std::iter::once("mcpspy").chain(line.split_whitespace()).map(OsString::from);
        let config = parse(arguments, around).unwrap_or_else(|stop| panic!("{line}: {stop}"));
        let Action::Monitor(monitor) = config.action else { panic!("{line}") };
        let console = monitor.outputs.console.expect("a console");
        (console.payload, console.max_line)
    };
    let pipe = Surroundings { stdout_terminal: false, ..AROUND };
    let file = Surroundings { stdout_file: true, ..pipe };
    let (usual, full) = (PayloadLimit::Bytes(4096), PayloadLimit::Full);
    let docker = Some(16 << 10);
    for (line, around, expected) in [
        ("", AROUND, (usual, None)),
        ("", file, (usual, None)),
        ("--format json", AROUND, (usual, None)),
        ("--format json", file, (usual, None)),
        ("--format json", pipe, (full, docker)),
        ("-o -", pipe, (full, docker)),
        // Text shows at most so much of a message, below its line.
        ("", pipe, (usual, docker)),
        ("--format json --payload full", pipe, (full, None)),
        ("--format json --payload 1K", pipe, (PayloadLimit::Bytes(1024), None)),
        ("--format json --max-line 0", pipe, (usual, None)),
        ("--format json --max-line 32K", pipe, (full, Some(32 << 10))),
        ("--format json --max-line 32K", file, (full, Some(32 << 10))),
        ("--format json --payload full --max-line 16K", pipe, (full, docker)),
    ] {
        assert_eq!(console(line, around), expected, "{line}");
    }
    assert!(refused("--max-line 100").contains("4K or more"));
}

#[test]
fn a_path_may_have_placeholders() {
    let outputs = monitor_of("-o /data/{project}/{service}.jsonl --show-label a,b").outputs;
    assert_eq!(outputs.files, [PathBuf::from("/data/{project}/{service}.jsonl")]);
    assert_eq!(outputs.show_labels, ["a", "b"]);
    assert!(refused("-o /data/{name}").contains("there is no `{name}`"));
}

#[test]
fn a_command_keeps_its_output() {
    let monitor = monitor_of("--pid 3 -- npx -y server --flag");
    assert_eq!(monitor.command, ["npx", "-y", "server", "--flag"]);
    assert_eq!(monitor.outputs.console.expect("a console").stream, StandardStream::Err);
    assert_eq!(monitor_of("-o f -- true").outputs.console, None);
    assert!(refused("-o - -- true").contains("the command's"));
}

#[test]
fn sizes_and_times() {
    assert_eq!(monitor_of("--ring-buffer 64M").ring_bytes, 64 << 20);
    assert_eq!(monitor_of("--ring-buffer 3MiB").ring_bytes, 4 << 20);
    assert_eq!(monitor_of("--ring-buffer 3MiB").remarks.len(), 1);
    assert_eq!(monitor_of("--max-message 1KB").limits.max_message, Some(1024));
    assert_eq!(monitor_of("--duration 1m30s").duration, Some(Duration::from_secs(90)));
    assert!(refused("--ring-buffer 2G").contains("at most 1024 MiB"));
    assert!(refused("--ring-buffer lots").contains("powers of 1024"));
    assert!(refused("--duration soon").contains("30s"));
    assert!(refused("--duration 0s").contains("above 0"));
}

#[test]
fn wrong_values_name_the_right_ones() {
    for (line, hint) in [
        ("--format xml", "[possible values: auto, text, json]"),
        ("--type call", "[possible values: request, response, notification]"),
        ("--backend kprobe", "[possible values: auto, fexit, tp-btf, raw-tp]"),
        ("--color red", "[possible values: auto, always, never]"),
        ("-l loud", "[possible values: trace, debug, info, warn, error]"),
        ("--payload some", "full, none"),
        ("--tool [a", "patterns are like those of a shell"),
        ("--pid x", "invalid digit"),
        ("--tol x", "--tool"),
        ("relay", "replay"),
        ("replay", "<FILE>"),
        ("replay f --speed fast", "1x"),
        ("-o f replay g", "options of `replay` stand after it: --output"),
        ("--oneway check", "--oneway before it"),
        ("--record f -o f", "the same file"),
    ] {
        let error = refused(line);
        assert!(error.contains(hint), "{line}: {error}");
    }
}

#[test]
fn engines_and_containers() {
    let monitor = monitor_of(
        "--docker-host unix:///a,tcp://b:1 --service web --exclude-label x=1,y --opt-in \
         --show-label team --relay my-shim,other --host-name box -o {project}.jsonl",
    );
    assert_eq!(monitor.docker.hosts, ["unix:///a", "tcp://b:1"]);
    assert!(!monitor.docker.disabled && monitor_of("--no-docker").docker.disabled);
    assert!(monitor.filter.containers.is_active() && monitor.filter.containers.opt_in);
    assert_eq!(monitor.filter.containers.include.service.len(), 1);
    assert_eq!(monitor.filter.containers.exclude.label.len(), 2);
    assert_eq!(monitor.outputs.show_labels, ["team"]);
    assert_eq!(monitor.outputs.files, [PathBuf::from("{project}.jsonl")]);
    assert_eq!(monitor.relays, ["my-shim", "other"]);
    assert_eq!(monitor.host_name.as_deref(), Some("box"));
    assert!(refused("--docker-host ssh://me@host").contains("unix:///PATH"));
    assert!(refused("--no-docker --docker-host /x").contains("cannot be used with"));
    let check = |line: &str| match try_parse(line).expect(line).action {
        Action::Check(docker) => docker,
        other => panic!("{other:?}"),
    };
    assert_eq!(check("check --docker-host /x").hosts, ["/x"]);
    assert!(check("check --no-docker").disabled);
}

#[test]
fn log_levels() {
    for (line, level) in [
        ("", LogLevel::Info),
        ("-v", LogLevel::Debug),
        ("-vv", LogLevel::Trace),
        ("-l trace", LogLevel::Trace),
        ("-l warning", LogLevel::Warn),
        ("-l fatal", LogLevel::Error),
        ("-v -l error", LogLevel::Debug),
        ("check -v", LogLevel::Debug),
        ("replay f -v", LogLevel::Debug),
    ] {
        assert_eq!(try_parse(line).expect(line).log.level, level, "{line}");
    }
}

#[test]
fn flags_of_the_go_tool() {
    for line in ["--tui", "--tui=false", "--tui=0 -b -v -l debug -o x"] {
        monitor_of(line);
    }
    assert!(refused("--tui=maybe").contains("maybe"));
}

#[test]
fn replay() {
    let replay = |line: &str| match try_parse(line).expect(line).action {
        Action::Replay(replay) => *replay,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(replay("replay f").speed, None);
    assert_eq!(replay("replay f --speed 1x").speed, Some(1.0));
    let other = replay("replay f --speed 0.5 --format json --tool x -o out");
    assert_eq!(other.speed, Some(0.5));
    assert_eq!(other.outputs.console.expect("a console").format, Format::Json);
    assert_eq!(other.outputs.files, [PathBuf::from("out")]);
}

#[test]
fn the_internal_verb_is_hidden() {
    let become_of = |line| match try_parse(line).expect(line).action {
        Action::Become(order) => order,
        other => panic!("{other:?}"),
    };
    let order = become_of("become-command 3 1000:100 -- sh -c true");
    assert_eq!((order.release, order.caller), (3, AROUND.caller));
    assert_eq!(order.command, ["sh", "-c", "true"]);
    assert_eq!(become_of("become-command 3 - -- true").caller, None);
    assert!(!refused("--help").contains(BECOME));
}

#[test]
fn every_option_has_a_variable() {
    let command = Cli::command();
    let verbs = command.get_subcommands().filter(|verb| verb.get_name() == "replay");
    for command in verbs.chain([&command]) {
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let long = arg.get_long().expect("filtered");
            if matches!(long, "help" | "version" | "verbose" | "speed") {
                continue;
            }
            let name = format!("MCPSPY_{}", long.to_uppercase().replace('-', "_"));
            let variable = arg.get_env().and_then(OsStr::to_str);
            assert_eq!(variable, Some(name.as_str()), "--{long}");
        }
    }
}
