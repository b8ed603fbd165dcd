//! A scripted world: processes, pipes and socket pairs in virtual time, as the kernel would tell of
//! them. Tests say what happens; the script makes the inputs and runs the engine.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::sync::Arc;

use mcpspy::engine::{Engine, EngineConfig, Out};
use mcpspy::filter::ContainerFilter;
use mcpspy::model::{
    Carrier, CgroupFact, Command, ContainerId, ContainerInfo, Data, Direction, EndpointFact,
    EngineFact, Event, EventBody, Exit, FdFact, FdKind, Input, MessageEvent, ProcessFacts,
    ProcessId, Record, RecordBody, SessionEvent, StreamRef, Task, Timestamp,
};
use mcpspy::telemetry::{bytes_balance, messages_balance};

/// A millisecond of virtual time.
pub const MS: u64 = 1_000_000;

/// A pipe or one direction of a socket pair.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    carrier: Carrier,
    ino: u64,
    peer: u64,
    nonce: u64,
}

/// The world and the engine that watches it.
pub struct Script {
    engine: Engine,
    out: Out,
    now: u64,
    /// Events so far.
    pub events: Vec<Event>,
    /// Commands so far.
    pub commands: Vec<Command>,
    /// Inputs so far.
    pub inputs: Vec<Input>,
    written: HashMap<u64, u64>,
    read: HashMap<u64, u64>,
    last_ino: u64,
    /// Processes that only hand bytes on, and what they are called.
    relays: HashMap<u32, &'static str>,
    /// Processes in containers: the cgroup's id.
    cgroups: HashMap<u32, u64>,
}

impl Default for Script {
    fn default() -> Self {
        Self::new(EngineConfig::default())
    }
}

impl Script {
    pub fn new(config: EngineConfig) -> Self {
        Self {
            engine: Engine::new(config),
            out: Out::default(),
            now: 1_000 * MS,
            events: Vec::new(),
            commands: Vec::new(),
            inputs: Vec::new(),
            written: HashMap::new(),
            read: HashMap::new(),
            last_ino: 100,
            relays: HashMap::new(),
            cgroups: HashMap::new(),
        }
    }

    /// A world of which only some containers are wanted.
    pub fn filtered(filter: ContainerFilter) -> Self {
        let engine = Engine::new(EngineConfig::default()).with_containers(filter);
        Self { engine, ..Self::default() }
    }

    /// A new pipe.
    pub fn pipe(&mut self) -> Wire {
        self.last_ino += 1;
        Wire { carrier: Carrier::Pipe, ino: self.last_ino, peer: 0, nonce: self.now }
    }

    /// A new socket pair: both directions.
    pub fn socketpair(&mut self) -> (Wire, Wire) {
        self.last_ino += 2;
        let (a, b) = (self.last_ino - 1, self.last_ino);
        let wire = |ino, peer| Wire { carrier: Carrier::Unix, ino, peer, nonce: self.now };
        (wire(a, b), wire(b, a))
    }

    /// Lets time pass; deadlines that fall into it are ticked.
    pub fn wait(&mut self, ns: u64) {
        let until = self.now + ns;
        while let Some(Timestamp(at)) = self.engine.next_deadline() {
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            self.give(Input::Tick(Timestamp(self.now)));
        }
        self.now = until;
    }

    /// The inventory reads a process: its parent and its open pipes and sockets.
    pub fn facts(&mut self, pid: u32, parent: u32, fds: &[FdFact]) {
        self.facts_of(pid, parent, fds, false);
    }

    pub fn facts_of(&mut self, pid: u32, parent: u32, fds: &[FdFact], initial: bool) {
        let facts = ProcessFacts {
            at: Timestamp(self.now),
            id: process(pid),
            parent: (parent > 0).then(|| process(parent)),
            comm: self.relays.get(&pid).map_or_else(|| name(pid), |name| Arc::from(*name)),
            exe: format!("/bin/{}", name(pid)).into(),
            cmdline: name(pid),
            uid: Some(1000),
            fds: Some(fds.to_vec()),
            cgroup: None,
            initial,
        };
        self.give(Input::Process(facts));
    }

    /// A task writes.
    pub fn write(&mut self, pid: u32, wire: Wire, text: &str) {
        let data = self.written_data(wire, text.as_bytes());
        self.record(pid, RecordBody::Data(data));
    }

