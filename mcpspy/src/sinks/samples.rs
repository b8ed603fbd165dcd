//! Events of every kind and shape, for tests. Also used by `tests/events_schema.rs`, which includes
//! this file: so it names `crate::model` only.

use std::ops::Range;
use std::sync::Arc;

use crate::model::{
    Anomaly, Carrier, CloseCause, ContainerId, ContainerInfo, Endpoint, Event, EventBody, Exit,
    Finding, KernelCounters, Lost, LostStage, Message, MessageEvent, MessageKind, Outcome, Peer,
    ProcessId, ProcessInfo, Quality, RequestId, RequestRef, SessionChange, SessionEvent,
    SessionInfo, Severity, Status, Target, Timestamp, Transport,
};

/// Wall clock minus boot clock of the samples: boot was at 2026-03-01T00:00:00Z.
pub(crate) const BOOT: i64 = 1_772_323_200_000_000_000;

const MS: u64 = 1_000_000;
/// 12:34:56.789 after boot.
const T0: u64 = 45_296_789 * MS;

pub(crate) fn process(pid: u32, comm: &str, exe: &str, cmdline: &str) -> Endpoint {
    Endpoint {
        process: Some(Arc::new(ProcessInfo {
            id: ProcessId { pid, start: 4_000_000 },
            comm: comm.into(),
            exe: exe.into(),
            cmdline: cmdline.into(),
            ppid: 12_300,
            uid: Some(1000),
        })),
        container: None,
        quality: Quality::Exact,
    }
}

pub(crate) fn unknown() -> Endpoint {
    Endpoint::UNKNOWN
}

pub(crate) fn client() -> Endpoint {
    process(12_345, "python", "/usr/bin/python3.12", "python client.py")
}

pub(crate) fn server() -> Endpoint {
    process(12_346, "python", "/usr/bin/python3.12", "python weather.py --port 0")
}

/// Names of the labels that the samples show.
pub(crate) const LABELS: [&str; 2] = ["com.example.team", "mcpspy.enable"];

/// The container of a Compose service.
pub(crate) fn container() -> Arc<ContainerInfo> {
    let id = "4f1c2a9be07d5c3381f0a6b9d2e4c7580a1b2c3d4e5f60718293a4b5c6d7e8f9";
    let mut labels = [
        ("com.docker.compose.container-number", "1"),
        ("com.docker.compose.project", "shop"),
        ("com.docker.compose.service", "inventory"),
        ("com.example.team", "stock"),
    ]
    .map(|(name, value)| (name.into(), value.into()));
    labels.sort();
    Arc::new(ContainerInfo {
        name: Some("shop-inventory-1".into()),
        image: Some("shop/inventory:1.2".into()),
        image_digest: Some(format!("sha256:{}", "0f".repeat(32)).into()),
        project: Some("shop".into()),
        service: Some("inventory".into()),
        labels: labels.into(),
        host: Some("workstation".into()),
        ..ContainerInfo::unnamed(ContainerId(id.into()), "docker".into(), None)
    })
}

/// A container in a container, of which only the ids are known.
pub(crate) fn nested() -> Arc<ContainerInfo> {
    let inner = ContainerId("abcdef0123456789".repeat(4).into());
    let outer = Some(ContainerId("9876543210fedcba".repeat(4).into()));
    Arc::new(ContainerInfo::unnamed(inner, "docker".into(), outer))
}

/// A server that runs in a container, behind `docker exec -i`.
pub(crate) fn contained_server() -> Endpoint {
    let mut end = process(31_830, "node", "/usr/local/bin/node", "node inventory.js");
    end.container = Some(container());
    end
}

/// Its client, seen at the other leg of the path.
pub(crate) fn path_client() -> Endpoint {
    Endpoint { quality: Quality::Path, ..client() }
}

/// A client beyond the engine's socket.
pub(crate) fn outside() -> Endpoint {
    Endpoint { quality: Quality::Outside, ..Endpoint::UNKNOWN }
}

/// A session between these ends.
pub(crate) fn session_of(client_end: &Endpoint, server_end: &Endpoint) -> Arc<SessionInfo> {
    Arc::new(SessionInfo {
        client_end: client_end.clone(),
        server_end: server_end.clone(),
        ..Arc::unwrap_or_clone(session())
    })
}

/// A request between these ends.
pub(crate) fn call_between(client_end: Endpoint, server_end: Endpoint) -> MessageEvent {
    let session = session_of(&client_end, &server_end);
    MessageEvent { session, from: client_end, to: server_end, ..call() }
}

