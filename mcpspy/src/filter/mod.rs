//! Which events the user wants to see. Pure.
//!
//! Several values of one kind are alternatives, several kinds must all match, and any match of an
//! exclusion drops the event. A response is judged by the method and the tool of its request.
//! Session events and findings follow `pid`, `comm` and `server`. Losses and status always pass,
//! except for losses of sessions with containers that are not wanted.

mod containers;

use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

pub use self::containers::{ContainerFilter, ContainerRules, LabelRule};
use crate::model::{Endpoint, Event, EventBody, MessageEvent, MessageKind, SessionInfo, Target};

/// Shell patterns; matches when one of them does. Case does not matter.
#[derive(Clone)]
pub struct Globs {
    patterns: Vec<String>,
    set: GlobSet,
}

/// What to look for. An empty list says nothing about its kind.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Process id of either end.
    pub pid: Vec<u32>,
    /// Process name of either end.
    pub comm: Vec<Globs>,
    /// Method of the message, or of the request that it answers.
    pub method: Vec<Globs>,
    /// Request, response or notification.
    pub kind: Vec<MessageKind>,
    /// Tool that is called.
    pub tool: Vec<Globs>,
    /// What the server calls itself, or the name of its process.
    pub server: Vec<Globs>,
}

/// The user's filters.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Each kind given must match.
    pub include: Rules,
    /// None may match.
    pub exclude: Rules,
    /// Containers at either end.
    pub containers: ContainerFilter,
}

/// A pattern that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}; patterns are like those of a shell: `*`, `?`, `[ab]`, `{{one,two}}`")]
pub struct GlobError(String);

impl Filter {
    /// Whether the event is to be shown.
    pub fn matches(&self, event: &Event) -> bool {
        let subject = match &event.body {
            EventBody::Message(message) => Subject {
                ends: [&message.from, &message.to],
                session: Some(&message.session),
                message: Some(message),
            },
            EventBody::Session(change) => Subject {
                ends: [&change.session.client_end, &change.session.server_end],
                session: Some(&change.session),
                message: None,
            },
            EventBody::Finding(finding) => Subject {
                ends: [&finding.from, &finding.to],
                session: finding.session.as_deref(),
                message: None,
            },
            EventBody::Lost(lost) => {
                return match &lost.session {
                    Some(session) => self.containers.keeps(session_ends(session).chain(&lost.from)),
                    None => true,
                };
            }
            EventBody::Status(_) => return true,
        };
        // A message's own ends may know more, or less, than its session does.
        let ends = subject.ends.into_iter();
        if !self.containers.keeps(ends.chain(subject.session.into_iter().flat_map(session_ends))) {
            return false;
        }
        let mut wanted = self.include.each(&subject).into_iter().flatten();
        let mut unwanted = self.exclude.each(&subject).into_iter().flatten();
        wanted.all(|matched| matched) && !unwanted.any(|matched| matched)
    }
}

/// What the rules look at.
struct Subject<'a> {
    ends: [&'a Endpoint; 2],
    session: Option<&'a SessionInfo>,
    message: Option<&'a MessageEvent>,
}

impl Rules {
    /// One answer for each kind: `None` where nothing was asked, or where the kind does not apply
    /// to such an event.
    fn each(&self, subject: &Subject<'_>) -> [Option<bool>; 6] {
        let process = || subject.ends.into_iter().filter_map(|end| end.process.as_deref());
        let asked = |given: bool, answer: &dyn Fn() -> bool| given.then(answer);
        let of_message = |given: bool, answer: &dyn Fn(&MessageEvent) -> bool| {
            subject.message.filter(|_| given).map(answer)
        };
        [
            asked(!self.pid.is_empty(), &|| process().any(|p| self.pid.contains(&p.id.pid))),
            asked(!self.comm.is_empty(), &|| process().any(|p| any(&self.comm, &p.comm))),
            asked(!self.server.is_empty(), &|| {
                subject.session.is_some_and(|session| {
                    server_names(session).any(|name| any(&self.server, name))
                })
            }),
            of_message(!self.method.is_empty(), &|message| {
                message.method().is_some_and(|method| any(&self.method, method))
            }),
            of_message(!self.kind.is_empty(), &|message| self.kind.contains(&message.kind())),
            of_message(!self.tool.is_empty(), &|message| match &message.target {
                Some(Target::Tool(name)) => any(&self.tool, name),
                _ => false,
            }),
        ]
    }
}

fn session_ends(session: &SessionInfo) -> impl Iterator<Item = &Endpoint> + Clone {
    [&session.client_end, &session.server_end].into_iter()
}

