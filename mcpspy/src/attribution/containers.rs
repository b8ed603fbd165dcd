//! The containers: which cgroup is whose, and what engines said of them.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::cgroup::container_of;
use crate::model::{CgroupFact, ContainerId, ContainerInfo, EngineFact, Timestamp};

/// Containers that are remembered; one costs about 1 KiB with its labels.
const CONTAINERS: usize = 4096;

/// Cgroups that are remembered. A host has some hundred that no container runs in.
const CGROUPS: usize = 16_384;

/// Exec instances that are remembered: health checks make one every few seconds.
const EXECS: usize = 4096;

/// How long an engine may take to answer at all, ns.
const FIRST_WAIT: u64 = 1_000_000_000;

/// How long an engine may take to tell of a container that the kernel has seen, ns. It takes some
/// milliseconds, and two seconds where it starts twenty containers at once on two processors.
const NAME_WAIT: u64 = 3_000_000_000;

#[derive(Debug)]
struct Container {
    info: Arc<ContainerInfo>,
    /// First process, in the numbers of the host, and when it was told.
    init: Option<(u32, Timestamp)>,
    /// An engine told of it; else its id is all there is.
    told: bool,
    /// It runs, as far as its engine said: then it is not forgotten for others.
    running: bool,
    /// First seen.
    since: Timestamp,
    used: Timestamp,
}

/// A process that was started in a running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Where.
    pub container: ContainerId,
    /// Its number on the host.
    pub pid: u32,
    /// When it was told.
    pub at: Timestamp,
}

/// What is known of containers.
#[derive(Debug, Default)]
pub struct Containers {
    by_id: FxHashMap<ContainerId, Container>,
    /// Cgroup v2 id to container; `None`: its path names none. What the kernel said stays: a path was
    /// read at another time, when the process may have been elsewhere.
    cgroups: FxHashMap<u64, Option<ContainerId>>,
    execs: FxHashMap<Arc<str>, Exec>,
    /// Engines that answer.
    connected: Vec<Arc<str>>,
    /// Until when the first answer of an engine is waited for; `None`: none is expected.
    expected: Option<Timestamp>,
}

impl Containers {
    /// The kernel told a cgroup's name.
    pub fn cgroup(&mut self, fact: &CgroupFact, at: Timestamp) {
        if fact.id != 0 {
            let container = self.of_path(&fact.path, at);
            self.learn(fact.id, container);
        }
    }

    /// A process in this cgroup (0: unknown id) has this path. Returns its container.
    pub fn path(&mut self, cgroup: u64, path: &str, at: Timestamp) -> Option<ContainerId> {
        let container = self.of_path(path, at);
        // 1 is the root, where all processes are on hosts that only use the first version.
        if cgroup > 1 && !self.cgroups.contains_key(&cgroup) {
            self.learn(cgroup, container.clone());
        }
        container
    }

    /// The container that the cgroup is of; `None` where it is of none, or not known.
    pub fn of_cgroup(&self, cgroup: u64) -> Option<&ContainerId> {
        self.cgroups.get(&cgroup)?.as_ref()
    }

    /// Cgroups of a container, in no order.
    pub fn cgroups_of<'a>(&'a self, id: &'a ContainerId) -> impl Iterator<Item = u64> + 'a {
        self.cgroups
            .iter()
            .filter(move |(_, container)| container.as_ref() == Some(id))
            .map(|(cgroup, _)| *cgroup)
    }

