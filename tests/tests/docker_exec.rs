//! Servers in containers, started by `docker exec -i` and `docker run -i`: every message once,
//! between the real client and the real server, named by container.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::raw::{Client, How, call, call_of_size};
use mcpspy_e2e::{Docker, Need, Place, Server, Truth, live, peers};

const RAW: Server = Server::Raw(&[]);

/// A client's calls that no other client makes.
fn calls(client: &mut Client, label: &str, count: usize) -> Result<()> {
    for id in 0..count {
        client.call(&id.to_string(), "echo", &format!(r#"{{"text":"{label} {id}"}}"#))?;
    }
    Ok(())
}

#[test]
fn sdk_servers_by_exec_and_by_run() {
    let needs = [Need::Docker, Need::PythonV1, Need::PythonV2, Need::TypeScript];
    live(&needs, |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let mut played = Vec::new();
        for server in [Server::Python(2), Server::Python(1), Server::TypeScript] {
            let own = format!("own-{}", played.len());
            let by_exec = docker.exec("srv", &server);
            let by_run = docker.run(&["--name", &own], &server)?;
            for (name, words) in [("srv".to_owned(), by_exec), (own, by_run)] {
                let mut client = match server {
                    Server::Python(major) => peers::python(major, "basic"),
                    _ => peers::typescript("basic"),
                };
                played.push((name, docker.play(client.args(words))?));
            }
        }
        let run = monitor.stop()?;
        let truth = Truth::of(played.iter().map(|(_, truth)| truth));
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)?;
        run.expect_sessions(&truth)?;
        for (name, truth) in &played {
            run.expect_places(truth, Place::Host, Place::Container(name))?;
        }
        Ok(())
    });
}

#[test]
fn stateless_revision_by_exec() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let mut client = peers::python(2, "basic");
        client.args(docker.exec("srv", &Server::Python(2))).env("MCPSPY_ERA", "modern");
        let truth = docker.play(&mut client)?;
        monitor.stop()?.expect_between(&truth, Place::Host, Place::Container("srv"))
    });
}

#[test]
fn five_megabytes_both_ways() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        for (label, words) in
            [("exec", docker.exec("srv", &RAW)), ("run", docker.run(&["--name", "srv-run"], &RAW)?)]
        {
            let mut client = docker.client(&words)?;
            client.initialize()?;
            client.send(How::Whole, format!("{}\n", call_of_size("1", 5_000_000)).as_bytes())?;
            client.line()?;
            calls(&mut client, label, 3)?;
            client.send_line(&call("7", "text", r#"{"size":5000000}"#))?;
            client.line()?;
            calls(&mut client, label, 3)?;
            ensure!(client.close()?.success(), "the server failed");
        }
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)?;
        run.expect_sessions(&truth)
    });
}

#[test]
fn python_image_of_5_mb_by_exec() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let mut client = peers::python(2, "image");
        let truth = docker.play(client.args(docker.exec("srv", &Server::Python(2))))?;
        monitor.stop()?.expect_between(&truth, Place::Host, Place::Container("srv"))
    });
}

#[test]
fn twenty_sessions_of_one_client_in_one_container() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let mut client = peers::python(2, "many");
        client.args(docker.exec("srv", &RAW)).env("MCPSPY_SESSIONS", "20");
        let truth = docker.play(&mut client)?;
        ensure!(truth.sessions.len() == 20, "{} sessions", truth.sessions.len());
        let run = monitor.stop()?;
        run.expect_between(&truth, Place::Host, Place::Container("srv"))?;
        run.expect_sessions(&truth)
    });
}

#[test]
fn twenty_sessions_of_one_client_each_in_a_container_of_its_own() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        let monitor = docker.monitor(&[])?;
        let mut client = peers::python(2, "many");
        client.args(docker.run(&["--name", "many-{n}"], &RAW)?).env("MCPSPY_SESSIONS", "20");
        let truth = docker.play(&mut client)?;
        ensure!(truth.sessions.len() == 20, "{} sessions", truth.sessions.len());
        let run = monitor.stop()?;
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)?;
        for number in 0..20 {
            let one = truth.with(&format!("\"session {number} call"))?;
            let name = format!("many-{number}");
            run.expect_places(&one, Place::Host, Place::Container(&name))?;
        }
        Ok(())
    });
}

