use std::sync::Arc;

use super::*;
use crate::model::{
    Carrier, ContainerId, ContainerInfo, Direction, EngineFact, Exit, FdFact, FdKind,
    KernelCounters, ProcessFacts,
};
use crate::recording::Writer;

fn header() -> Header {
    Header {
        version: "9.8.7".to_owned(),
        kernel: "6.18.0".to_owned(),
        host: "h\u{e9}".to_owned(),
        wall_offset_ns: -5,
        max_message: 16 << 20,
        oneway: true,
        ..Header::default()
    }
}

fn task(pid: u32) -> Task {
    Task {
        process: ProcessId { pid, start: u64::MAX },
        tid: pid + 1,
        ppid: 1,
        uid: 1000,
        cgroup: 77,
        comm: "py\"th\non".into(),
        relay: pid == 3,
    }
}

fn stream(ino: u64, direction: Direction) -> StreamRef {
    let (carrier, peer) =
        if ino.is_multiple_of(2) { (Carrier::Pipe, 0) } else { (Carrier::Unix, ino + 1) };
    StreamRef { carrier, dev: 12, ino, peer, direction, nonce: 99 }
}

fn record(at: u64, pid: u32, body: RecordBody) -> Input {
    Input::Record(Record { at: Timestamp(at), task: task(pid), body })
}

fn data_of(ino: u64, bytes: &[u8]) -> RecordBody {
    RecordBody::Data(Data {
        stream: stream(ino, Direction::Write),
        offset: 7,
        skipped: 0,
        call_len: bytes.len() as u64,
        call_offset: 0,
        reader_copy: false,
        bytes: bytes.to_vec(),
    })
}

/// One input of every kind.
fn inputs() -> Vec<Input> {
    let fact = EndpointFact { stream: stream(5, Direction::Read), offset: 3 };
    let facts = ProcessFacts {
        at: Timestamp(4),
        id: ProcessId { pid: 3, start: 4 },
        parent: Some(ProcessId { pid: 1, start: 0 }),
        comm: Arc::from("sh"),
        exe: Arc::from("/bin/sh"),
        cmdline: Arc::from("sh -c 'x'"),
        uid: None,
        fds: Some(vec![
            FdFact { kind: FdKind::Pipe, dev: 1, ino: 2, readable: true, writable: false },
            FdFact { kind: FdKind::Socket, dev: 1, ino: 3, readable: true, writable: true },
        ]),
        cgroup: Some(Arc::from("/docker/0123")),
        initial: true,
    };
    let bare = ProcessFacts {
        parent: None,
        uid: Some(0),
        fds: None,
        cgroup: None,
        initial: false,
        ..facts.clone()
    };
    let total = StreamTotal { stream: stream(8, Direction::Write), offset: u64::MAX, skipped: 1 };
    let counters = KernelCounters { records: 1, unseen_calls: u64::MAX, ..Default::default() };
    let partial = RecordBody::Data(Data {
        stream: stream(6, Direction::Read),
        offset: 1 << 40,
        skipped: 9,
        call_len: 100_000,
        call_offset: 32768,
        reader_copy: true,
        bytes: b"\x80\x00half".to_vec(),
    });
    let engine = || Arc::from("unix:///var/run/docker.sock");
    let outer = ContainerId("ef".repeat(32).into());
    let unnamed = ContainerInfo::unnamed(outer.clone(), "".into(), None);
    let named = ContainerInfo {
        outer: Some(outer),
        runtime: "docker".into(),
        name: Some("s\u{e9}rv".into()),
        image: Some("img:1".into()),
        image_digest: Some("sha256:00".into()),
        project: Some("p".into()),
        service: Some("s".into()),
        labels: Arc::from([("A".into(), "".into()), ("a.b".into(), "x=\"y\"\n".into())]),
        host: Some("h".into()),
        ..unnamed.clone()
    };
    let (named, unnamed) = (Arc::new(named), Arc::new(unnamed));
    vec![
        record(1, 10, data_of(4, "{\"a\":\"\u{e9}\\n\"}\r\n\0".as_bytes())),
        record(2, 11, partial),
        record(2, 10, data_of(4, b"")),
        record(3, 10, RecordBody::Endpoint(fact)),
        record(3, 10, RecordBody::End(fact)),
        record(4, 10, RecordBody::Exec),
        record(5, 10, RecordBody::Exit(Exit::Code(3))),
        record(5, 11, RecordBody::Exit(Exit::Signal(9))),
        record(6, 10, RecordBody::Fork(ProcessId { pid: 12, start: 13 })),
        Input::Loss(Loss::Counters { at: Timestamp(7), counters }),
        Input::Loss(Loss::Stream { at: Timestamp(8), total }),
        Input::Process(facts),
        Input::Process(bare),
        record(9, 3, RecordBody::Cgroup(CgroupFact { id: u64::MAX, path: "a/\"b".into() })),
        Input::Engine(EngineFact::Connected { at: Timestamp(9), engine: engine(), containers: 2 }),
        Input::Engine(EngineFact::Container { at: Timestamp(10), info: named, init: Some(77) }),
        Input::Engine(EngineFact::Container { at: Timestamp(10), info: unnamed, init: None }),
        Input::Engine(EngineFact::Exec {
            at: Timestamp(11),
            id: "ab".repeat(32).into(),
            container: ContainerId("cd".repeat(32).into()),
            pid: 78,
        }),
        Input::Engine(EngineFact::Asked { at: Timestamp(12), engine: engine() }),
        Input::Engine(EngineFact::Lost { at: Timestamp(12), engine: engine() }),
        Input::Tick(Timestamp(u64::MAX)),
    ]
}

