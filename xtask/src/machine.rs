//! What this machine is and what we may do on it.

use std::io::IsTerminal;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::output;

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    output("id", &["-u"]).as_deref() == Some("0")
}

/// Whether somebody can answer a question.
pub(crate) fn can_ask() -> bool {
    std::env::var_os("CI").is_none()
        && std::io::stdin().is_terminal()
        && std::io::stderr().is_terminal()
}

/// Debian, Ubuntu, and what descends from them.
pub(crate) fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && has("apt-get")
}

/// Whether the program is in the search path.
pub(crate) fn has(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Why no kernel program can be loaded here; `None` where nothing speaks against it.
pub(crate) fn why_not_live() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("kernel programs need Linux".into());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF (/sys/kernel/btf/vmlinux)".into());
    }
    if !is_root() && sudo().is_err() {
        return Some("not root, and sudo would ask for a password where nobody can answer".into());
    }
    None
}

/// A command that runs another one as root. The only place that names sudo.
pub(crate) fn as_root(program: &Path) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let mut command = sudo()?;
    // Root's own search path may have no cargo, and its own home no toolchain.
    command.arg("env");
    for name in ["PATH", "HOME", "CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "RUSTUP_HOME"] {
        if let Ok(value) = std::env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    for (name, value) in std::env::vars() {
        if name.starts_with("MCPSPY_") {
            command.arg(format!("{name}={value}"));
        }
    }
    command.arg(program);
    Ok(command)
}

fn sudo() -> Result<Command> {
    if !has("sudo") {
        bail!("this needs root: there is no sudo here, so start it as root");
    }
    let mut command = Command::new("sudo");
    if can_ask() {
        return Ok(command);
    }
    if output("sudo", &["-n", "true"]).is_none() {
        bail!("this needs root, and sudo cannot ask for a password: start it as root");
    }
    command.arg("-n");
    Ok(command)
}