#[test]
fn server_that_lives_200_ms() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let monitor = docker.monitor(&[])?;
        for number in 0..3 {
            let name = format!("short-{number}");
            let mut client = docker.client(&docker.run(&["--name", &name], &RAW)?)?;
            // Written before the server lives; it ends as soon as it has answered.
            client.send_line(mcpspy_e2e::raw::INITIALIZE)?;
            let arguments = format!(r#"{{"text":"{name}"}}"#);
            client.send_line(&call("1", "echo", &arguments))?;
            client.send_line(&call("2", "die", r#"{"code":0}"#))?;
            client.line()?;
            client.line()?;
            client.wait()?;
        }
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        ensure!(truth.sessions.len() == 3, "{} sessions", truth.sessions.len());
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)?;
        for number in 0..3 {
            let name = format!("short-{number}");
            run.expect_places(&truth.with(&name)?, Place::Host, Place::Container(&name))?;
        }
        Ok(())
    });
}

/// Calls until the command has ended, or the server.
fn calls_during(
    docker: &Docker<'_>,
    client: &mut Client,
    label: &str,
    what: &[&str],
) -> Result<()> {
    let mut command = docker.engine.cli().args(what).spawn()?;
    for id in 0.. {
        let said = client.call(&id.to_string(), "echo", &format!(r#"{{"text":"{label} {id}"}}"#));
        if said.is_err() || command.try_wait()?.is_some() {
            break;
        }
    }
    ensure!(command.wait()?.success(), "docker {what:?} failed");
    Ok(())
}

#[test]
fn container_renamed_restarted_and_removed_while_traffic_flows() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let id = docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        for (label, what) in [
            ("renamed", &["rename", "srv", "other"][..]),
            ("restarted", &["restart", "-t", "0", &id]),
            ("removed", &["rm", "-f", &id]),
        ] {
            let mut client = docker.client(&docker.exec(&id, &RAW))?;
            client.initialize()?;
            calls(&mut client, &format!("before it is {label}"), 20)?;
            calls_during(&docker, &mut client, label, what)?;
            if label == "renamed" {
                monitor.wait_event(
                    "the new name",
                    std::time::Duration::from_secs(10),
                    |event| {
                        drop(client.call("0", "echo", r#"{"text":"still renamed"}"#));
                        event.text("/to/container/name") == "other"
                    },
                )?;
                client.close()?;
            } else {
                client.wait()?;
            }
        }
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        ensure!(truth.sessions.len() == 3, "{} sessions", truth.sessions.len());
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)?;
        run.expect_sessions(&truth)?;
        for event in run.messages_of(&truth.pids()) {
            let end = if event.text("/to/container/id").is_empty() { "/from" } else { "/to" };
            let container = event.at(end)["container"].clone();
            ensure!(container["id"] == *id, "{container}");
            let late = event.raw().contains("restarted") || event.raw().contains("removed");
            let names: &[&str] = if late { &["other"] } else { &["srv", "other"] };
            let name = container["name"].as_str().unwrap_or_default();
            ensure!(names.contains(&name), "{container} of {}", event.raw());
        }
        Ok(())
    });
}

#[test]
fn two_containers_of_one_image_at_once() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let names = ["left", "right"];
        for name in names {
            docker.up(name, &[])?;
        }
        let monitor = docker.monitor(&[])?;
        let connect = |name: &&str| docker.client(&docker.exec(name, &RAW));
        let mut clients = names.iter().map(connect).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            client.initialize()?;
        }
        // The same ids at the same time.
        for id in 0..100 {
            for (client, name) in clients.iter_mut().zip(names) {
                client.send_line(&call(
                    &id.to_string(),
                    "echo",
                    &format!(r#"{{"text":"{name}"}}"#),
                ))?;
            }
            for client in &mut clients {
                client.line()?;
            }
        }
        for client in clients {
            client.close()?;
        }
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)?;
        for name in names {
            let one = truth.with(&format!("\"{name}\""))?;
            run.expect_places(&one, Place::Host, Place::Container(name))?;
        }
        Ok(())
    });
}

#[test]
fn client_in_a_container_that_has_the_socket() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let [python, script] = peers::python_server(2);
        let client = script.with_file_name("client.py");
        let mut words = vec![python.display().to_string(), client.display().to_string()];
        words.push("basic".to_owned());
        words.extend(docker.exec("srv", &Server::Python(2)));
        let socket = docker.engine.socket();
        let mut command = docker.engine.cli();
        command.args(["run", "--rm", "--name", "agent", "-e", "MCPSPY_TRUTH"]);
        command.arg("-v").arg(format!("{0}:{0}", socket.display())).args(docker.options()?);
        command.arg(mcpspy_e2e::docker::IMAGE).args(Docker::inside(&Server::Command(words)));
        let truth = docker.play(&mut command)?;
        let run = monitor.stop()?;
        run.expect_between(&truth, Place::Container("agent"), Place::Container("srv"))
    });
}

