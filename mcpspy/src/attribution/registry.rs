//! The processes seen so far, and where they run.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Containers;
use crate::model::{
    ContainerId, ContainerInfo, Endpoint, Exit, FdFact, ProcessFacts, ProcessId, ProcessInfo,
    Quality, Task, Timestamp,
};

/// Processes that are remembered. A host rarely runs more at once; a process costs about 1 KiB.
const PROCESSES: usize = 16_384;

/// Steps from a process to its ancestors. Wrappers are a handful deep; the limit ends a loop that
/// reused pids could make.
const DEPTH: usize = 32;

/// How long the inventory may take to read a new process before events go out without it, ns.
const FACTS_WAIT: u64 = 250_000_000;

#[derive(Debug)]
struct Process {
    info: Arc<ProcessInfo>,
    parent: Option<ProcessId>,
    fds: Option<Arc<[FdFact]>>,
    /// The inventory read it (or could not), since it last replaced its program.
    read: bool,
    /// First seen, or last exec.
    since: Timestamp,
    /// First seen on a stream: then the inventory begins to read it.
    on_stream: Option<Timestamp>,
    used: Timestamp,
    exited: Option<(Timestamp, Exit)>,
    /// Cgroup v2 id, as the kernel's records say; 0 while there was none.
    cgroup: u64,
    /// What the path of its cgroup says, for where the id says nothing.
    container: Option<ContainerId>,
    relay: bool,
}

/// What is known of processes.
#[derive(Debug, Default)]
pub struct Registry {
    processes: FxHashMap<ProcessId, Process>,
    /// The living process with a number.
    by_pid: FxHashMap<u32, ProcessId>,
    /// The containers that they run in.
    pub containers: Containers,
    evicted: u64,
}

impl Registry {
    /// A record of a stream names this task.
    pub fn on_stream(&mut self, task: &Task, at: Timestamp) {
        self.task(task, at);
        if let Some(process) = self.processes.get_mut(&task.process) {
            process.on_stream.get_or_insert(at);
        }
    }

    /// A record of the kernel names this task.
    fn task(&mut self, task: &Task, at: Timestamp) {
        if let Some(process) = self.processes.get_mut(&task.process) {
            process.used = at;
            process.cgroup = task.cgroup;
            process.relay = task.relay;
            return;
        }
        let parent = self.by_pid.get(&task.ppid).copied();
        self.insert(task.process, parent, at, new_info(task));
        if let Some(process) = self.processes.get_mut(&task.process) {
            process.cgroup = task.cgroup;
            process.relay = task.relay;
        }
    }

    /// The process replaced its program: what was read of it before no longer holds.
    pub fn exec(&mut self, task: &Task, at: Timestamp) {
        self.task(task, at);
        if let Some(process) = self.processes.get_mut(&task.process) {
            process.info = Arc::new(new_info(task));
            process.fds = None;
            process.read = false;
            process.since = at;
            process.container = None;
        }
    }

    /// A process created another one.
    pub fn fork(&mut self, parent: &Task, child: ProcessId, at: Timestamp) {
        self.task(parent, at);
        let info = ProcessInfo { id: child, ppid: parent.process.pid, ..new_info(parent) };
        if !self.processes.contains_key(&child) {
            self.insert(child, Some(parent.process), at, info);
            if let Some(process) = self.processes.get_mut(&child) {
                process.cgroup = parent.cgroup;
                process.relay = parent.relay;
            }
        }
    }

    /// The process ended.
    pub fn exit(&mut self, task: &Task, exit: Exit, at: Timestamp) {
        if let Some(process) = self.processes.get_mut(&task.process) {
            process.exited = Some((at, exit));
            process.used = at;
        }
        if self.by_pid.get(&task.process.pid) == Some(&task.process) {
            self.by_pid.remove(&task.process.pid);
        }
    }

