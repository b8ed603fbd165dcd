//! Compose services: the server's end is named by project and service.

use std::process::Command;

use anyhow::{Result, bail, ensure};
use mcpspy_e2e::docker::IMAGE;
use mcpspy_e2e::{Docker, Need, Place, Server, Truth, live, peers};
use serde_json::json;

const RAW: Server = Server::Raw(&[]);

/// Compose programs on this machine.
fn composes(docker: &Docker<'_>) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let host = docker.engine.host();
    let mut found = vec![words(&["docker-compose", "-H", &host])];
    if docker.docker(&["compose", "version"]).is_ok() {
        found.push(words(&["docker", "-H", &host, "compose"]));
    }
    found
}

fn run(words: &[String], arguments: &[&str]) -> Result<()> {
    let output = Command::new(&words[0]).args(&words[1..]).args(arguments).output()?;
    if !output.status.success() {
        bail!("{words:?} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn service_by_docker_exec_and_by_compose_exec() {
    live(&[Need::Docker, Need::Program("docker-compose"), Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        let service = json!({
            "image": IMAGE,
            "network_mode": "none",
            "command": ["sleep", "infinity"],
            "stop_grace_period": "0s",
            "volumes": docker.mounts()?,
        });
        // The common subset of both versions, and JSON is YAML.
        let file = stage.dir().join("docker-compose.yml");
        let content =
            json!({"version": "2.4", "services": {"inventory": service, "mail": service}});
        std::fs::write(&file, content.to_string())?;
        for (round, mut compose) in composes(&docker).into_iter().enumerate() {
            let project = format!("shop{round}");
            let file = file.display().to_string();
            compose.extend(["-f", &file, "-p", &project].map(str::to_owned));
            run(&compose, &["up", "-d"])?;
            let monitor = docker.monitor(&[])?;
            let label = format!("label=com.docker.compose.project={project}");
            let service = "label=com.docker.compose.service=inventory";
            let name = docker.docker(&[
                "ps",
                "--filter",
                &label,
                "--filter",
                service,
                "--format",
                "{{.Names}}",
            ])?;
            ensure!(!name.is_empty(), "no container of {project}/inventory");
            let mut by_docker = peers::python(2, "basic");
            by_docker.args(docker.exec(&name, &Server::Python(2)));
            let by_docker = docker.play(&mut by_docker)?;

            // Compose's own exec, to the other service.
            let mut client = peers::python(2, "many");
            client.env("MCPSPY_SESSIONS", "2").args(docker.compose_exec(&compose, "mail", &RAW));
            let by_compose = docker.play(&mut client)?;

            run(&compose, &["down"])?;
            let run = monitor.stop()?;
            let truth = Truth::of([&by_docker, &by_compose]);
            run.expect_exactly(&truth)?;
            run.expect_once(&truth)?;
            let place = |service| Place::Service(&project, service);
            run.expect_places(&by_docker, Place::Host, place("inventory"))?;
            run.expect_places(&by_compose, Place::Host, place("mail"))?;
        }
        Ok(())
    });
}
