//! What a relay asked a container engine for, held against what the engine said.

use std::sync::Arc;

use super::{LEG_WAIT, START_WAIT, World};
use crate::model::{ContainerId, Endpoint, ProcessId, Quality, Timestamp};
use crate::protocol::docker_stream::Request;

/// What facts say of two legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Evidence {
    Against,
    None,
    For,
}

/// A request for the input and output of a process in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) request: Request,
    /// Where, as the request before it said.
    pub(super) container: Option<Arc<str>>,
}

impl Asked {
    /// Whether it was for this process.
    pub(super) fn fits<D>(&self, server: ProcessId, world: &World<'_, D>) -> Evidence {
        let processes = world.processes;
        let containers = &processes.containers;
        let below = |pid: u32| {
            let root = processes.by_pid(pid)?;
            // A client of an engine within the container: the server is somewhere behind that.
            let ends_here = !processes.is_relay(root);
            let found = if processes.is_in_tree(server, root) {
                Evidence::For
            } else if ends_here {
                Evidence::Against
            } else {
                Evidence::None
            };
            Some(found)
        };
        match &self.request {
            Request::Exec(id) => match containers.exec(id) {
                Some(exec) => below(exec.pid).unwrap_or(Evidence::None),
                None => self.is_elsewhere(server, world),
            },
            Request::Attach(name) => {
                let Some(own) = processes.container(server) else { return Evidence::None };
                match containers.find(name) {
                    Some(asked) => match containers.init(asked) {
                        Some((init, _)) => below(init).unwrap_or(Evidence::None),
                        None if asked == own => Evidence::None,
                        None => Evidence::Against,
                    },
                    // Without an engine to ask: who runs a container knows its whole id.
                    None if name.len() == own.0.len() && **name != *own.0 => Evidence::Against,
                    None => Evidence::None,
                }
            }
        }
    }

    /// Whether the engine has not yet said for whom it was.
    pub(super) fn is_pending<D>(&self, world: &World<'_, D>) -> bool {
        let containers = &world.processes.containers;
        match &self.request {
            Request::Exec(id) => containers.exec(id).is_none(),
            Request::Attach(name) => {
                containers.find(name).is_none_or(|id| containers.init(id).is_none())
            }
        }
    }

    /// The engine has said nothing yet: where the relay wanted it is known all the same.
    fn is_elsewhere<D>(&self, server: ProcessId, world: &World<'_, D>) -> Evidence {
        let (Some(wanted), Some(own)) =
            (self.container(world), world.processes.container_info(server))
        else {
            return Evidence::None;
        };
        // A client of an engine in that container leads further in.
        let within = own.id == *wanted || own.outer.as_ref() == Some(wanted);
        if within { Evidence::None } else { Evidence::Against }
    }

    /// The end that it was for, as far as the engine told.
    pub(super) fn end<D>(&self, world: &World<'_, D>) -> Option<Endpoint> {
        let containers = &world.processes.containers;
        let pid = match &self.request {
            Request::Exec(id) => containers.exec(id).map(|exec| exec.pid),
            Request::Attach(_) => {
                self.container(world).and_then(|id| containers.init(id)).map(|(init, _)| init)
            }
        };
        let process = pid.and_then(|pid| world.processes.by_pid(pid));
        let process = process.and_then(|id| world.processes.info(id)).cloned();
        let container = containers.info(self.container(world)?);
        Some(Endpoint { process, container, quality: Quality::Path })
    }

    /// Until when the messages of a leg that began at `since` wait for the server.
    pub(super) fn wait<D>(&self, since: Timestamp, world: &World<'_, D>) -> Timestamp {
        let containers = &world.processes.containers;
        let started = match &self.request {
            Request::Exec(id) => containers.exec(id).map(|exec| exec.at),
            Request::Attach(name) => match containers.find(name).map(|id| containers.init(id)) {
                Some(Some((_, at))) => Some(at),
                // Its engine knows it, and has not started it yet.
                Some(None) => return since.plus(START_WAIT),
                None => None,
            },
        };
        since.max(started.unwrap_or_default()).plus(LEG_WAIT)
    }

    fn container<'a, D>(&self, world: &World<'a, D>) -> Option<&'a ContainerId> {
        let containers = &world.processes.containers;
        match &self.request {
            Request::Exec(id) => match containers.exec(id) {
                Some(exec) => Some(&exec.container),
                None => containers.find(self.container.as_ref()?),
            },
            Request::Attach(name) => containers.find(name),
        }
    }
}