pub(crate) fn session() -> Arc<SessionInfo> {
    Arc::new(SessionInfo {
        id: 12,
        transport: Transport::Stdio(Carrier::Pipe),
        revision: Some("2025-06-18".into()),
        client: Some(Peer { name: "mcp".into(), version: "0.1.0".into() }),
        server: Some(Peer { name: "weather".into(), version: "1.26.0".into() }),
        client_end: client(),
        server_end: server(),
    })
}

fn part(raw: &str, text: &str) -> Range<usize> {
    let start = raw.find(text).expect("the part stands in the text");
    start..start + text.len()
}

/// A message of this text; `part` is its `params`, `result` or `error`.
pub(crate) fn message(kind: MessageKind, raw: &str) -> Message {
    Message {
        kind,
        id: Some(RequestId::Integer(7)),
        method: None,
        raw: raw.into(),
        params: None,
        result: None,
        error: None,
        size: raw.len() as u64,
        truncated: false,
        batch: None,
        anomalies: Vec::new(),
    }
}

fn event(message: Message) -> MessageEvent {
    MessageEvent {
        message,
        transport: Transport::Stdio(Carrier::Pipe),
        from: client(),
        to: server(),
        session: session(),
        target: None,
        outcome: None,
        request: None,
        duration: None,
    }
}

pub(crate) fn at(seq: u64, ms: u64, body: EventBody) -> Event {
    Event { seq, at: Timestamp(T0 + ms * MS + 12_345), body }
}

pub(crate) fn wrap(seq: u64, ms: u64, event: MessageEvent) -> Event {
    at(seq, ms, EventBody::Message(Box::new(event)))
}

const CALL_PARAMS: &str = r#"{"name":"get_weather","arguments":{"city":"Berlin"}}"#;

/// A call of a tool with these `params`, as text.
pub(crate) fn call_with(params: &str) -> MessageEvent {
    let raw = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{params}}}"#);
    let mut message = message(MessageKind::Request, &raw);
    message.method = Some("tools/call".into());
    message.params = Some(part(&raw, params));
    let mut event = event(message);
    event.target = Some(Target::Tool("get_weather".into()));
    event.outcome = Some(Outcome::Pending);
    event
}

pub(crate) fn call() -> MessageEvent {
    call_with(CALL_PARAMS)
}

pub(crate) fn request_ref() -> Arc<RequestRef> {
    Arc::new(RequestRef {
        at: Timestamp(T0 + 12_345),
        seq: 3,
        id: RequestId::Integer(7),
        method: "tools/call".into(),
        params: Some(CALL_PARAMS.into()),
        target: Some(Target::Tool("get_weather".into())),
    })
}

