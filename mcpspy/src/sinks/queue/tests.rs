use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Instant;

use super::*;
use crate::sinks::jsonl::Jsonl;
use crate::sinks::{Payload, RunInfo, SinkError, samples};

/// The event that makes a [`Fake`] panic.
const PANIC: u64 = 1_000_000_000;

/// What a [`Fake`] was given and did.
#[derive(Default)]
struct Log {
    written: Vec<Event>,
    flushed: usize,
    flushes: usize,
}

/// A sink whose every write waits for a permit, where it has a gate, and that fails where told to.
struct Fake {
    log: Arc<Mutex<Log>>,
    gate: Option<Receiver<()>>,
    /// Events to take before it fails, how many of the last ones are lost then, and whether its
    /// reader went away.
    fails: Option<(usize, u64, bool)>,
}

impl Sink for Fake {
    fn write(&mut self, event: &Event) -> Result<(), SinkError> {
        if let Some(gate) = &self.gate {
            let _closed_gate_lets_through = gate.recv();
        }
        let mut log = self.log.lock().unwrap();
        assert_ne!(event.seq, PANIC, "a panic that the test asks for");
        if let Some((0, undelivered, closed)) = self.fails {
            let source = io::ErrorKind::StorageFull.into();
            return Err(SinkError { context: "test".into(), source, closed, undelivered });
        }
        if let Some((left, ..)) = &mut self.fails {
            *left -= 1;
        }
        log.written.push(event.clone());
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        let mut log = self.log.lock().unwrap();
        log.flushed = log.written.len();
        log.flushes += 1;
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        self.fails = None;
        Ok(())
    }
}

struct World {
    queue: Arc<Queue>,
    log: Arc<Mutex<Log>>,
    gate: Option<SyncSender<()>>,
    closed: Arc<AtomicUsize>,
}