    /// An engine said something. Returns the container that it concerns.
    pub fn engine(&mut self, fact: EngineFact) -> Option<ContainerId> {
        match fact {
            EngineFact::Asked { at, .. } => {
                self.expected = Some(at.plus(FIRST_WAIT));
                None
            }
            EngineFact::Connected { engine, .. } => {
                self.expected = None;
                if !self.connected.contains(&engine) {
                    self.connected.push(engine);
                }
                None
            }
            EngineFact::Lost { engine, .. } => {
                self.expected = None;
                self.connected.retain(|known| *known != engine);
                None
            }
            EngineFact::Container { at, info, init } => {
                let id = info.id.clone();
                self.make_room();
                let container = self.by_id.entry(id.clone()).or_insert_with(|| Container {
                    info: Arc::clone(&info),
                    init: None,
                    told: true,
                    running: true,
                    since: at,
                    used: at,
                });
                if *container.info != *info {
                    container.info = info;
                }
                container.told = true;
                container.used = at;
                container.running = init.is_some() || container.init.is_none();
                // Who asks for a process that has ended asks what it was.
                if let Some(init) = init.filter(|init| container.init.is_none_or(|c| c.0 != *init))
                {
                    container.init = Some((init, at));
                }
                Some(id)
            }
            EngineFact::Exec { at, id, container, pid } => {
                if self.execs.len() >= EXECS {
                    let mut old: Vec<_> = self.execs.values().map(|exec| exec.at).collect();
                    old.sort_unstable();
                    let middle = old[old.len() / 2];
                    self.execs.retain(|_, exec| exec.at > middle);
                }
                self.execs.insert(id, Exec { container: container.clone(), pid, at });
                Some(container)
            }
        }
    }

    /// What is known of a container. One that runs inside another has its name before its own id,
    /// where no engine told more.
    pub fn info(&self, id: &ContainerId) -> Option<Arc<ContainerInfo>> {
        let container = self.by_id.get(id)?;
        let outer = container.info.outer.as_ref().filter(|_| !container.told);
        let Some(name) = outer.and_then(|outer| self.by_id.get(outer)?.info.name.clone()) else {
            return Some(Arc::clone(&container.info));
        };
        let name = format!("{name}/{}", id.short());
        Some(Arc::new(ContainerInfo { name: Some(name.into()), ..(*container.info).clone() }))
    }

    /// All that an engine told of.
    pub fn told(&self) -> impl Iterator<Item = &Arc<ContainerInfo>> {
        self.by_id.values().filter(|container| container.told).map(|container| &container.info)
    }

    /// Whether an engine told of it.
    pub fn is_told(&self, id: &ContainerId) -> bool {
        self.by_id.get(id).is_some_and(|container| container.told)
    }

    /// Whether an engine answers.
    pub fn is_connected(&self) -> bool {
        !self.connected.is_empty()
    }

    /// Whether its engine said that it ran and runs no more.
    pub fn has_ended(&self, id: &ContainerId) -> bool {
        self.by_id.get(id).is_some_and(|c| c.told && c.init.is_some() && !c.running)
    }

    /// Number of the container's first process, and when it was told.
    pub fn init(&self, id: &ContainerId) -> Option<(u32, Timestamp)> {
        self.by_id.get(id)?.init
    }

    /// The container that a client of an engine means: its id, its name, or the start of its id. Of
    /// several that had the name, the one that has it now.
    pub fn find(&self, name: &str) -> Option<&ContainerId> {
        if let Some((id, _)) = self.by_id.get_key_value(&ContainerId(name.into())) {
            return Some(id);
        }
        let named = self.by_id.iter().filter(|(_, c)| c.info.name.as_deref() == Some(name));
        if let Some((id, _)) = named.max_by_key(|(id, c)| (c.running, c.used, *id)) {
            return Some(id);
        }
        let mut begun = self.by_id.keys().filter(|id| name.len() > 3 && id.0.starts_with(name));
        begun.next().filter(|_| begun.next().is_none())
    }

    /// An exec instance.
    pub fn exec(&self, id: &str) -> Option<&Exec> {
        self.execs.get(id)
    }

    /// Until when it is worth waiting for an engine to tell of this container, a process of which was
    /// `seen` on a stream; `None` when it did, or when no engine is there to tell. An engine that
    /// starts many containers answers late.
    pub fn name_deadline(&self, id: &ContainerId, seen: Timestamp) -> Option<Timestamp> {
        let container = self.by_id.get(id).filter(|container| !container.told)?;
        let wait = container.since.max(seen).plus(NAME_WAIT);
        match self.expected {
            Some(until) => Some(wait.min(until)),
            None => (!self.connected.is_empty()).then_some(wait),
        }
    }

