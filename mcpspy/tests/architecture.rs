//! The rules of ARCHITECTURE.md that a reader cannot see in a single file: who may import whom, who
//! may touch the outside world, how large a file may grow.
//!
//! Sources are read as text, without comments and without their tests. That is crude and enough:
//! each rule speaks of paths that stand in the source as they are.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A module and the modules of this crate that it may name.
struct Module {
    name: &'static str,
    may_name: &'static [&'static str],
}

const fn module(name: &'static str, may_name: &'static [&'static str]) -> Module {
    Module { name, may_name }
}

/// Each stage may name what stands before it. `agent` and `main` know everything.
const MODULES: &[Module] = &[
    module("model", &[]),
    module("telemetry", &["model"]),
    module("streams", &["model", "telemetry"]),
    module("protocol", &["model", "telemetry", "streams"]),
    module("attribution", &["model", "telemetry", "streams", "protocol"]),
    module("session", &["model", "telemetry", "streams", "protocol", "attribution"]),
    module(
        "engine",
        &["model", "telemetry", "filter", "streams", "protocol", "attribution", "session"],
    ),
    module("filter", &["model"]),
    module("recording", &["model"]),
    module("source", &["model", "recording"]),
    module("inventory", &["model"]),
    module("sinks", &["model"]),
    module("config", &["model", "filter", "sinks"]),
    module("cli", &["model", "filter", "config"]),
];

/// No I/O, no clock, no threads, not async: same inputs, same events.
const PURE: &[&str] =
    &["model", "telemetry", "streams", "protocol", "attribution", "session", "engine", "filter"];

const IMPURE: &[&str] = &[
    "tokio",
    "aya",
    "rustix",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "async fn",
];

/// What only some files may name.
const RESERVED: &[(&str, &[&str])] = &[
    ("aya::", &["source/live/"]),
    ("mcpspy_common::", &["source/live/"]),
    ("clap::", &["cli.rs", "cli/"]),
    ("tokio::", &["agent.rs", "agent/", "inventory/docker.rs", "inventory/docker/"]),
    ("bollard::", &["inventory/docker/"]),
    ("serde::", &["recording/", "sinks/"]),
    ("SystemTime::now", &[]),
    ("process::exit", &[]),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "misc"];

const MOST_LINES: usize = 600;

#[test]
fn modules_name_only_what_stands_before_them() {
    let mut faults = String::new();
    for file in own_sources() {
        let Some(module) = MODULES.iter().find(|module| module.name == file.module) else {
            let known = ["agent", "main", "lib"].contains(&file.module.as_str());
            assert!(known, "{}: give the module `{}` its place here", file.path, file.module);
            continue;
        };
        let named = modules_named(&file.code);
        for other in named.iter().filter(|&other| MODULES.iter().any(|m| m.name == other)) {
            if other != module.name && !module.may_name.contains(&other.as_str()) {
                fault(&mut faults, &file, &format!("`{}` may not name `{other}`", module.name));
            }
        }
        if named.contains("agent") {
            fault(&mut faults, &file, "only main may name `agent`");
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn the_core_touches_nothing_outside() {
    let mut faults = String::new();
    for file in own_sources().iter().filter(|file| PURE.contains(&file.module.as_str())) {
        for word in IMPURE.iter().filter(|word| names(&file.code, word)) {
            fault(
                &mut faults,
                file,
                &format!("`{}` is pure and may not name `{word}`", file.module),
            );
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn some_crates_have_one_place() {
    let mut faults = String::new();
    for file in own_sources() {
        for (word, places) in RESERVED.iter().filter(|(word, _)| names(&file.code, word)) {
            if !places.iter().any(|place| file.path.starts_with(place)) {
                fault(&mut faults, &file, &format!("`{word}` belongs in {places:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn only_emit_writes_the_ring_buffer() {
    for file in sources(&root().join("mcpspy-ebpf/src")) {
        let writes = file.code.contains("EVENTS.output") || file.code.contains("EVENTS.reserve");
        assert!(!writes || file.path == "emit.rs", "{} writes the ring buffer", file.path);
    }
}

#[test]
fn only_decode_reads_the_layout() {
    for file in own_sources() {
        for body in ["RecordHeader", "StreamBody", "ExitBody", "ForkBody"] {
            let reads = ["ref_from", "read_from"]
                .iter()
                .any(|how| file.code.contains(&format!("{body}::{how}")));
            assert!(!reads, "{} reads the layout of a {body}", file.path);
        }
    }
}

#[test]
fn the_kernel_does_not_parse() {
    let manifest = std::fs::read_to_string(root().join("mcpspy-ebpf/Cargo.toml"));
    let manifest = manifest.expect("a readable manifest");
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).expect("dependencies");
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    for line in dependencies.lines().filter(|line| !line.trim().is_empty()) {
        let known = line.starts_with("aya-ebpf") || line.starts_with("mcpspy-common");
        assert!(known, "the kernel programs need nothing but the ABI: {line}");
    }
    for file in sources(&root().join("mcpspy-ebpf/src")) {
        for word in ["jsonrpc", "method", "tools/call"] {
            assert!(!file.code.contains(word), "{}: what is MCP, the engine says", file.path);
        }
    }
}

#[test]
fn the_page_names_tests_and_files_that_exist() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("a readable page");
    let mut texts = String::new();
    for part in ["mcpspy", "mcpspy-common", "tests"] {
        for file in sources(&root().join(part)) {
            let path = root().join(part).join(&file.path);
            texts += &std::fs::read_to_string(path).expect("a readable source");
        }
    }
    let mut faults = String::new();
    let mut held = 0;
    for line in page.lines().filter(|line| line.trim_start().starts_with("Held by")) {
        // Names stand between back quotes: every other piece.
        for name in line.split('`').skip(1).step_by(2) {
            held += 1;
            if !texts.contains(&format!("fn {name}(")) {
                writeln!(faults, "no test {name}").expect("a string takes everything");
            }
        }
    }
    for name in page.split('`').skip(1).step_by(2) {
        if name.contains('/')
            && Path::new(name).extension().is_some_and(|extension| extension == "rs")
            && !root().join(name).exists()
        {
            writeln!(faults, "no file {name}").expect("a string takes everything");
        }
    }
    assert!(held >= 10, "each invariant names a test");
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn files_stay_small_and_well_named() {
    let mut faults = String::new();
    for part in
        ["mcpspy", "mcpspy-common", "mcpspy-ebpf", "xtask", "tests", "bench", "examples", "fuzz"]
    {
        for file in sources(&root().join(part)) {
            if file.lines > MOST_LINES {
                let what = format!("{} lines, more than {MOST_LINES}", file.lines);
                fault(&mut faults, &file, &format!("{what} ({part})"));
            }
            let stem = Path::new(&file.path).file_stem().and_then(|stem| stem.to_str());
            if stem.is_some_and(|stem| EMPTY_NAMES.contains(&stem)) {
                fault(&mut faults, &file, "name it after what is inside");
            }
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn the_reading_of_sources_works() {
    let source = "\
//! use crate::agent;
use crate::model::{self, Event}; // crate::sinks
use crate::{filter::Filter, streams};
const URL: &str = \"http://x\"; fn f() { crate::engine::g() }
#[cfg(test)]
mod tests {
    use crate::cli;
}
";
    let code = code_of(source);
    let named: Vec<_> = modules_named(&code).into_iter().collect();
    assert_eq!(named, ["engine", "filter", "model", "streams"]);
    assert!(names("x::aya::y", "aya") && !names("playaya", "aya") && !names("ayas", "aya"));
    assert!(names("use clap::Parser", "clap::") && !names("use my_clap::X", "clap::"));
}

/// A source file, as the rules see it.
struct Source {
    /// Relative to its crate's `src`.
    path: String,
    /// Top-level module that it belongs to.
    module: String,
    /// Without comments and tests.
    code: String,
    lines: usize,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn own_sources() -> Vec<Source> {
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// All Rust files below a directory, in a stable order; none where it does not exist.
fn sources(base: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut directories = vec![base.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("a readable directory").path();
            // What tests install and cargo builds is not ours.
            let foreign = ["target", "node_modules"].iter().any(|name| path.ends_with(name));
            if path.is_dir() && !foreign {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(read(base, &path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn read(base: &Path, path: &Path) -> Source {
    let text = std::fs::read_to_string(path).expect("a readable source");
    let relative = path.strip_prefix(base).expect("below its base");
    let first = relative.components().next().expect("a file has a name").as_os_str();
    let path = relative.to_string_lossy().into_owned();
    let is_test = ["tests.rs", "samples.rs"].iter().any(|name| path.ends_with(name));
    Source {
        module: first.to_string_lossy().trim_end_matches(".rs").to_owned(),
        code: if is_test { String::new() } else { code_of(&text) },
        lines: text.lines().count(),
        path,
    }
}

/// Tests stand at the end of a file; a comment ends with its line. An address such as `http://` in
/// a text is cut too, which hides nothing that a rule looks for.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(|line| match line.find("//") {
        Some(comment) if !line[..comment].ends_with(':') => &line[..comment],
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// First parts of all paths that begin with `crate::`, in lists too.
fn modules_named(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let Some(list) = after.strip_prefix('{') else {
            named.insert(identifier(after));
            continue;
        };
        let mut depth = 0;
        let mut starts = true;
        for (index, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                _ if letter.is_whitespace() => {}
                _ if starts => {
                    named.insert(identifier(&list[index..]));
                    starts = false;
                }
                _ => {}
            }
        }
    }
    named
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// Whether the code has the word, not as a part of a longer one.
fn names(code: &str, word: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word).any(|(index, _)| {
        let before = code[..index].chars().next_back();
        let after = code[index + word.len()..].chars().next();
        !before.is_some_and(part) && (word.ends_with(':') || !after.is_some_and(part))
    })
}

fn fault(faults: &mut String, file: &Source, what: &str) {
    writeln!(faults, "{}: {what}", file.path).expect("a string takes everything");
}
