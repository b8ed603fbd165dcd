//! Puts the chunks of one stream in order and says what is missing.
//!
//! Chunks carry their position in the stream, so nothing has to be guessed: a chunk at the expected
//! position is passed on, one behind it repeats known bytes and is cut, one beyond it leaves a hole.
//! A hole that the kernel explains (bytes ruled out by their first bytes) is passed on as [`Piece::Skip`].
//! Any other hole may still be filled, because threads that write without a lock take their
//! positions and send their records in different orders; it is waited for, and then a [`Piece::Gap`].

use std::collections::BTreeMap;

use crate::model::Timestamp;

/// How long a hole is waited for, ns. The kernel sends a record within microseconds of taking its
/// position; only a thread that loses its CPU in between is later than that.
pub(super) const HOLE_WAIT: u64 = 100_000_000;

/// Bytes that may wait behind a hole, then the hole counts as lost: 4 MiB are more than a thread
/// that lost its CPU can be overtaken by within [`HOLE_WAIT`] at the rates we are built for.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Chunks that may wait behind a hole.
const MAX_WAITING_CHUNKS: usize = 4096;

/// Which end of the stream copied a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The writer's call.
    Writer,
    /// The reader's call.
    Reader,
}

/// Bytes at a position of a stream, with whatever the caller wants to keep beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk<T> {
    /// Position of the first byte.
    pub offset: u64,
    /// When the call returned.
    pub at: Timestamp,
    /// The caller's own data.
    pub tag: T,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// What comes out, in the order of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<T> {
    /// The next bytes.
    Chunk(Chunk<T>),
    /// Bytes that were left out on purpose.
    Skip(u64),
    /// Bytes that are lost.
    Gap(u64),
}

/// Order and holes of one stream.
#[derive(Debug)]
pub(super) struct Assembler<T> {
    next: u64,
    /// Bytes left out so far, as each end counts them.
    skipped: [u64; 2],
    waiting: BTreeMap<u64, (Chunk<T>, u64)>,
    waiting_bytes: usize,
    repeated: u64,
}

impl<T> Default for Assembler<T> {
    fn default() -> Self {
        Self { next: 0, skipped: [0; 2], waiting: BTreeMap::new(), waiting_bytes: 0, repeated: 0 }
    }
}

impl<T> Assembler<T> {
    /// Bytes that came although they were known, since the last call.
    pub(super) fn take_repeated(&mut self) -> u64 {
        std::mem::take(&mut self.repeated)
    }

