//! Reads the ring: decodes, converts, pushes batches, and does nothing else.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{MapData, RingBuf};
use mcpspy_common::decode::decode;
use rustix::event::{Timespec, epoll};

use super::LiveError;
use super::control::Shared;
use super::record::{Names, convert};
use crate::model::{Input, ProcessId, Record, RecordBody};
use crate::source::{Source, SourceError};

/// A batch ends at so many inputs or bytes, so that a flood reaches the engine while it goes on.
const BATCH_INPUTS: usize = 4096;
const BATCH_BYTES: usize = 1 << 20;

/// Pause between two looks at the ring. The kernel wakes the reader only when much is waiting,
/// because a wake-up per record costs the writing task more than the record itself.
const PAUSE_BUSY_NS: i64 = 3_000_000;
const PAUSE_IDLE_NS: i64 = 20_000_000;

/// Processes remembered as announced; the oldest are announced again beyond that.
const KNOWN: usize = 65536;

/// Processes remembered as ended. Two threads that leave at the same moment both find no other
/// alive, and report the end of their process twice within microseconds.
const ENDED: usize = 64;

/// Called for each process that is seen on a stream for the first time, or again after it replaced
/// its program.
pub type FirstSight = Box<dyn FnMut(ProcessId) + Send>;

/// Reads the ring; see [`Source`].
pub struct Drain {
    ring: RingBuf<MapData>,
    ring_bytes: usize,
    epoll: std::os::fd::OwnedFd,
    shared: Arc<Shared>,
    names: Names,
    announced: HashSet<ProcessId>,
    first_sight: Option<FirstSight>,
    /// The last processes that ended.
    ended: VecDeque<ProcessId>,
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").field("announced", &self.announced.len()).finish_non_exhaustive()
    }
}

impl Drain {
    pub(super) fn new(
        ring: RingBuf<MapData>,
        ring_bytes: usize,
        shared: Arc<Shared>,
    ) -> Result<Self, LiveError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(LiveError::system("epoll_create1"))?;
        // Edge-triggered: level-triggered it would return at once whenever anything is in the ring,
        // and each round would fetch a single record.
        epoll::add(
            &epoll,
            &ring,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
        .map_err(LiveError::system("epoll_ctl"))?;
        Ok(Self {
            ring,
            ring_bytes,
            epoll,
            shared,
            names: Names::default(),
            announced: HashSet::new(),
            first_sight: None,
            ended: VecDeque::with_capacity(ENDED),
        })
    }

    /// Sets what is called for each process newly seen on a stream, before its record is pushed.
    pub fn on_first_sight(&mut self, hook: FirstSight) {
        self.first_sight = Some(hook);
    }

    /// Fetches up to a batch; returns the bytes fetched, and `true` where the ring is empty now.
    fn fetch(&mut self, batch: &mut Vec<Input>) -> (usize, bool) {
        let mut bytes = 0;
        while batch.len() < BATCH_INPUTS && bytes < BATCH_BYTES {
            let Some(item) = self.ring.next() else { return (bytes, true) };
            bytes += item.len();
            let record = decode(&item).ok().and_then(|raw| convert(&raw, &mut self.names));
            drop(item);
            let Some(record) = record else {
                self.shared.malformed.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            if !self.announce(&record) {
                continue;
            }
            batch.push(Input::Record(record));
        }
        (bytes, false)
    }

    /// Keeps account of processes; `false` for a record that says what another has said.
    fn announce(&mut self, record: &Record) -> bool {
        let id = record.task.process;
        match record.body {
            RecordBody::Data(_) | RecordBody::Endpoint(_) => {
                if self.announced.len() >= KNOWN {
                    self.announced.clear();
                }
                if self.announced.insert(id)
                    && let Some(hook) = &mut self.first_sight
                {
                    hook(id);
                }
            }
            RecordBody::Exec => {
                self.announced.remove(&id);
            }
            RecordBody::Exit(_) => {
                self.announced.remove(&id);
                if self.ended.contains(&id) {
                    return false;
                }
                if self.ended.len() >= ENDED {
                    self.ended.pop_front();
                }
                self.ended.push_back(id);
            }
            RecordBody::End(_) | RecordBody::Fork(_) | RecordBody::Cgroup(_) => {}
        }
        true
    }

    fn pause(&self, ns: i64) -> Result<(), rustix::io::Errno> {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
        let timeout = Timespec { tv_sec: 0, tv_nsec: ns };
        match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Source for Drain {
    fn run(
        &mut self,
        push: &mut dyn FnMut(Vec<Input>) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        loop {
            // Read before the ring: what was written before the stop is fetched.
            let stop = self.shared.stop.load(Ordering::Acquire);
            let mut fetched = 0;
            loop {
                let mut batch = Vec::new();
                let (bytes, empty) = self.fetch(&mut batch);
                fetched += bytes;
                if !batch.is_empty() && push(batch).is_break() {
                    return Ok(());
                }
                // A flood must not keep the drain from seeing the stop, nor from ending after it:
                // a ring's worth is all that can have been there.
                if empty || fetched >= self.ring_bytes {
                    break;
                }
            }
            if stop {
                return Ok(());
            }
            self.pause(if fetched > 0 { PAUSE_BUSY_NS } else { PAUSE_IDLE_NS })?;
        }
    }
}
