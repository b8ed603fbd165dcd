//! From objects of the API to facts. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use bollard::models::{
    ContainerConfig, ContainerInspectResponse, ContainerSummary, SystemInfo, SystemVersion,
};

use super::EngineSummary;
use crate::model::{ContainerId, ContainerInfo};

/// What all containers of an engine have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// `docker` or `podman`.
    pub(super) runtime: Arc<str>,
    /// Name of its host.
    pub(super) host: Option<Arc<str>>,
}

/// A container as its engine knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) info: Arc<ContainerInfo>,
    /// Host's number of its first process; `None` when it does not run.
    pub(super) init: Option<u32>,
    /// The command of its health check as an event of its start has it: `/bin/sh -c curl ...`.
    pub(super) health: Option<String>,
}

/// What the engine is. Either answer may have been refused by a proxy.
pub(super) fn summary(
    endpoint: &Arc<str>,
    version: Option<&SystemVersion>,
    info: Option<&SystemInfo>,
) -> EngineSummary {
    let components = version.and_then(|version| version.components.as_deref()).unwrap_or_default();
    let podman = components.iter().any(|part| part.name.starts_with("Podman"));
    let host = info.and_then(|info| info.name.as_deref()).filter(|name| !name.is_empty());
    let security = info.and_then(|info| info.security_options.as_deref()).unwrap_or_default();
    EngineSummary {
        endpoint: endpoint.clone(),
        runtime: if podman { "podman" } else { "docker" }.into(),
        version: version.and_then(|version| version.version.clone()).unwrap_or_default(),
        host: host.map(Arc::from),
        system: info.and_then(|info| info.operating_system.clone()).unwrap_or_default(),
        rootless: security.iter().any(|option| option.starts_with("name=rootless")),
        refused: Vec::new(),
        containers: 0,
    }
}

/// What tells one engine from another, for one that can be reached in two ways. Podman gives itself
/// a new id with each answer: it is told by where it keeps its data.
pub(super) fn engine_key(summary: &EngineSummary, info: Option<&SystemInfo>) -> String {
    let text = |value: fn(&SystemInfo) -> &Option<String>| {
        info.and_then(|info| value(info).as_deref()).unwrap_or_default()
    };
    match (&*summary.runtime, text(|info| &info.id), text(|info| &info.docker_root_dir)) {
        ("docker", id, _) if !id.is_empty() => id.to_owned(),
        ("podman", _, root) if !root.is_empty() => {
            format!("podman {} {root}", summary.host.as_deref().unwrap_or_default())
        }
        _ => summary.endpoint.to_string(),
    }
}

/// A container that was asked for by itself.
pub(super) fn inspected(answer: ContainerInspectResponse, home: &Home) -> Option<Known> {
    let id = answer.id.filter(|id| !id.is_empty())?;
    let config = answer.config.unwrap_or_default();
    let digest = answer.image_manifest_descriptor.and_then(|image| image.digest).or(answer.image);
    let health = health_command(&config);
    let labels = config.labels.unwrap_or_default();
    let info = container(
        &id,
        answer.name.as_deref(),
        config.image.as_deref(),
        digest.as_deref(),
        &labels,
        home,
    );
    let running = answer.state.as_ref().is_some_and(|state| state.running.unwrap_or(false));
    let pid = answer.state.and_then(|state| state.pid).filter(|_| running);
    Some(Known { info: Arc::new(info), init: pid.and_then(pid_of), health })
}

/// A container of a list: what is left where it cannot be asked for by itself.
pub(super) fn listed(entry: ContainerSummary, home: &Home) -> Option<Known> {
    let id = entry.id.filter(|id| !id.is_empty())?;
    // A link to it from another container is a name too: `/other/alias`.
    let names = entry.names.unwrap_or_default();
    let name = names.iter().min_by_key(|name| name.matches('/').count());
    let digest = entry.image_manifest_descriptor.and_then(|image| image.digest).or(entry.image_id);
    let labels = entry.labels.unwrap_or_default();
    let info = container(
        &id,
        name.map(String::as_str),
        entry.image.as_deref(),
        digest.as_deref(),
        &labels,
        home,
    );
    Some(Known { info: Arc::new(info), init: None, health: None })
}

