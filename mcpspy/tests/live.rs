//! The kernel side on the running kernel: what programs write is captured, whole and once.
//!
//! Needs root; where something is missing each test says so and passes. The traffic comes from
//! another process, because mcpspy ignores itself: the test binary starts itself again with
//! `MCPSPY_TRAFFIC` set, see [`traffic`].
#![cfg(feature = "live")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::cast_possible_wrap, reason = "lengths of small buffers")]
#![expect(
    clippy::disallowed_methods,
    reason = "the traffic process ends before the test harness writes anything"
)]

#[path = "live/capture.rs"]
mod capture;
#[path = "live/relays.rs"]
mod relays;
#[path = "live/relays_seen.rs"]
mod relays_seen;
#[path = "live/traffic.rs"]
mod traffic;

use std::collections::HashSet;

use capture::{Capture, Options, capture, skip};
use mcpspy::model::{Direction, Exit, RecordBody};

/// Not a test: the traffic process starts here.
#[test]
fn traffic_process() {
    traffic::main();
}

fn json_once(capture: &Capture) {
    for stream in &capture.expected {
        let found = capture.written(stream);
        assert_eq!(found.len(), stream.bytes.len(), "{}: length", stream.name);
        assert!(found == stream.bytes, "{}: bytes", stream.name);
    }
    let counters = capture.counters;
    assert_eq!(
        counters.admitted_bytes,
        counters.copied_bytes
            + counters.ring_full_bytes
            + counters.fault_bytes
            + counters.scratch_busy_bytes
            + counters.cut_bytes,
        "{counters:?}"
    );
    assert_eq!(counters.scratch_busy_bytes, 0);
    assert_eq!(counters.fault_bytes, 0);
    assert_eq!(counters.cut_bytes, 0);
    assert_eq!(capture.malformed, 0);
}

#[test]
fn every_kind_of_call_is_captured_once() {
    for backend in capture::backends() {
        let Some(capture) = capture(&Options { backend, ..Options::of("calls") }) else { return };
        json_once(&capture);
        for stream in &capture.expected {
            assert_eq!(capture.reader_copies(stream), 0, "{}", stream.name);
            let readers = capture.endpoints(stream, Direction::Read);
            assert_eq!(readers, [(capture.pid, 0)], "{}", stream.name);
        }
    }
}

#[test]
fn sixteen_mebibytes_in_one_write_twice() {
    let Some(capture) = capture(&Options::of("big")) else { return };
    json_once(&capture);
    assert_eq!(capture.counters.ring_full, 0);
}