    /// The inventory read a process.
    pub fn facts(&mut self, facts: ProcessFacts) {
        let info = ProcessInfo {
            id: facts.id,
            comm: shown_name(&facts.comm, &facts.exe),
            exe: facts.exe,
            cmdline: facts.cmdline,
            ppid: facts.parent.map_or(0, |parent| parent.pid),
            uid: facts.uid,
        };
        if !self.processes.contains_key(&facts.id) {
            self.insert(facts.id, facts.parent, facts.at, info.clone());
        }
        let Some(process) = self.processes.get_mut(&facts.id) else { return };
        if facts.at < process.since {
            // Read before the process replaced its program.
            return;
        }
        if let Some(path) = &facts.cgroup {
            process.container = self.containers.path(process.cgroup, path, facts.at);
        }
        if info.exe.is_empty() && !process.info.exe.is_empty() {
            // It was going away while it was read: what is known already says more.
            return;
        }
        if *process.info != info {
            process.info = Arc::new(info);
        }
        process.parent = facts.parent.or(process.parent);
        // A table once read is better than none, later.
        if let Some(fds) = facts.fds {
            process.fds = Some(fds.into());
        }
        process.read = true;
    }

    /// What events say of a process; `None` when it was never seen.
    pub fn info(&self, id: ProcessId) -> Option<&Arc<ProcessInfo>> {
        self.processes.get(&id).map(|process| &process.info)
    }

    /// Until when it is worth waiting for the inventory to read this process, or for an engine to
    /// name its container; `None` when both did or cannot.
    pub fn facts_deadline(&self, id: ProcessId) -> Option<Timestamp> {
        let process = self.processes.get(&id)?;
        let since = process.on_stream.map(|since| since.max(process.since));
        let read = since
            .filter(|_| !process.read && process.exited.is_none())
            .map(|since| since.plus(FACTS_WAIT));
        let named = self.container(id).and_then(|id| {
            self.containers.name_deadline(id, process.on_stream.unwrap_or_default())
        });
        read.max(named)
    }

    /// The container that the process runs in.
    pub fn container(&self, id: ProcessId) -> Option<&ContainerId> {
        let process = self.processes.get(&id)?;
        self.containers.of_cgroup(process.cgroup).or(process.container.as_ref())
    }

    /// Everything that events say of the container that the process runs in.
    pub fn container_info(&self, id: ProcessId) -> Option<Arc<ContainerInfo>> {
        self.containers.info(self.container(id)?)
    }

    /// Whether the process only hands bytes on; see [`Task::relay`].
    pub fn is_relay(&self, id: ProcessId) -> bool {
        self.processes.get(&id).is_some_and(|process| process.relay)
    }

    /// The living process with this number, or the one that had it last: what an engine says of a
    /// process may come after its end.
    pub fn by_pid(&self, pid: u32) -> Option<ProcessId> {
        let living = self.by_pid.get(&pid).copied();
        living.or_else(|| self.processes.keys().filter(|id| id.pid == pid).max().copied())
    }

    /// The end of a stream at which this process was seen.
    pub fn endpoint(&self, id: Option<ProcessId>, quality: Quality) -> Endpoint {
        let Some((id, info)) = id.and_then(|id| Some((id, self.info(id)?))) else {
            return Endpoint::UNKNOWN;
        };
        Endpoint { process: Some(Arc::clone(info)), container: self.container_info(id), quality }
    }

    /// How the process ended, if it did.
    pub fn exited(&self, id: ProcessId) -> Option<(Timestamp, Exit)> {
        self.processes.get(&id).and_then(|process| process.exited)
    }

    /// The open pipes and sockets of a process; `None` when they were not read.
    pub fn fds(&self, id: ProcessId) -> Option<&Arc<[FdFact]>> {
        self.processes.get(&id).and_then(|process| process.fds.as_ref())
    }

    /// Whether `id` is `root` or a descendant of it.
    pub fn is_in_tree(&self, id: ProcessId, root: ProcessId) -> bool {
        let mut current = id;
        for _ in 0..DEPTH {
            if current == root {
                return true;
            }
            match self.processes.get(&current).and_then(|process| process.parent) {
                Some(parent) => current = parent,
                None => return false,
            }
        }
        false
    }

    /// `root` and its living descendants.
    pub fn tree(&self, root: ProcessId) -> Vec<ProcessId> {
        self.processes
            .iter()
            .filter(|(id, process)| **id == root || process.exited.is_none())
            .map(|(id, _)| *id)
            .filter(|id| self.is_in_tree(*id, root))
            .collect()
    }

