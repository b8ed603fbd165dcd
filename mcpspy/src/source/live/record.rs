//! From the kernel's records to the model's.

use std::collections::HashMap;
use std::sync::Arc;

use mcpspy_common::config::{StreamKey as RawKey, StreamState, state};
use mcpspy_common::decode::{RawBody, RawRecord};
use mcpspy_common::record::{
    CgroupBody, ExitBody, RecordHeader, StreamBody, carrier, direction, flags,
};

use crate::model::{
    Carrier, CgroupFact, Data, Direction, EndpointFact, Exit, ProcessId, Record, RecordBody,
    StreamKey, StreamRef, StreamTotal, Task, Timestamp,
};

/// Length of a tick of [`ProcessId::start`], ns: `/proc` counts in hundredths of a second
/// (`USER_HZ`).
const TICK: u64 = 10_000_000;

/// Names kept at once; as many different ones within one run are unusual.
const NAMES: usize = 4096;

/// Makes one `Arc` per name.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<[u8; 16], Arc<str>>,
}

impl Names {
    fn get(&mut self, comm: [u8; 16]) -> Arc<str> {
        if let Some(name) = self.known.get(&comm) {
            return Arc::clone(name);
        }
        if self.known.len() >= NAMES {
            self.known.clear();
        }
        let end = comm.iter().position(|b| *b == 0).unwrap_or(comm.len());
        let name: Arc<str> = String::from_utf8_lossy(&comm[..end]).into();
        self.known.insert(comm, Arc::clone(&name));
        name
    }
}

/// Converts a record; `None` where it names a carrier or direction that does not exist.
pub(super) fn convert(raw: &RawRecord<'_>, names: &mut Names) -> Option<Record> {
    let header = &raw.header;
    let body = match raw.body {
        RawBody::Data(body, bytes) => RecordBody::Data(Data {
            stream: stream(&body)?,
            offset: body.offset,
            skipped: body.skipped,
            call_len: body.call_len,
            call_offset: body.call_offset,
            reader_copy: header.flags & flags::READER_COPY != 0,
            bytes: if header.flags & flags::RELAY != 0 { first_line(bytes) } else { bytes }
                .to_vec(),
        }),
        RawBody::Endpoint(body) => RecordBody::Endpoint(fact(&body)?),
        RawBody::End(body) => RecordBody::End(fact(&body)?),
        RawBody::Exec => RecordBody::Exec,
        RawBody::Exit(body) => RecordBody::Exit(exit(body)),
        RawBody::Fork(body) => {
            RecordBody::Fork(ProcessId { pid: body.child, start: body.child_start / TICK })
        }
        RawBody::Cgroup(body) => {
            RecordBody::Cgroup(CgroupFact { id: header.cgroup, path: path(body) })
        }
    };
    Some(Record { at: Timestamp(header.at), task: task(header, names), body })
}

/// Of a relay's request to an engine only the first line says something of a stream; others may hold
/// what is nobody's business (the environment of a container, credentials of a registry). Nor is the
/// query of a request about anything else: it may have the arguments of a build, or a URL with a
/// password.
fn first_line(request: &[u8]) -> &[u8] {
    let end = request.iter().position(|byte| *byte == b'\r').unwrap_or_default();
    let line = &request[..end];
    let Some(target) = line.strip_prefix(b"POST ") else { return &[] };
    let path = target.split(|byte| matches!(byte, b'?' | b' ')).next().unwrap_or_default();
    let of_a_stream = ["/attach", "/start", "/exec"];
    if of_a_stream.iter().any(|end| path.ends_with(end.as_bytes())) {
        return line;
    }
    let query = line.iter().position(|byte| *byte == b'?');
    &line[..query.unwrap_or(line.len())]
}

fn task(header: &RecordHeader, names: &mut Names) -> Task {
    Task {
        process: ProcessId { pid: header.pid, start: header.start / TICK },
        tid: header.tid,
        ppid: header.ppid,
        uid: header.uid,
        cgroup: header.cgroup,
        comm: names.get(header.comm),
        relay: header.flags & flags::RELAY != 0,
    }
}

