//! The bounded queue before a sink, and the thread that empties it.
//!
//! Nothing is lost here without being counted: each event sent is delivered or counted under a
//! [`DropReason`], and the sink's own output gets a `lost` event where messages are missing.

mod worker;

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use self::worker::Worker;
use super::Sink;
use crate::model::{Event, EventBody, Lost, LostStage, Timestamp};

/// Room kept for events that are no messages: a flood of messages pushes out no finding, no session
/// and not the last word of the run.
const RESERVE: Limits = Limits { events: 4096, bytes: 4 << 20 };

/// What happens to an event that finds the queue full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The sender waits. For files: the data is wanted whole, and the loss, if it must be, is the
    /// kernel's to count.
    Block,
    /// The new event is dropped and counted. For screens and pipes, which stop when their reader
    /// does. Once it dropped one the queue drops until it is half empty, so that the `lost` events
    /// do not become a flood themselves.
    DropNewest,
}

/// How much a queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events.
    pub events: usize,
    /// Bytes of memory, about. One event is let in however large it is.
    pub bytes: usize,
}

impl Default for Limits {
    /// Half a second of 50,000 messages a second: a `docker logs` pipe stands still for up to 0.4 s
    /// under load.
    fn default() -> Self {
        Self { events: 25_000, bytes: 32 << 20 }
    }
}

/// Why a sink did not get an event, or did not deliver it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue was full.
    QueueFull,
    /// Writing failed: disk full, for example.
    WriteFailed,
    /// Nobody reads any more.
    Closed,
    /// The program ended before the sink took it.
    Shutdown,
}

impl DropReason {
    /// All of them, in the order of [`Report::dropped`].
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::WriteFailed, Self::Closed, Self::Shutdown];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::WriteFailed => "write_failed",
            Self::Closed => "closed",
            Self::Shutdown => "shutdown",
        }
    }
}

/// A number of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// MCP messages.
    pub messages: u64,
    /// Everything, messages included.
    pub events: u64,
}

impl Tally {
    fn add(&mut self, stub: Stub) {
        self.messages += u64::from(stub.kind == Kind::Message);
        self.events += u64::from(stub.kind != Kind::Own);
    }

    fn join(&mut self, other: Self) {
        self.messages += other.messages;
        self.events += other.events;
    }
}

/// What became of the events that were sent: `sent = delivered + sum of dropped`, once finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The sink's name.
    pub name: String,
    /// Handed to the operating system without an error.
    pub delivered: Tally,
    /// Not delivered, by reason, in the order of [`DropReason::ALL`].
    pub dropped: [(DropReason, Tally); 4],
}

impl Report {
    /// Sum over the reasons.
    pub fn dropped_total(&self) -> Tally {
        let mut total = Tally::default();
        for (_, tally) in &self.dropped {
            total.join(*tally);
        }
        total
    }
}

/// What remains of an event when it comes to counting.
#[derive(Clone, Copy)]
struct Stub {
    kind: Kind,
    seq: u64,
    at: Timestamp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Other,
    /// A `lost` event that the queue made itself.
    Own,
}

impl Stub {
    fn of(event: &Event) -> Self {
        let message = matches!(event.body, EventBody::Message(_));
        let kind = if message { Kind::Message } else { Kind::Other };
        Self { kind, seq: event.seq, at: event.at }
    }
}

/// Events in a row that were dropped for one reason.
struct Gap {
    reason: DropReason,
    first_seq: u64,
    since: Timestamp,
    until: Timestamp,
    lost: Tally,
}

impl Gap {
    fn extend(gap: &mut Option<Self>, reason: DropReason, stub: Stub) {
        let Stub { seq, at, .. } = stub;
        let gap = gap.get_or_insert(Self {
            reason,
            first_seq: seq,
            since: at,
            until: at,
            lost: Tally::default(),
        });
        gap.until = at;
        gap.lost.add(stub);
    }

    /// The event that says so. Its `seq` is that of the first event it stands for, which this output
    /// does not have: so `seq` stays unique and rising within an output.
    fn event(&self) -> Arc<Event> {
        Arc::new(Event {
            seq: self.first_seq,
            at: self.until,
            body: EventBody::Lost(Lost {
                stage: LostStage::Sink,
                reason: self.reason.name(),
                bytes: None,
                messages: Some(self.lost.messages),
                since: Some(self.since),
                session: None,
                from: None,
            }),
        })
    }
}

struct Item {
    event: Arc<Event>,
    stub: Stub,
    cost: usize,
}

impl Item {
    fn new(event: Arc<Event>) -> Self {
        // What an event weighs apart from its text, measured roughly: its own struct, the boxed
        // message, its Arcs.
        const OVERHEAD: usize = 768;
        let text = match &event.body {
            EventBody::Message(message) => message.message.raw.len(),
            EventBody::Finding(finding) => finding.detail.len(),
            EventBody::Session(_) | EventBody::Lost(_) | EventBody::Status(_) => 0,
        };
        Self { stub: Stub::of(&event), cost: OVERHEAD + text, event }
    }
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Events and bytes in `items` and in the hands of the thread.
    held: usize,
    held_bytes: usize,
    /// Of those, what the thread has taken and not yet accounted for.
    in_flight: Tally,
    /// Dropped by a full queue and not yet said.
    gap: Option<Gap>,
    delivered: Tally,
    dropped: [Tally; 4],
    /// The thread waits for work.
    idle: bool,
    reopen: bool,
    /// No further event is taken: for this reason.
    shut: Option<DropReason>,
    phase: Phase,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    /// The thread is to end when all is written.
    Finishing,
    /// The thread has ended, or is not waited for any more.
    Done,
}