    /// Living processes forgotten because there were too many, since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    fn insert(
        &mut self,
        id: ProcessId,
        parent: Option<ProcessId>,
        at: Timestamp,
        info: ProcessInfo,
    ) {
        if self.processes.len() >= PROCESSES {
            self.evict();
        }
        self.by_pid.insert(id.pid, id);
        self.processes.insert(
            id,
            Process {
                info: Arc::new(info),
                parent,
                fds: None,
                read: false,
                since: at,
                on_stream: None,
                used: at,
                exited: None,
                cgroup: 0,
                container: None,
                relay: false,
            },
        );
    }

    /// Forgets the longest unused eighth, ended processes first.
    fn evict(&mut self) {
        let mut old: Vec<_> = self
            .processes
            .iter()
            .map(|(id, process)| (process.exited.is_none(), process.used, *id))
            .collect();
        old.sort_unstable();
        old.truncate(PROCESSES / 8);
        for (alive, _, id) in old {
            self.processes.remove(&id);
            if self.by_pid.get(&id.pid) == Some(&id) {
                self.by_pid.remove(&id.pid);
            }
            self.evicted += u64::from(alive);
        }
    }
}

fn new_info(task: &Task) -> ProcessInfo {
    ProcessInfo {
        id: task.process,
        comm: Arc::clone(&task.comm),
        exe: Arc::from(""),
        cmdline: Arc::from(""),
        ppid: task.ppid,
        uid: Some(task.uid),
    }
}

/// Some runtimes (Node 22 and later) rename their first thread, which is what the kernel calls the
/// process; the program's file name says more.
fn shown_name(comm: &Arc<str>, exe: &str) -> Arc<str> {
    match exe.rsplit('/').next() {
        Some(file) if &**comm == "MainThread" && !file.is_empty() => Arc::from(file),
        _ => Arc::clone(comm),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, start: u64::from(pid) }
    }

    fn task(pid: u32, parent: u32) -> Task {
        Task {
            process: id(pid),
            tid: pid,
            ppid: parent,
            uid: 0,
            cgroup: 1,
            comm: "sh".into(),
            relay: false,
        }
    }

    #[test]
    fn trees_follow_parents() {
        let mut registry = Registry::default();
        for (pid, ppid) in [(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)] {
            registry.task(&task(pid, ppid), Timestamp(0));
        }
        assert!(registry.is_in_tree(id(12), id(10)));
        assert!(registry.is_in_tree(id(10), id(10)));
        assert!(!registry.is_in_tree(id(20), id(10)));
        assert!(!registry.is_in_tree(id(10), id(12)));
        let mut tree = registry.tree(id(10));
        tree.sort_unstable();
        assert_eq!(tree, [id(10), id(11), id(12)]);
    }

    #[test]
    fn facts_from_before_an_exec_do_not_count() {
        let mut registry = Registry::default();
        registry.exec(&task(5, 1), Timestamp(100));
        registry.on_stream(&task(5, 1), Timestamp(200));
        let facts = |at, exe: &str| ProcessFacts {
            at: Timestamp(at),
            id: id(5),
            parent: None,
            comm: "node".into(),
            exe: exe.into(),
            cmdline: "".into(),
            uid: None,
            fds: Some(Vec::new()),
            cgroup: None,
            initial: false,
        };
        registry.facts(facts(50, "/bin/sh"));
        assert!(registry.fds(id(5)).is_none());
        assert!(registry.facts_deadline(id(5)).is_some());
        registry.facts(facts(150, "/usr/bin/node"));
        assert_eq!(&*registry.info(id(5)).expect("known").exe, "/usr/bin/node");
        assert!(registry.facts_deadline(id(5)).is_none());
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut registry = Registry::default();
        registry.task(&task(7, 1), Timestamp(0));
        registry.exit(&task(7, 1), Exit::Code(3), Timestamp(1));
        let again = Task { process: ProcessId { pid: 7, start: 99 }, ..task(7, 1) };
        registry.task(&again, Timestamp(2));
        assert!(registry.exited(again.process).is_none());
        assert_eq!(registry.exited(id(7)), Some((Timestamp(1), Exit::Code(3))));
    }
}