/// What an event alone says of its container. Its attributes are the labels, the image and the name.
pub(super) fn mentioned(id: &str, mut attributes: HashMap<String, String>, home: &Home) -> Known {
    let (name, image) = (attributes.remove("name"), attributes.remove("image"));
    for other in ["execID", "exitCode", "signal", "oldName", "execDuration"] {
        attributes.remove(other);
    }
    let info = container(id, name.as_deref(), image.as_deref(), None, &attributes, home);
    Known { info: Arc::new(info), init: None, health: None }
}

/// A process number; an engine says 0 where there is none.
pub(super) fn pid_of(pid: i64) -> Option<u32> {
    u32::try_from(pid).ok().filter(|&pid| pid > 0)
}

fn container(
    id: &str,
    name: Option<&str>,
    image: Option<&str>,
    digest: Option<&str>,
    labels: &HashMap<String, String>,
    home: &Home,
) -> ContainerInfo {
    let text = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    let compose = |names: [&str; 2]| {
        names.iter().find_map(|&name| labels.get(name).and_then(|label| text(label)))
    };
    let project = compose(["com.docker.compose.project", "io.podman.compose.project"]);
    let service = compose(["com.docker.compose.service", "io.podman.compose.service"]);
    let mut sorted: Vec<(Arc<str>, Arc<str>)> =
        labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
    sorted.sort();
    ContainerInfo {
        id: ContainerId(id.into()),
        outer: None,
        runtime: home.runtime.clone(),
        name: name.map(|name| name.trim_start_matches('/')).and_then(text),
        image: image.and_then(text),
        image_digest: digest.and_then(image_digest),
        project,
        service,
        labels: sorted.into(),
        host: home.host.clone(),
    }
}

/// Some engines leave out which hash it is.
fn image_digest(digest: &str) -> Option<Arc<str>> {
    let bare = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    match digest {
        _ if bare => Some(format!("sha256:{digest}").into()),
        _ if digest.contains(':') => Some(digest.into()),
        _ => None,
    }
}

/// Health checks are processes that are started every few seconds and never speak MCP.
fn health_command(config: &ContainerConfig) -> Option<String> {
    let test = config.healthcheck.as_ref()?.test.as_deref()?;
    let (kind, rest) = test.split_first()?;
    let shell = || match config.shell.as_deref() {
        Some(shell) if !shell.is_empty() => shell.join(" "),
        _ => "/bin/sh -c".to_owned(),
    };
    match kind.as_str() {
        "CMD" => Some(rest.join(" ")),
        "CMD-SHELL" => Some(format!("{} {}", shell(), rest.join(" "))),
        _ => None,
    }
}

/// The words of an event's action that matter. An exec's has its command: `exec_start: sh -c ls `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// It is there, or something about it is new.
    Changed,
    /// It does not run any more.
    Died,
    /// It is gone.
    Removed,
    /// A process was started in it, by this command.
    Exec(&'a str),
    /// Nothing that matters.
    Other,
}

/// Which actions to ask for: an engine has many more.
pub(super) const ACTIONS: [&str; 11] = [
    "create",
    "start",
    "rename",
    "update",
    "die",
    "died",
    "destroy",
    "remove",
    "exec_start",
    "exec",
    "restart",
];