impl State {
    fn drop_event(&mut self, reason: DropReason, stub: Stub) {
        self.dropped[reason as usize].add(stub);
    }

    fn is_full(&self, cost: usize, reserve: Limits, limits: Limits) -> bool {
        self.held >= limits.events + reserve.events
            || (self.held > 0 && self.held_bytes + cost > limits.bytes + reserve.bytes)
    }

    fn is_half_empty(&self, limits: Limits) -> bool {
        self.held <= limits.events / 2 && self.held_bytes <= limits.bytes / 2
    }

    fn push(&mut self, item: Item) {
        self.held += 1;
        self.held_bytes += item.cost;
        self.items.push_back(item);
    }

    /// Says, behind what was queued before, what was dropped.
    fn push_gap(&mut self) {
        if let Some(gap) = self.gap.take() {
            let event = gap.event();
            let stub = Stub { kind: Kind::Own, seq: event.seq, at: event.at };
            self.push(Item { event, stub, cost: 0 });
        }
    }

    /// Takes no further event and counts what is queued as dropped.
    fn shut(&mut self, reason: DropReason) {
        self.shut.get_or_insert(reason);
        for item in mem::take(&mut self.items) {
            self.held -= 1;
            self.held_bytes -= item.cost;
            self.drop_event(reason, item.stub);
        }
        self.gap = None;
    }
}

struct Shared {
    state: Mutex<State>,
    /// The thread waits here for work.
    work: Condvar,
    /// Senders wait here for room, and [`Queue::finish`] for the end.
    progress: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, counting goes on all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink, the queue before it, and its thread.
pub struct Queue {
    name: String,
    when_full: WhenFull,
    limits: Limits,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    /// Starts the thread. `on_closed` is called, once and from there, when the sink's reader went
    /// away.
    pub fn spawn(
        name: &str,
        sink: Box<dyn Sink>,
        when_full: WhenFull,
        limits: Limits,
        on_closed: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
        });
        let worker = Worker::new(name.to_owned(), Arc::clone(&shared), sink, Box::new(on_closed));
        let thread =
            thread::Builder::new().name(format!("sink-{name}")).spawn(move || worker.run())?;
        Ok(Self {
            name: name.to_owned(),
            when_full,
            limits,
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues an event. Waits only with [`WhenFull::Block`].
    pub fn send(&self, event: Arc<Event>) {
        self.send_all(std::iter::once(event));
    }

    /// Queues events, in order: cheaper than one by one.
    pub fn send_all(&self, events: impl IntoIterator<Item = Arc<Event>>) {
        let mut state = self.shared.lock();
        for event in events {
            state = self.push(state, Item::new(event));
        }
        if state.idle && !state.items.is_empty() {
            self.shared.work.notify_one();
        }
    }

    fn push<'a>(&'a self, mut state: MutexGuard<'a, State>, item: Item) -> MutexGuard<'a, State> {
        const NO_RESERVE: Limits = Limits { events: 0, bytes: 0 };
        match self.when_full {
            WhenFull::Block => {
                while state.shut.is_none() && state.is_full(item.cost, NO_RESERVE, self.limits) {
                    self.shared.work.notify_one();
                    state =
                        self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            WhenFull::DropNewest => {
                let message = item.stub.kind == Kind::Message;
                let reserve = if message { NO_RESERVE } else { RESERVE };
                let full = state.is_full(item.cost, reserve, self.limits);
                let goes_on = message && state.gap.is_some() && !state.is_half_empty(self.limits);
                if state.shut.is_none() && (full || goes_on) {
                    state.drop_event(DropReason::QueueFull, item.stub);
                    Gap::extend(&mut state.gap, DropReason::QueueFull, item.stub);
                    return state;
                }
                if message {
                    state.push_gap();
                }
            }
        }
        match state.shut {
            Some(reason) => state.drop_event(reason, item.stub),
            None => state.push(item),
        }
        state
    }

    /// Asks the sink to open its output again: after a rotation by another program (SIGHUP), or when
    /// the reason of a failure is gone.
    pub fn reopen(&self) {
        self.shared.lock().reopen = true;
        self.shared.work.notify_one();
    }

    /// Whether the sink's reader went away.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().shut == Some(DropReason::Closed)
    }

    /// The ledger so far.
    pub fn report(&self) -> Report {
        let state = self.shared.lock();
        let mut dropped = DropReason::ALL.map(|reason| (reason, Tally::default()));
        for (slot, tally) in dropped.iter_mut().zip(state.dropped) {
            slot.1 = tally;
        }
        Report { name: self.name.clone(), delivered: state.delivered, dropped }
    }

    /// Writes what is queued, flushes and ends the thread. What the sink does not take within
    /// `patience` is counted as dropped, and its thread is left behind.
    pub fn finish(&self, patience: Duration) -> Report {
        let mut state = self.shared.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Finishing;
        }
        self.shared.work.notify_one();
        let (waited, _) = self
            .shared
            .progress
            .wait_timeout_while(state, patience, |state| state.phase != Phase::Done)
            .unwrap_or_else(PoisonError::into_inner);
        state = waited;
        let ended = mem::replace(&mut state.phase, Phase::Done) == Phase::Done;
        if !ended {
            state.shut(DropReason::Shutdown);
            let in_flight = mem::take(&mut state.in_flight);
            state.dropped[DropReason::Shutdown as usize].join(in_flight);
            self.shared.progress.notify_all();
        }
        drop(state);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|_| ended)
            && thread.join().is_err()
        {
            tracing::error!("output {}: its thread panicked", self.name);
        }
        self.report()
    }
}

#[cfg(test)]
mod tests;
