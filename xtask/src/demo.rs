//! `cargo xtask demo`: an MCP server and clients in containers, and mcpspy that watches them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::must;
use crate::image::{self, Arch, Plan};
use crate::{docker, setup};

/// The container of the monitor, as named in compose/with-mcpspy.yml.
const MONITOR: &str = "mcpspy";

/// The container with the server, as named in compose/demo.yml.
const SERVER: &str = "mcpspy-demo-weather";

/// How long the monitor has to start.
const START: Duration = Duration::from_secs(30);

/// Builds the images, starts everything, shows what mcpspy says until Ctrl-C, and clears up.
pub(crate) fn run() -> Result<()> {
    docker::engine()?;
    docker::compose()?;
    setup::run()?;
    let arch = Arch::here()?;
    image::run(Some(arch), image::LATEST)?;
    let binaries = image::build(&Plan {
        package: "mcpspy-examples",
        binaries: &["weather-server", "weather-client", "docker"],
        dockerfile: "examples/demo/Dockerfile",
        tag: "mcpspy-demo:latest",
        arch,
    })?;

    // Ctrl-C reaches the children by itself; here it must not end the clearing up.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let shown = show(&binaries, &interrupted);
    eprintln!("\nclearing up");
    let cleared = must(compose()?.arg("down")).context("some containers may be left");
    shown.and(cleared)
}

/// Starts everything and shows the monitor's output until it ends or the user ends it.
fn show(binaries: &Path, interrupted: &AtomicBool) -> Result<()> {
    ensure!(
        !docker::runs(MONITOR),
        "a container named {MONITOR} runs already. It sees the demo too, but to show the demo alone, \
         stop it first: docker stop {MONITOR} && docker rm {MONITOR}"
    );
    // The monitor first, so that it sees the sessions from their beginning.
    must(compose()?.args(["up", "-d", "--no-build", MONITOR]))?;
    wait_for_monitor(interrupted)?;
    must(compose()?.args(["up", "-d", "--no-build"]))?;
    eprintln!("\ndocker logs -f {MONITOR}    (Ctrl-C ends the demo)\n");
    // Elsewhere the containers run in a virtual machine, and so would have to do the client.
    let client = if cfg!(target_os = "linux") { Some(host_client(binaries)?) } else { None };
    let mut logs = Command::new("docker").args(["logs", "-f", MONITOR]).spawn()?;
    while !interrupted.load(Ordering::Relaxed) && logs.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(100));
    }
    for mut child in client.into_iter().chain([logs]) {
        // It may have ended by the same Ctrl-C.
        drop(child.kill());
        child.wait()?;
    }
    ensure!(
        interrupted.load(Ordering::Relaxed),
        "the monitor ended: see `docker logs {MONITOR}` above"
    );
    Ok(())
}

/// A client on the host that starts its server as MCP clients do: by `docker exec -i`.
fn host_client(binaries: &Path) -> Result<Child> {
    Command::new(binaries.join("weather-client"))
        .args(["--every", "4", "--", "docker", "exec", "-i", SERVER, "/weather-server"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the client on the host")
}

fn wait_for_monitor(interrupted: &AtomicBool) -> Result<()> {
    let begun = Instant::now();
    while !healthy() {
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        if begun.elapsed() > START || !docker::runs(MONITOR) {
            // What it said is the reason.
            must(Command::new("docker").args(["logs", "--tail", "20", MONITOR]))?;
            anyhow::bail!(
                "the monitor did not start. What this machine allows: cargo xtask run check"
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn healthy() -> bool {
    let mut health = Command::new("docker");
    health.args(["exec", MONITOR, "/mcpspy", "health"]);
    health.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    health.status().is_ok_and(|status| status.success())
}

fn compose() -> Result<Command> {
    let mut command = docker::compose()?;
    command.args(["-p", "mcpspy-demo"]);
    command.args(["-f", "compose/demo.yml", "-f", "compose/with-mcpspy.yml"]);
    // Its containers mount the socket of the engine that runs them: Docker would make a directory of
    // one that is not there. The plugin below `target/` does not know the user's contexts.
    if let Some(socket) = docker::socket() {
        command.env("DOCKER_HOST", format!("unix://{socket}"));
        if std::env::var_os("DOCKER_SOCK").is_none() {
            command.env("DOCKER_SOCK", socket);
        }
    }
    Ok(command)
}
