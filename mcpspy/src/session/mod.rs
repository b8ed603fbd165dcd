//! Who talks to whom: messages of two streams become a session, requests meet their responses, and
//! events leave in causal order.
//!
//! Pure. A message waits here, in virtual time and within limits, only for what would make its event
//! wrong without: whether its stream belongs to a session at all ([`RETURN_WAIT`]), who is at its
//! ends ([`ENDS_WAIT`]), and for a response its request ([`REQUEST_WAIT`]). The kernel's records can
//! tell of an answer before they tell of the question: a call is reported when it returns, and the
//! call that wrote the question may return after the one that wrote the answer.

mod asked;
mod conversation;
mod legs;
mod pairing;
mod table;

use crate::attribution::Registry;
use crate::model::{Command, Event, EventBody, StreamId, Timestamp, Verdict};
use crate::streams::{Stream, Table};
use crate::telemetry::Counters;

pub use table::{Decoded, Sessions};

/// How long messages wait for a sign that their stream has a way back, and the first ones for a
/// reader at all, ns: runtimes need a second to start. What a server never reads or answers is shown
/// within two seconds.
pub const RETURN_WAIT: u64 = 1_800_000_000;

/// How long a message waits until its sender and receiver were seen, on a stream that had some, ns.
pub const ENDS_WAIT: u64 = 250_000_000;

/// How long a response waits for its request, ns. The request's call returns within microseconds
/// of the answer, or when its thread gets a CPU again.
pub const REQUEST_WAIT: u64 = 500_000_000;

/// How long the messages of a client's leg wait for the server's leg, ns: a container's server may
/// still be starting, and what no server ever reads is shown within two seconds.
pub const LEG_WAIT: u64 = 1_800_000_000;

/// How long they wait for the server to be started, where an engine of this host was asked for it,
/// ns: on a busy host `docker run` takes seconds.
pub const START_WAIT: u64 = 10_000_000_000;

/// How long a session stays after its end was seen, ns: calls that were under way may still return.
pub const CLOSE_WAIT: u64 = 200_000_000;

/// What the sessions may look at.
pub struct World<'a, D> {
    /// The streams.
    pub streams: &'a Table<D>,
    /// The processes.
    pub processes: &'a Registry,
    /// Virtual time.
    pub now: Timestamp,
    /// Show streams without a way back, too.
    pub oneway: bool,
}

/// Where the sessions put what they say.
pub struct Emit<'a> {
    /// Number of the last event.
    pub seq: &'a mut u64,
    /// The events.
    pub events: &'a mut Vec<Event>,
    /// What the source should do.
    pub commands: &'a mut Vec<Command>,
    /// The ledgers.
    pub counters: &'a mut Counters,
}

impl Emit<'_> {
    /// Asks for a verdict on both ends of a stream.
    pub fn verdict<D>(&mut self, world: &World<'_, D>, stream: &StreamId, verdict: Verdict) {
        let keys = world.streams.get(stream).map(Stream::keys).unwrap_or_default();
        self.commands.extend(keys.into_iter().flatten().map(|key| Command::Verdict(key, verdict)));
    }

    /// Puts an event and returns its number.
    pub fn event(&mut self, at: Timestamp, body: EventBody) -> u64 {
        *self.seq += 1;
        self.events.push(Event { seq: *self.seq, at, body });
        *self.seq
    }
}
