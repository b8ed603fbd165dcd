//! One stream: its two ends, and the choice between the writer's and the reader's copy.
//!
//! The kernel copies what is written. While it has not seen a writer it copies what is read as well,
//! because a reader's call can return first (always when the write blocks). Both copies count the
//! same bytes, so for a stream seen from its birth they are pieces of one stream and whichever comes
//! first is taken. A stream older than the monitor may have held bytes when both counts began: there
//! the reader's copies wait, and count only where no writer appears.
//!
//! A writer whose bytes are not copied (a relay, or a process that a filter leaves out) is seen at its
//! end and gives no bytes: there the reader's copies are all there is.

use std::collections::VecDeque;

use super::assembler::{Assembler, Chunk, Copy, Piece};
use crate::model::{
    Carrier, Data, Direction, EndpointFact, ProcessId, StreamId, StreamKey, StreamRef, Timestamp,
};

/// How long a reader's copy waits for the writer in a stream older than the monitor, ns.
const READER_WAIT: u64 = 100_000_000;

/// Changes of the reader that are remembered; more often than this nobody asks about old bytes.
const READERS: usize = 16;

/// What comes out of a stream. The tag is the writer, where the copy says who that was.
pub type StreamPiece = Piece<Option<ProcessId>>;

/// One stream and what the caller keeps with it.
#[derive(Debug)]
pub struct Stream<D> {
    /// Which stream.
    pub id: StreamId,
    /// The caller's own state.
    pub state: D,
    /// When it was last used.
    pub used: Timestamp,
    /// Open before the monitor started: the two ends' counts need not agree.
    initial: bool,
    assembler: Assembler<Option<ProcessId>>,
    /// Who wrote last, and when.
    writer: Option<ProcessId>,
    written: Timestamp,
    /// The writer's bytes were copied.
    copied: bool,
    /// From which position on who reads.
    readers: VecDeque<(u64, ProcessId)>,
    /// The kernel's entries, the writer's and the reader's.
    entries: [Option<StreamRef>; 2],
    waiting: VecDeque<(u64, Chunk<Option<ProcessId>>)>,
    waiting_bytes: usize,
    repeated: u64,
}

impl<D> Stream<D> {
    pub(super) fn new(id: StreamId, initial: bool, state: D) -> Self {
        Self {
            id,
            state,
            used: Timestamp(0),
            initial,
            assembler: Assembler::default(),
            writer: None,
            written: Timestamp(0),
            copied: false,
            readers: VecDeque::new(),
            entries: [None; 2],
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            repeated: 0,
        }
    }

    /// Who wrote last.
    pub fn writer(&self) -> Option<ProcessId> {
        self.writer
    }

    /// Who reads the byte at `offset`, as far as that was seen.
    pub fn reader_of(&self, offset: u64) -> Option<ProcessId> {
        let at = if self.initial { u64::MAX } else { offset };
        let after = self.readers.partition_point(|(from, _)| *from <= at);
        self.readers.get(after.checked_sub(1)?).map(|(_, process)| *process)
    }

    /// Who read last.
    pub fn reader(&self) -> Option<ProcessId> {
        self.readers.back().map(|(_, process)| *process)
    }

    /// The kernel's entries at both ends, as far as they can be named: a pipe has one inode, a
    /// socket pair two.
    pub fn keys(&self) -> [Option<StreamKey>; 2] {
        [Direction::Write, Direction::Read].map(|direction| {
            if let Some(entry) = &self.entries[direction as usize] {
                return Some(entry.key());
            }
            let other = self.entries.iter().flatten().next()?;
            let ino = match other.carrier {
                Carrier::Pipe => other.ino,
                Carrier::Unix if other.peer != 0 => other.peer,
                Carrier::Unix => return None,
            };
            Some(StreamKey { dev: other.dev, ino, direction })
        })
    }

    /// Nonce of the youngest kernel entry of this stream.
    pub fn newest(&self) -> u64 {
        self.entries.iter().flatten().map(|entry| entry.nonce).max().unwrap_or_default()
    }

    /// Bytes that came although they were known, since the last call.
    pub fn take_repeated(&mut self) -> u64 {
        std::mem::take(&mut self.repeated) + self.assembler.take_repeated()
    }

    /// Where the writer's end stands: its entry's nonce, position, bytes left out.
    pub(super) fn place(&self) -> Option<(u64, u64, u64)> {
        let entry = self.entries[Direction::Write as usize]?;
        Some((entry.nonce, self.assembler.next(), self.assembler.skipped()))
    }

    /// Goes on where a forgotten stream stood.
    pub(super) fn resume(&mut self, offset: u64, skipped: u64) {
        self.assembler.restart(Copy::Writer, offset, skipped);
    }

    /// At which end the bytes were copied, so that this end's count shows a hole at the end.
    pub fn counted_at(&self) -> Direction {
        let muted = !self.copied && self.entries[Direction::Write as usize].is_some();
        if muted { Direction::Read } else { Direction::Write }
    }