impl World {
    fn new(
        when_full: WhenFull,
        events: usize,
        gated: bool,
        fails: Option<(usize, u64, bool)>,
    ) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let (open, gate) = mpsc::sync_channel(10_000);
        let fake = Fake { log: Arc::clone(&log), gate: gated.then_some(gate), fails };
        let closed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&closed);
        let limits = Limits { events, bytes: events * 1050 };
        let tell = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let queue = Queue::spawn("test", Box::new(fake), when_full, limits, tell).unwrap();
        Self { queue: Arc::new(queue), log, gate: gated.then_some(open), closed }
    }

    fn send(&self, seqs: impl IntoIterator<Item = u64>) {
        self.queue.send_all(seqs.into_iter().map(message));
    }

    fn finish(&mut self) -> Report {
        self.gate = None;
        self.queue.finish(Duration::from_secs(20))
    }

    fn seqs(&self) -> Vec<u64> {
        self.log.lock().unwrap().written.iter().map(|event| event.seq).collect()
    }

    fn lost(&self) -> Vec<Lost> {
        let log = self.log.lock().unwrap();
        let lost = log.written.iter().filter_map(|event| match &event.body {
            EventBody::Lost(lost) => Some(lost.clone()),
            _ => None,
        });
        lost.collect()
    }

    fn wait_until(&self, what: &str, is: impl Fn(&Log) -> bool) {
        let start = Instant::now();
        while !is(&self.log.lock().unwrap()) {
            assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A message of which 100 arrived in a second.
fn message(seq: u64) -> Arc<Event> {
    let mut event = samples::wrap(seq, 0, samples::call());
    event.at = Timestamp(seq * 10_000_000);
    Arc::new(event)
}

fn other(seq: u64) -> Arc<Event> {
    Arc::new(samples::at(seq, 0, samples::finding()))
}

fn tally(messages: u64, events: u64) -> Tally {
    Tally { messages, events }
}

fn dropped(report: &Report, reason: DropReason) -> Tally {
    report.dropped[reason as usize].1
}

#[test]
fn everything_arrives_once_and_in_order() {
    for when_full in [WhenFull::Block, WhenFull::DropNewest] {
        let mut world = World::new(when_full, 5000, false, None);
        world.send(1..=2000);
        world.queue.send(other(2001));
        let report = world.finish();
        assert!(world.seqs().into_iter().eq(1..=2001));
        assert_eq!(world.log.lock().unwrap().flushed, 2001);
        assert_eq!(report.delivered, tally(2000, 2001));
        assert_eq!(report.dropped_total(), Tally::default());
        assert_eq!(world.finish(), report, "finishing twice changes nothing");
    }
}

#[test]
fn a_full_queue_drops_the_newest_and_says_so_where_they_are_missing() {
    let mut world = World::new(WhenFull::DropNewest, 10, true, None);
    world.send(1..=30);
    world.gate.as_ref().unwrap().send(()).unwrap();
    world.wait_until("the first is written", |log| !log.written.is_empty());
    world.gate = None;
    world.wait_until("the queue says what it dropped", |log| log.written.len() == 11);
    world.send(31..=33);
    let report = world.finish();
    // 1 to 10 were queued; 11 to 30 found it full.
    assert_eq!(world.seqs(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 31, 32, 33]);
    assert_eq!(
        world.lost(),
        [Lost {
            stage: LostStage::Sink,
            reason: "queue_full",
            bytes: None,
            messages: Some(20),
            since: Some(Timestamp(110_000_000)),
            session: None,
            from: None,
        }]
    );
    assert_eq!(world.log.lock().unwrap().written[10].at, Timestamp(300_000_000));
    assert_eq!(report.delivered, tally(13, 13), "its own event is not one of those sent");
    assert_eq!(dropped(&report, DropReason::QueueFull), tally(20, 20));
}

#[test]
fn a_flood_is_not_answered_by_a_flood_of_lost_events() {
    let mut world = World::new(WhenFull::DropNewest, 100, true, None);
    let gate = world.gate.clone().unwrap();
    let writer = thread::spawn(move || {
        for _ in 0..2000 {
            gate.send(()).unwrap();
            thread::sleep(Duration::from_micros(50));
        }
    });
    for seq in 1..=10_000 {
        world.send([seq]);
        if seq % 10 == 0 {
            thread::sleep(Duration::from_micros(100));
        }
    }
    writer.join().unwrap();
    let report = world.finish();
    let lost = world.lost();
    let said: u64 = lost.iter().filter_map(|lost| lost.messages).sum();
    assert_eq!(said, dropped(&report, DropReason::QueueFull).messages);
    assert_eq!(report.delivered.messages + said, 10_000);
    let most = report.delivered.messages / 50 + 2;
    assert!(lost.len() as u64 <= most, "{} lost events, at most {most} wanted", lost.len());
    assert!(world.seqs().is_sorted(), "lost events stand where the messages are missing");
}

#[test]
fn a_pipe_that_stands_still_gets_the_exact_number_of_what_is_missing() {
    let (mut reader, writer) = io::pipe().unwrap();
    let run = RunInfo {
        run_id: "r".into(),
        host: "h".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let sink = Jsonl::to("stdout", Box::new(writer), &run, Payload::Full);
    let limits = Limits { events: 1000, bytes: 32 << 20 };
    let queue =
        Queue::spawn("stdout", Box::new(sink), WhenFull::DropNewest, limits, || {}).unwrap();
    // Nobody reads: the sender must not wait, and what does not fit is dropped.
    for seq in 1..=20_000 {
        queue.send(message(seq));
    }
    assert!(queue.report().dropped_total().messages > 15_000);
    let reader = thread::spawn(move || {
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        text
    });
    // It moves again. Once there is room, what comes is delivered behind the word of what is not.
    let start = Instant::now();
    while queue.report().delivered.messages < 1000 && start.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(1));
    }
    queue.send(message(20_001));
    let report = queue.finish(Duration::from_secs(20));
    drop(queue);
    let text = reader.join().unwrap();
    let (mut messages, mut missing, mut last) = (0, 0, 0);
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let seq = line["seq"].as_u64().unwrap();
        assert!(seq > last, "in order");
        last = seq;
        if line["kind"] == "lost" {
            assert_eq!(line["reason"], "queue_full");
            missing += line["messages"].as_u64().unwrap();
        } else {
            messages += 1;
        }
    }
    assert_eq!(messages, report.delivered.messages);
    assert_eq!(missing, dropped(&report, DropReason::QueueFull).messages);
    assert_eq!((messages + missing, last), (20_001, 20_001));
}

#[test]
fn findings_and_sessions_get_through_a_flood_of_messages() {
    let mut world = World::new(WhenFull::DropNewest, 10, true, None);
    world.send(1..=30);
    world.queue.send(other(31));
    let report = world.finish();
    assert!(world.seqs().contains(&31));
    assert_eq!(report.delivered, tally(10, 11));
    assert_eq!(dropped(&report, DropReason::QueueFull), tally(20, 20));
}

