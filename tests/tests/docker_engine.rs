//! Engines that restart, are absent, or run in containers.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mcpspy_e2e::docker::IMAGE;
use mcpspy_e2e::raw::Client;
use mcpspy_e2e::{Docker, Monitor, Need, Place, Server, Truth, live, peers, wait_until};

const RAW: Server = Server::Raw(&[]);

fn calls(client: &mut Client, label: &str, count: usize) -> Result<()> {
    for id in 0..count {
        client.call(&id.to_string(), "echo", &format!(r#"{{"text":"{label} {id}"}}"#))?;
    }
    Ok(())
}

fn wait_call(monitor: &Monitor, what: &str, name: &str, after: u64) -> Result<u64> {
    let mut seen = 0;
    monitor.wait_event(what, Duration::from_secs(30), |event| {
        let matches = event.seq() > after && event.text("/to/container/name") == name;
        seen = if matches { event.seq() } else { seen };
        matches
    })?;
    Ok(seen)
}

#[test]
fn dockerd_restarted_during_capture() {
    live(&[Need::Docker, Need::PythonV2], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        let monitor = docker.monitor(&[])?;
        docker.session_within("inner")?;
        wait_call(&monitor, "a call within the container", "inner", 0)?;
        let mut cut = docker.client(&docker.exec("srv", &RAW))?;
        cut.initialize()?;
        calls(&mut cut, "before the restart", 20)?;

        docker.engine.stop()?;
        // The way through the daemon is gone; the session within the container is not.
        cut.wait()?;
        let last = monitor.events()?.last().map_or(0, mcpspy_e2e::Event::seq);
        wait_call(&monitor, "a call while no daemon runs", "inner", last)?;
        docker.engine.start_again()?;
        let last = monitor.events()?.last().map_or(0, mcpspy_e2e::Event::seq);
        wait_call(&monitor, "a call after the restart", "inner", last)?;

        let mut again = docker.client(&docker.exec("srv", &RAW))?;
        again.initialize()?;
        calls(&mut again, "after the restart", 20)?;
        again.close()?;
        let mut new = docker.client(&docker.run(&["--name", "newcomer"], &RAW)?)?;
        new.initialize()?;
        calls(&mut new, "a new container", 20)?;
        new.close()?;

        let inner = docker.end_session_within("inner")?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        let all = Truth::of([&truth, &inner]);
        run.expect_exactly(&all)?;
        run.expect_once(&all)?;
        run.expect_places(&inner, Place::Container("inner"), Place::Container("inner"))?;
        for said in ["before the restart", "after the restart"] {
            let one = truth.with(said)?;
            run.expect_places(&one, Place::Host, Place::Container("srv"))?;
            run.expect_sessions(&one)?;
        }
        let new = truth.with("a new container")?;
        run.expect_places(&new, Place::Host, Place::Container("newcomer"))
    });
}

#[test]
fn no_docker_names_containers_by_their_ids() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let id = docker.up("srv", &[])?;
        let monitor = stage.monitor(&["--no-docker"])?;
        let mut client = docker.client(&docker.exec("srv", &RAW))?;
        client.initialize()?;
        calls(&mut client, "nameless", 20)?;
        client.close()?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Unnamed(&id))
    });
}

#[test]
fn engine_that_is_not_there_stops_nothing() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let id = docker.up("srv", &[])?;
        let mut command = Command::new(peers::monitor_binary()?);
        command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        let monitor = stage.monitor_with(command)?;
        let mut client = docker.client(&docker.exec("srv", &RAW))?;
        client.initialize()?;
        calls(&mut client, "no engine there", 20)?;
        client.close()?;
        wait_until("it says that the engine is not there", Duration::from_secs(10), || {
            Ok(monitor.stderr()?.contains("/nowhere/docker.sock"))
        })?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        let said = run.stderr.lines().filter(|line| line.contains("/nowhere/docker.sock")).count();
        ensure!(said == 1, "said {said} times:\n{}", run.stderr);
        // The engine that runs may have been found without being named.
        run.expect_between(&truth, Place::Host, Place::Anywhere)?;
        let ids = run.messages().filter(|event| event.text("/to/container/id") == id).count();
        ensure!(ids > 0, "no message to the container {id}");
        Ok(())
    });
}

