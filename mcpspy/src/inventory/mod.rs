//! What exists on the host: facts about processes, pushed to the engine as inputs.
//!
//! A thread of its own reads `/proc`, so that the drain never waits: who asks leaves a request
//! in a bounded queue. I/O is allowed here, interpretation is not.
//!
//! A process is read
//! - when it is first seen on a stream, with its ancestors;
//! - when it replaced its program, if it had been read before;
//! - once more shortly after either, because servers open and duplicate files just after they
//!   started; that reading is pushed only when it says something new.
//!
//! Names of containers come from engines' APIs, on a thread of its own: see [`docker`].
//!
//! What was open before the monitor started is read by one scan: see [`before`].

#[cfg(feature = "live")]
pub mod docker;
pub mod procfs;
mod reader;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use self::reader::Reader;
use crate::model::{Input, ProcessFacts, ProcessId, Timestamp};

/// Requests that wait. A process that finds the queue full is named by what the kernel said of it.
const QUEUE: usize = 8192;

/// What the inventory is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// The process was seen at an end of a stream, for the first time on that stream.
    Seen(ProcessId, Timestamp),
    /// The process replaced its program.
    Exec(ProcessId, Timestamp),
}

/// The inventory's thread, from outside.
#[derive(Debug)]
pub struct Inventory {
    requests: Requests,
    thread: JoinHandle<()>,
}

/// Leaves requests; cheap to clone. The thread ends when all of them are gone.
#[derive(Clone, Debug)]
pub struct Requests {
    queue: SyncSender<Request>,
    refused: Arc<AtomicU64>,
    /// `/proc` does not show the processes that the kernel speaks of.
    blind: bool,
}

impl Requests {
    /// The process was seen at an end of a stream at this time. Never waits.
    pub fn seen(&self, process: ProcessId, at: Timestamp) {
        self.leave(Request::Seen(process, at));
    }

    /// The process replaced its program at this time. Never waits.
    pub fn exec(&self, process: ProcessId, at: Timestamp) {
        self.leave(Request::Exec(process, at));
    }

    fn leave(&self, request: Request) {
        if self.blind {
            return;
        }
        if self.queue.try_send(request).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Inventory {
    /// Starts the thread.
    ///
    /// `told` is what the engine got of [`before`]; `None` where `/proc` shows another pid namespace
    /// than the host's, so that the kernel's numbers are those of other processes here: then nothing
    /// is read, and processes are what the kernel says of them. `clock` is the boot clock. `push` hands inputs
    /// to the engine and may wait.
    pub fn start(
        told: Option<&[ProcessFacts]>,
        clock: fn() -> Timestamp,
        push: impl FnMut(Vec<Input>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, requests) = sync_channel(QUEUE);
        let blind = told.is_none();
        let told: Vec<_> =
            told.unwrap_or_default().iter().map(|facts| (facts.id, facts.at)).collect();
        let thread = std::thread::Builder::new()
            .name("inventory".to_owned())
            .spawn(move || run(&requests, told, clock, push))?;
        Ok(Self { requests: Requests { queue, refused: Arc::default(), blind }, thread })
    }

    /// For whoever sees processes.
    pub fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// Ends the thread and returns how many requests found the queue full. Other [`Requests`] must
    /// be gone.
    pub fn finish(self) -> u64 {
        let Requests { queue, refused, .. } = self.requests;
        drop(queue);
        if self.thread.join().is_err() {
            tracing::error!("the inventory's thread panicked");
        }
        refused.load(Ordering::Relaxed)
    }
}

/// The processes that had pipes or sockets open before the monitor started, whose streams it
/// therefore sees from the middle on. Read it when the programs are attached, and hand it to the
/// engine before anything else: no stream can then be older than it seems.
///
/// `around` limits it to one process and those that share a pipe or a socket with it.
pub fn before(at: Timestamp, around: Option<u32>) -> Vec<ProcessFacts> {
    let mut found = procfs::scan(at);
    found.retain(|facts| facts.fds.as_ref().is_none_or(|fds| !fds.is_empty()));
    if let Some(pid) = around {
        let files = |facts: &ProcessFacts| -> HashSet<(u32, u64)> {
            facts.fds.iter().flatten().map(|fd| (fd.dev, fd.ino)).collect()
        };
        let own = found.iter().find(|facts| facts.id.pid == pid).map(files).unwrap_or_default();
        found.retain(|facts| !own.is_disjoint(&files(facts)));
    }
    found
}

fn run(
    requests: &Receiver<Request>,
    told: Vec<(ProcessId, Timestamp)>,
    clock: fn() -> Timestamp,
    mut push: impl FnMut(Vec<Input>),
) {
    let mut reader = Reader::new(told, procfs::read_process);
    loop {
        let request = match reader.next_due() {
            None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => requests.recv_timeout(Duration::from_nanos(due.since(clock()))),
        };
        let mut found = Vec::new();
        match request {
            Ok(Request::Seen(process, at)) => reader.seen(process, at, clock(), &mut found),
            Ok(Request::Exec(process, at)) => reader.exec(process, at, clock(), &mut found),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        reader.due(clock(), &mut found);
        if !found.is_empty() {
            push(found.into_iter().map(Input::Process).collect());
        }
    }
}