    /// Position of the next byte.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes left out so far, as the writer's end counts them.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped[Copy::Writer as usize]
    }

    /// Bytes held back behind a hole.
    pub(super) fn buffered(&self) -> usize {
        self.waiting_bytes
    }

    /// When the oldest hole stops being waited for.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.waiting.values().map(|(chunk, _)| chunk.at.plus(HOLE_WAIT)).min()
    }

    /// Takes a chunk. `skipped` is its end's count of bytes left out before it.
    pub(super) fn push(
        &mut self,
        copy: Copy,
        skipped: u64,
        chunk: Chunk<T>,
        out: &mut Vec<Piece<T>>,
    ) {
        let left_out = skipped.saturating_sub(self.skipped[copy as usize]);
        let hole = chunk.offset.saturating_sub(self.next);
        if hole <= left_out {
            self.skipped[copy as usize] = self.skipped[copy as usize].max(skipped);
            self.step_over(hole, hole, out);
            self.pass(chunk, out);
            self.fill(out);
            return;
        }
        match self.waiting.get(&chunk.offset) {
            Some((other, _)) if other.bytes.len() >= chunk.bytes.len() => {
                self.repeated += chunk.bytes.len() as u64;
            }
            _ => {
                self.waiting_bytes += chunk.bytes.len();
                if let Some((old, _)) = self.waiting.insert(chunk.offset, (chunk, skipped)) {
                    self.waiting_bytes -= old.bytes.len();
                    self.repeated += old.bytes.len() as u64;
                }
            }
        }
        while self.waiting_bytes > MAX_WAITING_BYTES || self.waiting.len() > MAX_WAITING_CHUNKS {
            self.give_up_first(out);
        }
    }

    /// Gives up holes whose time is over.
    pub(super) fn expire(&mut self, now: Timestamp, out: &mut Vec<Piece<T>>) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            self.give_up_first(out);
        }
    }

    /// Gives up every hole: the stream or the run ends. `total` is the kernel's count of bytes where
    /// it is known, with the bytes left out; it shows a hole at the end.
    pub(super) fn finish(&mut self, total: Option<(u64, u64)>, out: &mut Vec<Piece<T>>) {
        while !self.waiting.is_empty() {
            self.give_up_first(out);
        }
        if let Some((offset, skipped)) = total
            && offset > self.next
        {
            let hole = offset - self.next;
            let known = self.skipped[0].max(self.skipped[1]);
            let left_out = skipped.saturating_sub(known).min(hole);
            self.step_over(hole, left_out, out);
        }
    }

    /// Forgets all positions: the next chunk starts anew at `offset`.
    pub(super) fn restart(&mut self, copy: Copy, offset: u64, skipped: u64) {
        self.next = offset;
        self.skipped[copy as usize] = skipped;
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    fn give_up_first(&mut self, out: &mut Vec<Piece<T>>) {
        let Some((_, (chunk, skipped))) = self.waiting.pop_first() else { return };
        self.waiting_bytes -= chunk.bytes.len();
        let hole = chunk.offset.saturating_sub(self.next);
        // Which end counted is not kept for waiting chunks: both counts are of the same bytes.
        let known = self.skipped[0].max(self.skipped[1]);
        let left_out = skipped.saturating_sub(known).min(hole);
        self.skipped[Copy::Writer as usize] = known.max(skipped);
        self.step_over(hole, left_out, out);
        self.pass(chunk, out);
        self.fill(out);
    }

    fn step_over(&mut self, hole: u64, left_out: u64, out: &mut Vec<Piece<T>>) {
        if left_out > 0 {
            out.push(Piece::Skip(left_out));
        }
        if hole > left_out {
            out.push(Piece::Gap(hole - left_out));
        }
        self.next += hole;
    }

    fn pass(&mut self, mut chunk: Chunk<T>, out: &mut Vec<Piece<T>>) {
        if chunk.offset < self.next {
            let known = ((self.next - chunk.offset) as usize).min(chunk.bytes.len());
            self.repeated += known as u64;
            chunk.bytes.drain(..known);
            chunk.offset = self.next;
        }
        self.next += chunk.bytes.len() as u64;
        if !chunk.bytes.is_empty() {
            out.push(Piece::Chunk(chunk));
        }
    }

    /// Passes on what waited for the bytes that just came.
    fn fill(&mut self, out: &mut Vec<Piece<T>>) {
        while let Some(first) = self.waiting.first_entry() {
            let (chunk, skipped) = first.get();
            let hole = chunk.offset.saturating_sub(self.next);
            let known = self.skipped[0].max(self.skipped[1]);
            if hole > skipped.saturating_sub(known) {
                return;
            }
            let (chunk, skipped) = first.remove();
            self.waiting_bytes -= chunk.bytes.len();
            self.skipped[Copy::Writer as usize] = known.max(skipped);
            self.step_over(hole, hole, out);
            self.pass(chunk, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, text: &str) -> Chunk<()> {
        Chunk { offset, at: Timestamp(offset), tag: (), bytes: text.as_bytes().to_vec() }
    }

    /// Pushes chunks of the writer and renders what comes out: text, `<n>` left out, `[n]` lost.
    fn run(chunks: &[(u64, u64, &str)]) -> String {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        for (offset, skipped, text) in chunks {
            assembler.push(Copy::Writer, *skipped, chunk(*offset, text), &mut out);
        }
        assembler.finish(None, &mut out);
        render(&out)
    }

    fn render(out: &[Piece<()>]) -> String {
        out.iter()
            .map(|piece| match piece {
                Piece::Chunk(chunk) => String::from_utf8_lossy(&chunk.bytes).into_owned(),
                Piece::Skip(bytes) => format!("<{bytes}>"),
                Piece::Gap(bytes) => format!("[{bytes}]"),
            })
            .collect()
    }

    #[test]
    fn order_holes_and_repeats() {
        for (chunks, expected) in [
            (&[(0, 0, "ab"), (2, 0, "cd")][..], "abcd"),
            (&[(2, 0, "cd"), (0, 0, "ab")], "abcd"),
            (&[(4, 0, "ef"), (2, 0, "cd"), (0, 0, "ab")], "abcdef"),
            (&[(0, 0, "ab"), (5, 0, "fg")], "ab[3]fg"),
            (&[(0, 0, "ab"), (5, 3, "fg")], "ab<3>fg"),
            (&[(0, 0, "ab"), (5, 2, "fg")], "ab<2>[1]fg"),
            (&[(0, 0, "abcd"), (2, 0, "cdef")], "abcdef"),
            (&[(0, 0, "abcd"), (1, 0, "bc"), (4, 0, "e")], "abcde"),
            (&[(3, 0, "d"), (3, 0, "de"), (0, 0, "abc")], "abcde"),
            (&[(5, 0, "f")], "[5]f"),
        ] {
            assert_eq!(run(chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn a_hole_is_waited_for_and_then_lost() {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        assembler.push(Copy::Writer, 0, chunk(5, "x"), &mut out);
        let deadline = assembler.deadline().expect("a hole has a deadline");
        assembler.expire(Timestamp(deadline.0 - 1), &mut out);
        assert_eq!(out, []);
        assembler.expire(deadline, &mut out);
        assert_eq!(render(&out), "[5]x");
        assert_eq!(assembler.buffered(), 0);
    }

    #[test]
    fn both_ends_copies_are_one_stream() {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        assembler.push(Copy::Reader, 0, chunk(0, "abc"), &mut out);
        assembler.push(Copy::Writer, 0, chunk(0, "abcdef"), &mut out);
        assert_eq!(render(&out), "abcdef");
        assert_eq!(assembler.take_repeated(), 3);
    }

    #[test]
    fn a_hole_at_the_end_shows_in_the_totals() {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        assembler.push(Copy::Writer, 0, chunk(0, "abc"), &mut out);
        assembler.finish(Some((10, 3)), &mut out);
        assert_eq!(render(&out), "abc<3>[4]");
    }

    #[test]
    fn memory_behind_a_hole_is_bounded() {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        let block = "x".repeat(1 << 20);
        for i in 0..8 {
            assembler.push(Copy::Writer, 0, chunk(1 + (i << 20), &block), &mut out);
            assert!(assembler.buffered() <= MAX_WAITING_BYTES);
        }
        assert!(matches!(out.first(), Some(Piece::Gap(1))));
    }
}
