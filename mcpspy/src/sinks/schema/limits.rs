//! How much of an event goes into its line.

use crate::model::{Event, EventBody};
use crate::sinks::Payload;

/// Most bytes of a name (method, tool, command line, …) where texts are limited and the line would
/// become too long otherwise, and of a message's error text where no text is wanted.
pub(super) const SHORT_NAME: usize = 256;

/// Which step of [`Limits::squeeze`] is the first that can make a line short enough, from 1; 0 where
/// the whole event may fit. What is written is never shorter than what was sent, so megabytes need
/// not be written to see that they do not fit.
pub(super) fn hopeless(event: &Event, max: usize) -> usize {
    let EventBody::Message(event) = &event.body else { return 0 };
    let message = &event.message;
    let parts = [&message.params, &message.result, &message.error];
    let parts: usize = parts.into_iter().flatten().map(ExactSizeIterator::len).sum();
    match (message.raw.len() > max, parts > max) {
        (_, true) => 2,
        (true, false) => 1,
        (false, false) => 0,
    }
}

/// What is left out of a message for the sake of `max_line`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Omit {
    Nothing,
    Raw,
    Parts,
}

/// How much of what goes into a line, in bytes as written.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Names: of methods, tools, processes, peers.
    pub(super) name: usize,
    /// `error.message`.
    pub(super) error: usize,
    /// `raw`.
    pub(super) raw: usize,
    /// `params`, `result`, `error.data`, each whole or left out.
    pub(super) part: usize,
    /// What is `null` instead.
    pub(super) omit: Omit,
    /// Labels of containers are left out.
    pub(super) no_labels: bool,
}

impl Limits {
    pub(super) fn of(payload: Payload) -> Self {
        let text = payload.text_limit();
        let name = if payload == Payload::Full { usize::MAX } else { text.max(1024) };
        let (omit, no_labels) = (Omit::Nothing, false);
        Self { name, error: text.max(SHORT_NAME), raw: text, part: text, omit, no_labels }
    }

    /// For a line that would exceed [`Payload::line_limit`].
    pub(super) fn short(payload: Payload) -> Self {
        let (omit, no_labels) = (Omit::Nothing, false);
        let raw = payload.text_limit();
        Self { name: SHORT_NAME, error: SHORT_NAME, raw, part: 0, omit, no_labels }
    }

    /// One step after the other, until a line is short enough for `max_line`.
    pub(super) fn squeeze(payload: Payload) -> [Self; 5] {
        let whole = Self::of(payload);
        let bare = Self { omit: Omit::Parts, raw: 0, part: 0, ..whole };
        let named = |name| Self { name, error: name, ..bare };
        [
            Self { omit: Omit::Raw, raw: 0, ..whole },
            bare,
            named(SHORT_NAME),
            named(64),
            Self { no_labels: true, ..named(16) },
        ]
    }
}
