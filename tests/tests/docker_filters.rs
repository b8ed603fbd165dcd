//! Filters by container: a session is kept, both directions of it, when either end matches, and
//! nothing else is.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use mcpspy_e2e::docker::{IMAGE, OTHER_IMAGE};
use mcpspy_e2e::raw::{Channel, Client, call};
use mcpspy_e2e::{Docker, Need, Server, Stage, Truth, live, wait_until};

const RAW: Server = Server::Raw(&[]);
/// The sessions of each case: in four containers, the last of which does not want to be watched,
/// and one without any.
const PLACES: [&str; 5] = ["alpha", "beta", "gamma", "hidden", "host"];

/// Starts the containers; returns the id of the first.
fn containers(docker: &Docker<'_>) -> Result<String> {
    let labels = |project: &str, service: &str, tier: &str| {
        [
            format!("com.docker.compose.project={project}"),
            format!("com.docker.compose.service={service}"),
            format!("tier={tier}"),
        ]
    };
    let up = |name: &str, labels: &[String], more: &[&str]| {
        let mut options = Vec::new();
        for label in labels {
            options.extend(["--label", label]);
        }
        options.extend(more);
        docker.up(name, &options)
    };
    let alpha =
        up("alpha", &labels("shop", "inventory", "front"), &["--label", "mcpspy.enable=true"])?;
    up("beta", &labels("shop", "mail", "back"), &[OTHER_IMAGE])?;
    up("gamma", &[], &[])?;
    up("hidden", &[], &["--label", "mcpspy.enable=false"])?;
    Ok(alpha)
}