fn server_names(session: &SessionInfo) -> impl Iterator<Item = &str> {
    let given = session.server.as_ref().map(|peer| &*peer.name);
    let process = session.server_end.process.as_ref().map(|process| &*process.comm);
    given.into_iter().chain(process)
}

fn any(globs: &[Globs], text: &str) -> bool {
    globs.iter().any(|globs| globs.set.is_match(text))
}

/// A comma between braces belongs to the pattern; any other one separates patterns.
fn split(list: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    for (index, byte) in list.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&list[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Reads a list of patterns, separated by commas.
impl FromStr for Globs {
    type Err = GlobError;

    fn from_str(list: &str) -> Result<Self, GlobError> {
        let mut set = GlobSetBuilder::new();
        let parts = split(list);
        if parts.is_empty() {
            return Err(GlobError("the pattern is empty".to_owned()));
        }
        for part in &parts {
            let glob = GlobBuilder::new(part)
                .case_insensitive(true)
                .literal_separator(false)
                .build()
                .map_err(|error| GlobError(error.kind().to_string()))?;
            set.add(glob);
        }
        let set = set.build().map_err(|error| GlobError(error.kind().to_string()))?;
        Ok(Self { patterns: parts.into_iter().map(str::to_owned).collect(), set })
    }
}

impl fmt::Debug for Globs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.patterns.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Carrier, Finding, Lost, LostStage, Message, Peer, ProcessId, ProcessInfo, Quality,
        SessionChange, SessionEvent, Severity, Timestamp, Transport,
    };

    /// Options as on the command line, without the dashes: `tool=get_*`, `exclude-pid=7`.
    fn filter(options: &str) -> Filter {
        let mut filter = Filter::default();
        for option in options.split_whitespace() {
            let (name, value) = option.split_once('=').expect("name=value");
            let (rules, name) = match name.strip_prefix("exclude-") {
                Some(name) => (&mut filter.exclude, name),
                None => (&mut filter.include, name),
            };
            let globs = || value.parse::<Globs>().expect("a pattern");
            match name {
                "pid" => rules.pid.push(value.parse().expect("a number")),
                "comm" => rules.comm.push(globs()),
                "method" => rules.method.push(globs()),
                "tool" => rules.tool.push(globs()),
                "server" => rules.server.push(globs()),
                "type" => rules.kind.push(match value {
                    "request" => MessageKind::Request,
                    "response" => MessageKind::Response,
                    _ => MessageKind::Notification,
                }),
                other => panic!("no option {other}"),
            }
        }
        filter
    }

    fn end(pid: u32, comm: &str) -> Endpoint {
        let process = (pid > 0).then(|| {
            Arc::new(ProcessInfo {
                id: ProcessId { pid, start: 1 },
                comm: comm.into(),
                exe: "".into(),
                cmdline: "".into(),
                ppid: 1,
                uid: Some(0),
            })
        });
        let quality = if pid > 0 { Quality::Exact } else { Quality::Unknown };
        Endpoint { process, container: None, quality }
    }

    fn session() -> Arc<SessionInfo> {
        Arc::new(SessionInfo {
            id: 1,
            transport: Transport::Stdio(Carrier::Pipe),
            revision: None,
            client: None,
            server: Some(Peer { name: "Weather Server".into(), version: "1".into() }),
            client_end: end(10, "claude"),
            server_end: end(20, "python3"),
        })
    }

    fn message(kind: MessageKind, method: Option<&str>, tool: Option<&str>) -> Event {
        let (from, to) = match kind {
            MessageKind::Response => (end(20, "python3"), end(10, "claude")),
            _ => (end(10, "claude"), end(20, "python3")),
        };
        let request = (kind == MessageKind::Response).then_some(method).flatten().map(|method| {
            Arc::new(crate::model::RequestRef {
                at: Timestamp(1),
                seq: 1,
                id: crate::model::RequestId::Integer(1),
                method: method.into(),
                params: None,
                target: None,
            })
        });
        let own_method = if request.is_some() { None } else { method };
        body(EventBody::Message(Box::new(MessageEvent {
            message: Message {
                kind,
                id: None,
                method: own_method.map(Arc::from),
                raw: "{}".into(),
                params: None,
                result: None,
                error: None,
                size: 2,
                truncated: false,
                batch: None,
                anomalies: Vec::new(),
            },
            transport: Transport::Stdio(Carrier::Pipe),
            from,
            to,
            session: session(),
            target: tool.map(|tool| Target::Tool(tool.into())),
            outcome: None,
            request,
            duration: None,
        })))
    }

    fn body(body: EventBody) -> Event {
        Event { seq: 1, at: Timestamp(1), body }
    }

    /// What passes of: a tool call, its response, a notification, a session, a finding, a loss.
    fn passing(options: &str) -> String {
        let filter = filter(options);
        let call = Some("tools/call");
        let events = [
            ('c', message(MessageKind::Request, call, Some("get_weather"))),
            ('r', message(MessageKind::Response, call, Some("get_weather"))),
            ('u', message(MessageKind::Response, None, None)),
            ('n', message(MessageKind::Notification, Some("notifications/progress"), None)),
            (
                's',
                body(EventBody::Session(Box::new(SessionEvent {
                    change: SessionChange::Opened,
                    session: session(),
                    messages: 0,
                    pending: 0,
                }))),
            ),
            (
                'f',
                body(EventBody::Finding(Box::new(Finding {
                    rule: "stdio-noise",
                    severity: Severity::Info,
                    detail: String::new(),
                    session: None,
                    from: end(20, "python3"),
                    to: end(0, ""),
                }))),
            ),
            (
                'l',
                body(EventBody::Lost(Lost {
                    stage: LostStage::Kernel,
                    reason: "ring_full",
                    bytes: Some(1),
                    messages: None,
                    since: None,
                    session: None,
                    from: None,
                })),
            ),
        ];
        events.iter().filter(|(_, event)| filter.matches(event)).map(|(name, _)| name).collect()
    }

    #[test]
    fn each_option_lets_pass_what_it_says() {
        // c call, r its response, u response without request, n notification, s session,
        // f finding of the server's process without a session, l loss.
        for (options, expected) in [
            ("", "crunsfl"),
            ("pid=10", "crunsl"),
            ("pid=20", "crunsfl"),
            ("pid=99", "l"),
            ("pid=99 pid=10", "crunsl"),
            ("comm=python*", "crunsfl"),
            ("comm=PYTHON3", "crunsfl"),
            ("comm=python", "l"),
            ("comm=*thon*", "crunsfl"),
            ("comm={node,claude}", "crunsl"),
            ("comm=node,claude", "crunsl"),
            ("method=tools/*", "crsfl"),
            ("method=*", "crnsfl"),
            ("type=request", "csfl"),
            ("type=request type=response", "crusfl"),
            ("type=notification method=tools/*", "sfl"),
            ("tool=get_*", "crsfl"),
            ("tool=get_?", "sfl"),
            ("server=weather*", "crunsl"),
            ("server=python?", "crunsl"),
            ("server=claude", "l"),
            ("exclude-pid=20", "l"),
            ("exclude-pid=10", "fl"),
            ("exclude-comm=node", "crunsfl"),
            ("exclude-method=notifications/*", "crusfl"),
            ("exclude-tool=get_weather", "unsfl"),
            ("exclude-type=response", "cnsfl"),
            ("exclude-server=weather*", "fl"),
            ("method=tools/* exclude-type=response", "csfl"),
        ] {
            assert_eq!(passing(options), expected, "{options}");
        }
    }

    #[test]
    fn a_session_is_kept_whole_by_the_container_at_one_end() {
        let info = |name: &str| {
            let id = crate::model::ContainerId(format!("{name:0<64}").into());
            let mut info = crate::model::ContainerInfo::unnamed(id, "docker".into(), None);
            info.name = Some(name.into());
            Some(Arc::new(info))
        };
        let lost = |session| {
            let (stage, reason) = (LostStage::Stream, "hole");
            let (bytes, messages, since, from) = (None, None, None, None);
            body(EventBody::Lost(Lost { stage, reason, bytes, messages, since, session, from }))
        };
        let mut in_container = SessionInfo::clone(&session());
        in_container.server_end.container = info("srv");
        let in_container = Arc::new(in_container);
        let mut request = message(MessageKind::Request, Some("tools/list"), None);
        if let EventBody::Message(message) = &mut request.body {
            // The server's end is known to the session alone.
            message.session = Arc::clone(&in_container);
        }
        let outside = message(MessageKind::Request, Some("tools/list"), None);
        for (container, expected) in
            [("srv", [true, false, true, false, true]), ("x", [false, false, false, false, true])]
        {
            let mut filter = Filter::default();
            filter.containers.include.container.push(container.parse().expect("a pattern"));
            let events = [
                &request,
                &outside,
                &lost(Some(Arc::clone(&in_container))),
                &lost(Some(session())),
                &lost(None),
            ];
            assert_eq!(events.map(|event| filter.matches(event)), expected, "{container}");
        }
    }

    #[test]
    fn a_comma_in_braces_is_part_of_the_pattern() {
        assert_eq!(split("a,b"), ["a", "b"]);
        assert_eq!(split("{a,b},c"), ["{a,b}", "c"]);
        assert_eq!(split(" a , ,b,"), ["a", "b"]);
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        for bad in ["", ",", "[a", "{a"] {
            assert!(bad.parse::<Globs>().is_err(), "{bad}");
        }
    }
}
