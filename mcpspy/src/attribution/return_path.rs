//! Whether a stream can belong to a session: a session has a way back.
//!
//! The reader of a session's stream, or a process below it, also writes to something that the
//! stream's writer, or a process below it, reads. `cat trace.jsonl | jq .` has no such way, however
//! much its bytes look like MCP.

use super::Registry;
use crate::model::{Carrier, FdFact, FdKind, ProcessId, StreamId};

/// What the open files of both sides say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnPath {
    /// There is one.
    Exists,
    /// There is none: the stream only flows one way.
    None,
    /// Not known yet, or not to be known from open files (which socket is whose peer is not in
    /// `/proc`).
    Unknown,
}

/// Looks for a way back from the readers of `stream` to its writers.
pub fn return_path(
    registry: &Registry,
    stream: StreamId,
    writer: Option<ProcessId>,
    reader: Option<ProcessId>,
) -> ReturnPath {
    let Some(writer) = writer else { return ReturnPath::Unknown };
    if reader == Some(writer) {
        // A process that talks to itself: nobody else is involved.
        return ReturnPath::None;
    }
    let is_this = |fd: &FdFact| fd.dev == stream.dev && fd.ino == stream.ino;
    // A table that lacks the stream itself was read before it was opened.
    let fresh = |fds: &[FdFact]| stream.carrier != Carrier::Pipe || fds.iter().any(is_this);
    let (listening, listening_known) = open(registry, writer, fresh, |fd| fd.readable);
    let Some(reader) = reader else {
        let nobody = listening_known && listening.is_empty();
        return if nobody { ReturnPath::None } else { ReturnPath::Unknown };
    };
    let (answering, answering_known) = open(registry, reader, fresh, |fd| fd.writable);
    let shared = answering
        .iter()
        .filter(|fd| fd.kind == FdKind::Pipe && !is_this(fd))
        .any(|fd| listening.iter().any(|other| (other.dev, other.ino) == (fd.dev, fd.ino)));
    if shared {
        return ReturnPath::Exists;
    }
    if listening_known && listening.is_empty() {
        // Nobody is left, or nobody was ever there, to hear an answer.
        return ReturnPath::None;
    }
    if !listening_known || !answering_known {
        return ReturnPath::Unknown;
    }
    // Two sockets may be each other's peers, the same socket held twice (an inherited standard
    // error) is not its own.
    let may_be_peers = answering.iter().filter(|fd| fd.kind == FdKind::Socket).any(|fd| {
        listening
            .iter()
            .any(|other| other.kind == FdKind::Socket && (other.dev, other.ino) != (fd.dev, fd.ino))
    });
    if may_be_peers { ReturnPath::Unknown } else { ReturnPath::None }
}

/// The files of a process and those below it that pass `wanted`, and whether all tables are known
/// and that of the process itself is `fresh`. A process that ended has no open files.
fn open(
    registry: &Registry,
    root: ProcessId,
    fresh: impl Fn(&[FdFact]) -> bool,
    wanted: impl Fn(&FdFact) -> bool,
) -> (Vec<FdFact>, bool) {
    let mut files = Vec::new();
    let mut known = true;
    for process in registry.tree(root) {
        if registry.exited(process).is_some() {
            continue;
        }
        match registry.fds(process) {
            Some(fds) => {
                known &= process != root || fresh(fds);
                files.extend(fds.iter().filter(|fd| wanted(fd)).copied());
            }
            None => known = false,
        }
    }
    (files, known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Exit, ProcessFacts, Task, Timestamp};

    const STREAM: StreamId = StreamId { carrier: Carrier::Pipe, dev: 13, ino: 100 };

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, start: 1 }
    }

    fn pipe(ino: u64, readable: bool) -> FdFact {
        FdFact { kind: FdKind::Pipe, dev: 13, ino, readable, writable: !readable }
    }

    fn socket(ino: u64) -> FdFact {
        FdFact { kind: FdKind::Socket, dev: 9, ino, readable: true, writable: true }
    }

    fn know(registry: &mut Registry, pid: u32, parent: u32, fds: &[FdFact]) {
        registry.facts(ProcessFacts {
            at: Timestamp(1),
            id: id(pid),
            parent: Some(id(parent)),
            comm: "x".into(),
            exe: "/x".into(),
            cmdline: "".into(),
            uid: None,
            fds: Some(fds.to_vec()),
            cgroup: None,
            initial: false,
        });
    }

    #[test]
    fn a_second_pipe_back_is_a_way() {
        let mut registry = Registry::default();
        know(&mut registry, 1, 0, &[pipe(100, false), pipe(101, true)]);
        know(&mut registry, 2, 1, &[pipe(100, true), pipe(101, false)]);
        let found = return_path(&registry, STREAM, Some(id(1)), Some(id(2)));
        assert_eq!(found, ReturnPath::Exists);
    }

    #[test]
    fn a_process_below_may_listen() {
        let mut registry = Registry::default();
        know(&mut registry, 1, 0, &[pipe(100, false)]);
        know(&mut registry, 3, 1, &[pipe(101, true)]);
        know(&mut registry, 2, 0, &[pipe(100, true), pipe(101, false)]);
        let found = return_path(&registry, STREAM, Some(id(1)), Some(id(2)));
        assert_eq!(found, ReturnPath::Exists);
    }

    #[test]
    fn a_process_above_does_not_count() {
        // A test runner that reads what `jq` prints is the parent of `cat`, not its listener.
        let mut registry = Registry::default();
        know(&mut registry, 9, 0, &[pipe(101, true)]);
        know(&mut registry, 1, 9, &[pipe(100, false)]);
        know(&mut registry, 2, 9, &[pipe(100, true), pipe(101, false)]);
        let found = return_path(&registry, STREAM, Some(id(1)), Some(id(2)));
        assert_eq!(found, ReturnPath::None);
    }

    #[test]
    fn a_table_from_before_the_stream_proves_nothing() {
        let mut registry = Registry::default();
        know(&mut registry, 1, 0, &[pipe(50, true)]);
        know(&mut registry, 2, 0, &[pipe(100, true), pipe(101, false)]);
        let found = return_path(&registry, STREAM, Some(id(1)), Some(id(2)));
        assert_eq!(found, ReturnPath::Unknown);
    }

    #[test]
    fn a_writer_that_ended_listens_to_nobody() {
        let mut registry = Registry::default();
        let cat = Task {
            process: id(1),
            tid: 1,
            ppid: 9,
            uid: 0,
            cgroup: 1,
            comm: "cat".into(),
            relay: false,
        };
        registry.on_stream(&cat, Timestamp(1));
        let ask = |registry: &Registry| return_path(registry, STREAM, Some(id(1)), Some(id(2)));
        assert_eq!(ask(&registry), ReturnPath::Unknown);
        registry.exit(&cat, Exit::Code(0), Timestamp(2));
        assert_eq!(ask(&registry), ReturnPath::None);
    }

    #[test]
    fn sockets_cannot_be_told_apart_but_one_is_not_its_own_peer() {
        let mut registry = Registry::default();
        know(&mut registry, 1, 0, &[pipe(100, false), socket(7)]);
        know(&mut registry, 2, 0, &[pipe(100, true), socket(7)]);
        know(&mut registry, 3, 0, &[pipe(100, true), socket(8)]);
        let ask = |reader| return_path(&registry, STREAM, Some(id(1)), Some(id(reader)));
        assert_eq!(ask(2), ReturnPath::None);
        assert_eq!(ask(3), ReturnPath::Unknown);
    }
}