fn write(header: &Header, inputs: &[Input]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file, header).unwrap();
    for input in inputs {
        writer.input(input).unwrap();
    }
    file
}

fn read(file: &[u8]) -> (Vec<Input>, Option<ReadError>) {
    let (mut inputs, mut error) = (Vec::new(), None);
    match Reader::new(file) {
        Ok((_, reader)) => {
            for input in reader {
                match input {
                    Ok(input) => inputs.push(input),
                    Err(fault) => error = Some(fault),
                }
            }
        }
        Err(fault) => error = Some(fault),
    }
    (inputs, error)
}

#[test]
fn what_is_written_is_read() {
    let file = write(&header(), &inputs());
    let (read_header, reader) = Reader::new(file.as_slice()).unwrap();
    assert_eq!(read_header, header());
    assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), inputs());
}

#[test]
fn more_tasks_and_streams_than_numbers() {
    let many: Vec<_> = (0..3 * SLOTS)
        .map(|pid| record(1, pid % (2 * SLOTS), data_of(u64::from(pid), b"x")))
        .collect();
    assert_eq!(read(&write(&header(), &many)).0, many);
}

#[test]
fn a_line_costs_little_more_than_its_payload() {
    let many = vec![record(1 << 50, 10, data_of(4, &[b'x'; 300])); 1000];
    assert!(write(&header(), &many).len() < 1000 * (300 + 100));
}

#[test]
fn a_cut_file_gives_what_is_whole_and_names_the_line() {
    let file = write(&header(), &inputs());
    for end in 1..file.len() {
        let (found, error) = read(&file[..end]);
        assert_eq!(found, inputs()[..found.len()], "{end}");
        let ends = file[end - 1] == b'\n' || file[end] == b'\n';
        match error {
            None => assert!(ends, "{end}"),
            Some(error) => {
                let lines = file[..end].split(|byte| *byte == b'\n').count() as u64;
                assert!(!ends && error.line == lines, "{end}: {error}");
                assert!(matches!(error.reason, Reason::Cut | Reason::NoHeader), "{error}");
            }
        }
    }
}

