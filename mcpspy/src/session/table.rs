//! All sessions: which stream belongs to which, when they open and when they end.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::conversation::{Held, Proof, Session};
use super::legs::Legs;
use super::{CLOSE_WAIT, ENDS_WAIT, Emit, World};
use crate::model::{
    CloseCause, Exit, Message, MessageKind, ProcessId, RequestId, SessionInfo, StreamId, Timestamp,
    Verdict,
};
use crate::protocol::mcp::{Facts, Role};
use crate::streams::Stream;
use crate::telemetry::Counter;

/// Sessions at once. Beyond it the longest unused one is closed as forgotten.
const SESSIONS: usize = 4096;

/// Messages that may wait undecided, over all sessions, bytes of text. Beyond it the session that
/// holds most is decided as it stands. Two messages of the default largest size fit.
const HELD_BYTES: usize = 48 << 20;

/// Messages of one session that may wait undecided.
const HELD_MESSAGES: usize = 16_384;

/// JSON-RPC messages kept of a stream that is not known to be MCP, in case it turns out to be.
const UNDECIDED_MESSAGES: usize = 32;

/// Their bytes, over all streams.
const UNDECIDED_BYTES: usize = 8 << 20;

/// Sessions that wait for facts and are looked at when one comes, the newest ones: more would only
/// be there to make us slow.
const LOOKED_AT: usize = 256;

/// How long a session whose client closed it waits for its server's end, ns, and again as long as
/// answers are due.
const EOF_WAIT: u64 = 2_000_000_000;

/// Stands in the list of deadlines for the undecided streams; sessions count from 1.
const UNDECIDED: u64 = 0;

/// A message as the protocol stage gives it.
#[derive(Debug)]
pub struct Decoded {
    /// Its stream.
    pub stream: StreamId,
    /// The message.
    pub message: Message,
    /// What it says.
    pub facts: Facts,
    /// When its last byte moved.
    pub at: Timestamp,
    /// Position of its first byte in the stream.
    pub offset: u64,
    /// Who wrote it, where the bytes said so.
    pub writer: Option<ProcessId>,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    pub(super) table: FxHashMap<u64, Session>,
    /// The sessions that are one of two legs of a path.
    pub(super) legs: Legs,
    by_stream: FxHashMap<StreamId, (u64, usize)>,
    /// Sessions that wait for facts: not proven, one-sided, or with messages held.
    unsettled: BTreeSet<u64>,
    /// JSON-RPC of streams that are not known to be MCP. Ordered, because the order in which they are
    /// decided is the order of events.
    undecided: BTreeMap<StreamId, VecDeque<Held>>,
    undecided_bytes: usize,
    undecided_armed: bool,
    due: BinaryHeap<Reverse<(Timestamp, u64)>>,
    ended: Vec<StreamId>,
    last_id: u64,
    order: u64,
}

impl Sessions {
    /// Whether the stream is known to carry MCP.
    pub fn knows(&self, stream: &StreamId) -> bool {
        self.by_stream.contains_key(stream)
    }

    /// What is known of the session of a stream that was said to be one.
    pub fn opened(&self, stream: &StreamId) -> Option<&Arc<SessionInfo>> {
        let (id, _) = self.by_stream.get(stream)?;
        self.table.get(id).filter(|session| session.opened).map(|session| &session.info)
    }

