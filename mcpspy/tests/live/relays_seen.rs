//! What is seen of programs that only hand bytes on, and of cgroups.

use mcpspy::model::{Direction, RecordBody};

use crate::capture::{Capture, Options, backends, capture};
use crate::relays::{HEADS, REQUEST, SCOPE, call};
use crate::traffic::MESSAGE;

const LENGTH: u64 = MESSAGE.len() as u64;

/// The relay was seen at both its ends, and none of its bytes.
fn ends_without_bytes(capture: &Capture, relay: u32) {
    let of_relay = || capture.records.iter().filter(|r| r.task.process.pid == relay);
    for (name, direction) in [("in", Direction::Read), ("out", Direction::Write)] {
        let ends = capture.endpoints(capture.stream(name), direction);
        assert_eq!(ends.len(), 1, "{name}: {ends:?}");
        assert_eq!(ends[0].0, relay, "{name}");
    }
    for record in of_relay() {
        assert!(!matches!(record.body, RecordBody::Data(_)), "{record:?}");
        if matches!(record.body, RecordBody::Endpoint(_) | RecordBody::Exit(_)) {
            assert!(record.task.relay, "{record:?}");
        }
    }
    assert!(of_relay().any(|r| matches!(r.body, RecordBody::Exec) && r.task.relay) || relay == 0);
}

fn seen_behind(scenario: &'static str) {
    for backend in backends() {
        let Some(capture) = capture(&Options { backend, ..Options::of(scenario) }) else { return };
        let relay = u32::try_from(capture.told("child")).unwrap();
        ends_without_bytes(&capture, relay);
        let (sent, got) = (capture.stream("in"), capture.stream("out"));
        assert!(capture.written(sent) == sent.bytes);
        assert_eq!(capture.reader_copies(sent), 0);
        assert_eq!(capture.read(got.ino), (0, got.bytes.clone()));
        // A read whose writer is copied needs no copy, whoever reads.
        assert!(capture.counters.muted_bytes >= got.bytes.len() as u64);
        assert_eq!(capture.malformed, 0);
    }
}

#[test]
fn the_reader_behind_a_relay_is_copied() {
    seen_behind("relay");
}

#[test]
fn the_reader_of_a_mebibyte_behind_a_relay_is_copied() {
    let Some(capture) = capture(&Options::of("relay-large")) else { return };
    let relay = u32::try_from(capture.told("child")).unwrap();
    ends_without_bytes(&capture, relay);
    let (sent, got) = (capture.stream("in"), capture.stream("out"));
    assert!(capture.written(sent) == sent.bytes);
    assert!(capture.read(got.ino) == (0, got.bytes.clone()));
}

#[test]
fn a_process_becomes_a_relay() {
    let Some(capture) = capture(&Options::of("relay-by-exec")) else { return };
    let got = capture.stream("out");
    // The shell's message is copied where it is written, the other one where it is read.
    let written: Vec<u8> = capture
        .data(got, Direction::Write)
        .inspect(|(record, _)| assert!(!record.task.relay))
        .flat_map(|(_, data)| data.bytes.clone())
        .collect();
    assert_eq!(written, MESSAGE);
    let copies: Vec<_> = capture.data(got, Direction::Read).collect();
    let (_, last) = copies.last().unwrap();
    assert!(last.reader_copy);
    assert_eq!((last.offset, &last.bytes[..]), (LENGTH, MESSAGE));
    // What the reader did not copy is no hole: it was copied by the writer, or here.
    let before: usize = copies[..copies.len() - 1].iter().map(|(_, data)| data.bytes.len()).sum();
    assert!(last.skipped + before as u64 >= last.offset, "{last:?}");
}

#[test]
fn a_relay_that_runs_already_is_known() {
    let options = Options { early: true, whole_host: true, ..Options::of("relay-early") };
    let Some(capture) = capture(&options) else { return };
    let relay = u32::try_from(capture.told("child")).unwrap();
    let seen: Vec<_> = capture.records.iter().filter(|r| r.task.process.pid == relay).collect();
    assert!(!seen.is_empty());
    for record in seen {
        assert!(record.task.relay, "{record:?}");
        assert!(!matches!(record.body, RecordBody::Data(_)), "{record:?}");
    }
    let got = capture.stream("out");
    assert_eq!(capture.read(got.ino), (0, got.bytes.clone()));
}

#[test]
fn what_a_relay_asks_of_an_engine_is_copied() {
    let Some(capture) = capture(&Options::of("relay-request")) else { return };
    let socket = capture.stream("socket");
    let asked: Vec<u8> = capture
        .data(socket, Direction::Write)
        .inspect(|(record, _)| assert!(record.task.relay))
        .flat_map(|(_, data)| data.bytes.clone())
        .collect();
    // Of the request only its first line is handed on.
    let line = REQUEST.split(|byte| *byte == b'\r').next().unwrap();
    assert_eq!(asked, line);
    let (start, copies) = capture.read(socket.ino);
    assert_eq!(start, 0);
    assert_eq!(copies, [REQUEST, MESSAGE].concat());
}

#[test]
fn a_socket_to_an_engine_is_looked_at_more_closely() {
    let Some(capture) = capture(&Options::of("sniff")) else { return };
    let socket = capture.stream("socket");
    let copied: Vec<Vec<u8>> =
        capture.data(socket, Direction::Write).map(|(_, data)| data.bytes.clone()).collect();
    let expected: Vec<Vec<u8>> =
        HEADS.iter().filter(|(_, copied)| *copied).map(|(head, _)| call(head)).collect();
    assert!(copied == expected, "{} of {}", copied.len(), expected.len());
}

#[test]
fn a_cgroup_that_is_left_out_is_not_copied() {
    let Some(capture) = capture(&Options { mute: true, ..Options::of("muted") }) else { return };
    let got = capture.stream("out");
    let written: Vec<_> = capture.data(got, Direction::Write).map(|(_, data)| data).collect();
    // Only what came after the cgroup was taken in again; what came before is no hole.
    assert_eq!(written.len(), 1);
    let (offset, skipped) = (written[0].offset, written[0].skipped);
    assert_eq!((offset, skipped, &written[0].bytes[..]), (LENGTH, LENGTH, MESSAGE));
    let (start, copies) = capture.read(got.ino);
    assert_eq!(start, 0);
    assert!(copies.starts_with(MESSAGE));
    let child = u32::try_from(capture.told("child")).unwrap();
    let ends = capture.endpoints(got, Direction::Write);
    assert_eq!(ends, [(child, 0)]);
}

#[test]
fn a_cgroup_is_named_however_short_it_lives() {
    for backend in backends() {
        let Some(capture) = capture(&Options { backend, ..Options::of("short-lived") }) else {
            return;
        };
        let group = capture.told("group");
        if group == 0 {
            println!("skipped: no cgroup v2 tree that may be changed");
            return;
        }
        let path = capture.records.iter().find_map(|record| match &record.body {
            RecordBody::Cgroup(fact) if fact.id == group => Some(fact.path.to_string()),
            _ => None,
        });
        assert_eq!(path, Some(format!("mcpspy-{}.slice/{SCOPE}", capture.pid)));
    }
}
