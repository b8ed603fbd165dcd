//! Decides which process is read when. Apart from the reading itself, which is handed in, this is
//! plain state and tested with invented processes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::mem;

use crate::model::{ProcessFacts, ProcessId, Timestamp};

/// Processes that are remembered as read, in each of two generations.
const GENERATION: usize = 8192;
/// Readings that are planned at once.
const PLANNED: usize = 1024;
/// Steps up to ancestors.
const DEPTH: usize = 16;
/// When a process is read again, ns: Python's SDK has duplicated its files by then.
const AGAIN: u64 = 150_000_000;
/// A process is not read more often than that, ns: one that opens a stream after the other costs
/// 5 % of a processor at most, with a table of 1 ms.
const PAUSE: u64 = 20_000_000;

struct Known {
    read_at: Timestamp,
    /// Readings planned.
    planned: u8,
    /// What was told last, while there are any.
    told: Option<Box<ProcessFacts>>,
}

/// Remembers what was read and plans what is to be read again.
pub(super) struct Reader<F> {
    read: F,
    recent: HashMap<ProcessId, Known>,
    older: HashMap<ProcessId, Known>,
    planned: BinaryHeap<Reverse<(Timestamp, ProcessId)>>,
}

impl<F: FnMut(u32, Timestamp, bool) -> Option<ProcessFacts>> Reader<F> {
    /// `told` is what was told before, and when it was read.
    pub(super) fn new(told: impl IntoIterator<Item = (ProcessId, Timestamp)>, read: F) -> Self {
        let known = |(id, read_at)| (id, Known { read_at, planned: 0, told: None });
        Self {
            read,
            recent: told.into_iter().take(GENERATION).map(known).collect(),
            older: HashMap::new(),
            planned: BinaryHeap::new(),
        }
    }

