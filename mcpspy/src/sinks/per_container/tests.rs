use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::sinks::{Limits, Payload, Queue, WhenFull, samples};

const OPTIONS: JsonlOptions =
    JsonlOptions { payload: Payload::Full, max_size: None, keep: 3, owner: None };

fn sink(pattern: &str, options: JsonlOptions) -> PerContainer {
    let run = RunInfo {
        run_id: "r".into(),
        host: "h".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let pattern = PathPattern::parse(Path::new(pattern)).unwrap().unwrap();
    PerContainer::create(pattern, &run, options, &[]).unwrap()
}

fn in_dir(dir: &TempDir, pattern: &str) -> PerContainer {
    sink(&format!("{}/{pattern}", dir.path().display()), OPTIONS)
}

/// An end in the container of this service, or in none.
fn end(service: &str) -> Endpoint {
    let mut end = samples::server();
    if !service.is_empty() {
        let service = Some(service.into());
        let container = ContainerInfo { service, ..(*samples::container()).clone() };
        end.container = Some(Arc::new(container));
    }
    end
}

fn message(seq: u64, client: &str, server: &str) -> Event {
    samples::wrap(seq, 0, samples::call_between(end(client), end(server)))
}

fn loss(seq: u64) -> Event {
    samples::at(seq, 0, samples::lost_in_queue())
}

/// Numbers of the events in each file below a directory; those of `lost` events are negative.
fn files(dir: &Path) -> BTreeMap<String, Vec<i64>> {
    fn walk(dir: &Path, root: &Path, out: &mut BTreeMap<String, Vec<i64>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, out);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let seqs = text.lines().map(|line| {
                let value: Value = serde_json::from_str(line).unwrap();
                let seq = value["seq"].as_i64().unwrap();
                if value["kind"] == "lost" { -seq } else { seq }
            });
            let name = path.strip_prefix(root).unwrap().display().to_string();
            out.insert(name, seqs.collect());
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

fn expect(dir: &TempDir, expected: &[(&str, &[i64])]) {
    let expected = expected.iter().map(|(name, seqs)| ((*name).to_owned(), seqs.to_vec()));
    assert_eq!(files(dir.path()), expected.collect());
}

#[test]
fn each_event_goes_to_the_file_of_its_server_else_of_its_client() {
    let dir = TempDir::new().unwrap();
    let mut sink = in_dir(&dir, "{project}/{service}.jsonl");
    sink.write(&samples::at(1, 0, samples::documented().remove(0).1.body)).unwrap();
    sink.write(&message(2, "", "inventory")).unwrap();
    sink.write(&message(3, "agent", "orders")).unwrap();
    sink.write(&message(4, "agent", "")).unwrap();
    sink.write(&message(5, "", "")).unwrap();
    sink.write(&loss(6)).unwrap();
    sink.write(&message(7, "", "late")).unwrap();
    let mut of_session = samples::lost_in_queue();
    if let EventBody::Lost(lost) = &mut of_session {
        lost.session = Some(samples::session_of(&end(""), &end("orders")));
    }
    sink.write(&samples::at(8, 0, of_session)).unwrap();
    sink.flush().unwrap();
    assert!(sink.take_lost().is_empty());
    expect(
        &dir,
        &[
            ("host/host.jsonl", &[1, 5, -6]),
            ("shop/agent.jsonl", &[4, -6]),
            ("shop/inventory.jsonl", &[2, -6]),
            ("shop/late.jsonl", &[7]),
            ("shop/orders.jsonl", &[3, -6, -8]),
        ],
    );
    let mode =
        |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("shop"), mode("shop/late.jsonl")), (0o700, 0o600));
}

#[test]
fn few_files_are_open_at_once_and_none_loses_anything() {
    let dir = TempDir::new().unwrap();
    let mut sink = in_dir(&dir, "{service}");
    for round in 0..3 {
        for n in 0..100 {
            sink.write(&message(round * 100 + n, "", &format!("s{n:02}"))).unwrap();
            assert!(sink.files.len() <= OPEN);
        }
    }
    sink.flush().unwrap();
    let files = files(dir.path());
    assert_eq!(files.len(), 100);
    assert!((0..100).all(|n| files[&format!("s{n:02}")] == [n, 100 + n, 200 + n]));
}

