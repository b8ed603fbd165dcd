//! The thread of a queue.

use std::mem;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::{DropReason, Gap, Item, Kind, Phase, Shared, Stub, Tally};
use crate::model::Event;
use crate::sinks::{Sink, SinkError};

/// Longest time that an event waits in memory for others while more of them come.
const FLUSH_EVERY: Duration = Duration::from_millis(50);

/// Events that the thread takes at once. Large enough that the lock does not count, small enough
/// that the queue's limits mean something.
const BATCH: usize = 256;

/// Events between two looks at the clock.
const CLOCK_EVERY: usize = 16;

/// The thread's side.
pub(super) struct Worker {
    name: String,
    shared: Arc<Shared>,
    sink: Box<dyn Sink>,
    on_closed: Option<Box<dyn FnOnce() + Send>>,
    /// Given to the sink since the last flush.
    unflushed: Vec<Stub>,
    /// The sink failed and was not opened again since.
    failed: bool,
    /// Dropped since it failed.
    gap: Option<Gap>,
    last_flush: Instant,
}

/// What the thread is to do next.
struct Work {
    items: Vec<Item>,
    /// Nothing else is queued.
    last: bool,
    reopen: bool,
    finish: bool,
}

impl Worker {
    pub(super) fn new(
        name: String,
        shared: Arc<Shared>,
        sink: Box<dyn Sink>,
        on_closed: Box<dyn FnOnce() + Send>,
    ) -> Self {
        Self {
            name,
            shared,
            sink,
            on_closed: Some(on_closed),
            unflushed: Vec::new(),
            failed: false,
            gap: None,
            last_flush: Instant::now(),
        }
    }

    /// Until the queue is finished, or nobody reads any more.
    pub(super) fn run(mut self) {
        let end = End(Arc::clone(&self.shared));
        while let Some(work) = self.wait() {
            if work.reopen {
                self.flush();
                self.reopen();
            }
            for items in work.items.chunks(CLOCK_EVERY) {
                for item in items {
                    self.write(&item.event, item.stub);
                }
                if self.last_flush.elapsed() >= FLUSH_EVERY {
                    self.flush();
                }
            }
            if work.last {
                self.flush();
            }
            self.account(&work.items);
            if work.finish {
                break;
            }
        }
        drop(end);
    }

    /// Waits for something to do; `None` when nobody wants the result any more.
    fn wait(&self) -> Option<Work> {
        let mut state = self.shared.lock();
        loop {
            if state.phase == Phase::Done || state.shut.is_some() {
                return None;
            }
            if state.items.is_empty() {
                state.push_gap();
            }
            if !state.items.is_empty() || state.reopen || state.phase == Phase::Finishing {
                break;
            }
            state.idle = true;
            state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        let n = state.items.len().min(BATCH);
        let items: Vec<Item> = state.items.drain(..n).collect();
        for item in &items {
            state.in_flight.add(item.stub);
        }
        let last = state.items.is_empty();
        let finish = last && state.phase == Phase::Finishing && state.gap.is_none();
        Some(Work { items, last, reopen: mem::take(&mut state.reopen), finish })
    }

    fn write(&mut self, event: &Event, stub: Stub) {
        if self.failed {
            self.lose(stub);
            return;
        }
        self.unflushed.push(stub);
        if let Err(error) = self.sink.write(event) {
            self.fail(&error);
        }
    }

    fn flush(&mut self) {
        self.last_flush = Instant::now();
        if self.failed {
            return;
        }
        match self.sink.flush() {
            Ok(()) => {
                self.give_up_some();
                self.deliver(self.unflushed.len());
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Counts what the sink could not deliver although it goes on.
    fn give_up_some(&mut self) {
        let lost = self.sink.take_lost();
        if lost.is_empty() {
            return;
        }
        let lost: FxHashSet<u64> = lost.into_iter().collect();
        let mut state = self.shared.lock();
        let counted = state.phase != Phase::Done;
        self.unflushed.retain(|stub| {
            let is_lost = stub.kind != Kind::Own && lost.contains(&stub.seq);
            if is_lost && counted {
                state.drop_event(DropReason::WriteFailed, *stub);
            }
            !is_lost
        });
    }

    fn reopen(&mut self) {
        if let Err(error) = self.sink.reopen() {
            self.fail(&error);
            return;
        }
        if mem::take(&mut self.failed) {
            tracing::info!("output {}: open again", self.name);
        }
        if let Some(gap) = self.gap.take() {
            let event = gap.event();
            self.write(&event, Stub { kind: Kind::Own, seq: event.seq, at: event.at });
        }
    }

    /// The first `n` of the events given to the sink got out.
    fn deliver(&mut self, n: usize) {
        let mut tally = Tally::default();
        for stub in self.unflushed.drain(..n) {
            tally.add(stub);
        }
        let mut state = self.shared.lock();
        if state.phase != Phase::Done {
            state.delivered.join(tally);
        }
    }

    fn lose(&mut self, stub: Stub) {
        let mut state = self.shared.lock();
        let reason = state.shut.unwrap_or(DropReason::WriteFailed);
        if state.phase != Phase::Done {
            state.drop_event(reason, stub);
        }
        Gap::extend(&mut self.gap, reason, stub);
    }

    fn fail(&mut self, error: &SinkError) {
        let undelivered = usize::try_from(error.undelivered).unwrap_or(usize::MAX);
        let delivered = self.unflushed.len().saturating_sub(undelivered);
        self.deliver(delivered);
        self.failed = true;
        if error.closed {
            self.shared.lock().shut(DropReason::Closed);
            tracing::debug!("output {}: nobody reads any more", self.name);
        } else {
            tracing::error!(
                "output {}: {error}; its events are lost and counted until it can be opened again \
                 (SIGHUP)",
                self.name
            );
        }
        for stub in mem::take(&mut self.unflushed) {
            self.lose(stub);
        }
        if error.closed
            && let Some(tell) = self.on_closed.take()
        {
            tell();
        }
    }

    /// Makes room for others, now that these events are written.
    fn account(&self, items: &[Item]) {
        let mut state = self.shared.lock();
        state.held -= items.len();
        state.held_bytes -= items.iter().map(|item| item.cost).sum::<usize>();
        // Some of them may still wait for a flush; they are few, and the sink has them.
        state.in_flight = Tally::default();
        for stub in &self.unflushed {
            state.in_flight.add(*stub);
        }
        self.shared.progress.notify_all();
    }
}

/// Tells the senders when the thread ends, also by a panic: they must not wait for ever.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.phase != Phase::Done {
            state.shut(DropReason::WriteFailed);
            if thread::panicking() {
                let in_flight = mem::take(&mut state.in_flight);
                state.dropped[DropReason::WriteFailed as usize].join(in_flight);
            }
        }
        state.phase = Phase::Done;
        self.0.progress.notify_all();
    }
}