    /// When [`Self::due`] has something to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.planned.peek().map(|&Reverse((due, _))| due)
    }

    /// The process was seen on a stream at `at`.
    pub(super) fn seen(
        &mut self,
        id: ProcessId,
        at: Timestamp,
        now: Timestamp,
        found: &mut Vec<ProcessFacts>,
    ) {
        match self.known(id).map(|known| (known.read_at, known.planned)) {
            None => {
                self.tell(id, now, found);
                self.ancestors(now, found);
            }
            Some((read_at, _)) if read_at >= at => {}
            Some((read_at, _)) if now >= read_at.plus(PAUSE) => self.tell(id, now, found),
            // At the end of its pause, once.
            Some((read_at, 0 | 1)) => self.plan(id, read_at.plus(PAUSE)),
            Some(_) => {}
        }
    }

    /// The process replaced its program at `at`: what was told of it no longer holds.
    pub(super) fn exec(
        &mut self,
        id: ProcessId,
        at: Timestamp,
        now: Timestamp,
        found: &mut Vec<ProcessFacts>,
    ) {
        if self.known(id).is_some_and(|known| known.read_at < at) {
            self.tell(id, now, found);
        }
    }

    /// Reads again what is due, and tells what is new.
    pub(super) fn due(&mut self, now: Timestamp, found: &mut Vec<ProcessFacts>) {
        while let Some(&Reverse((due, id))) = self.planned.peek()
            && due <= now
        {
            self.planned.pop();
            let facts = self.look(id, now);
            let Some(known) = self.known(id) else { continue };
            known.planned = known.planned.saturating_sub(1);
            let told = known.told.take();
            let news = facts.filter(|facts| {
                told.as_ref()
                    .is_none_or(|told| ProcessFacts { at: told.at, ..facts.clone() } != **told)
            });
            if known.planned > 0 {
                known.told = news.clone().map(Box::new).or(told);
            }
            found.extend(news);
        }
    }

    /// Reads the process, tells it, and plans to look again.
    fn tell(&mut self, id: ProcessId, now: Timestamp, found: &mut Vec<ProcessFacts>) {
        if let Some(facts) = self.look(id, now) {
            self.plan(id, now.plus(AGAIN));
            if let Some(known) = self.known(id).filter(|known| known.planned > 0) {
                known.told = Some(Box::new(facts.clone()));
            }
            found.push(facts);
        }
    }

    /// Tells the ancestors of the process told last.
    fn ancestors(&mut self, now: Timestamp, found: &mut Vec<ProcessFacts>) {
        for _ in 0..DEPTH {
            let parent = found.last().and_then(|facts| facts.parent);
            let Some(parent) = parent.filter(|&parent| self.known(parent).is_none()) else {
                return;
            };
            let Some(facts) = self.look(parent, now) else { return };
            found.push(facts);
        }
    }

    /// Reads the process and remembers that; `None` when it is gone or its number is another's.
    fn look(&mut self, id: ProcessId, now: Timestamp) -> Option<ProcessFacts> {
        let facts = (self.read)(id.pid, now, false).filter(|facts| facts.id == id);
        match self.known(id) {
            Some(known) => known.read_at = now,
            None => {
                self.recent.insert(id, Known { read_at: now, planned: 0, told: None });
            }
        }
        if self.recent.len() > GENERATION {
            self.older = mem::take(&mut self.recent);
        }
        facts
    }

    fn known(&mut self, id: ProcessId) -> Option<&mut Known> {
        if let Some(known) = self.older.remove(&id) {
            self.recent.insert(id, known);
        }
        self.recent.get_mut(&id)
    }

    fn plan(&mut self, id: ProcessId, due: Timestamp) {
        if self.planned.len() < PLANNED
            && let Some(known) = self.known(id)
        {
            known.planned = known.planned.saturating_add(1);
            self.planned.push(Reverse((due, id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::model::{FdFact, FdKind};

    const MS: u64 = 1_000_000;

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, start: u64::from(pid) }
    }

    fn facts(pid: u32, parent: u32, pipes: &[u64]) -> ProcessFacts {
        let pipe =
            |&ino| FdFact { kind: FdKind::Pipe, dev: 1, ino, readable: true, writable: false };
        ProcessFacts {
            at: Timestamp(0),
            id: id(pid),
            parent: (parent > 0).then(|| id(parent)),
            comm: "x".into(),
            exe: "/x".into(),
            cmdline: "x".into(),
            uid: Some(0),
            fds: Some(pipes.iter().map(pipe).collect()),
            cgroup: None,
            initial: false,
        }
    }

    /// A world of processes that can be changed while the reader reads it.
    #[derive(Default)]
    struct World(RefCell<HashMap<u32, ProcessFacts>>);

    impl World {
        fn set(&self, facts: ProcessFacts) {
            self.0.borrow_mut().insert(facts.id.pid, facts);
        }

        fn read(&self) -> impl FnMut(u32, Timestamp, bool) -> Option<ProcessFacts> {
            |pid, at, initial| {
                let facts = self.0.borrow().get(&pid).cloned()?;
                Some(ProcessFacts { at, initial, ..facts })
            }
        }
    }

    /// Pids told by `act`.
    fn told(act: impl FnOnce(&mut Vec<ProcessFacts>)) -> Vec<u32> {
        let mut found = Vec::new();
        act(&mut found);
        found.iter().map(|facts| facts.id.pid).collect()
    }

    fn ms(time: u64) -> Timestamp {
        Timestamp(time * MS)
    }

    #[test]
    fn first_sight_tells_the_process_and_its_ancestors_once() {
        let world = World::default();
        for (pid, parent) in [(1, 0), (2, 1), (3, 2), (4, 2)] {
            world.set(facts(pid, parent, &[]));
        }
        let mut reader = Reader::new([], world.read());
        assert_eq!(told(|found| reader.seen(id(3), ms(0), ms(1), found)), [3, 2, 1]);
        assert_eq!(told(|found| reader.seen(id(3), ms(0), ms(1), found)), [0; 0]);
        assert_eq!(told(|found| reader.seen(id(4), ms(2), ms(2), found)), [4]);
    }

    #[test]
    fn a_later_look_is_told_only_when_it_says_something_new() {
        let world = World::default();
        world.set(facts(3, 0, &[7]));
        world.set(facts(4, 0, &[7]));
        let mut reader = Reader::new([], world.read());
        assert_eq!(told(|found| reader.seen(id(3), ms(0), ms(0), found)), [3]);
        assert_eq!(told(|found| reader.seen(id(4), ms(0), ms(0), found)), [4]);
        world.set(facts(3, 0, &[7, 8]));
        assert_eq!(told(|found| reader.due(ms(149), found)), [0; 0]);
        assert_eq!(told(|found| reader.due(ms(150), found)), [3]);
        assert_eq!(reader.next_due(), None);
    }

    #[test]
    fn a_new_stream_means_a_new_look_but_not_at_once() {
        let world = World::default();
        world.set(facts(3, 0, &[7]));
        let mut reader = Reader::new([], world.read());
        reader.seen(id(3), ms(0), ms(0), &mut Vec::new());
        reader.due(ms(200), &mut Vec::new());
        assert_eq!(told(|found| reader.seen(id(3), ms(205), ms(206), found)), [0; 0]);
        assert_eq!(reader.next_due(), Some(ms(220)));
        world.set(facts(3, 0, &[7, 8]));
        assert_eq!(told(|found| reader.due(ms(220), found)), [3]);
        assert_eq!(told(|found| reader.seen(id(3), ms(300), ms(301), found)), [3]);
    }

    #[test]
    fn exec_matters_only_for_who_was_seen() {
        let world = World::default();
        world.set(facts(3, 0, &[]));
        let mut reader = Reader::new([], world.read());
        assert_eq!(told(|found| reader.exec(id(3), ms(1), ms(1), found)), [0; 0]);
        reader.seen(id(3), ms(2), ms(2), &mut Vec::new());
        assert_eq!(told(|found| reader.exec(id(3), ms(1), ms(3), found)), [0; 0]);
        assert_eq!(told(|found| reader.exec(id(3), ms(4), ms(4), found)), [3]);
    }

    #[test]
    fn a_reused_number_is_another_process() {
        let world = World::default();
        world.set(facts(3, 0, &[]));
        let mut reader = Reader::new([], world.read());
        let gone = ProcessId { pid: 3, start: 999 };
        assert_eq!(told(|found| reader.seen(gone, ms(0), ms(0), found)), [0; 0]);
    }

    #[test]
    fn what_the_scan_told_is_read_again_when_it_is_seen() {
        let world = World::default();
        world.set(facts(2, 0, &[]));
        world.set(facts(3, 2, &[7]));
        let mut reader = Reader::new([(id(2), ms(0)), (id(3), ms(0))], world.read());
        assert_eq!(told(|found| reader.seen(id(3), ms(50), ms(51), found)), [3]);
    }

    #[test]
    fn memory_is_bounded() {
        let world = World::default();
        let mut reader = Reader::new([], world.read());
        for pid in 1..100_000 {
            world.set(facts(pid, 0, &[]));
            reader.seen(id(pid), ms(0), ms(0), &mut Vec::new());
            world.0.borrow_mut().clear();
        }
        assert!(reader.recent.len() + reader.older.len() <= 2 * GENERATION + 1);
        assert!(reader.planned.len() <= PLANNED);
    }
}