#[test]
fn a_file_that_fails_stops_no_other_and_says_what_it_missed() {
    let dir = TempDir::new().unwrap();
    // A directory stands where the file should be.
    fs::create_dir(dir.path().join("bad")).unwrap();
    let mut sink = in_dir(&dir, "{service}");
    for seq in 1..=6 {
        sink.write(&message(seq, "", if seq % 2 == 0 { "bad" } else { "good" })).unwrap();
    }
    sink.write(&loss(7)).unwrap();
    sink.flush().unwrap();
    assert_eq!(sink.take_lost(), [2, 4, 6], "the loss stands in other files");
    expect(&dir, &[("good", &[1, 3, 5, -7]), ("host", &[-7])]);
    fs::remove_dir(dir.path().join("bad")).unwrap();
    sink.reopen().unwrap();
    sink.write(&message(8, "", "bad")).unwrap();
    sink.flush().unwrap();
    assert!(sink.take_lost().is_empty());
    expect(&dir, &[("bad", &[-2, 8]), ("good", &[1, 3, 5, -7]), ("host", &[-7])]);
    let text = fs::read_to_string(dir.path().join("bad")).unwrap();
    let gap: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&gap["reason"], &gap["messages"]), (&"write_failed".into(), &3.into()));
}

#[test]
fn a_file_that_made_room_still_says_what_it_missed() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("bad")).unwrap();
    let mut sink = in_dir(&dir, "{service}");
    sink.open = 1;
    for (seq, service) in [(1, "bad"), (2, "good"), (3, "bad"), (4, "good")] {
        sink.write(&message(seq, "", service)).unwrap();
    }
    fs::remove_dir(dir.path().join("bad")).unwrap();
    sink.write(&message(5, "", "bad")).unwrap();
    sink.flush().unwrap();
    assert_eq!(sink.take_lost(), [1, 3]);
    expect(&dir, &[("bad", &[-1, 5]), ("good", &[2, 4])]);
    let text = fs::read_to_string(dir.path().join("bad")).unwrap();
    let gap: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(gap["messages"], 2);
}

#[test]
fn a_full_disk_is_counted_by_the_queue() {
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("full")).unwrap();
    let sink = in_dir(&dir, "{service}");
    let limits = Limits::default();
    let queue = Queue::spawn("x", Box::new(sink), WhenFull::Block, limits, || {}).unwrap();
    let events = (1..=100).map(|seq| message(seq, "", if seq % 4 == 0 { "full" } else { "good" }));
    queue.send_all(events.map(Arc::new));
    let report = queue.finish(Duration::from_secs(20));
    assert_eq!((report.delivered.messages, report.delivered.events), (75, 75));
    let dropped = report.dropped[DropReason::WriteFailed as usize].1;
    assert_eq!((dropped.messages, dropped.events), (25, 25));
    assert_eq!(fs::read_to_string(dir.path().join("good")).unwrap().lines().count(), 75);
}

#[test]
fn files_rotate_each_for_itself_and_move_with_logrotate() {
    let dir = TempDir::new().unwrap();
    let pattern = format!("{}/{{service}}", dir.path().display());
    let mut sink = sink(&pattern, JsonlOptions { max_size: Some(1), ..OPTIONS });
    for seq in 1..=3 {
        sink.write(&message(seq, "", "a")).unwrap();
    }
    sink.write(&message(4, "", "b")).unwrap();
    sink.flush().unwrap();
    expect(&dir, &[("a", &[3]), ("a.1", &[2]), ("a.2", &[1]), ("b", &[4])]);
    fs::rename(dir.path().join("b"), dir.path().join("old")).unwrap();
    sink.reopen().unwrap();
    sink.write(&message(5, "", "b")).unwrap();
    sink.flush().unwrap();
    assert_eq!(files(dir.path())["b"], [5]);
}

#[test]
fn the_directory_before_the_first_placeholder_must_be_there() {
    let run = RunInfo {
        run_id: "r".into(),
        host: "h".into(),
        host_given: false,
        version: "0.1.0",
        wall_offset_ns: samples::BOOT,
    };
    let pattern = PathPattern::parse(Path::new("/no/where/{id}")).unwrap().unwrap();
    let error = PerContainer::create(pattern, &run, OPTIONS, &[]).err().unwrap().to_string();
    assert_eq!(
        error,
        "cannot write to /no/where/{id}: /no/where: No such file or directory (os error 2)"
    );
}
