//! One session: two sides, each with a stream, a queue and its waiting requests.

use std::collections::VecDeque;
use std::sync::Arc;

use super::legs::{Kind, Leg};
use super::pairing::Pending;
use super::{ENDS_WAIT, Emit, REQUEST_WAIT, RETURN_WAIT, World};
use crate::attribution::{ReturnPath, return_path};
use crate::model::{
    CloseCause, Endpoint, EventBody, Finding, Message, MessageEvent, MessageKind, Outcome, Peer,
    ProcessId, Quality, RequestId, RequestRef, SessionChange, SessionEvent, SessionInfo, Severity,
    StreamId, Timestamp, Transport,
};
use crate::protocol::mcp::{Facts, Role};
use crate::streams::Stream;
use crate::telemetry::Counter;

/// Params of a request are kept for its response up to this size, bytes.
const REQUEST_PARAMS: usize = 8 << 10;

/// A message that was decoded and not yet said.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) message: Message,
    pub(super) facts: Facts,
    /// When its last byte moved.
    pub(super) at: Timestamp,
    /// Position of its first byte in its stream.
    pub(super) offset: u64,
    /// Who wrote it, where the bytes said so.
    pub(super) writer: Option<ProcessId>,
    /// Virtual time when it came here.
    pub(super) since: Timestamp,
    /// Order of arrival among all messages.
    pub(super) order: u64,
}

/// One direction of a session.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) stream: Option<StreamId>,
    pub(super) queue: VecDeque<Held>,
    pub(super) queued_bytes: usize,
    /// Requests sent in this direction.
    pub(super) pending: Pending,
    /// What the one who writes here is, as its messages say.
    pub(super) role: Option<Role>,
}

impl Side {
    pub(super) fn writer<D>(&self, world: &World<'_, D>) -> Option<ProcessId> {
        world.streams.get(&self.stream?)?.writer()
    }

    pub(super) fn reader<D>(&self, world: &World<'_, D>) -> Option<ProcessId> {
        world.streams.get(&self.stream?)?.reader()
    }

    /// Whether a request with this id was sent here and has no answer.
    pub(super) fn asked(&self, id: &RequestId) -> bool {
        self.pending.waits_for(id) || self.has_request(id)
    }

    fn has_request(&self, id: &RequestId) -> bool {
        self.queue.iter().any(|held| {
            held.message.kind == MessageKind::Request && held.message.id.as_ref() == Some(id)
        })
    }
}

/// Whether the streams are a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Unknown,
    Session,
    /// No way back. Held until [`RETURN_WAIT`] is over: the other direction may still speak.
    OneWay,
    /// One stream carries both sides' messages: a recording that is piped somewhere.
    Recording,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) info: Arc<SessionInfo>,
    pub(super) sides: [Side; 2],
    pub(super) proof: Proof,
    pub(super) since: Timestamp,
    pub(super) opened: bool,
    pub(super) messages: u64,
    pub(super) closing: Option<(Timestamp, CloseCause)>,
    /// Deadline that the engine was told of.
    pub(super) armed: Option<Timestamp>,
    /// Last use, to forget the longest unused one.
    pub(super) used: Timestamp,
    /// Its place on a path through relays.
    pub(super) leg: Leg,
}

/// What a head of a queue needs.
enum Ready {
    Yes,
    /// Its ends. What came later stays behind it.
    Ends(Timestamp),
    /// Its request, which can only come on the other side.
    Request(Timestamp),
}

impl Session {
    pub(super) fn new(id: u64, stream: StreamId, now: Timestamp) -> Self {
        let info = SessionInfo {
            id,
            transport: Transport::Stdio(stream.carrier),
            revision: None,
            client: None,
            server: None,
            client_end: Endpoint::UNKNOWN,
            server_end: Endpoint::UNKNOWN,
        };
        let mut sides = [Side::default(), Side::default()];
        sides[0].stream = Some(stream);
        Self {
            info: Arc::new(info),
            sides,
            proof: Proof::Unknown,
            since: now,
            opened: false,
            messages: 0,
            closing: None,
            armed: None,
            used: now,
            leg: Leg::default(),
        }
    }

