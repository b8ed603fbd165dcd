//! `cargo xtask setup`: brings what is missing to build mcpspy and to run its tests.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{cargo, must, output};
use crate::machine::{can_ask, has, is_debian, is_root};
use crate::plugins;

/// The linker of the kernel programs. Pinned: it must fit the LLVM of the nightly toolchain.
const BPF_LINKER: &str = "0.10.3";

/// Programs that the build and the tests call, and the Debian package of each.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("jq", "jq"),
    ("taskset", "util-linux"),
];

/// What the tests with containers need, and the Debian package of each. Brought where the tests are
/// run; the other verbs do without.
const CONTAINERS: &[(&str, &str)] =
    &[("dockerd", "docker.io"), ("docker-compose", "docker-compose"), ("podman", "podman")];

/// Something that is missing, and how it comes.
enum Step {
    /// Run these words.
    Run(Vec<String>),
    /// Bring the plugin for Compose v2.
    Compose,
    /// Only a person can do it.
    Tell(String),
}

/// Finds what is missing, says so, asks where somebody can answer, and brings it.
pub(crate) fn run() -> Result<()> {
    carry_out(&plan(PROGRAMS), false)
}

/// As [`run`], and also what the tests with containers need.
pub(crate) fn for_tests(yes: bool) -> Result<()> {
    let programs = [PROGRAMS, CONTAINERS].concat();
    let mut steps = plan(&programs);
    if is_debian() && is_root() && !plugins::has_compose() {
        steps.push(Step::Compose);
    }
    carry_out(&steps, yes)
}

fn carry_out(steps: &[Step], yes: bool) -> Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    eprintln!("setup: this is missing and will be brought:");
    let mut by_hand = 0;
    for step in steps {
        match step {
            Step::Run(words) => eprintln!("  {}", words.join(" ")),
            Step::Compose => eprintln!("  Compose v2, below target/docker"),
            Step::Tell(text) => {
                by_hand += 1;
                eprintln!("  by hand: {text}");
            }
        }
    }
    if by_hand < steps.len() && !yes && can_ask() {
        eprint!("Go on? [Y/n] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        ensure!(matches!(answer.trim(), "" | "y" | "Y" | "yes"), "not done");
    }
    for step in steps {
        match step {
            Step::Run(words) => bring(words)?,
            Step::Compose => plugins::bring(),
            Step::Tell(_) => {}
        }
    }
    // What only the tests need is told again by the tests that are skipped.
    ensure!(has("rustup"), "the kernel programs cannot be built without rustup: see above");
    Ok(())
}

fn bring(words: &[String]) -> Result<()> {
    let (program, args) = words.split_first().context("an empty command")?;
    let mut command = if program == "cargo" { cargo() } else { Command::new(program) };
    let hint = match program.as_str() {
        "rustup" => {
            "The nightly toolchain with rust-src builds the kernel programs. Where it cannot be \
             downloaded, install it by hand or set RUSTUP_DIST_SERVER to a mirror. Without it: \
             `cargo run --no-default-features -- replay FILE`, and `cargo xtask test --no-live`."
        }
        "cargo" => "bpf-linker links the kernel programs. It is built from source from crates.io.",
        _ => "The packages come by apt. `cargo xtask test --no-live` needs none of them.",
    };
    must(command.args(args)).context(hint)
}

fn plan(programs: &[(&'static str, &'static str)]) -> Vec<Step> {
    let mut steps = packages(programs);
    if has("rustup") {
        steps.extend(toolchain());
    } else {
        steps.push(Step::Tell("install Rust with rustup: https://rustup.rs".into()));
    }
    if !has_bpf_linker() {
        let words = ["cargo", "install", "--locked", "bpf-linker", "--version", BPF_LINKER];
        steps.push(Step::Run(words.map(str::to_owned).to_vec()));
    }
    steps
}

/// The kernel programs are built by nightly, for which `core` is built from its source.
fn toolchain() -> Option<Step> {
    // Looked up by hand: rustup itself takes a second to say it.
    let rustc = output("rustup", &["which", "--toolchain", "nightly", "rustc"]);
    let Some(rustc) = rustc.map(PathBuf::from) else {
        let words = ["rustup", "toolchain", "install", "nightly", "--profile", "minimal"];
        let words = words.into_iter().chain(["--component", "rust-src"]);
        return Some(Step::Run(words.map(str::to_owned).collect()));
    };
    let source = rustc.parent()?.parent()?.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if source.exists() {
        return None;
    }
    let words = ["rustup", "component", "add", "rust-src", "--toolchain", "nightly"];
    Some(Step::Run(words.map(str::to_owned).to_vec()))
}

fn has_bpf_linker() -> bool {
    // A build of another version may work, but it is not the one that was tested.
    output("bpf-linker", &["--version"]).is_some_and(|version| version.ends_with(BPF_LINKER))
}

fn packages(programs: &[(&'static str, &'static str)]) -> Vec<Step> {
    let mut missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    // Debian ships Python without the part that makes virtual environments.
    if has("python3") && output("python3", &["-c", "import ensurepip, venv"]).is_none()
        || missing.contains(&"python3")
    {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        return Vec::new();
    }
    if !is_debian() || !is_root() {
        let names = missing.join(" ");
        let how =
            if is_debian() { "as root: apt-get install" } else { "install (Debian's names):" };
        return vec![Step::Tell(format!("{how} {names}"))];
    }
    let install = ["apt-get", "install", "--yes", "--no-install-recommends"];
    vec![
        Step::Run(["apt-get", "update"].map(str::to_owned).to_vec()),
        Step::Run(install.into_iter().chain(missing).map(str::to_owned).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_that_builds_from_source_has_the_same_linker() {
        let dockerfile = include_str!("../../docker/Dockerfile");
        assert!(dockerfile.contains(&format!("ARG BPF_LINKER={BPF_LINKER}\n")));
    }
}