/// The names of a cgroup and of those above it, the root-most first.
fn path(body: &CgroupBody) -> Arc<str> {
    let names: Vec<_> = body
        .names
        .iter()
        .map(|name| name.split(|byte| *byte == 0).next().unwrap_or_default())
        .take_while(|name| !name.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    let names: Vec<&str> = names.iter().rev().map(AsRef::as_ref).collect();
    names.join("/").into()
}

fn exit(body: ExitBody) -> Exit {
    match (body.status & 0x7f) as u8 {
        0 => Exit::Code((body.status >> 8) as u8),
        signal => Exit::Signal(signal),
    }
}

fn fact(body: &StreamBody) -> Option<EndpointFact> {
    Some(EndpointFact { stream: stream(body)?, offset: body.offset })
}

fn stream(body: &StreamBody) -> Option<StreamRef> {
    Some(StreamRef {
        carrier: carrier_of(u32::from(body.carrier))?,
        dev: body.dev,
        ino: body.ino,
        peer: body.peer,
        direction: direction_of(u32::from(body.direction))?,
        nonce: body.nonce,
    })
}

/// Totals of a stream from its entry in the kernel's table; `None` for one that moved to the kept
/// streams at this moment.
pub(super) fn total(key: &RawKey, entry: &StreamState) -> Option<StreamTotal> {
    if entry.offset & state::MOVED != 0 {
        return None;
    }
    Some(StreamTotal {
        stream: StreamRef {
            carrier: carrier_of(entry.carrier)?,
            dev: key.dev,
            ino: key.ino,
            peer: entry.peer,
            direction: direction_of(key.direction)?,
            nonce: entry.nonce,
        },
        offset: entry.offset,
        skipped: entry.skipped,
    })
}

/// The kernel's key of a stream.
pub(super) fn raw_key(key: &StreamKey) -> RawKey {
    let direction = match key.direction {
        Direction::Write => direction::WRITE,
        Direction::Read => direction::READ,
    };
    RawKey { ino: key.ino, dev: key.dev, direction: u32::from(direction) }
}

fn carrier_of(value: u32) -> Option<Carrier> {
    match u8::try_from(value).ok()? {
        carrier::PIPE => Some(Carrier::Pipe),
        carrier::UNIX => Some(Carrier::Unix),
        _ => None,
    }
}

fn direction_of(value: u32) -> Option<Direction> {
    match u8::try_from(value).ok()? {
        direction::WRITE => Some(Direction::Write),
        direction::READ => Some(Direction::Read),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mcpspy_common::record::{CGROUP_LEVELS, CGROUP_NAME};

    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            start: 25_000_000,
            comm: *b"python3\0\0\0\0\0\0\0\0\0",
            ..Default::default()
        }
    }

    #[test]
    fn exit_status_is_a_code_or_a_signal() {
        let of = |status| exit(ExitBody { status, reserved: 0 });
        assert_eq!(of(3 << 8), Exit::Code(3));
        assert_eq!(of(9), Exit::Signal(9));
        assert_eq!(of(0x8b), Exit::Signal(11));
    }

    #[test]
    fn start_is_counted_as_proc_does() {
        let raw = RawRecord { header: header(), body: RawBody::Exec };
        let record = convert(&raw, &mut Names::default()).unwrap();
        assert_eq!(record.task.process.start, 2);
        assert_eq!(&*record.task.comm, "python3");
    }

    #[test]
    fn a_cgroup_is_named_from_the_root_on() {
        let of = |names: &[&str]| {
            let mut body = CgroupBody { names: [[0; CGROUP_NAME]; CGROUP_LEVELS] };
            for (to, name) in body.names.iter_mut().zip(names) {
                to[..name.len()].copy_from_slice(name.as_bytes());
            }
            let header = RecordHeader { cgroup: 7, flags: flags::RELAY, ..header() };
            let raw = RawRecord { header, body: RawBody::Cgroup(&body) };
            let record = convert(&raw, &mut Names::default()).unwrap();
            assert!(record.task.relay);
            match record.body {
                RecordBody::Cgroup(fact) => (fact.id, fact.path.to_string()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            of(&["docker-ab.scope", "system.slice"]),
            (7, "system.slice/docker-ab.scope".into())
        );
        assert_eq!(of(&["a", "b", "c", "d"]), (7, "d/c/b/a".into()));
        assert_eq!(of(&[]), (7, String::new()));
    }

    #[test]
    fn of_a_request_no_more_is_kept_than_streams_need() {
        let of = |text: &'static str| std::str::from_utf8(first_line(text.as_bytes())).unwrap();
        for line in [
            "POST /v1.41/containers/ab/attach?stdin=1&stream=1 HTTP/1.1",
            "POST /v1.41/exec/ab/start HTTP/1.1",
            "POST /containers/ab/exec HTTP/1.1",
            "POST /v1.41/auth HTTP/1.1",
        ] {
            let request = format!("{line}\r\nX-Registry-Auth: secret\r\n\r\n{{}}");
            assert_eq!(first_line(request.as_bytes()), line.as_bytes());
        }
        for (request, kept) in [
            ("POST /build?buildargs=%7B%22A%22%3A%22secret%22%7D HTTP/1.1\r\n", "POST /build"),
            ("POST /images/create?fromSrc=https://u:p@x/start HTTP/1.1\r\n", "POST /images/create"),
            ("POST /images/create?x=/exec HTTP/1.1\r\n", "POST /images/create"),
            ("POST /v1.41/exec/ab/start", ""),
            ("secret\r\nPOST /v1.41/exec/ab/start HTTP/1.1\r\n", ""),
            ("", ""),
        ] {
            assert_eq!(of(request), kept, "{request}");
        }
    }

    #[test]
    fn a_carrier_from_the_future_is_no_record() {
        let body = StreamBody { carrier: 77, ..Default::default() };
        let raw = RawRecord { header: header(), body: RawBody::End(body) };
        assert_eq!(convert(&raw, &mut Names::default()), None);
    }

    #[test]
    fn an_entry_that_moved_has_no_total() {
        let entry = StreamState {
            offset: state::MOVED | 5,
            carrier: u32::from(carrier::PIPE),
            ..Default::default()
        };
        assert_eq!(total(&RawKey::default(), &entry), None);
        let entry = StreamState { offset: 5, ..entry };
        assert_eq!(total(&RawKey::default(), &entry).map(|t| t.offset), Some(5));
    }
}