    /// Bytes are written, but the record of them is made later by the caller.
    pub fn written_data(&mut self, wire: Wire, bytes: &[u8]) -> Data {
        let offset = self.written.entry(wire.ino).or_default();
        let data = data(wire, Direction::Write, *offset, bytes);
        *offset += bytes.len() as u64;
        data
    }

    /// A task reads what a known writer wrote: only its place is told, when the reader is new.
    pub fn read(&mut self, pid: u32, wire: Wire) {
        let offset = self.written.get(&wire.ino).copied().unwrap_or_default();
        let known = self.read.insert(wire.ino, offset);
        let stream = reference(wire, Direction::Read);
        let fact = EndpointFact { stream, offset: known.unwrap_or_default() };
        self.record(pid, RecordBody::Endpoint(fact));
    }

    /// A task reads before its writer was seen: the bytes are copied.
    pub fn read_copy(&mut self, pid: u32, wire: Wire, text: &str) {
        let offset = self.read.entry(wire.ino).or_default();
        let mut data = data(wire, Direction::Read, *offset, text.as_bytes());
        data.reader_copy = true;
        *offset += text.len() as u64;
        self.record(pid, RecordBody::Data(data));
    }

    /// A task reads the end of the stream.
    pub fn end(&mut self, pid: u32, wire: Wire) {
        let offset = self.written.get(&wire.ino).copied().unwrap_or_default();
        let stream = reference(wire, Direction::Read);
        self.record(pid, RecordBody::End(EndpointFact { stream, offset }));
    }

    pub fn exit(&mut self, pid: u32, exit: Exit) {
        self.record(pid, RecordBody::Exit(exit));
    }

    pub fn record(&mut self, pid: u32, body: RecordBody) {
        self.record_at(self.now, pid, body);
        self.now += 10_000;
    }

    pub fn record_at(&mut self, at: u64, pid: u32, body: RecordBody) {
        let task = Task {
            process: process(pid),
            tid: pid,
            ppid: 1,
            uid: 1000,
            cgroup: self.cgroups.get(&pid).copied().unwrap_or(1),
            comm: self.relays.get(&pid).map_or_else(|| name(pid), |name| Arc::from(*name)),
            relay: self.relays.contains_key(&pid),
        };
        self.give(Input::Record(Record { at: Timestamp(at), task, body }));
    }

    pub fn give(&mut self, input: Input) {
        self.inputs.push(input.clone());
        self.engine.handle(input, &mut self.out);
        self.take();
    }

    /// The process only hands bytes on.
    pub fn relay(&mut self, pid: u32, name: &'static str) {
        self.relays.insert(pid, name);
    }

    /// A container starts: the kernel names its cgroup, and its first process runs a program in it.
    pub fn container(&mut self, n: u64, init: u32) -> ContainerId {
        let id = format!("{n:064x}");
        self.cgroups.insert(init, 1000 + n);
        let path = format!("system.slice/docker-{id}.scope").into();
        self.record(init, RecordBody::Cgroup(CgroupFact { id: 1000 + n, path }));
        self.record(init, RecordBody::Exec);
        ContainerId(id.into())
    }

    /// A process runs in the n-th container.
    pub fn inside(&mut self, n: u64, pid: u32) {
        self.cgroups.insert(pid, 1000 + n);
        self.record(pid, RecordBody::Exec);
    }

    /// The engine tells of a container.
    pub fn told(&mut self, id: &ContainerId, name: &str, init: u32) {
        let mut info = ContainerInfo::unnamed(id.clone(), "docker".into(), None);
        info.name = Some(name.into());
        let at = Timestamp(self.now);
        let fact = EngineFact::Container { at, info: Arc::new(info), init: Some(init) };
        self.give(Input::Engine(fact));
    }

    /// The engine answers.
    pub fn engine_is_there(&mut self) {
        let at = Timestamp(self.now);
        let engine = "unix:///run/docker.sock".into();
        self.give(Input::Engine(EngineFact::Connected { at, engine, containers: 0 }));
    }

    /// The engine tells of a process started in a container.
    pub fn exec(&mut self, n: u64, container: &ContainerId, pid: u32) {
        let at = Timestamp(self.now);
        let (id, container) = (format!("{n:064x}").into(), container.clone());
        self.give(Input::Engine(EngineFact::Exec { at, id, container, pid }));
    }