#[test]
fn engine_that_comes_later_is_found() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        docker.up("srv", &[])?;
        docker.engine.stop()?;
        let monitor = docker.monitor(&[]);
        docker.engine.start_again()?;
        let monitor = monitor?;
        let mut named = false;
        for round in 0..40 {
            let mut client = docker.client(&docker.exec("srv", &RAW))?;
            client.initialize()?;
            calls(&mut client, &format!("round {round}"), 3)?;
            client.close()?;
            named = monitor.events()?.iter().any(|e| e.text("/to/container/name") == "srv");
            if named {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        ensure!(named, "the name never came:\n{}", monitor.stderr()?);
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_exactly(&truth)?;
        run.expect_once(&truth)
    });
}

/// Starts an engine in the container: cgroups writable, no bridge, plain copies of layers.
const NESTED: &str = r"
mkdir -p /run /var/run
for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw,bind $dir || true; done
exec dockerd --storage-driver vfs --bridge none --iptables=false --ip-forward=false
";

#[test]
fn container_that_runs_an_engine_of_its_own() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        let data = format!("{}:/var/lib/docker", stage.dir().join("nested").display());
        let archive = docker.engine.image_archive().display().to_string();
        let image = format!("{archive}:{archive}:ro");
        let mut command = docker.engine.cli();
        command.args(["run", "-d", "--name", "outer", "--cap-add", "SYS_ADMIN"]);
        command.args(["--cap-add", "NET_ADMIN", "--security-opt", "seccomp=unconfined"]);
        command.args(docker.options()?).args(["-v", &data, "-v", &image]);
        let output = command.args([IMAGE, "sh", "-c", NESTED]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait_until("the engine in the container answers", Duration::from_secs(60), || {
            Ok(docker.docker(&["exec", "outer", "docker", "version"]).is_ok())
        })
        .with_context(|| docker.docker(&["logs", "--tail", "5", "outer"]).unwrap_or_default())?;
        docker.docker(&["exec", "outer", "docker", "import", &archive, IMAGE])?;
        let options = docker.options()?;
        let mut up = vec!["exec", "outer", "docker", "run", "-d", "--name", "nested"];
        up.extend(options.iter().map(String::as_str));
        up.extend([IMAGE, "sleep", "infinity"]);
        let nested = docker.docker(&up)?;
        let outer = docker.docker(&["inspect", "--format", "{{.Id}}", "outer"])?;

        let monitor = docker.monitor(&[])?;
        // Through both engines, and through the inner one alone.
        let mut through = docker.exec("nested", &RAW);
        // "docker -H HOST exec ..." becomes "docker -H HOST exec -i -e ... outer docker exec ...".
        let inner: Vec<_> = through.drain(3..).collect();
        through.extend(["exec", "-i", "-e", "MCPSPY_TRUTH", "outer", "docker"].map(str::to_owned));
        through.extend(inner);
        let mut client = docker.client(&through)?;
        client.initialize()?;
        calls(&mut client, "through two engines", 30)?;
        client.close()?;
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        run.expect_between(&truth, Place::Host, Place::Anywhere)?;
        let server = truth.sessions[0].server.pid;
        for event in run.messages().filter(|event| event.pids().1 == server) {
            // The host's engine knows the outer container; the inner one has at least its id where
            // its cgroup shows it.
            let container = event.at("/to")["container"].to_string();
            let known = container.contains(&nested) || container.contains(&outer);
            ensure!(known, "{container} is neither {nested} nor {outer}");
        }
        Ok(())
    });
}
