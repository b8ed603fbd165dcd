//! Lines held back because together they may be one JSON value.

use std::borrow::Cow;

use super::json::{Scanner, Stop};
use super::line::{Framing, Line};

/// Most bytes of a message that spans lines. Nobody pretty-prints images.
pub const HELD_BYTES: usize = 4 * 1024 * 1024;

/// Most lines of a message that spans lines.
pub const HELD_LINES: usize = 64 * 1024;

/// Lines that may be one JSON value together.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    scanner: Scanner,
    /// The lines, joined by LF.
    text: Vec<u8>,
    /// Length, start and end of each.
    lines: Vec<(usize, u64, u64)>,
    /// The last one had no line end.
    unterminated: bool,
}

impl Held {
    /// Whether there is room for one more line in a decoder with this limit.
    pub(super) fn has_room(&self, line: &Line<'_>, limit: usize) -> bool {
        !line.truncated
            && self.lines.len() < HELD_LINES
            && self.text.len() + line.head.len() < HELD_BYTES.min(limit)
    }

    /// Reads on in the next line: the position after the value, or why it does not end there.
    pub(super) fn read(&mut self, line: &Line<'_>) -> Result<usize, Stop> {
        self.scanner.feed(&line.head, 0)
    }

    /// Whether no line is held.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Bytes of the stream that are held.
    pub(super) fn size(&self) -> u64 {
        self.lines.iter().map(|(length, ..)| *length as u64).sum()
    }

    /// Bytes of memory in use.
    pub(super) fn buffered(&self) -> usize {
        self.text.len() + self.lines.len() * size_of::<(usize, u64, u64)>()
    }

    /// Holds a line.
    pub(super) fn add(&mut self, line: &Line<'_>) {
        if !self.lines.is_empty() {
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(&line.head);
        self.lines.push((line.head.len(), line.start, line.end));
        self.unterminated = !line.terminated;
    }

    /// The value, as one line.
    pub(super) fn join(self) -> Line<'static> {
        Line {
            size: self.text.len() as u64,
            head: Cow::Owned(self.text),
            tail: Vec::new(),
            truncated: false,
            start: self.lines.first().map_or(0, |(_, start, _)| *start),
            end: self.lines.last().map_or(0, |(_, _, end)| *end),
            terminated: !self.unterminated,
            after_gap: false,
            framing: Framing::Multiline,
        }
    }

    /// Gives the lines one by one: they are no value together.
    pub(super) fn release(self, out: &mut Vec<Line<'_>>) {
        let mut at = 0;
        let last = self.lines.len().saturating_sub(1);
        for (number, (length, start, end)) in self.lines.into_iter().enumerate() {
            let head = self.text.get(at..at + length).unwrap_or_default().to_vec();
            at += length + 1;
            out.push(Line {
                head: Cow::Owned(head),
                tail: Vec::new(),
                size: length as u64,
                truncated: false,
                start,
                end,
                terminated: number < last || !self.unterminated,
                after_gap: false,
                framing: Framing::Newline,
            });
        }
    }
}