/// Its answer, whose `result` or `error` member is this.
pub(crate) fn answer(member: &str, value: &str, outcome: Outcome) -> MessageEvent {
    let raw = format!(r#"{{"jsonrpc":"2.0","id":7,"{member}":{value}}}"#);
    let mut message = message(MessageKind::Response, &raw);
    let range = Some(part(&raw, value));
    if member == "error" {
        message.error = range;
    } else {
        message.result = range;
    }
    let mut event = event(message);
    (event.from, event.to) = (server(), client());
    event.target = Some(Target::Tool("get_weather".into()));
    event.outcome = Some(outcome);
    event.request = Some(request_ref());
    event.duration = Some(101_034_567);
    event
}

pub(crate) fn result() -> MessageEvent {
    answer(
        "result",
        r#"{"content":[{"type":"text","text":"14 °C, rain"}],"isError":false}"#,
        Outcome::Ok,
    )
}

pub(crate) fn error() -> MessageEvent {
    answer(
        "error",
        r#"{"code":-32602,"message":"Unknown city","data":{"city":"Berlin"}}"#,
        Outcome::Error(Some(-32602)),
    )
}

pub(crate) fn tool_error() -> MessageEvent {
    answer(
        "result",
        r#"{"content":[{"type":"text","text":"the service is down"}],"isError":true}"#,
        Outcome::ToolError,
    )
}

pub(crate) fn notification() -> MessageEvent {
    let raw = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"ready"}}"#;
    let mut message = message(MessageKind::Notification, raw);
    message.id = None;
    message.method = Some("notifications/message".into());
    message.params = Some(part(raw, r#"{"level":"info","data":"ready"}"#));
    let mut event = event(message);
    (event.from, event.to) = (server(), client());
    event
}

pub(crate) fn session_event(change: SessionChange, messages: u64, pending: u64) -> EventBody {
    EventBody::Session(Box::new(SessionEvent { change, session: session(), messages, pending }))
}

pub(crate) fn finding() -> EventBody {
    EventBody::Finding(Box::new(Finding {
        rule: "stdio-noise",
        severity: Severity::Warning,
        detail: "line on stdout that is not JSON: \u{1b}[32mready\u{1b}[0m".into(),
        session: Some(session()),
        from: server(),
        to: client(),
    }))
}

pub(crate) fn lost_in_queue() -> EventBody {
    EventBody::Lost(Lost {
        stage: LostStage::Sink,
        reason: "queue_full",
        bytes: None,
        messages: Some(31_701),
        since: Some(Timestamp(T0 + 200 * MS)),
        session: None,
        from: None,
    })
}

/// The samples that the documentation shows: a name, and the event.
pub(crate) fn documented() -> Vec<(&'static str, Event)> {
    let hole = EventBody::Lost(Lost {
        stage: LostStage::Kernel,
        reason: "ring_full",
        bytes: Some(4096),
        messages: None,
        since: None,
        session: Some(session()),
        from: Some(server()),
    });
    let exited = SessionChange::Closed(CloseCause::ServerExited(Exit::Code(1)));
    let started = EventBody::Status(Status::Started { backend: "tp_btf".into() });
    let stopped = EventBody::Status(Status::Stopped {
        kernel: KernelCounters { records: 61, admitted_bytes: 9000, ..KernelCounters::default() },
        counters: vec![("messages_decoded", 42), ("messages_filtered", 0)],
    });
    vec![
        ("status-started", at(1, 0, started)),
        ("session-opened", at(2, 0, session_event(SessionChange::Opened, 0, 0))),
        ("request", wrap(3, 0, call())),
        ("request-container", wrap(3, 0, call_between(path_client(), contained_server()))),
        ("response", wrap(4, 101, result())),
        ("error", wrap(5, 110, error())),
        ("tool-error", wrap(6, 120, tool_error())),
        ("notification", wrap(7, 150, notification())),
        ("finding", at(8, 160, finding())),
        ("lost-kernel", at(9, 170, hole)),
        ("lost-sink", at(10, 420, lost_in_queue())),
        ("session-closed", at(31_711, 500, session_event(exited, 42, 1))),
        ("status-stopped", at(31_712, 600, stopped)),
    ]
}

fn batched() -> MessageEvent {
    let mut batched = notification();
    batched.message.batch = Some((0, 3));
    batched.message.anomalies = vec![
        Anomaly::DuplicateKey,
        Anomaly::ResultAndError,
        Anomaly::InvalidUtf8,
        Anomaly::NullId,
        Anomaly::Batch,
        Anomaly::ParamsType,
    ];
    batched
}

fn truncated() -> MessageEvent {
    let mut truncated = call_with(r#"{"name":"get_weather","arguments":{"city":"Ber"#);
    truncated.message.truncated = true;
    truncated.message.size = 20_000_000;
    truncated
}

/// Ends with containers of every kind.
fn ends() -> Vec<(Endpoint, Endpoint)> {
    let within = |container: Option<Arc<ContainerInfo>>, mut end: Endpoint| {
        end.container = container;
        end
    };
    let mut second = Arc::unwrap_or_clone(container());
    let number = "com.docker.compose.container-number";
    second.labels = second
        .labels
        .iter()
        .map(|(name, value)| {
            (name.clone(), if &**name == number { "2".into() } else { value.clone() })
        })
        .collect();
    let mut single = Arc::unwrap_or_clone(container());
    (single.project, single.service, single.image, single.image_digest) = (None, None, None, None);
    let mut bare = Arc::unwrap_or_clone(nested());
    (bare.outer, bare.runtime) = (None, "".into());
    vec![
        (outside(), contained_server()),
        (within(Some(Arc::new(single)), client()), within(Some(Arc::new(second)), server())),
        (within(Some(nested()), unknown()), within(Some(Arc::new(bare)), server())),
    ]
}

/// Every other shape that an event can have.
pub(crate) fn unusual() -> Vec<Event> {
    let mut bodies = Vec::new();
    let mut bare = Arc::unwrap_or_clone(session());
    (bare.revision, bare.client, bare.server) = (None, None, None);
    bare.transport = Transport::Stdio(Carrier::Unix);
    (bare.client_end, bare.server_end) = (unknown(), unknown());
    let bare = Arc::new(bare);

    let mut lonely = result();
    (lonely.request, lonely.duration, lonely.target, lonely.outcome) = (None, None, None, None);
    (lonely.from, lonely.to) = (unknown(), unknown());
    lonely.session = Arc::clone(&bare);
    lonely.transport = Transport::Stdio(Carrier::Unix);
    lonely.message.id = None;
    bodies.push(lonely);

    for id in [
        RequestId::Integer(0),
        RequestId::Integer(i64::MIN),
        RequestId::Number("1.5e300".into()),
        RequestId::Number("123456789012345678901234567890".into()),
        RequestId::String("".into()),
        RequestId::String("a\u{1b}\"b".into()),
    ] {
        let mut event = call();
        event.message.id = Some(id);
        bodies.push(event);
    }
    for target in [
        Target::Resource("file:///etc/passwd".into()),
        Target::Prompt("greet".into()),
        Target::Other("task-1".into()),
    ] {
        let mut event = call();
        event.target = Some(target);
        bodies.push(event);
    }
    for params in ["[1,\"a\",[2]]", "[]", "{}", "\"text\"", "null", "{\n\"a\":\t9007199254740993}"]
    {
        bodies.push(call_with(params));
    }
    for error in [
        "{}",
        "null",
        "\"boom\"",
        "[1]",
        r#"{"code":"E1","message":5}"#,
        r#"{"code":1.5e3,"message":"a\u0007","data":null,"extra":1}"#,
        r#"{"data":[1,2]}"#,
    ] {
        bodies.push(answer("error", error, Outcome::Error(None)));
    }
    for result in ["null", "[]", "\"text\"", r#"{"a":1,"a":2}"#] {
        bodies.push(answer("result", result, Outcome::Ok));
    }
    bodies.extend([batched(), truncated()]);
    for (from, to) in ends() {
        bodies.push(call_between(from, to));
    }

    let mut events: Vec<Event> = bodies.into_iter().map(|event| wrap(1, 0, event)).collect();
    for change in [
        SessionChange::Updated,
        SessionChange::Closed(CloseCause::ClientClosed),
        SessionChange::Closed(CloseCause::ClientExited(Exit::Signal(9))),
        SessionChange::Closed(CloseCause::OpenAtExit),
    ] {
        let session = Arc::clone(&bare);
        let event = SessionEvent { change, session, messages: 0, pending: 0 };
        events.push(at(1, 0, EventBody::Session(Box::new(event))));
    }
    events.push(at(
        1,
        0,
        EventBody::Lost(Lost {
            stage: LostStage::Stream,
            reason: "gap",
            bytes: None,
            messages: None,
            since: None,
            session: None,
            from: Some(unknown()),
        }),
    ));
    let mut vague = finding();
    if let EventBody::Finding(finding) = &mut vague {
        finding.severity = Severity::Info;
        finding.session = None;
        finding.from = unknown();
        finding.to = unknown();
    }
    events.push(at(1, 0, vague));
    events
}

/// A message whose every text is as long and as expensive to write as its sender can make it.
pub(crate) fn hostile(size: usize) -> Event {
    let text = "\u{7f}".repeat(size);
    let params = format!("{{\"{text}\":[\"{text}\"]}}");
    let mut event = answer(
        "error",
        &format!(r#"{{"code":1,"message":"{text}","data":"{text}"}}"#),
        Outcome::Error(Some(1)),
    );
    let end = || {
        let mut end = process(u32::MAX, &text, &text, &text);
        let text = || Arc::from(text.as_str());
        end.container = Some(Arc::new(ContainerInfo {
            name: Some(text()),
            image: Some(text()),
            image_digest: Some(text()),
            project: Some(text()),
            service: Some(text()),
            labels: LABELS.map(|name| (name.into(), text())).into(),
            ..Arc::unwrap_or_clone(nested())
        }));
        end
    };
    (event.from, event.to) = (end(), end());
    event.message.id = Some(RequestId::String(text.as_str().into()));
    event.target = Some(Target::Resource(text.as_str().into()));
    event.message.anomalies = vec![Anomaly::InvalidUtf8; 6];
    event.message.batch = Some((u32::MAX, u32::MAX));
    let peer = Peer { name: text.as_str().into(), version: text.as_str().into() };
    event.session = Arc::new(SessionInfo {
        id: u64::MAX,
        revision: Some(text.as_str().into()),
        client: Some(peer.clone()),
        server: Some(peer),
        ..Arc::unwrap_or_clone(session())
    });
    event.request = Some(Arc::new(RequestRef {
        id: RequestId::String(text.as_str().into()),
        method: text.as_str().into(),
        params: Some(params.into()),
        ..Arc::unwrap_or_clone(request_ref())
    }));
    wrap(u64::MAX, 0, event)
}