/// Reads an action; Podman has words of its own.
pub(super) fn action(text: &str) -> Action<'_> {
    let (word, rest) = text.split_once(':').unwrap_or((text, ""));
    match word {
        "create" | "start" | "restart" | "rename" | "update" => Action::Changed,
        "die" | "died" => Action::Died,
        "destroy" | "remove" => Action::Removed,
        "exec_start" | "exec" => Action::Exec(rest.trim()),
        _ => Action::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        Home { runtime: "docker".into(), host: Some("box".into()) }
    }

    fn read<T: for<'a> serde::Deserialize<'a>>(json: &str) -> T {
        serde_json::from_str(json).expect("an object of the API")
    }

    #[test]
    fn an_inspected_container_has_everything() {
        let known = inspected(
            read(
                r#"{"Id":"c0ffee","Name":"/shop_web_1","Image":"sha256:abc",
                "State":{"Running":true,"Pid":12321},
                "Config":{"Image":"web:1","Labels":{"z":"1","com.docker.compose.project":"shop",
                "com.docker.compose.service":"web"},
                "Healthcheck":{"Test":["CMD-SHELL","curl -f localhost"]}}}"#,
            ),
            &home(),
        );
        let known = known.expect("a container");
        assert_eq!(known.init, Some(12321));
        assert_eq!(known.health.as_deref(), Some("/bin/sh -c curl -f localhost"));
        let info = &known.info;
        assert_eq!(info.name.as_deref(), Some("shop_web_1"));
        assert_eq!(info.image.as_deref(), Some("web:1"));
        assert_eq!(info.image_digest.as_deref(), Some("sha256:abc"));
        assert_eq!((info.project.as_deref(), info.service.as_deref()), (Some("shop"), Some("web")));
        assert_eq!(info.label("z"), Some("1"));
        assert_eq!(info.host.as_deref(), Some("box"));
    }

    #[test]
    fn a_container_that_does_not_run_has_no_process() {
        for state in [r#"{"Running":false,"Pid":0}"#, r#"{"Running":true,"Pid":0}"#] {
            let known = inspected(read(&format!(r#"{{"Id":"a","State":{state}}}"#)), &home());
            assert_eq!(known.expect("a container").init, None, "{state}");
        }
        assert_eq!(inspected(read("{}"), &home()), None);
    }

    #[test]
    fn a_listed_container_has_its_own_name() {
        let entry =
            r#"{"Id":"a","Names":["/other/alias","/own"],"Image":"i","ImageID":"sha256:1"}"#;
        let info = listed(read(entry), &home()).expect("a container").info;
        assert_eq!(info.name.as_deref(), Some("own"));
        assert_eq!(info.image_digest.as_deref(), Some("sha256:1"));
    }

    #[test]
    fn an_event_alone_names_its_container() {
        let attributes = [("name", "srv"), ("image", "i"), ("execID", "1"), ("label", "x")];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let info = mentioned("a", HashMap::from(attributes), &home()).info;
        assert_eq!((info.name.as_deref(), info.image.as_deref()), (Some("srv"), Some("i")));
        assert_eq!(info.labels.len(), 1);
    }

    #[test]
    fn labels_of_podman_compose_count_too() {
        let labels = r#"{"io.podman.compose.project":"p","io.podman.compose.service":"s"}"#;
        let known =
            inspected(read(&format!(r#"{{"Id":"a","Config":{{"Labels":{labels}}}}}"#)), &home());
        let info = known.expect("a container").info;
        assert_eq!((info.project.as_deref(), info.service.as_deref()), (Some("p"), Some("s")));
    }

    #[test]
    fn actions_are_read_with_their_quirks() {
        assert_eq!(action("start"), Action::Changed);
        assert_eq!(action("exec_start: /mcp2 "), Action::Exec("/mcp2"));
        assert_eq!(action("died"), Action::Died);
        assert_eq!(action("health_status: healthy"), Action::Other);
        for word in ACTIONS {
            assert_ne!(action(word), Action::Other, "{word}");
        }
    }

    #[test]
    fn one_engine_has_one_key() {
        let version =
            |parts: &str| read::<SystemVersion>(&format!(r#"{{"Components":[{parts}]}}"#));
        let key = |endpoint: &str, version: Option<&SystemVersion>, info: Option<&str>| {
            let info = info.map(read::<SystemInfo>);
            let summary = summary(&endpoint.into(), version, info.as_ref());
            engine_key(&summary, info.as_ref())
        };
        let docker = r#"{"ID":"A:B","Name":"box"}"#;
        assert_eq!(key("unix:///a", None, Some(docker)), key("unix:///b", None, Some(docker)));
        assert_ne!(key("unix:///a", None, None), key("unix:///b", None, None));
        let podman = version(r#"{"Name":"Podman Engine","Version":"4.3.1"}"#);
        let first = r#"{"ID":"1","Name":"box","DockerRootDir":"/r"}"#;
        let again = r#"{"ID":"2","Name":"box","DockerRootDir":"/r"}"#;
        assert_eq!(key("a", Some(&podman), Some(first)), key("b", Some(&podman), Some(again)));
    }

    #[test]
    fn a_rootless_engine_says_so() {
        let info = read(r#"{"SecurityOptions":["name=seccomp","name=rootless"],"Name":"me"}"#);
        let summary = summary(&"unix:///run/user/1000/docker.sock".into(), None, Some(&info));
        assert!(summary.rootless && summary.refused.is_empty());
        assert_eq!((&*summary.runtime, summary.host.as_deref()), ("docker", Some("me")));
    }
}
