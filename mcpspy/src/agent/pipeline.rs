//! The engine's thread: takes inputs in one order, records them in that order, hands on events and
//! commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::outputs::Outputs;
use super::report::Summary;
use crate::engine::{Engine, Out};
use crate::model::{Command, EventBody, Input, KernelCounters, Loss, Status, Timestamp};
use crate::recording::Writer;
use crate::telemetry::Counter;

/// Batches that wait for the engine. When it is behind by more, the drain waits, the ring fills, and
/// the kernel counts what is lost. A batch holds at most 1 MiB.
const BATCHES: usize = 8;

/// How old a record can be when it gets here: the drain looks at the ring every 20 ms. A tick is
/// held back that long, so that time does not pass over a record that is on its way.
const ON_THE_WAY: u64 = 30_000_000;

/// How long an output may take for what is queued at the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the thread is asked.
pub(super) enum Work {
    /// Handle these.
    Inputs(Vec<Input>),
    /// Open the files again.
    Reopen,
    /// Handle these, decide what waits, and end.
    Finish(Vec<Input>),
}

/// What the thread works with.
pub(super) struct Stages {
    pub(super) engine: Engine,
    pub(super) outputs: Outputs,
    pub(super) recorder: Option<Writer>,
    /// Does what the engine asks of the source.
    pub(super) apply: Box<dyn FnMut(&Command) + Send>,
    /// The boot clock in a live run: says when a deadline of the engine is due.
    pub(super) clock: Option<fn() -> Timestamp>,
    /// Name of the source's backend, for the first event.
    pub(super) backend: String,
}

/// Signs of life of the thread.
pub(super) struct Pulse {
    begun: Instant,
    /// When it was last seen to move, in nanoseconds from the beginning.
    moved: AtomicU64,
    /// How many messages it has handed on.
    messages: AtomicU64,
}

impl Pulse {
    /// A thread that begins now.
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), moved: AtomicU64::new(0), messages: AtomicU64::new(0) }
    }

    fn beat(&self) {
        let now = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
    }

    /// Since when it runs.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// When it last moved.
    pub(super) fn moved(&self) -> Instant {
        self.begun + Duration::from_nanos(self.moved.load(Ordering::Relaxed))
    }

    /// How many messages it has handed on.
    pub(super) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }
}

/// The thread, from outside.
pub(super) struct Pipeline {
    work: SyncSender<Work>,
    heard: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    thread: JoinHandle<Summary>,
}

impl Pipeline {
    /// Starts the thread.
    pub(super) fn start(stages: Stages) -> anyhow::Result<Self> {
        let (work, inbox) = sync_channel(BATCHES);
        let heard = Arc::new(AtomicBool::new(false));
        let pulse = Arc::new(Pulse::new());
        let running = Running {
            stages,
            heard: Arc::clone(&heard),
            pulse: Arc::clone(&pulse),
            out: Out::default(),
            begun: false,
            last: Timestamp(0),
            kernel: None,
        };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || running.run(&inbox))
            .context("cannot start a thread")?;
        Ok(Self { work, heard, pulse, thread })
    }

    /// Where inputs go.
    pub(super) fn work(&self) -> SyncSender<Work> {
        self.work.clone()
    }

    /// Becomes true with the first message.
    pub(super) fn heard(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.heard)
    }

    /// Signs of life of the thread.
    pub(super) fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Handles the last inputs, writes everything out, ends the thread. Who else has [`Self::work`]
    /// has ended before.
    pub(super) fn finish(self, last: Vec<Input>) -> anyhow::Result<Summary> {
        // A thread that panicked does not listen; joining says so.
        drop(self.work.send(Work::Finish(last)));
        self.thread.join().map_err(|_| anyhow::anyhow!("the engine's thread panicked"))
    }
}

struct Running {
    stages: Stages,
    heard: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    out: Out,
    begun: bool,
    last: Timestamp,
    kernel: Option<KernelCounters>,
}

impl Running {
    fn run(mut self, inbox: &Receiver<Work>) -> Summary {
        loop {
            let work = self.next(inbox);
            self.pulse.beat();
            match work {
                Some(Work::Inputs(inputs)) => self.handle(inputs),
                Some(Work::Reopen) => self.stages.outputs.reopen(),
                Some(Work::Finish(inputs)) => {
                    self.handle(inputs);
                    return self.finish();
                }
                None => return self.finish(),
            }
        }
    }

    /// Waits for work; makes a tick when the engine waits for time to pass and nothing else comes.
    fn next(&self, inbox: &Receiver<Work>) -> Option<Work> {
        let deadline = self.stages.clock.zip(self.stages.engine.next_deadline());
        let Some((clock, deadline)) = deadline else { return inbox.recv().ok() };
        let wait = deadline.plus(ON_THE_WAY).since(clock());
        match inbox.recv_timeout(Duration::from_nanos(wait)) {
            Ok(work) => Some(work),
            Err(RecvTimeoutError::Timeout) => {
                let now = Timestamp(clock().0.saturating_sub(ON_THE_WAY));
                Some(Work::Inputs(vec![Input::Tick(now.max(deadline))]))
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn handle(&mut self, inputs: Vec<Input>) {
        for input in inputs {
            self.record(&input);
            self.last = self.last.max(input.at());
            if let Input::Loss(Loss::Counters { counters, .. }) = &input {
                self.kernel = Some(*counters);
            }
            self.stages.engine.handle(input, &mut self.out);
            if !self.begun {
                // Behind the first input, because only inputs bring the time.
                self.begun = true;
                let backend = self.stages.backend.clone();
                let started = EventBody::Status(Status::Started { backend });
                self.stages.engine.note(started, &mut self.out);
            }
            for command in self.out.commands.drain(..) {
                (self.stages.apply)(&command);
            }
        }
        self.hand_on();
        if self.stages.recorder.is_some() {
            self.flush_recording();
        }
    }

    fn record(&mut self, input: &Input) {
        if let Some(recorder) = &mut self.stages.recorder
            && let Err(error) = recorder.input(input)
        {
            self.give_up_recording(&error);
        }
    }

    fn flush_recording(&mut self) {
        if let Some(Err(error)) = self.stages.recorder.as_mut().map(Writer::flush) {
            self.give_up_recording(&error);
        }
    }

    fn give_up_recording(&mut self, error: &std::io::Error) {
        tracing::error!("the recording ends here: it cannot be written: {error}");
        self.stages.recorder = None;
    }

    fn hand_on(&mut self) {
        for event in self.out.events.drain(..) {
            if matches!(event.body, EventBody::Message(_)) {
                self.heard.store(true, Ordering::Relaxed);
                self.pulse.messages.fetch_add(1, Ordering::Relaxed);
            }
            self.stages.outputs.take(event);
        }
        self.stages.outputs.send();
    }

    fn finish(mut self) -> Summary {
        self.stages.engine.finish(self.last, &mut self.out);
        self.hand_on();
        let mut counters = self.stages.engine.telemetry().clone();
        counters.add(Counter::FilteredMessages, self.stages.outputs.filtered());
        if self.begun {
            let stopped = Status::Stopped {
                kernel: self.kernel.unwrap_or_default(),
                counters: counters.named().collect(),
            };
            self.stages.engine.note(EventBody::Status(stopped), &mut self.out);
        }
        self.hand_on();
        let sinks = self.stages.outputs.finish(PATIENCE);
        self.flush_recording();
        Summary { counters, kernel: self.kernel, sinks }
    }
}
