//! Installs the peers below `target/peers`: Python environments, node modules, the rmcp peer.
//!
//! A part whose inputs have not changed since it was installed is left alone.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::peers;

/// Installs a part in a directory.
type Install = fn(&Path) -> Result<()>;

#[expect(clippy::print_stderr, reason = "a program that people run")]
fn main() -> Result<ExitCode> {
    let target = peers::peers_dir();
    fs::create_dir_all(&target)?;
    let parts = [
        ("python-v1", python as Install),
        ("python-v2", python),
        ("typescript", typescript),
        ("rmcp", rmcp),
    ];
    let mut failed = false;
    for (name, install) in parts {
        let dir = target.join(name);
        let stamp = target.join(format!("{name}.stamp"));
        let inputs = fingerprint(name)?.to_string();
        if dir.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == inputs) {
            continue;
        }
        eprintln!("installing {}", dir.display());
        match install(&dir) {
            Ok(()) => fs::write(stamp, inputs)?,
            Err(error) => {
                failed = true;
                eprintln!("SKIP peers/{name}: {error:#}");
            }
        }
    }
    let required = std::env::var_os("MCPSPY_REQUIRE_LIVE").is_some_and(|value| value != "0");
    Ok(if failed && required { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn sources(part: &str) -> PathBuf {
    let language = part.split('-').next().unwrap_or(part);
    peers::source_dir().join("peers").join(language)
}

/// A number that changes with the files that a part is made of.
fn fingerprint(part: &str) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut dirs = vec![sources(part)];
    while let Some(dir) = dirs.pop() {
        let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::path);
        for entry in entries {
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if !part.starts_with("python") || is_requirements(&entry.path()) {
                entry.path().hash(&mut hasher);
                fs::read(entry.path())?.hash(&mut hasher);
            }
        }
    }
    Ok(hasher.finish())
}

/// The Python peers run from their sources; only their packages are installed.
fn is_requirements(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "txt")
}

fn python(dir: &Path) -> Result<()> {
    let version = dir.to_string_lossy().rsplit('-').next().unwrap_or_default().to_owned();
    let requirements = sources("python").join(format!("requirements-{version}.txt"));
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir))?;
    run(Command::new(dir.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(requirements))
}

/// Node finds modules upwards from a script: the scripts are copied to where the modules are.
fn typescript(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(sources("typescript"))? {
        let path = entry?.path();
        fs::copy(&path, dir.join(path.file_name().context("file name")?))?;
    }
    run(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(dir))
}

fn rmcp(dir: &Path) -> Result<()> {
    run(Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet"])
        .current_dir(sources("rmcp"))
        .env("CARGO_TARGET_DIR", dir))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