#[test]
fn errors_say_where_and_why() {
    let start = String::from_utf8(write(&header(), &[])).unwrap();
    for (file, expected) in [
        (String::new(), "line 1: not a recording"),
        ("{\"kind\":\"message\"}\n".to_owned(), "line 1: not a recording"),
        ("{\"mcpcap\":2}\n".to_owned(), "line 1: the recording has format 2"),
        ("{\"mcpcap\":1,\"oneway\":7}\n".to_owned(), "line 1: not a valid header"),
        (
            format!("{start}{{\"ti\u{202e}ck\":{{}}}}\n"),
            "line 2: unknown input `ti\u{202e}ck`: the recording was written by mcpspy 9.8.7",
        ),
        (format!("{start}\n\n{{\"tick\":{{}}}}\n"), "line 4: missing field `at`"),
        (format!("{start}{{\"tick\":5}}\n"), "line 2: invalid type"),
        (format!("{start}{{\"exec\":{{\"at\":1,\"t\":0}}}}\n"), "line 2: task 0 was not"),
        (format!("{start}garbage\n"), "line 2: expected value"),
        (format!("{start}garbage"), "line 2: cut off"),
    ] {
        let (found, error) = read(file.as_bytes());
        assert_eq!(found, []);
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with(expected), "{file}: {error}");
    }
    let missing = Reader::open(Path::new("/no/such.mcpcap")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot be read: No such file"), "{missing}");
}

#[test]
fn too_long_a_line_is_refused() {
    let start = write(&header(), &[]);
    let endless = start.as_slice().chain(io::repeat(b' '));
    let (_, mut reader) = Reader::new(BufReader::new(endless)).unwrap();
    assert!(matches!(reader.next(), Some(Err(ReadError { line: 2, reason: Reason::TooLong }))));
    assert!(reader.next().is_none());
}

#[test]
fn changed_bytes_never_panic() {
    let file = write(&header(), &inputs());
    for place in (0..file.len()).step_by(5) {
        for byte in *b"\"{}[]:,\n9-\\\xff" {
            let mut changed = file.clone();
            changed[place] = byte;
            let _read = read(&changed);
        }
        let mut changed = file.clone();
        changed.remove(place);
        let _read = read(&changed);
    }
}

#[test]
fn credentials_are_masked_across_records() {
    let masked = Header { masked: true, ..header() };
    let pieces: [&[u8]; 3] = [b"GET / HTTP/1.1\r\nAuthor", b"ization: Bearer s", b"ecret\r\nA: b"];
    let mut offset = 0;
    let inputs: Vec<_> = pieces
        .iter()
        .map(|piece| {
            let body = RecordBody::Data(Data {
                stream: stream(4, Direction::Write),
                offset,
                skipped: 0,
                call_len: 100,
                call_offset: offset,
                reader_copy: false,
                bytes: piece.to_vec(),
            });
            offset += piece.len() as u64;
            record(1, 1, body)
        })
        .collect();
    let mut payload = Vec::new();
    for input in read(&write(&masked, &inputs)).0 {
        if let Input::Record(Record { body: RecordBody::Data(data), .. }) = input {
            payload.extend(data.bytes);
        }
    }
    let expected: &[u8] = b"GET / HTTP/1.1\r\nAuthorization: ****** ******\r\nA: b";
    assert_eq!(payload, expected);
    assert_eq!(read(&write(&header(), &inputs)).0, inputs);
}

#[test]
fn labels_are_sorted_whatever_the_file_says() {
    let mut file = write(&header(), &[]);
    file.extend(
        br#"{"container":{"at":1,"id":"a","runtime":"","labels":{"b":"2","a":"1","b":"3"}}}"#,
    );
    file.push(b'\n');
    let (inputs, error) = read(&file);
    assert!(error.is_none());
    let [Input::Engine(EngineFact::Container { info, .. })] = inputs.as_slice() else {
        panic!("{inputs:?}")
    };
    assert_eq!((info.label("a"), info.label("b"), info.labels.len()), (Some("1"), Some("3"), 2));
}

#[test]
fn every_kind_is_known_by_its_name() {
    let file = String::from_utf8(write(&header(), &inputs())).unwrap();
    let mut found: Vec<_> =
        file.lines().skip(1).map(|line| line.split('"').nth(1).unwrap_or_default()).collect();
    found.sort_unstable();
    found.dedup();
    let mut known = KINDS;
    known.sort_unstable();
    assert_eq!(found, known);
}