fn talk(client: &mut Client, place: &str) -> Result<()> {
    client.initialize()?;
    for id in 0..5 {
        let call = call(&id.to_string(), "echo", &format!(r#"{{"text":"in {place}"}}"#));
        client.send_line(&call)?;
        client.line()?;
    }
    Ok(())
}

/// Plays a session in each place, and checks that those of `kept` were reported whole and the
/// others not at all.
fn case(docker: &Docker<'_>, arguments: &[&str], kept: &[&str]) -> Result<()> {
    // Each case has its own events and logs.
    fresh(docker.stage)?;
    let monitor = docker.monitor(arguments)?;
    for place in PLACES {
        let mut client = match place {
            "host" => Client::connect(docker.stage, &Channel::Pipes, &[])?,
            name => docker.client(&docker.exec(name, &RAW))?,
        };
        talk(&mut client, place)?;
        client.close()?;
    }
    let (run, truth) = (monitor.stop()?, docker.truth()?);
    let wanted = kept.iter().map(|place| truth.with(&format!("in {place}")));
    let wanted = Truth::of(&wanted.collect::<Result<Vec<_>>>()?);
    // The client is one process: a message of any other session would be seen as its own.
    run.expect_kept(&wanted)?;
    for place in PLACES.iter().filter(|place| !kept.contains(place)) {
        let pids = [truth.with(&format!("in {place}"))?.sessions[0].server.pid].into();
        run.expect_no_message_of(&pids)?;
    }
    Ok(())
}

fn fresh(stage: &Stage) -> Result<()> {
    fs::remove_dir_all(stage.truth_dir())?;
    fs::create_dir(stage.truth_dir())?;
    let events = stage.dir().join("events.jsonl");
    if events.exists() {
        fs::remove_file(events)?;
    }
    Ok(())
}

fn cases(list: &[(&[&str], &[&str])]) -> impl FnOnce(&Stage) -> Result<()> {
    move |stage| {
        let docker = Docker::on(stage)?;
        let alpha = containers(&docker)?;
        for (arguments, kept) in list {
            let arguments: Vec<_> = arguments
                .iter()
                .map(|word| match *word {
                    "ID" => &*alpha,
                    "ID12" => &alpha[..12],
                    "ID6" => &alpha[..6],
                    word => word,
                })
                .collect();
            case(&docker, &arguments, kept)
                .map_err(|error| error.context(format!("{arguments:?} should keep {kept:?}")))?;
        }
        Ok(())
    }
}

#[test]
fn container_by_each_form() {
    live(&[Need::Docker], |stage| {
        cases(&[
            (&["--container", "alpha"], &["alpha"]),
            (&["--container", "ID12"], &["alpha"]),
            (&["--container", "ID6"], &["alpha"]),
            (&["--container", "ID"], &["alpha"]),
            (&["--container", "inventory"], &["alpha"]),
            (&["--container", "shop/mail"], &["beta"]),
            (&["--container", "shop/*"], &["alpha", "beta"]),
            (&["--container", "*a"], &["alpha", "beta", "gamma"]),
            (&["--container", "alpha", "--container", "gamma"], &["alpha", "gamma"]),
        ])(stage)
    });
}

#[test]
fn service_project_image_and_label() {
    live(&[Need::Docker], |stage| {
        cases(&[
            (&["--service", "mail"], &["beta"]),
            (&["--project", "shop"], &["alpha", "beta"]),
            (&["--image", OTHER_IMAGE], &["beta"]),
            (&["--image", IMAGE], &["alpha", "gamma"]),
            (&["--label", "tier=front"], &["alpha"]),
            (&["--label", "tier"], &["alpha", "beta"]),
            (&["--project", "shop", "--label", "tier=back"], &["beta"]),
        ])(stage)
    });
}

#[test]
fn exclude_twins() {
    live(&[Need::Docker], |stage| {
        cases(&[
            (&["--exclude-container", "alpha"], &["beta", "gamma", "host"]),
            (&["--exclude-service", "mail"], &["alpha", "gamma", "host"]),
            (&["--exclude-project", "shop"], &["gamma", "host"]),
            (&["--exclude-image", OTHER_IMAGE], &["alpha", "gamma", "host"]),
            (&["--exclude-label", "tier=front"], &["beta", "gamma", "host"]),
            (&["--project", "shop", "--exclude-service", "mail"], &["alpha"]),
        ])(stage)
    });
}

#[test]
fn labels_of_containers_say_whether_they_are_watched() {
    live(&[Need::Docker], |stage| {
        cases(&[
            (&[], &["alpha", "beta", "gamma", "host"]),
            (&["--opt-in"], &["alpha"]),
            (&["--container", "hidden"], &[]),
        ])(stage)
    });
}

#[test]
fn filter_that_matches_nothing_yet_is_said_once_and_then_applies() {
    live(&[Need::Docker], |stage| {
        let docker = Docker::on(stage)?;
        containers(&docker)?;
        let monitor = docker.monitor(&["--container", "not-yet"])?;
        let said = |monitor: &mcpspy_e2e::Monitor| -> Result<usize> {
            let said = monitor.stderr()?;
            Ok(said.lines().filter(|l| l.contains("not-yet") && l.contains("alpha")).count())
        };
        wait_until(
            "the filter's warning, with the names that exist",
            Duration::from_secs(10),
            || Ok(said(&monitor)? > 0),
        )?;
        let mut ignored = docker.client(&docker.exec("alpha", &RAW))?;
        talk(&mut ignored, "alpha")?;
        ignored.close()?;
        // From its first byte on.
        let mut own = docker.client(&docker.run(&["--name", "not-yet"], &RAW)?)?;
        talk(&mut own, "not-yet")?;
        own.close()?;
        docker.up("not-yet", &[])?;
        let mut later = docker.client(&docker.exec("not-yet", &RAW))?;
        talk(&mut later, "the next of this name")?;
        later.close()?;
        ensure!(said(&monitor)? == 1, "said {} times:\n{}", said(&monitor)?, monitor.stderr()?);
        let (run, truth) = (monitor.stop()?, docker.truth()?);
        let kept = [truth.with("in not-yet")?, truth.with("in the next of this name")?];
        run.expect_kept(&Truth::of(&kept))
    });
}
