//! What is known of containers: identity from the kernel, everything else from an engine's API.

use std::fmt;
use std::sync::Arc;

use super::Timestamp;

/// A container's full id: 64 hexadecimal digits, or what ECS writes in their place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub Arc<str>);

impl ContainerId {
    /// The form that people use: 12 digits.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What events say of a container. Only the id and the runtime are known where no engine told more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Its id.
    pub id: ContainerId,
    /// The container that it runs in, for an engine inside a container.
    pub outer: Option<ContainerId>,
    /// `docker`, `podman`, `containerd`, `cri-o` ...; empty where the cgroup does not say.
    pub runtime: Arc<str>,
    /// Its name, without the leading slash.
    pub name: Option<Arc<str>>,
    /// Image as it was asked for.
    pub image: Option<Arc<str>>,
    /// Digest of the image (`sha256:...`).
    pub image_digest: Option<Arc<str>>,
    /// Compose project.
    pub project: Option<Arc<str>>,
    /// Compose service.
    pub service: Option<Arc<str>>,
    /// All labels, by name.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
    /// Name of the engine's host.
    pub host: Option<Arc<str>>,
}

impl ContainerInfo {
    /// A container that no engine told of.
    pub fn unnamed(id: ContainerId, runtime: Arc<str>, outer: Option<ContainerId>) -> Self {
        Self {
            id,
            outer,
            runtime,
            name: None,
            image: None,
            image_digest: None,
            project: None,
            service: None,
            labels: Arc::from([]),
            host: None,
        }
    }

    /// Value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(label, _)| (**label).cmp(name)).ok()?;
        Some(&self.labels[at].1)
    }
}

/// What a container engine's API said. Names of engines are those of their endpoints, such as
/// `unix:///var/run/docker.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineFact {
    /// The engine is going to be asked: its first answer is worth waiting for.
    Asked {
        /// When.
        at: Timestamp,
        /// Which engine.
        engine: Arc<str>,
    },
    /// The engine answered, and all its running containers were told.
    Connected {
        /// When.
        at: Timestamp,
        /// Which engine.
        engine: Arc<str>,
        /// How many containers it runs.
        containers: u64,
    },
    /// The engine does not answer any more. What it told stays true.
    Lost {
        /// When.
        at: Timestamp,
        /// Which engine.
        engine: Arc<str>,
    },
    /// A container, when it starts and whenever something about it changes.
    Container {
        /// When.
        at: Timestamp,
        /// What is known.
        info: Arc<ContainerInfo>,
        /// Host's number of its first process; `None` when it does not run.
        init: Option<u32>,
    },
    /// A process was started in a running container (`docker exec`).
    Exec {
        /// When.
        at: Timestamp,
        /// Id of the exec instance, 64 hexadecimal digits.
        id: Arc<str>,
        /// Where.
        container: ContainerId,
        /// Host's number of the process.
        pid: u32,
    },
}

impl EngineFact {
    /// When it was said.
    pub const fn at(&self) -> Timestamp {
        match self {
            Self::Asked { at, .. }
            | Self::Connected { at, .. }
            | Self::Lost { at, .. }
            | Self::Container { at, .. }
            | Self::Exec { at, .. } => *at,
        }
    }
}
