//! Which Docker there is, and its Compose.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::command::output;
use crate::machine::has;

/// Where `cargo xtask setup` puts the plugins of the `docker` command that the machine lacks: a
/// value for `DOCKER_CONFIG`.
pub(crate) const CONFIG: &str = "target/docker";

/// Fails, with what to do, where no engine answers.
pub(crate) fn engine() -> Result<()> {
    if !has("docker") {
        bail!(
            "there is no `docker` command here. On Debian and Ubuntu: apt-get install docker.io; \
             elsewhere: https://docs.docker.com/engine/install/. Without Docker: cargo xtask run"
        );
    }
    let answer = Command::new("docker")
        .args(["version", "--format", "{{.Server.Version}}"])
        .stdin(Stdio::null())
        .output()?;
    if answer.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    let said = said.trim();
    if said.contains("permission denied") {
        bail!("{said}\nRun this with sudo, or add yourself to the group `docker` and log in again");
    }
    bail!("{said}\nStart the engine: systemctl start docker. Its place is taken from DOCKER_HOST")
}

/// A command for Compose: version 2, or version 1, or the plugin that `cargo xtask setup` brought.
pub(crate) fn compose() -> Result<Command> {
    if output("docker", &["compose", "version"]).is_some() {
        let mut command = Command::new("docker");
        command.arg("compose");
        return Ok(command);
    }
    if Path::new(CONFIG).join("cli-plugins/docker-compose").exists() {
        let mut command = Command::new("docker");
        command.args(["--config", CONFIG, "compose"]);
        return Ok(command);
    }
    if has("docker-compose") {
        return Ok(Command::new("docker-compose"));
    }
    bail!(
        "there is neither `docker compose` nor `docker-compose` here. On Debian 12 and Ubuntu: \
         apt-get install docker-compose; elsewhere: https://docs.docker.com/compose/install/linux/"
    )
}

/// The socket of the engine that the `docker` command speaks to, by `DOCKER_HOST` or its context.
/// None where the engine is in a virtual machine, in which the socket has its usual place.
pub(crate) fn socket() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let host = output("docker", &["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])?;
    host.strip_prefix("unix://").map(str::to_owned)
}

/// Whether a container of this name runs.
pub(crate) fn runs(name: &str) -> bool {
    let running = output("docker", &["inspect", "--format", "{{.State.Running}}", name]);
    running.as_deref() == Some("true")
}
