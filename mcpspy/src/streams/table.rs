//! All streams, within limits.

use rustc_hash::{FxHashMap, FxHashSet};

use super::stream::Stream;
use crate::model::{StreamId, StreamRef, Timestamp};

/// How much the table may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams. Beyond it the longest unused ones that nobody pinned are forgotten.
    pub streams: usize,
}

/// The streams seen so far.
#[derive(Debug)]
pub struct Table<D> {
    streams: FxHashMap<StreamId, Stream<D>>,
    /// Inodes that were open before the monitor started.
    initial: FxHashSet<(u32, u64)>,
    limits: Limits,
    /// Where the forgotten ones stood, so that they can go on without a hole that is none.
    forgotten: FxHashMap<StreamId, (u64, u64, u64)>,
}

/// Forgotten streams whose place is remembered; 48 bytes each.
const FORGOTTEN: usize = 65_536;

impl<D> Table<D> {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            streams: FxHashMap::default(),
            initial: FxHashSet::default(),
            limits,
            forgotten: FxHashMap::default(),
        }
    }

    /// This inode was open before the monitor started.
    pub fn note_initial(&mut self, dev: u32, ino: u64) {
        self.initial.insert((dev, ino));
    }

    /// Whether the record shows that the inode is another stream's now than the one known.
    pub fn is_reused(&self, reference: &StreamRef) -> bool {
        self.streams.get(&reference.id()).is_some_and(|stream| stream.is_other_life(reference))
    }

    /// Takes out a stream whose inode is another one's now.
    pub fn retire(&mut self, reference: &StreamRef) -> Option<Stream<D>> {
        let id = reference.id();
        // The new life began after the monitor did.
        self.initial.remove(&(id.dev, id.ino));
        self.streams.remove(&id)
    }

    /// The stream that a record speaks of, made where it is new. `earlier` is the one that
    /// [`Self::retire`] gave.
    pub fn open(
        &mut self,
        reference: &StreamRef,
        at: Timestamp,
        earlier: Option<&Stream<D>>,
        state: impl FnOnce() -> D,
    ) -> &mut Stream<D> {
        let id = reference.id();
        let stream = self.streams.entry(id).or_insert_with(|| {
            let initial = self.initial.contains(&(reference.dev, reference.ino));
            let mut stream = Stream::new(id, initial, state());
            if let Some(earlier) = earlier {
                stream.inherit(earlier);
            } else if let Some((nonce, offset, skipped)) = self.forgotten.remove(&id)
                && nonce == reference.nonce
            {
                stream.resume(offset, skipped);
            }
            stream
        });
        stream.used = at;
        stream
    }

    /// A known stream.
    pub fn get(&self, id: &StreamId) -> Option<&Stream<D>> {
        self.streams.get(id)
    }

    /// A known stream.
    pub fn get_mut(&mut self, id: &StreamId) -> Option<&mut Stream<D>> {
        self.streams.get_mut(id)
    }

    /// Forgets a stream.
    pub fn remove(&mut self, id: &StreamId) -> Option<Stream<D>> {
        let stream = self.streams.remove(id)?;
        if self.forgotten.len() >= FORGOTTEN {
            self.forgotten.clear();
        }
        if let Some(place) = stream.place() {
            self.forgotten.insert(*id, place);
        }
        Some(stream)
    }

    /// All streams, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Stream<D>> {
        self.streams.values()
    }

    /// Number of streams.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The longest unused eighth of the streams that `pinned` does not protect, when there are too
    /// many. An eighth at a time, so that a flood costs little per stream.
    pub fn surplus(&self, pinned: impl Fn(&Stream<D>) -> bool) -> Vec<StreamId> {
        if self.streams.len() <= self.limits.streams {
            return Vec::new();
        }
        let mut old: Vec<_> = self
            .streams
            .values()
            .filter(|stream| !pinned(stream))
            .map(|stream| (stream.used, stream.id))
            .collect();
        old.sort_unstable();
        old.truncate((self.limits.streams / 8).max(1));
        old.into_iter().map(|(_, id)| id).collect()
    }
}
