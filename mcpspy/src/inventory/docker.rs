//! What container engines tell: names, images and labels of containers, and who was started in them.
//!
//! A thread of its own with a small runtime follows each engine that can be reached: it subscribes to
//! events, lists what runs, and goes on with what the events say. Nothing here stops the capture: an
//! engine that is away, slow or refuses a question costs names, never messages. What an engine told
//! stays true when it goes away.
//!
//! `endpoints` knows where engines may be, `watch` follows each of them for ever, `session` is one
//! connection, `facts` reads the answers.

mod endpoints;
mod facts;
mod session;
mod watch;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use self::endpoints::Endpoint;
use crate::model::{ContainerInfo, Input, Timestamp};

/// Settings.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    /// Addresses of engines, as `DOCKER_HOST` has them. Empty: the usual sockets that exist, and
    /// where none of them answers, those of running engines.
    pub hosts: Vec<String>,
}

/// An engine that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSummary {
    /// How it is reached.
    pub endpoint: Arc<str>,
    /// `docker` or `podman`.
    pub runtime: Arc<str>,
    /// Its version; empty where it is not told.
    pub version: String,
    /// Name of its host.
    pub host: Option<Arc<str>>,
    /// Operating system of its host.
    pub system: String,
    /// It runs without root.
    pub rootless: bool,
    /// What a proxy in front of it does not let through.
    pub refused: Vec<Permission>,
    /// How many containers it runs.
    pub containers: u64,
}

impl EngineSummary {
    /// What it is, in a few words.
    pub fn describe(&self) -> String {
        let name = if &*self.runtime == "podman" { "Podman" } else { "Docker" };
        let version = if self.version.is_empty() { "" } else { " " };
        let running = match self.containers {
            1 => "1 container".to_owned(),
            number => format!("{number} containers"),
        };
        format!("{name}{version}{} at {}, {running}", self.version, self.endpoint)
    }
}

/// A part of the API, by the name that proxies give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Lists of containers, and what they are.
    Containers,
    /// What happens to containers.
    Events,
    /// Processes that are started in running containers.
    Exec,
    /// The engine itself.
    Info,
    /// The engine's version.
    Version,
}

impl Permission {
    /// The name of the variable that allows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Containers => "CONTAINERS",
            Self::Events => "EVENTS",
            Self::Exec => "EXEC",
            Self::Info => "INFO",
            Self::Version => "VERSION",
        }
    }
}

/// Why an engine does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    /// Where it was looked for.
    pub endpoint: Arc<str>,
    /// What happened.
    pub error: String,
    /// There is a socket that nobody listens on.
    pub refused: bool,
}

/// What is worth telling the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Everyone who might answer was asked.
    Settled {
        /// Who answered.
        engines: Vec<EngineSummary>,
        /// Who did not.
        silent: Vec<Silent>,
        /// The containers that run, and how the kernel numbers their first process.
        containers: Vec<(Arc<ContainerInfo>, Option<u32>)>,
        /// Engines run here, whether they answered or not.
        daemons: bool,
    },
    /// A proxy does not let everything through.
    Refused {
        /// Where.
        endpoint: Arc<str>,
        /// What.
        refused: Vec<Permission>,
    },
    /// For half a minute nobody listened on the socket, though an engine runs: it was mounted by
    /// itself, and the engine has made another one since.
    Stale {
        /// Which socket.
        endpoint: Arc<str>,
    },
}

/// The thread that follows the engines, from outside.
#[derive(Debug)]
pub struct DockerInventory {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl DockerInventory {
    /// Starts the thread. `clock` is the boot clock. `push` hands inputs to the engine and may wait.
    /// The first news is who answers, or after some seconds who does not.
    pub fn start(
        config: &DockerConfig,
        clock: fn() -> Timestamp,
        push: impl FnMut(Vec<Input>) -> ControlFlow<()> + Send + 'static,
    ) -> std::io::Result<(Self, Receiver<News>)> {
        let asked = config.hosts.iter().filter_map(|text| Endpoint::parse(text).ok()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let (tell, news) = channel();
        let told = watch::Told::new(clock, Box::new(push), tell);
        let thread = std::thread::Builder::new().name("docker".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = watch::follow_all(asked, told) => {}
                    // An error means that the other end is gone, which says the same.
                    _ = stopped => {}
                }
            });
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok((Self { stop, thread }, news))
    }

    /// Ends the thread. Nothing is pushed afterwards.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that follows container engines panicked");
        }
    }
}

/// Whether a Docker engine runs among the processes that `/proc` shows.
pub fn daemon_runs() -> bool {
    !endpoints::daemons(Path::new("/proc")).is_empty()
}