    fn of_path(&mut self, path: &str, at: Timestamp) -> Option<ContainerId> {
        let parsed = container_of(path)?;
        self.make_room();
        let id = parsed.id;
        self.by_id.entry(id.clone()).or_insert_with(|| Container {
            info: Arc::new(ContainerInfo::unnamed(
                id.clone(),
                Arc::from(parsed.runtime),
                parsed.outer,
            )),
            init: None,
            told: false,
            running: false,
            since: at,
            used: at,
        });
        Some(id)
    }

    fn learn(&mut self, cgroup: u64, container: Option<ContainerId>) {
        if self.cgroups.len() >= CGROUPS {
            // Those of living processes are learned again with the next facts about one.
            self.cgroups.clear();
        }
        self.cgroups.insert(cgroup, container);
    }

    /// Forgets the longest unused eighth where there are too many, first those that do not run.
    fn make_room(&mut self) {
        if self.by_id.len() < CONTAINERS {
            return;
        }
        let mut old: Vec<_> =
            self.by_id.iter().map(|(id, c)| (c.running, c.used, id.clone())).collect();
        old.sort_unstable();
        for (_, _, id) in old.into_iter().take(CONTAINERS / 8) {
            self.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const INNER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    fn told(id: &str, name: &str) -> EngineFact {
        let mut info = ContainerInfo::unnamed(ContainerId(id.into()), "docker".into(), None);
        info.name = Some(name.into());
        EngineFact::Container { at: Timestamp(5), info: Arc::new(info), init: Some(77) }
    }

    #[test]
    fn a_cgroup_names_a_container_before_its_engine_does() {
        let mut containers = Containers::default();
        let fact = CgroupFact { id: 9, path: format!("system.slice/docker-{ID}.scope").into() };
        containers.cgroup(&fact, Timestamp(1));
        let id = containers.of_cgroup(9).expect("a container").clone();
        assert_eq!(&*id.0, ID);
        assert_eq!(containers.info(&id).expect("known").name, None);
        assert_eq!(containers.name_deadline(&id, Timestamp(0)), None, "no engine is there to ask");
        containers.engine(EngineFact::Connected {
            at: Timestamp(2),
            engine: "unix".into(),
            containers: 0,
        });
        assert_eq!(containers.name_deadline(&id, Timestamp(0)), Some(Timestamp(1).plus(NAME_WAIT)));
        containers.engine(told(ID, "shop"));
        assert_eq!(containers.info(&id).expect("known").name.as_deref(), Some("shop"));
        assert_eq!(containers.name_deadline(&id, Timestamp(0)), None);
        assert_eq!(containers.init(&id), Some((77, Timestamp(5))));
        assert_eq!(containers.find("shop"), Some(&id));
    }

    #[test]
    fn a_container_in_a_container_has_the_outer_name() {
        let mut containers = Containers::default();
        containers.engine(told(ID, "builder"));
        let path = format!("/docker/{ID}/docker/{INNER}");
        let id = containers.path(3, &path, Timestamp(6)).expect("a container");
        assert_eq!(&*id.0, INNER);
        let info = containers.info(&id).expect("known");
        assert_eq!(info.name.as_deref(), Some("builder/fedcba987654"));
    }

    #[test]
    fn the_root_cgroup_is_nobodys() {
        let mut containers = Containers::default();
        assert!(containers.path(1, &format!("/docker/{ID}"), Timestamp(1)).is_some());
        assert_eq!(containers.of_cgroup(1), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut containers = Containers::default();
        for n in 0..3 * CONTAINERS as u64 {
            containers.cgroup(
                &CgroupFact { id: n + 2, path: format!("/docker/{n:064x}").into() },
                Timestamp(n),
            );
            let id = format!("{n:064x}").into();
            let container = ContainerId(format!("{n:064x}").into());
            containers.engine(EngineFact::Exec { at: Timestamp(n), id, container, pid: 1 });
        }
        assert!(containers.by_id.len() <= CONTAINERS);
        assert!(containers.cgroups.len() <= CGROUPS);
        assert!(containers.execs.len() <= EXECS);
    }
}
