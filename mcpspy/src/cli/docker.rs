//! Options about containers and their engines.

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::config::Docker;
use crate::filter::{ContainerFilter, ContainerRules, Globs, LabelRule};

const DOCKER: &str = "Docker";

/// Which engines to ask.
#[derive(Debug, Args)]
#[command(next_help_heading = DOCKER)]
pub(super) struct EngineArgs {
    /// Address of a container engine
    #[arg(
        help = "Address of a container engine, such as unix:///run/docker.sock or tcp://proxy:2375; \
                may be repeated [default: DOCKER_HOST, else the sockets that exist]",
        long, value_name = "ADDRESS", env = "MCPSPY_DOCKER_HOST", value_delimiter = ',',
        value_parser = address
    )]
    docker_host: Vec<String>,
    /// Ask no container engine; containers are known by their ids
    #[arg(
        long, env = "MCPSPY_NO_DOCKER", value_parser = BoolishValueParser::new(),
        conflicts_with = "docker_host"
    )]
    no_docker: bool,
}

/// What else a run needs to know of containers.
#[derive(Debug, Args)]
#[command(next_help_heading = DOCKER)]
pub(super) struct HostArgs {
    /// Name of this host in events [default: what its container engine calls it, else its host
    /// name]
    #[arg(long, value_name = "NAME", env = "MCPSPY_HOST_NAME")]
    pub(super) host_name: Option<String>,
    /// Another program that only hands bytes on between a container and its client, by the name of
    /// its executable; may be repeated
    #[arg(long, value_name = "NAME", env = "MCPSPY_RELAY", value_delimiter = ',')]
    pub(super) relay: Vec<String>,
}

/// Which containers to show.
#[derive(Debug, Args)]
#[command(next_help_heading = DOCKER)]
pub(super) struct ContainerArgs {
    /// Only this container: its name, the beginning of its id, its service, or project/service
    #[arg(long, value_name = "GLOB", env = "MCPSPY_CONTAINER")]
    container: Vec<Globs>,
    /// Only containers of this Compose service
    #[arg(long, value_name = "GLOB", env = "MCPSPY_SERVICE")]
    service: Vec<Globs>,
    /// Only containers of this Compose project
    #[arg(long, value_name = "GLOB", env = "MCPSPY_PROJECT")]
    project: Vec<Globs>,
    /// Only containers of this image
    #[arg(long, value_name = "GLOB", env = "MCPSPY_IMAGE")]
    image: Vec<Globs>,
    /// Only containers with this label
    #[arg(long, value_name = "NAME[=GLOB]", env = "MCPSPY_LABEL", value_delimiter = ',')]
    label: Vec<LabelRule>,
    /// Not this container
    #[arg(long, value_name = "GLOB", env = "MCPSPY_EXCLUDE_CONTAINER")]
    exclude_container: Vec<Globs>,
    /// Not containers of this Compose service
    #[arg(long, value_name = "GLOB", env = "MCPSPY_EXCLUDE_SERVICE")]
    exclude_service: Vec<Globs>,
    /// Not containers of this Compose project
    #[arg(long, value_name = "GLOB", env = "MCPSPY_EXCLUDE_PROJECT")]
    exclude_project: Vec<Globs>,
    /// Not containers of this image
    #[arg(long, value_name = "GLOB", env = "MCPSPY_EXCLUDE_IMAGE")]
    exclude_image: Vec<Globs>,
    /// Not containers with this label
    #[arg(long, value_name = "NAME[=GLOB]", env = "MCPSPY_EXCLUDE_LABEL", value_delimiter = ',')]
    exclude_label: Vec<LabelRule>,
    /// Only containers that ask for it by the label mcpspy.enable=true
    #[arg(long, env = "MCPSPY_OPT_IN", value_parser = BoolishValueParser::new())]
    opt_in: bool,
    /// Show this label of containers; may be repeated
    #[arg(long, value_name = "NAME", env = "MCPSPY_SHOW_LABEL", value_delimiter = ',')]
    pub(super) show_label: Vec<String>,
}

impl EngineArgs {
    /// `DOCKER_HOST` counts where nothing was given. One that cannot be used becomes a remark: it is
    /// meant for other programs too.
    pub(super) fn resolve(self, variable: Option<String>, remarks: &mut Vec<String>) -> Docker {
        let mut hosts = self.docker_host;
        if hosts.is_empty()
            && !self.no_docker
            && let Some(host) = variable.filter(|host| !host.is_empty())
        {
            match address(&host) {
                Ok(host) => hosts.push(host),
                Err(error) => remarks.push(format!("DOCKER_HOST is not used: {error}")),
            }
        }
        Docker { hosts, disabled: self.no_docker }
    }
}

impl ContainerArgs {
    pub(super) fn filter(self) -> ContainerFilter {
        ContainerFilter {
            include: ContainerRules {
                container: self.container,
                service: self.service,
                project: self.project,
                image: self.image,
                label: self.label,
            },
            exclude: ContainerRules {
                container: self.exclude_container,
                service: self.exclude_service,
                project: self.exclude_project,
                image: self.exclude_image,
                label: self.exclude_label,
            },
            opt_in: self.opt_in,
        }
    }
}

fn address(text: &str) -> Result<String, String> {
    let known = match text.trim().split_once("://") {
        None => text.starts_with('/'),
        Some(("unix", path)) => path.starts_with('/'),
        Some(("tcp" | "http", host)) => !host.trim_matches('/').is_empty(),
        Some(_) => false,
    };
    if known {
        return Ok(text.trim().to_owned());
    }
    Err(format!("`{text}` is none of unix:///PATH, tcp://HOST:PORT and http://HOST:PORT"))
}
