//! Which cgroups need not be copied, because a filter leaves their containers out.

use rustc_hash::FxHashMap;

use crate::attribution::Containers;
use crate::filter::ContainerFilter;
use crate::model::{Command, ContainerId};

/// What the kernel side was told not to copy.
#[derive(Debug, Default)]
pub(super) struct Muting {
    filter: ContainerFilter,
    muted: FxHashMap<u64, ContainerId>,
}

impl Muting {
    pub(super) fn new(filter: ContainerFilter) -> Self {
        Self { filter, muted: FxHashMap::default() }
    }

    /// Something about a container, or one of its cgroups, became known.
    pub(super) fn look(
        &mut self,
        id: &ContainerId,
        containers: &Containers,
        commands: &mut Vec<Command>,
    ) {
        if !self.filter.rules_out() {
            return;
        }
        let Some(info) = containers.info(id) else { return };
        // One that is not named yet is copied until it is.
        let copy = self.filter.may_admit(&info);
        for cgroup in containers.cgroups_of(id) {
            let told = if copy {
                self.muted.remove(&cgroup).is_some()
            } else {
                self.muted.insert(cgroup, id.clone()).is_none()
            };
            if told {
                commands.push(Command::Cgroup { id: cgroup, copy });
            }
        }
    }

    /// The container does not run any more: the kernel side need not remember its cgroups.
    pub(super) fn ended(&mut self, id: &ContainerId, commands: &mut Vec<Command>) {
        self.muted.retain(|cgroup, container| {
            let stays = container != id;
            if !stays {
                commands.push(Command::Cgroup { id: *cgroup, copy: true });
            }
            stays
        });
    }
}
