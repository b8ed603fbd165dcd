//! Servers in Podman's containers: another engine, another way through (`conmon`), and no daemon
//! but where its API is served.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::docker::IMAGE;
use mcpspy_e2e::raw::{How, call, call_of_size};
use mcpspy_e2e::{Docker, Need, Place, Server, Stage, live, wait_until};

const NEEDS: [Need; 3] = [Need::Docker, Need::Program("podman"), Need::Program("runc")];

/// Podman with its own storage, and its API where a test wants that.
struct Podman {
    words: Vec<String>,
    socket: PathBuf,
    service: Option<Child>,
}

impl Podman {
    /// Fills its storage with the image of the other tests.
    fn on(stage: &Stage, docker: &Docker<'_>) -> Result<Self> {
        // A path of at most 50 characters is taken for the second.
        let storage = stage.dir().join("storage").display().to_string();
        let run = docker.engine.pids_dir().join("podman").display().to_string();
        // crun, the default, refuses hosts with both versions of cgroups; runc needs no systemd.
        let runc = ["/usr/sbin/runc", "/usr/bin/runc"]
            .into_iter()
            .find(|path| PathBuf::from(path).exists());
        let words = [
            "podman",
            "--root",
            &storage,
            "--runroot",
            &run,
            "--storage-driver",
            "vfs",
            "--runtime",
            runc.context("runc")?,
            "--cgroup-manager",
            "cgroupfs",
        ];
        let words = words.map(str::to_owned).to_vec();
        let socket = docker.engine.pids_dir().join("podman.sock");
        let podman = Self { words, socket, service: None };
        podman.podman(&["import", &docker.engine.image_archive().display().to_string(), IMAGE])?;
        Ok(podman)
    }

    fn podman(&self, arguments: &[&str]) -> Result<String> {
        let output =
            Command::new(&self.words[0]).args(&self.words[1..]).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "podman {arguments:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Serves its API.
    fn serve(&mut self) -> Result<String> {
        let address = format!("unix://{}", self.socket.display());
        let service = Command::new(&self.words[0])
            .args(&self.words[1..])
            .args(["system", "service", "--time=0", &address])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.service = Some(service);
        wait_until("podman serves its API", Duration::from_secs(20), || Ok(self.socket.exists()))?;
        Ok(address)
    }

    /// The command that starts a server in a container of its own.
    fn run(&self, docker: &Docker<'_>, name: &str, server: &Server) -> Result<Vec<String>> {
        let mut words = self.words.clone();
        words
            .extend(["run", "-i", "--rm", "--name", name, "-e", "MCPSPY_TRUTH"].map(str::to_owned));
        // Its defaults are above what this user may set.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];
        words.extend(limits.map(str::to_owned));
        words.extend(docker.options()?);
        words.push(IMAGE.to_owned());
        words.extend(Docker::inside(server));
        Ok(words)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // A failed test leaves its container; nothing can be done about a failure here.
        drop(self.podman(&["rm", "-f", "-t", "0", "-a"]));
        if let Some(service) = &mut self.service {
            drop(service.kill());
            drop(service.wait());
        }
        drop(std::fs::remove_file(&self.socket));
    }
}

fn talk(docker: &Docker<'_>, words: &[String]) -> Result<()> {
    let mut client = docker.client(words)?;
    client.initialize()?;
    for id in 0..50 {
        client.call(&id.to_string(), "echo", r#"{"text":"through conmon"}"#)?;
    }
    client.send(How::Whole, format!("{}\n", call_of_size("60", 1_000_000)).as_bytes())?;
    client.line()?;
    client.send_line(&call("61", "text", r#"{"size":1000000}"#))?;
    client.line()?;
    client.call("62", "echo", r#"{"text":"after"}"#)?;
    ensure!(client.close()?.success(), "the server failed");
    Ok(())
}

#[test]
fn podman_run_is_reported_once_and_named() {
    live(&NEEDS, |stage| {
        let docker = Docker::on(stage)?;
        let mut podman = Podman::on(stage, &docker)?;
        let address = podman.serve()?;
        let monitor = stage.monitor(&["--docker-host", &address])?;
        talk(&docker, &podman.run(&docker, "pod-srv", &Server::Raw(&[]))?)?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Container("pod-srv"))?;
        let server = truth.sessions[0].server.pid;
        let event = run.messages().find(|event| event.pids().1 == server).context("no message")?;
        ensure!(event.text("/to/container/runtime") == "podman", "{}", event.at("/to"));
        run.expect_sessions(&truth)
    });
}

#[test]
fn podman_without_its_api_is_reported_once() {
    live(&NEEDS, |stage| {
        let docker = Docker::on(stage)?;
        let podman = Podman::on(stage, &docker)?;
        let monitor = stage.monitor(&["--no-docker"])?;
        talk(&docker, &podman.run(&docker, "pod-srv", &Server::Raw(&[]))?)?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Anywhere)?;
        let server = truth.sessions[0].server.pid;
        for event in run.messages().filter(|event| event.pids().1 == server) {
            ensure!(event.text("/to/container/id").len() == 64, "{}", event.at("/to"));
        }
        Ok(())
    });
}