    /// Streams whose session ended since the last call.
    pub fn take_ended(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.ended)
    }

    /// When something here has to be looked at again.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes a message. `mcp`: it proves by itself that its stream is MCP.
    pub fn message<D>(
        &mut self,
        decoded: Decoded,
        mcp: bool,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        self.order += 1;
        let stream = decoded.stream;
        let held = Held {
            message: decoded.message,
            facts: decoded.facts,
            at: decoded.at,
            offset: decoded.offset,
            writer: decoded.writer,
            since: world.now,
            order: self.order,
        };
        if let Some(&(id, side)) = self.by_stream.get(&stream) {
            self.push(id, side, held, world, emit);
            return;
        }
        let partner = self.partner(stream, held.facts.sender, None, world);
        let (id, side) = match partner {
            Some(id) => (id, 1),
            // An answer belongs to where it was asked, however well it names itself.
            None if mcp && held.message.kind != MessageKind::Response => {
                (self.open(stream, world, emit), 0)
            }
            None => {
                self.hold_undecided(stream, held, emit);
                return;
            }
        };
        self.bind(stream, id, side, world, emit);
        self.push(id, side, held, world, emit);
        if side == 0 {
            self.find_partners(id, world, emit);
        }
    }

    /// An end of this stream became known.
    pub fn ends_changed<D>(
        &mut self,
        stream: &StreamId,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        if let Some(&(id, _)) = self.by_stream.get(stream) {
            if self.unsettled.contains(&id) {
                self.look_again(id, world, emit);
            }
        } else if self.undecided.contains_key(stream) {
            self.decide(ENDS_WAIT, world, emit);
        }
    }

    /// Facts about a process came, or it ended.
    pub fn process_changed<D>(
        &mut self,
        process: ProcessId,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        for id in self.newest_unsettled() {
            let Some(session) = self.table.get(&id) else { continue };
            let side = &session.sides[0];
            let concerned = [side.writer(world), side.reader(world)]
                .into_iter()
                .flatten()
                .any(|end| world.processes.is_in_tree(process, end));
            if concerned {
                self.look_again(id, world, emit);
            }
        }
    }

    pub(super) fn newest_unsettled(&self) -> Vec<u64> {
        self.unsettled.iter().rev().take(LOOKED_AT).copied().collect()
    }

    /// A reader saw the end of this stream.
    pub fn stream_ended<D>(&mut self, stream: &StreamId, world: &World<'_, D>) {
        let Some(&(id, side)) = self.by_stream.get(stream) else { return };
        let Some(session) = self.table.get_mut(&id) else { return };
        if session.client_side() == Some(side) {
            session.ends_at(world.now, CloseCause::ClientClosed, EOF_WAIT);
            self.arm(id, world.now.plus(EOF_WAIT));
        }
    }

    /// A process ended.
    pub fn process_ended<D>(
        &mut self,
        process: ProcessId,
        how: Exit,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        let mut hit = Vec::new();
        for (id, session) in &mut self.table {
            let cause = match session.end_of(process, world) {
                Some(Role::Server) => CloseCause::ServerExited(how),
                Some(Role::Client) => CloseCause::ClientExited(how),
                None => continue,
            };
            session.ends_at(world.now, cause, CLOSE_WAIT);
            hit.push(*id);
        }
        for id in hit {
            self.arm(id, world.now.plus(CLOSE_WAIT));
        }
        self.process_changed(process, world, emit);
        self.legs.forget_process(process);
    }

    /// Time passed.
    pub fn expire<D>(&mut self, world: &World<'_, D>, emit: &mut Emit<'_>) {
        while let Some(&Reverse((at, id))) = self.due.peek() {
            if at > world.now {
                return;
            }
            self.due.pop();
            if id == UNDECIDED {
                self.decide(ENDS_WAIT, world, emit);
                // Messages that came since then have a deadline of their own.
                let later = self.undecided.values().flatten().map(|held| held.since).max();
                let later = later.map(|since| since.plus(ENDS_WAIT)).filter(|at| *at > world.now);
                self.undecided_armed = later.is_some();
                self.due.extend(later.map(|at| Reverse((at, UNDECIDED))));
                continue;
            }
            let Some(session) = self.table.get_mut(&id) else { continue };
            session.armed = None;
            match session.close_deadline() {
                Some(over) if over <= world.now => {
                    let waits = matches!(session.closing, Some((_, CloseCause::ClientClosed)))
                        && session.client_waits();
                    if waits {
                        // The server may still answer what it was asked.
                        session.closing =
                            Some((world.now.plus(EOF_WAIT), CloseCause::ClientClosed));
                        self.arm(id, world.now.plus(EOF_WAIT));
                    } else {
                        self.close(id, world, emit);
                    }
                }
                over => {
                    self.pump(id, world, emit);
                    if let Some(over) = over {
                        self.arm(id, over);
                    }
                }
            }
        }
    }

    /// The stream is gone: its inode is another one's now, or the table was full.
    pub fn stream_gone<D>(&mut self, stream: &StreamId, world: &World<'_, D>, emit: &mut Emit<'_>) {
        if let Some(&(id, _)) = self.by_stream.get(stream) {
            if let Some(session) = self.table.get_mut(&id) {
                // Without an end seen, what it may have carried after its last record is not known.
                emit.counters.add(Counter::GapsUnknown, u64::from(session.closing.is_none()));
                session.ends_at(world.now, CloseCause::Forgotten, 0);
            }
            self.close(id, world, emit);
        }
        self.drop_undecided(stream, emit);
    }

    /// The run ends.
    pub fn finish<D>(&mut self, world: &World<'_, D>, emit: &mut Emit<'_>) {
        let mut ids: Vec<_> = self.table.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.close(id, world, emit);
        }
        for stream in self.undecided.keys().copied().collect::<Vec<_>>() {
            self.drop_undecided(&stream, emit);
        }
    }

    /// The one-sided session whose other direction this stream is.
    fn partner<D>(
        &self,
        stream: StreamId,
        sender: Option<Role>,
        answers: Option<&RequestId>,
        world: &World<'_, D>,
    ) -> Option<u64> {
        let known = world.streams.get(&stream)?;
        // The two directions of one socket pair need no other proof.
        if let Some((id, _)) = known.reverse().and_then(|reverse| self.by_stream.get(&reverse))
            && self.table.get(id).is_some_and(Session::one_sided)
        {
            return Some(*id);
        }
        let related = |a: Option<ProcessId>, b: Option<ProcessId>| match (a, b) {
            (Some(a), Some(b)) => {
                Some(world.processes.is_in_tree(a, b) || world.processes.is_in_tree(b, a))
            }
            _ => None,
        };
        let mut likely = None;
        for id in self.unsettled.iter().rev().take(LOOKED_AT) {
            let Some(session) = self.table.get(id).filter(|session| session.one_sided()) else {
                continue;
            };
            let side = &session.sides[0];
            let same_role = sender.is_some() && sender == side.role;
            let answering = related(side.reader(world), known.writer());
            if same_role || side.stream == Some(stream) || answering != Some(true) {
                continue;
            }
            match related(side.writer(world), known.reader()) {
                Some(true) => return Some(*id),
                // One end was not seen. An answer to an open question tells, if it is the only one.
                None if answers.is_some_and(|id| side.asked(id))
                    && likely.replace(*id).is_some() =>
                {
                    return None;
                }
                Some(false) | None => {}
            }
        }
        likely
    }

    /// Looks for the other direction of a one-sided session: among the streams that are not decided,
    /// and among other one-sided sessions.
    fn find_partners<D>(&mut self, id: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        self.decide(ENDS_WAIT, world, emit);
        let Some(session) = self.table.get(&id).filter(|session| session.one_sided()) else {
            return;
        };
        let Some(stream) = session.sides[0].stream else { return };
        let role = session.sides[0].role;
        let opened = session.opened;
        if let Some(other) = self.partner(stream, role, None, world).filter(|other| *other != id) {
            let both_said = opened && self.table.get(&other).is_some_and(|other| other.opened);
            if !both_said {
                let (keep, merge) = if opened { (id, other) } else { (other, id) };
                self.merge(keep, merge, world, emit);
            }
        }
    }

    /// Looks for the sessions of streams that are not decided. An answer whose receiver was not seen
    /// in time may be told by its question.
    fn decide<D>(&mut self, wait: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        let candidates: Vec<_> = self
            .undecided
            .iter()
            .map(|(stream, held)| {
                let sender = held.iter().find_map(|held| held.facts.sender);
                let answers = held
                    .iter()
                    .filter(|held| held.message.kind == MessageKind::Response)
                    .filter(|held| world.now >= held.since.plus(wait))
                    .find_map(|held| held.message.id.clone());
                (*stream, sender, answers)
            })
            .collect();
        for (stream, sender, answers) in candidates {
            if let Some(partner) = self.partner(stream, sender, answers.as_ref(), world) {
                self.bind(stream, partner, 1, world, emit);
                for held in self.take_undecided(&stream) {
                    self.push(partner, 1, held, world, emit);
                }
            }
        }
    }

    /// Makes the only side of `merge` the other side of `keep`.
    fn merge<D>(&mut self, keep: u64, merge: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        let Some(mut merged) = self.table.remove(&merge) else { return };
        self.unsettled.remove(&merge);
        let side = std::mem::take(&mut merged.sides[0]);
        if let Some(stream) = side.stream {
            self.by_stream.insert(stream, (keep, 1));
        }
        if let Some(session) = self.table.get_mut(&keep) {
            session.sides[1] = side;
            session.since = session.since.min(merged.since);
        }
        self.merge_legs(keep, merge, merged.leg);
        self.look_again(keep, world, emit);
    }

    pub(super) fn look_again<D>(&mut self, id: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        if self.table.get(&id).is_some_and(Session::one_sided) {
            self.find_partners(id, world, emit);
        }
        if let Some(session) = self.table.get_mut(&id) {
            session.prove(world);
            self.pump(id, world, emit);
        }
    }

    fn open<D>(&mut self, stream: StreamId, world: &World<'_, D>, emit: &mut Emit<'_>) -> u64 {
        if self.table.len() >= SESSIONS
            && let Some((_, id)) = self.table.iter().map(|(id, session)| (session.used, *id)).min()
        {
            if let Some(session) = self.table.get_mut(&id) {
                session.ends_at(world.now, CloseCause::Forgotten, 0);
            }
            self.close(id, world, emit);
        }
        self.last_id += 1;
        self.table.insert(self.last_id, Session::new(self.last_id, stream, world.now));
        self.unsettled.insert(self.last_id);
        self.last_id
    }

    fn bind<D>(
        &mut self,
        stream: StreamId,
        id: u64,
        side: usize,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        self.by_stream.insert(stream, (id, side));
        if let Some(session) = self.table.get_mut(&id) {
            session.sides[side].stream = Some(stream);
        }
        emit.verdict(world, &stream, Verdict::Keep);
        if side == 0 {
            for held in self.take_undecided(&stream) {
                if let Some(session) = self.table.get_mut(&id) {
                    session.push(side, held);
                }
            }
        }
    }

    fn push<D>(
        &mut self,
        id: u64,
        side: usize,
        held: Held,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        let Some(session) = self.table.get_mut(&id) else { return };
        session.used = world.now;
        let first = session.queued() == 0 && session.proof != Proof::Session;
        session.push(side, held);
        if first || (side == 1 && session.proof != Proof::Session) {
            session.prove(world);
        }
        let full = session.queued() > HELD_MESSAGES || session.queued_bytes() > HELD_BYTES;
        self.pump(id, world, emit);
        if full
            && let Some(session) = self.table.get_mut(&id)
            && (session.queued() > HELD_MESSAGES || session.queued_bytes() > HELD_BYTES)
        {
            // Too much to wait with: what is known now decides.
            session.prove(world);
            session.pump(world, emit, true);
        }
    }

    /// Says what can be said of a session, and of those that it was found to belong to.
    pub(super) fn pump<D>(&mut self, id: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        let freed = self.trace(id, world);
        for other in freed.into_iter().filter(|other| *other != id) {
            self.pump_one(other, world, emit);
        }
        self.pump_one(id, world, emit);
    }

    fn pump_one<D>(&mut self, id: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        let Some(session) = self.table.get_mut(&id) else { return };
        let again = session.pump(world, emit, false);
        let settled =
            session.proof == Proof::Session && !session.one_sided() && session.queued() == 0;
        if settled {
            self.unsettled.remove(&id);
        } else {
            self.unsettled.insert(id);
        }
        if let Some(at) = again {
            self.arm(id, at);
        }
    }

    fn arm(&mut self, id: u64, at: Timestamp) {
        let Some(session) = self.table.get_mut(&id) else { return };
        if session.armed.is_none_or(|armed| at < armed) {
            session.armed = Some(at);
            self.due.push(Reverse((at, id)));
        }
    }

    fn close<D>(&mut self, id: u64, world: &World<'_, D>, emit: &mut Emit<'_>) {
        if self.table.get(&id).is_some_and(Session::one_sided) {
            // Its answers may still wait for somebody to be seen reading them.
            self.decide(0, world, emit);
        }
        self.legs.hurry = true;
        self.trace(id, world);
        self.legs.hurry = false;
        let Some(mut session) = self.table.remove(&id) else { return };
        session.close(world, emit);
        self.unsettled.remove(&id);
        self.legs.forget(id);
        for stream in session.streams() {
            self.by_stream.remove(&stream);
            let newest = world.streams.get(&stream).map(Stream::newest).unwrap_or_default();
            emit.verdict(world, &stream, Verdict::Forget(newest));
            self.ended.push(stream);
        }
    }

    fn hold_undecided(&mut self, stream: StreamId, held: Held, emit: &mut Emit<'_>) {
        self.undecided_bytes += held.message.raw.len();
        if !std::mem::replace(&mut self.undecided_armed, true) {
            self.due.push(Reverse((held.since.plus(ENDS_WAIT), UNDECIDED)));
        }
        let queue = self.undecided.entry(stream).or_default();
        queue.push_back(held);
        if queue.len() > UNDECIDED_MESSAGES
            && let Some(old) = queue.pop_front()
        {
            self.undecided_bytes -= old.message.raw.len();
            emit.counters.add(Counter::WithheldNotMcp, 1);
        }
        while self.undecided_bytes > UNDECIDED_BYTES {
            let Some(largest) = self
                .undecided
                .iter()
                .max_by_key(|(_, queue)| queue.iter().map(|h| h.message.raw.len()).sum::<usize>())
                .map(|(stream, _)| *stream)
            else {
                return;
            };
            self.drop_undecided(&largest, emit);
        }
    }

    fn take_undecided(&mut self, stream: &StreamId) -> VecDeque<Held> {
        let queue = self.undecided.remove(stream).unwrap_or_default();
        self.undecided_bytes -= queue.iter().map(|held| held.message.raw.len()).sum::<usize>();
        queue
    }

    fn drop_undecided(&mut self, stream: &StreamId, emit: &mut Emit<'_>) {
        let dropped = self.take_undecided(stream).len() as u64;
        emit.counters.add(Counter::WithheldNotMcp, dropped);
    }
}