    pub(super) fn one_sided(&self) -> bool {
        self.sides[1].stream.is_none()
    }

    /// Which side the client writes.
    pub(super) fn client_side(&self) -> Option<usize> {
        match (self.sides[0].role, self.sides[1].role) {
            (Some(Role::Client), _) | (None, Some(Role::Server)) => Some(0),
            (Some(Role::Server), _) | (None, Some(Role::Client)) => Some(1),
            (None, None) => None,
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.sides.iter().map(|side| side.queue.len()).sum()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.sides.iter().map(|side| side.queued_bytes).sum()
    }

    /// Takes a message of side `side`.
    pub(super) fn push(&mut self, side: usize, held: Held) {
        self.leg.note(side, &held);
        let side = &mut self.sides[side];
        let answered_hello =
            held.message.kind == MessageKind::Response && held.facts.server.is_some();
        let sender = held.facts.sender.or(answered_hello.then_some(Role::Server));
        match (side.role, sender) {
            (None, Some(role)) => side.role = Some(role),
            (Some(known), Some(role)) if known != role && self.proof != Proof::Session => {
                self.proof = Proof::Recording;
            }
            _ => {}
        }
        side.queued_bytes += held.message.raw.len();
        side.queue.push_back(held);
    }

    /// Looks again whether there is a way back.
    pub(super) fn prove<D>(&mut self, world: &World<'_, D>) {
        if matches!(self.proof, Proof::Session | Proof::Recording) {
            return;
        }
        if !self.one_sided() {
            self.proof = Proof::Session;
            return;
        }
        let side = &self.sides[0];
        let Some(stream) = side.stream else { return };
        let found = return_path(world.processes, stream, side.writer(world), side.reader(world));
        self.proof = match found {
            ReturnPath::Exists => Proof::Session,
            ReturnPath::None => Proof::OneWay,
            ReturnPath::Unknown => Proof::Unknown,
        };
    }

    /// Says what can be said now. Returns when to look again.
    pub(super) fn pump<D>(
        &mut self,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
        flush: bool,
    ) -> Option<Timestamp> {
        if self.leg.silent {
            self.withhold(Counter::WithheldDuplicate, emit);
            return None;
        }
        let decided = match self.proof {
            Proof::Session => true,
            Proof::Recording | Proof::OneWay if world.oneway => true,
            Proof::Recording => {
                self.withhold(Counter::WithheldOneway, emit);
                return None;
            }
            Proof::Unknown | Proof::OneWay => flush || world.now >= self.since.plus(RETURN_WAIT),
        };
        if !decided {
            return (self.queued() > 0).then(|| self.since.plus(RETURN_WAIT));
        }
        if self.proof == Proof::OneWay && !world.oneway {
            self.withhold(Counter::WithheldOneway, emit);
            return None;
        }
        // Nothing says that there is no way back: a server that never answered.
        if self.proof == Proof::Unknown {
            self.proof = Proof::Session;
        }
        if let Some(until) = self.leg_deadline(world) {
            if world.now < until && !flush {
                return Some(until);
            }
            self.leg.give_up();
            if self.leg.silent {
                self.withhold(Counter::WithheldDuplicate, emit);
                return None;
            }
        }
        loop {
            let order = |side: usize| self.sides[side].queue.front().map(|held| held.order);
            let first = match (order(0), order(1)) {
                (None, None) => return None,
                (Some(a), Some(b)) => usize::from(b < a),
                (a, _) => usize::from(a.is_none()),
            };
            let mut wait: Option<Timestamp> = None;
            let mut released = false;
            for side in [first, 1 - first] {
                match self.ready(side, world) {
                    _ if flush && side == first => {
                        // In order of arrival, but a request that is here goes before its answer.
                        let side = self.flush_side(first);
                        self.release(side, world, emit);
                        released = true;
                        break;
                    }
                    Some(Ready::Yes) => {
                        self.release(side, world, emit);
                        released = true;
                        break;
                    }
                    Some(Ready::Ends(at)) => {
                        wait = Some(wait.map_or(at, |w| w.min(at)));
                        break;
                    }
                    Some(Ready::Request(at)) => wait = Some(wait.map_or(at, |w| w.min(at))),
                    None => {}
                }
            }
            if !released {
                return Some(wait.unwrap_or_else(|| world.now.plus(REQUEST_WAIT)));
            }
        }
    }

    /// Until when to wait for the other leg of the path.
    fn leg_deadline<D>(&self, world: &World<'_, D>) -> Option<Timestamp> {
        if self.opened || self.leg.is_bound() || self.queued() == 0 {
            return None;
        }
        match self.leg.kind {
            Kind::Whole => None,
            Kind::Client => Some(self.wait_for_server(world)),
            Kind::Server => self.leg.far.is_none().then(|| self.since.plus(ENDS_WAIT)),
        }
    }

    fn flush_side(&self, first: usize) -> usize {
        let waits = self.sides[first].queue.front().is_some_and(|held| {
            held.message.kind == MessageKind::Response
                && held.message.id.as_ref().is_some_and(|id| {
                    !self.sides[1 - first].pending.waits_for(id)
                        && self.sides[1 - first].has_request(id)
                })
        });
        if waits { 1 - first } else { first }
    }

    /// Whether the first message of a side can be said; `None` where there is none.
    fn ready<D>(&self, side: usize, world: &World<'_, D>) -> Option<Ready> {
        let held = self.sides[side].queue.front()?;
        let (writer, reader) = (self.sides[side].writer(world), self.sides[side].reader(world));
        let wait = if reader.is_some() { ENDS_WAIT } else { RETURN_WAIT };
        let ends_until = held.since.plus(wait);
        // An end that nobody was seen at for so long (outside a watched process tree) is not waited
        // for with each message.
        let hopeless =
            (writer.is_none() || reader.is_none()) && world.now >= self.since.plus(RETURN_WAIT);
        let (from, to) = self.ends(side, held, world);
        if (from.is_none() || to.is_none()) && world.now < ends_until && !hopeless {
            return Some(Ready::Ends(ends_until));
        }
        for process in [from, to, self.leg.far].into_iter().flatten() {
            if let Some(until) = world.processes.facts_deadline(process)
                && world.now < until
            {
                return Some(Ready::Ends(until));
            }
        }
        if held.message.kind == MessageKind::Response
            && let Some(id) = &held.message.id
        {
            let other = &self.sides[1 - side];
            let until = held.since.plus(REQUEST_WAIT);
            if !other.pending.waits_for(id) {
                if other.has_request(id) {
                    return Some(Ready::Request(world.now.plus(REQUEST_WAIT)));
                }
                if world.now < until {
                    return Some(Ready::Request(until));
                }
            }
        }
        Some(Ready::Yes)
    }

    fn ends<D>(
        &self,
        side: usize,
        held: &Held,
        world: &World<'_, D>,
    ) -> (Option<ProcessId>, Option<ProcessId>) {
        let stream = self.sides[side].stream.and_then(|id| world.streams.get(&id));
        // Who had ended by then was there before, on another life of the inode or for other bytes.
        let lived = |process: &ProcessId| {
            world.processes.exited(*process).is_none_or(|(ended, _)| ended >= held.at)
        };
        let writer = held.writer.or_else(|| stream.and_then(Stream::writer)).filter(lived);
        (writer, stream.and_then(|stream| stream.reader_of(held.offset)).filter(lived))
    }

    /// Makes the event of the first message of a side.
    fn release<D>(&mut self, side: usize, world: &World<'_, D>, emit: &mut Emit<'_>) {
        let Some(held) = self.sides[side].queue.pop_front() else { return };
        self.sides[side].queued_bytes -= held.message.raw.len();
        let (from, to) = self.ends(side, &held, world);
        let end = |process| world.processes.endpoint(process, Quality::Exact);
        let (mut from, mut to) = (end(from), end(to));
        self.path_ends(side, &mut from, &mut to, world);
        let at = held.at;
        self.learn(side, &held.facts, &from, &to, at, emit);
        if self.doubt(world) {
            let finding = relay_name(&self.info, &from, &to);
            emit.event(at, EventBody::Finding(Box::new(finding)));
        }
        if [&from, &to].into_iter().any(|end| end.quality == Quality::Unknown) {
            emit.counters.add(Counter::UnknownEnds, 1);
        }
        let message = held.message;
        let mut request = None;
        if message.kind == MessageKind::Response {
            request = message.id.as_ref().and_then(|id| self.sides[1 - side].pending.answered(id));
            let paired = if request.is_some() {
                Counter::PairedResponses
            } else {
                Counter::UnpairedResponses
            };
            emit.counters.add(paired, 1);
        }
        let sent = (message.kind == MessageKind::Request)
            .then(|| request_of(&message, &held.facts, at, *emit.seq + 1))
            .flatten();
        let event = MessageEvent {
            transport: self.info.transport,
            from,
            to,
            session: Arc::clone(&self.info),
            target: held
                .facts
                .target
                .or_else(|| request.as_ref().and_then(|request| request.target.clone())),
            outcome: match message.kind {
                MessageKind::Request => Some(Outcome::Pending),
                MessageKind::Response => held.facts.outcome,
                MessageKind::Notification => None,
            },
            duration: request.as_ref().map(|request| at.since(request.at)),
            request,
            message,
        };
        self.messages += 1;
        emit.counters.add(Counter::EmittedMessages, 1);
        emit.event(at, EventBody::Message(Box::new(event)));
        if let Some(sent) = sent {
            let given_up = self.sides[side].pending.sent(sent);
            emit.counters.add(Counter::AbandonedRequests, given_up);
        }
    }

    /// Takes what a message says of the session, and tells of the session where that is news.
    fn learn(
        &mut self,
        side: usize,
        facts: &Facts,
        from: &Endpoint,
        to: &Endpoint,
        at: Timestamp,
        emit: &mut Emit<'_>,
    ) {
        let client_side = self.client_side();
        let (client_end, server_end) = match client_side {
            Some(client) if client == side => (Some(from), Some(to)),
            Some(_) => (Some(to), Some(from)),
            None => (None, None),
        };
        let news = |known: &Option<Peer>, said: &Option<Peer>| said.is_some() && said != known;
        let process = |end: &Endpoint| end.process.as_ref().map(|process| process.id);
        let moved = |known: &Endpoint, seen: Option<&Endpoint>| {
            seen.is_some_and(|seen| {
                let better = *known == Endpoint::UNKNOWN && *seen != Endpoint::UNKNOWN;
                better || (seen.process.is_some() && process(seen) != process(known))
            })
        };
        // The inventory may have more to say of the same process: no news, but the better words.
        let described = |known: &Endpoint, seen: Option<&Endpoint>| {
            seen.is_some_and(|seen| match (&seen.process, &known.process) {
                (Some(a), Some(b)) if a.id == b.id => {
                    !Arc::ptr_eq(a, b) || seen.container != known.container
                }
                _ => false,
            })
        };
        // `initialize` only asks for a revision; its answer says which one it is.
        let asked = facts.method.is_some_and(|method| method.name == "initialize");
        let revision = facts.revision.as_ref().filter(|_| !asked);
        let changed = revision
            .is_some_and(|revision| self.info.revision.as_ref() != Some(revision))
            || news(&self.info.client, &facts.client)
            || news(&self.info.server, &facts.server)
            || moved(&self.info.client_end, client_end)
            || moved(&self.info.server_end, server_end);
        let better = described(&self.info.client_end, client_end)
            || described(&self.info.server_end, server_end);
        if changed || better {
            let mut info = SessionInfo::clone(&self.info);
            info.revision = revision.cloned().or(info.revision);
            info.client = facts.client.clone().or(info.client);
            info.server = facts.server.clone().or(info.server);
            for (known, seen) in
                [(&mut info.client_end, client_end), (&mut info.server_end, server_end)]
            {
                if let Some(seen) = seen.filter(|seen| **seen != Endpoint::UNKNOWN) {
                    *known = seen.clone();
                }
            }
            self.info = Arc::new(info);
        }
        if !self.opened {
            self.opened = true;
            emit.counters.add(Counter::SessionsOpened, 1);
            // Numbered when it is said: those that never are would leave gaps.
            Arc::make_mut(&mut self.info).id = emit.counters.get(Counter::SessionsOpened);
            self.say(SessionChange::Opened, at, emit);
        } else if changed {
            self.say(SessionChange::Updated, at, emit);
        }
    }

    fn say(&self, change: SessionChange, at: Timestamp, emit: &mut Emit<'_>) {
        let event = SessionEvent {
            change,
            session: Arc::clone(&self.info),
            messages: self.messages,
            pending: self.sides.iter().map(|side| side.pending.len() as u64).sum(),
        };
        emit.event(at, EventBody::Session(Box::new(event)));
    }

    /// An end was seen; the first cause counts.
    pub(super) fn ends_at(&mut self, now: Timestamp, cause: CloseCause, wait: u64) {
        let at = now.plus(wait);
        self.closing = Some(match self.closing {
            Some((earlier, known)) => (earlier.min(at), known),
            None => (at, cause),
        });
    }

    /// When the session is over, and nothing of it is under way.
    pub(super) fn close_deadline(&self) -> Option<Timestamp> {
        self.closing.map(|(at, _)| at)
    }

    /// Says everything that is left, and that the session is closed.
    pub(super) fn close<D>(&mut self, world: &World<'_, D>, emit: &mut Emit<'_>) {
        self.prove(world);
        self.pump(world, emit, true);
        let cause = self.closing.map_or(CloseCause::OpenAtExit, |(_, cause)| cause);
        let waiting: u64 = self.sides.iter().map(|side| side.pending.len() as u64).sum();
        emit.counters.add(Counter::AbandonedRequests, waiting);
        if self.opened {
            let at = self.closing.map_or(world.now, |(at, _)| at.min(world.now));
            self.say(SessionChange::Closed(cause), at, emit);
            emit.counters.add(Counter::SessionsClosed, 1);
        }
    }

    /// Whether requests of the client still wait for an answer.
    pub(super) fn client_waits(&self) -> bool {
        self.client_side().is_some_and(|client| self.sides[client].pending.len() > 0)
    }

    /// The process is at the server's or the client's end: which.
    pub(super) fn end_of<D>(&self, process: ProcessId, world: &World<'_, D>) -> Option<Role> {
        let client = self.client_side()?;
        let (to_server, to_client) = (&self.sides[client], &self.sides[1 - client]);
        let is = |end: Option<ProcessId>| end == Some(process);
        if is(to_server.reader(world)) || is(to_client.writer(world)) {
            Some(Role::Server)
        } else if is(to_server.writer(world)) || is(to_client.reader(world)) {
            Some(Role::Client)
        } else {
            None
        }
    }

    /// The kernel's entries of both streams, for verdicts.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.sides.iter().filter_map(|side| side.stream)
    }

    fn withhold(&mut self, reason: Counter, emit: &mut Emit<'_>) {
        for side in &mut self.sides {
            emit.counters.add(reason, side.queue.len() as u64);
            side.queue.clear();
            side.queued_bytes = 0;
        }
    }
}

fn relay_name(session: &Arc<SessionInfo>, from: &Endpoint, to: &Endpoint) -> Finding {
    Finding {
        rule: "relay-name",
        severity: Severity::Warning,
        detail: "an end has the name of a program that hands messages on (docker, podman ...), and \
                 nobody was seen to whom: a container on another host, or a program that took the name"
            .to_owned(),
        session: Some(Arc::clone(session)),
        from: from.clone(),
        to: to.clone(),
    }
}

/// What is kept of a request for its answer.
fn request_of(message: &Message, facts: &Facts, at: Timestamp, seq: u64) -> Option<RequestRef> {
    let params = message.params.as_ref().map(|part| message.text(part));
    Some(RequestRef {
        at,
        seq,
        id: message.id.clone()?,
        method: Arc::clone(message.method.as_ref()?),
        params: params.filter(|text| text.len() < REQUEST_PARAMS).map(Arc::from),
        target: facts.target.clone(),
    })
}