    /// The stream in the other direction, for a socket whose peer is known.
    pub fn reverse(&self) -> Option<StreamId> {
        self.entries.iter().flatten().find_map(StreamRef::reverse)
    }

    /// Bytes held in this stage.
    pub fn buffered(&self) -> usize {
        self.assembler.buffered() + self.waiting_bytes
    }

    /// When something here stops being waited for.
    pub fn deadline(&self) -> Option<Timestamp> {
        let reader = self.waiting.front().map(|(_, chunk)| chunk.at.plus(READER_WAIT));
        [self.assembler.deadline(), reader].into_iter().flatten().min()
    }

    /// Whether a record with this reference shows that the inode was reused or the kernel's entry
    /// lost, so that nothing known here belongs to it. The reader's entry says so only where there
    /// is no writer's: it may be forgotten by itself, and then only its count begins anew.
    pub(super) fn is_other_life(&self, stream: &StreamRef) -> bool {
        let changed =
            |entry: &Option<StreamRef>| entry.is_some_and(|known| known.nonce != stream.nonce);
        changed(&self.entries[stream.direction as usize])
            && (stream.direction == Direction::Write
                || self.entries[Direction::Write as usize].is_none())
    }

    /// Whether the reader's end began after the last write: it belongs to a new life of the inode,
    /// or to a reader that has not been served yet.
    pub fn has_new_reader(&self) -> bool {
        self.writer.is_some()
            && self.entries[Direction::Read as usize]
                .is_some_and(|entry| entry.nonce > self.written.0)
    }

    /// Takes over the reader's end where it was seen after the last write of the earlier life: a
    /// reader of the new life can be seen before its writer.
    pub(super) fn inherit(&mut self, earlier: &Self) {
        if earlier.has_new_reader() {
            self.entries[Direction::Read as usize] = earlier.entries[Direction::Read as usize];
            self.readers.clone_from(&earlier.readers);
        }
    }

    /// A task was seen at an end.
    pub fn endpoint(&mut self, process: ProcessId, fact: &EndpointFact) {
        self.note(process, &fact.stream, fact.offset);
    }

    /// Takes bytes that a task moved.
    pub fn data(
        &mut self,
        process: ProcessId,
        at: Timestamp,
        data: Data,
        out: &mut Vec<StreamPiece>,
    ) {
        self.note(process, &data.stream, data.offset);
        let written = data.written();
        let (tag, copy) =
            if written { (Some(process), Copy::Writer) } else { (None, Copy::Reader) };
        let chunk = Chunk { offset: data.offset, at, tag, bytes: data.bytes };
        if written {
            self.written = at;
            self.copied = true;
        }
        if self.initial && written {
            self.repeated += std::mem::take(&mut self.waiting_bytes) as u64;
            self.waiting.clear();
        } else if self.initial {
            if self.copied {
                self.repeated += chunk.bytes.len() as u64;
            } else if self.entries[Direction::Write as usize].is_some() {
                self.assembler.push(copy, data.skipped, chunk, out);
            } else {
                self.waiting_bytes += chunk.bytes.len();
                self.waiting.push_back((data.skipped, chunk));
            }
            return;
        }
        self.assembler.push(copy, data.skipped, chunk, out);
    }

    /// Time passed: gives up what was waited for too long.
    pub fn expire(&mut self, now: Timestamp, out: &mut Vec<StreamPiece>) {
        while self.waiting.front().is_some_and(|(_, chunk)| chunk.at.plus(READER_WAIT) <= now) {
            self.take_reader_copy(out);
        }
        self.assembler.expire(now, out);
    }

    /// The stream or the run ends: gives up everything that was waited for. `total` is the writer's
    /// count of bytes and of bytes left out, where the kernel told it.
    pub fn finish(&mut self, total: Option<(u64, u64)>, out: &mut Vec<StreamPiece>) {
        while !self.waiting.is_empty() {
            self.take_reader_copy(out);
        }
        self.assembler.finish(total, out);
    }

    fn take_reader_copy(&mut self, out: &mut Vec<StreamPiece>) {
        let Some((skipped, chunk)) = self.waiting.pop_front() else { return };
        self.waiting_bytes -= chunk.bytes.len();
        self.assembler.push(Copy::Reader, skipped, chunk, out);
    }

    fn note(&mut self, process: ProcessId, stream: &StreamRef, offset: u64) {
        let entry = self.entries[stream.direction as usize].replace(*stream);
        if stream.direction == Direction::Read
            && entry.is_some_and(|known| known.nonce != stream.nonce)
        {
            // The kernel forgot the reader's entry: its count no longer agrees with the writer's.
            self.initial = true;
            self.readers.clear();
        }
        match stream.direction {
            Direction::Write => self.writer = Some(process),
            Direction::Read => {
                if self.readers.back().is_none_or(|(_, last)| *last != process) {
                    if self.readers.len() == READERS {
                        self.readers.pop_front();
                    }
                    self.readers.push_back((offset, process));
                }
            }
        }
    }
}