#[test]
fn client_that_speaks_to_the_engine_itself() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let mut command = Command::new(peers::python_binary(2));
        command.arg(peers::source_dir().join("peers/python/engine_client.py"));
        command.arg(docker.engine.socket()).arg("srv").arg(docker.engine.pid_socket());
        let truth = docker.play(command.args(Docker::inside(&RAW)))?;
        monitor.stop()?.expect_between(&truth, Place::Host, Place::Container("srv"))
    });
}

#[test]
fn client_program_under_another_name() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let copy = stage.dir().join("mydocker");
        let original = docker_binary()?;
        std::fs::copy(original, &copy)?;
        let monitor = docker.monitor(&[])?;
        let mut words = docker.exec("srv", &RAW);
        words[0] = copy.display().to_string();
        let mut client = docker.client(&words)?;
        let middle = client.server_pid();
        client.initialize()?;
        calls(&mut client, "by another name", 50)?;
        client.send(How::Whole, format!("{}\n", call_of_size("1", 200_000)).as_bytes())?;
        client.line()?;
        client.close()?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        let session = truth.sessions.first().context("no session")?;
        let (client, server) = (session.client.pid, session.server.pid);
        // An unknown program between the two may be reported as such: then each of the two hops
        // has each message once. In no case is the server's hop there twice, or without its name.
        for (sent, to_server) in [(&session.client.sent, true), (&session.server.sent, false)] {
            let hops: BTreeSet<_> = run
                .messages()
                .map(mcpspy_e2e::Event::pids)
                .filter(|pids| if to_server { pids.1 == server } else { pids.0 == server })
                .collect();
            ensure!(hops.len() == 1, "the server's hop: {hops:?}");
            let hop = *hops.first().context("no hop")?;
            let other = if to_server { hop.0 } else { hop.1 };
            ensure!([client, middle].contains(&other), "{other} at the other end");
            let reported: Vec<_> = run.messages().filter(|event| event.pids() == hop).collect();
            let raws: Vec<_> = reported.iter().map(|event| event.raw()).collect();
            ensure!(raws == mcpspy_e2e::messages(sent), "{} reported on {hop:?}", raws.len());
            let end = if to_server { "/to" } else { "/from" };
            for event in reported {
                ensure!(event.at(end)["container"]["name"] == "srv", "{}", event.at(end));
            }
        }
        let known = BTreeSet::from([client, middle, server]);
        let marked = run.messages().filter(|event| event.raw().contains("by another name"));
        for event in marked {
            let (from, to) = event.pids();
            ensure!(known.contains(&from) && known.contains(&to), "{from} → {to}");
        }
        run.expect_nothing_lost()
    });
}

fn docker_binary() -> Result<std::path::PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join("docker")).find(|p| p.exists());
    Ok(found.context("docker")?.canonicalize()?)
}

/// A server by the name of a program that passes bytes on.
fn raw_peer_called_docker(docker: &Docker<'_>) -> Result<Vec<String>> {
    let dir = docker.stage.dir().join("bin");
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(peers::raw_peer(), dir.join("docker"))?;
    Ok(vec![dir.join("docker").display().to_string(), "serve".to_owned()])
}

#[test]
fn server_called_docker_in_a_container() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let server = Server::Command(raw_peer_called_docker(&docker)?);
        let monitor = docker.monitor(&[])?;
        let mut client = docker.client(&docker.exec("srv", &server))?;
        client.initialize()?;
        calls(&mut client, "a name is no cloak", 50)?;
        client.close()?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Container("srv"))?;
        ensure!(!run.findings("relay-name").is_empty(), "no finding relay-name");
        Ok(())
    });
}

#[test]
fn server_called_docker_on_the_host() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let server = raw_peer_called_docker(&docker)?;
        let monitor = docker.monitor(&[])?;
        let mut client = docker.client(&server)?;
        client.initialize()?;
        calls(&mut client, "a name is no cloak", 50)?;
        client.close()?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Host)?;
        ensure!(!run.findings("relay-name").is_empty(), "no finding relay-name");
        Ok(())
    });
}

#[test]
fn ordinary_sessions_make_no_finding_about_names() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        let mut client = docker.client(&docker.exec("srv", &RAW))?;
        client.initialize()?;
        calls(&mut client, "ordinary", 10)?;
        client.close()?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Container("srv"))?;
        ensure!(run.findings("relay-name").is_empty(), "{:?}", run.findings("relay-name"));
        Ok(())
    });
}