    /// A relay at the writing end: its bytes are not copied, they are counted all the same.
    pub fn relays_to(&mut self, pid: u32, wire: Wire) {
        let stream = reference(wire, Direction::Write);
        self.record(pid, RecordBody::Endpoint(EndpointFact { stream, offset: 0 }));
    }

    /// Ends the run. Both ledgers must hold.
    pub fn finish(&mut self) {
        self.engine.finish(Timestamp(self.now), &mut self.out);
        self.take();
        let counters = self.engine.telemetry();
        for balance in bytes_balance(None, counters) {
            assert!(balance.holds(), "{balance}");
        }
        for balance in messages_balance(counters, &[]) {
            assert!(balance.holds(), "{balance}");
        }
        for (index, event) in self.events.iter().enumerate() {
            assert_eq!(event.seq, index as u64 + 1, "sequence has a hole");
        }
    }

    pub fn counter(&self, counter: mcpspy::telemetry::Counter) -> u64 {
        self.engine.telemetry().get(counter)
    }

    fn take(&mut self) {
        self.events.append(&mut self.out.events);
        self.commands.append(&mut self.out.commands);
    }

    pub fn messages(&self) -> impl Iterator<Item = &MessageEvent> {
        self.events.iter().filter_map(|event| match &event.body {
            EventBody::Message(message) => Some(&**message),
            _ => None,
        })
    }

    pub fn sessions(&self) -> impl Iterator<Item = &SessionEvent> {
        self.events.iter().filter_map(|event| match &event.body {
            EventBody::Session(session) => Some(&**session),
            _ => None,
        })
    }

    /// Messages, each as `from>to method#id`, a response as `from>to =method#id` or `=?#id`.
    pub fn lines(&self) -> Vec<String> {
        self.messages().map(line).collect()
    }
}

/// See [`Script::lines`].
pub fn line(event: &MessageEvent) -> String {
    let end = |end: &mcpspy::model::Endpoint| {
        end.process.as_ref().map_or("?".to_owned(), |process| process.id.pid.to_string())
    };
    let id = match &event.message.id {
        Some(mcpspy::model::RequestId::Integer(id)) => format!("#{id}"),
        Some(other) => format!("#{other:?}"),
        None => String::new(),
    };
    let method = match (&event.message.method, &event.request) {
        (Some(method), _) => method.to_string(),
        (None, Some(request)) => format!("={}", request.method),
        (None, None) => "=?".to_owned(),
    };
    format!("{}>{} {method}{id}", end(&event.from), end(&event.to))
}

pub fn process(pid: u32) -> ProcessId {
    ProcessId { pid, start: 1 }
}

fn name(pid: u32) -> Arc<str> {
    format!("p{pid}").into()
}

pub fn reference(wire: Wire, direction: Direction) -> StreamRef {
    let (ino, peer) = match (wire.carrier, direction) {
        (Carrier::Unix, Direction::Read) => (wire.peer, wire.ino),
        _ => (wire.ino, wire.peer),
    };
    StreamRef { carrier: wire.carrier, dev: 13, ino, peer, direction, nonce: wire.nonce }
}

fn data(wire: Wire, direction: Direction, offset: u64, bytes: &[u8]) -> Data {
    Data {
        stream: reference(wire, direction),
        offset,
        skipped: 0,
        call_len: bytes.len() as u64,
        call_offset: 0,
        reader_copy: false,
        bytes: bytes.to_vec(),
    }
}

/// The read or write end of a pipe in a table of files.
pub fn fd(wire: Wire, readable: bool) -> FdFact {
    let kind = match wire.carrier {
        Carrier::Pipe => FdKind::Pipe,
        Carrier::Unix => FdKind::Socket,
    };
    let socket = kind == FdKind::Socket;
    FdFact {
        kind,
        dev: 13,
        ino: wire.ino,
        readable: readable || socket,
        writable: !readable || socket,
    }
}

/// Client 10 and server 20 with a pipe each way, both read by the inventory.
pub fn client_and_server(script: &mut Script) -> (Wire, Wire) {
    let (to_server, to_client) = (script.pipe(), script.pipe());
    script.facts(10, 1, &[fd(to_server, false), fd(to_client, true)]);
    script.facts(20, 10, &[fd(to_server, true), fd(to_client, false)]);
    (to_server, to_client)
}

pub fn request(id: i64, method: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\",\"params\":{{}}}}\n")
}

pub fn response(id: i64) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n")
}

pub fn notification(method: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\"}}\n")
}