#[test]
fn what_finds_the_ring_full_is_counted() {
    let Some(capture) = capture(&Options { ring_bytes: 1 << 16, ..Options::of("big") }) else {
        return;
    };
    let counters = capture.counters;
    assert!(counters.ring_full > 0);
    assert_eq!(counters.admitted_bytes, counters.copied_bytes + counters.ring_full_bytes);
    let stream = &capture.expected[0];
    for (_, data) in capture.data(stream, Direction::Write) {
        let start = data.offset as usize;
        assert!(data.bytes == stream.bytes[start..start + data.bytes.len()], "at {start}");
    }
    let seen: usize = capture
        .records
        .iter()
        .map(|record| match &record.body {
            RecordBody::Data(data) => data.bytes.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(seen as u64, counters.copied_bytes);
}

#[test]
fn a_thousand_pieces_are_few_records() {
    let Some(capture) = capture(&Options::of("iovecs")) else { return };
    json_once(&capture);
    for stream in &capture.expected {
        let records = capture.data(stream, Direction::Write).count();
        assert!(records <= 3, "{}: {records} records", stream.name);
    }
}

#[test]
fn single_bytes_behind_much_text() {
    let Some(capture) = capture(&Options::of("bytes")) else { return };
    let stream = &capture.expected[0];
    let mut found = Vec::new();
    let mut skipped = 0;
    for (_, data) in capture.data(stream, Direction::Write) {
        assert_eq!(data.offset, found.len() as u64 + data.skipped);
        skipped = data.skipped;
        found.extend_from_slice(&data.bytes);
    }
    let text = stream.bytes.len() - traffic::MESSAGE.len();
    assert!(found.ends_with(traffic::MESSAGE));
    assert_eq!(found.len() + skipped as usize, stream.bytes.len());
    assert!(skipped as usize > text / 2, "only {skipped} of {text} ruled out");
    assert_eq!(capture.counters.soft_skip_bytes, skipped);
}

#[test]
fn two_readers_of_one_pipe_are_told_apart() {
    let Some(capture) = capture(&Options::of("readers")) else { return };
    json_once(&capture);
    let readers = capture.endpoints(&capture.expected[0], Direction::Read);
    let pids: HashSet<u32> = readers.iter().map(|r| r.0).collect();
    assert_eq!(pids.len(), 2, "{readers:?}");
    assert_eq!(readers.len(), 4, "{readers:?}");
    let line = traffic::MESSAGE.len() as u64;
    let offsets: Vec<u64> = readers.iter().map(|r| r.1).collect();
    assert_eq!(offsets, [0, line, 2 * line, 3 * line]);
}

#[test]
fn a_reused_inode_is_another_stream() {
    let Some(capture) = capture(&Options::of("fifos")) else { return };
    let nonces: HashSet<u64> = capture
        .records
        .iter()
        .filter_map(|r| match &r.body {
            RecordBody::Data(d) if d.written() && d.bytes == traffic::MESSAGE => {
                assert_eq!(d.offset, 0);
                Some(d.stream.nonce)
            }
            _ => None,
        })
        .collect();
    assert_eq!(nonces.len(), traffic::FIFOS);
}

#[test]
fn a_flood_of_pipes_does_not_evict_a_kept_stream() {
    let options = Options { keep: Some("kept"), ..Options::of("flood") };
    let Some(capture) = capture(&options) else { return };
    let stream = capture.expected.iter().find(|s| s.name == "kept").unwrap();
    assert!(capture.written(stream) == stream.bytes);
    let nonces: HashSet<u64> =
        capture.data(stream, Direction::Write).map(|(_, data)| data.stream.nonce).collect();
    assert_eq!(nonces.len(), 1);
    let totals: Vec<_> = capture.totals.iter().filter(|t| t.stream.ino == stream.ino).collect();
    assert_eq!(totals.len(), 2, "writer and reader: {totals:?}");
    for total in totals {
        assert_eq!(total.offset, stream.bytes.len() as u64, "{:?}", total.stream.direction);
    }
}

#[test]
fn a_peek_is_not_a_read() {
    // The writer is not in the watched tree, so the reader's bytes are copied.
    let Some(capture) = capture(&Options::of("peek")) else { return };
    let stream = &capture.expected[0];
    let copies: Vec<u8> = capture
        .data(stream, Direction::Read)
        .inspect(|(_, data)| assert!(data.reader_copy))
        .flat_map(|(_, data)| data.bytes.clone())
        .collect();
    assert_eq!(copies, stream.bytes);
}

#[test]
fn a_stream_that_is_ignored_shows_only_json() {
    let options = Options { ignore: Some("noise"), ..Options::of("ignored") };
    let Some(capture) = capture(&options) else { return };
    let stream = &capture.expected[0];
    let after: Vec<Vec<u8>> = capture
        .data(stream, Direction::Write)
        .map(|(_, data)| data.bytes.clone())
        .skip_while(|bytes| bytes != traffic::JUDGED)
        .skip(1)
        .collect();
    // The first call after the verdict is the one at which the kernel learns of it.
    assert_eq!(after, [traffic::MESSAGE.to_vec()]);
}

#[test]
fn ends_and_exit_codes_are_reported() {
    let Some(capture) = capture(&Options::of("calls")) else { return };
    let exits: Vec<Exit> = capture
        .records
        .iter()
        .filter_map(|r| match r.body {
            RecordBody::Exit(exit) if r.task.process.pid == capture.pid => Some(exit),
            _ => None,
        })
        .collect();
    assert_eq!(exits, [Exit::Code(0)]);
    let stream = capture.expected.iter().find(|s| s.name == "write").unwrap();
    let ends = capture
        .records
        .iter()
        .filter(|r| match r.body {
            RecordBody::End(fact) => fact.stream.ino == stream.ino,
            _ => false,
        })
        .count();
    assert_eq!(ends, 1);
}

#[test]
fn own_writes_are_never_captured() {
    let options = Options { whole_host: true, own_traffic: true, ..Options::of("calls") };
    let Some(capture) = capture(&options) else { return };
    json_once(&capture);
    let own = std::process::id();
    assert_eq!(capture.kernel_pid, own);
    for record in &capture.records {
        assert_ne!(record.task.process.pid, own, "{record:?}");
    }
}

#[test]
fn a_killed_monitor_leaves_nothing_in_the_kernel() {
    use std::time::{Duration, Instant};
    if skip() {
        return;
    }
    let (mut child, report) = traffic::spawn("monitor");
    let ids: Vec<u32> = loop {
        let text = std::fs::read_to_string(&report).unwrap_or_default();
        if let Some((ids, _)) = text.split_once('\n') {
            break ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        }
        assert!(child.try_wait().unwrap().is_none(), "the monitor ended");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(!ids.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    loop {
        let left = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| ids.contains(&program.id()))
            .count();
        if left == 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{left} programs left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_verdict_of_never_is_kept_at_both_ends() {
    let options = Options { never: true, ..Options::of("calls") };
    let Some(capture) = capture(&options) else { return };
    // The traffic's own standard output is the stream named in `never`.
    for record in &capture.records {
        if let RecordBody::Data(data) = &record.body {
            assert_ne!(Some(data.stream.ino), capture.never, "{record:?}");
        }
    }
}