#[test]
fn the_queue_is_bounded_in_bytes_but_takes_any_single_event() {
    let mut world = World::new(WhenFull::DropNewest, 1000, true, None);
    let large = |seq, size| {
        let mut event = samples::call();
        event.message.raw = "x".repeat(size).into();
        Arc::new(samples::wrap(seq, 0, event))
    };
    world.queue.send(large(1, 16 << 20));
    world.send(2..=5);
    world.gate.as_ref().unwrap().send(()).unwrap();
    world.wait_until("room again, and said so", |log| log.written.len() == 1);
    world.gate = None;
    world.wait_until("lost", |log| log.written.len() == 2);
    world.queue.send(large(6, 600_000));
    world.queue.send(large(7, 600_000));
    let report = world.finish();
    assert_eq!(report.delivered.messages + dropped(&report, DropReason::QueueFull).messages, 7);
    assert_eq!(world.seqs()[..3], [1, 2, 6]);
}

#[test]
fn a_sender_to_a_file_waits_and_loses_nothing() {
    let mut world = World::new(WhenFull::Block, 10, true, None);
    let queue = Arc::clone(&world.queue);
    let sender = thread::spawn(move || queue.send_all((1..=1000).map(message)));
    thread::sleep(Duration::from_millis(50));
    assert!(!sender.is_finished());
    world.gate = None;
    sender.join().unwrap();
    let report = world.finish();
    assert!(world.seqs().into_iter().eq(1..=1000));
    assert_eq!(report.delivered, tally(1000, 1000));
}

#[test]
fn after_a_failure_events_are_counted_until_it_is_opened_again() {
    // The sixth write fails; of what it had taken, the last two and this one are lost.
    let mut world = World::new(WhenFull::Block, 100, false, Some((5, 3, false)));
    world.send(1..=10);
    world.wait_until("five", |log| log.written.len() == 5);
    while world.queue.report().dropped_total().events < 7 {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(!world.queue.is_closed());
    world.queue.reopen();
    world.wait_until("lost event", |log| log.written.len() == 6);
    world.send(11..=12);
    let report = world.finish();
    assert_eq!(report.delivered, tally(5, 5));
    assert_eq!(dropped(&report, DropReason::WriteFailed), tally(7, 7));
    assert_eq!(world.seqs(), [1, 2, 3, 4, 5, 4, 11, 12]);
    let lost = world.lost();
    assert_eq!((lost.len(), lost[0].reason, lost[0].messages), (1, "write_failed", Some(7)));
    assert_eq!(world.closed.load(Ordering::SeqCst), 0);
}

#[test]
fn when_the_reader_goes_away_the_agent_is_told_once_and_nobody_waits() {
    let mut world = World::new(WhenFull::Block, 5, false, Some((2, 1, true)));
    world.send(1..=100);
    let report = world.finish();
    assert!(world.queue.is_closed());
    assert_eq!(world.closed.load(Ordering::SeqCst), 1);
    assert_eq!(report.delivered, tally(2, 2));
    assert_eq!(dropped(&report, DropReason::Closed), tally(98, 98));
    world.send([101]);
    assert_eq!(dropped(&world.queue.report(), DropReason::Closed), tally(99, 99));
}

#[test]
fn a_sink_that_hangs_does_not_hold_up_the_end() {
    let world = World::new(WhenFull::Block, 10, true, None);
    let queue = Arc::clone(&world.queue);
    let sender = thread::spawn(move || queue.send_all((1..=50).map(message)));
    thread::sleep(Duration::from_millis(50));
    let report = world.queue.finish(Duration::from_millis(20));
    sender.join().unwrap();
    assert_eq!(report.delivered, Tally::default());
    let report = world.queue.report();
    assert_eq!(dropped(&report, DropReason::Shutdown), tally(50, 50));
}

#[test]
fn a_sink_that_panics_holds_up_nobody() {
    let mut world = World::new(WhenFull::Block, 5, false, None);
    world.send([1, 2]);
    world.wait_until("flushed", |log| log.flushed == 2);
    world.send([PANIC]);
    world.send(3..=50);
    let report = world.finish();
    assert_eq!(report.delivered.events + report.dropped_total().events, 51);
}

#[test]
fn an_event_is_flushed_at_once_when_it_is_alone_and_soon_in_a_crowd() {
    let mut world = World::new(WhenFull::Block, 100_000, false, None);
    world.send([1]);
    world.wait_until("flushed", |log| log.flushed == 1);
    world.finish();

    // One write a millisecond: the queue does not run empty.
    let mut world = World::new(WhenFull::Block, 100_000, true, None);
    world.send(1..=5000);
    let gate = world.gate.clone().unwrap();
    let start = Instant::now();
    while world.log.lock().unwrap().flushes < 3 {
        assert!(start.elapsed() < Duration::from_secs(10));
        gate.send(()).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert!(world.log.lock().unwrap().written.len() < 4000);
    drop(gate);
    world.finish();
}
