//! Paths through relays. What a client says to `docker exec -i` passes several programs before the
//! server reads it; two sessions of it are seen, its *legs*: client to first relay, last relay to
//! server. One of them is said, with the far end of the other.
//!
//! Which leg belongs to which is known, from strong to weak: by what the relay asked the engine for
//! (an exec instance or a container) and what the engine said of it; by a line that both legs
//! carried within two seconds, where no other leg did. Never by a JSON-RPC id. Where two are as
//! likely none is chosen: an unknown end is better than a wrong one.

use std::collections::{BTreeSet, VecDeque};
use std::hash::Hasher;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHasher};

use super::asked::{Asked, Evidence};
use super::conversation::{Held, Session};
use super::table::Sessions;
use super::{ENDS_WAIT, Emit, LEG_WAIT, World};
use crate::model::{Endpoint, ProcessId, Quality, StreamId, Timestamp};
use crate::protocol::docker_stream::Request;
use crate::streams::Stream;

/// How far apart the same line may be seen on two legs, ns. Relays take a millisecond; a server that
/// is still starting reads later, and is found by what its relay asked for.
const SAME_LINE: u64 = 2_000_000_000;

/// Lines of a leg that are remembered.
const LINES: usize = 32;

/// How long the counterpart of a leg that was said alone is looked for, ns.
const SEARCH: u64 = 30_000_000_000;

/// Legs that are looked at when another one wants its counterpart, the newest ones.
const LOOKED_AT: usize = 64;

/// Requests to an engine that are remembered of a process: a gateway starts a handful of servers.
const REQUESTS: usize = 16;

/// Processes and streams of which requests are remembered.
const ASKERS: usize = 4096;

/// What a session is on a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// All of it.
    #[default]
    Whole,
    /// Between the client and the first relay.
    Client,
    /// Between the last relay and the server.
    Server,
}

#[derive(Debug)]
struct Line {
    side: usize,
    hash: u64,
    at: Timestamp,
}

/// What a session knows of the path that it is on.
#[derive(Debug, Default)]
pub(super) struct Leg {
    pub(super) kind: Kind,
    lines: VecDeque<Line>,
    /// The counterpart.
    bound: Option<u64>,
    /// The other leg is the one that is said.
    pub(super) silent: bool,
    /// Who is at the far end of the other leg.
    pub(super) far: Option<ProcessId>,
    /// Who is before the client's end of this one, where that is a relay under another name.
    near: Option<ProcessId>,
    /// Another leg carried the same lines, but so did a third.
    ambiguous: bool,
    /// Of a client's leg: what its relay asked for.
    asked: Option<Asked>,
    /// It was told that the relay may be none.
    pub(super) doubted: bool,
}

impl Leg {
    pub(super) fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// The time to wait for the other leg is over.
    pub(super) fn give_up(&mut self) {
        // It is said somewhere, and once is enough.
        self.silent |= self.kind == Kind::Client && self.ambiguous && !self.is_bound();
    }

    /// Remembers a line. One without an id (`notifications/initialized`) is the same everywhere.
    pub(super) fn note(&mut self, side: usize, held: &Held) {
        if held.message.id.is_none() {
            return;
        }
        let mut hasher = FxHasher::default();
        hasher.write(held.message.raw.as_bytes());
        hasher.write_u64(held.message.size);
        if self.lines.len() == LINES {
            // The first one stays: it tells a relay from a program of its own.
            self.lines.remove(1);
        }
        self.lines.push_back(Line { side, hash: hasher.finish(), at: held.at });
    }
}

/// What processes asked container engines for.
#[derive(Debug, Default)]
pub(super) struct Legs {
    /// Legs whose counterpart is not known.
    open: BTreeSet<u64>,
    /// A leg is about to go: what an engine may yet say is not waited for.
    pub(super) hurry: bool,
    by_process: FxHashMap<ProcessId, Vec<Request>>,
    by_stream: FxHashMap<StreamId, Request>,
    /// Sessions on such streams.
    speaking: BTreeSet<u64>,
    /// In which container, by the name that they used.
    prepared: FxHashMap<ProcessId, Arc<str>>,
}

impl Legs {
    pub(super) fn forget(&mut self, id: u64) {
        self.open.remove(&id);
        self.speaking.remove(&id);
    }

    /// The process ended: nothing new comes of what it asked for.
    pub(super) fn forget_process(&mut self, process: ProcessId) {
        self.by_process.remove(&process);
        self.prepared.remove(&process);
    }

    fn has_asked(&self, process: ProcessId) -> bool {
        self.by_process.contains_key(&process)
    }
}

/// Who is at the two ends of a session.
struct Ends {
    client: [Option<ProcessId>; 2],
    server: [Option<ProcessId>; 2],
}

impl Ends {
    fn of<D>(session: &Session, world: &World<'_, D>) -> Option<Self> {
        let client = session.client_side()?;
        let (there, back) = (&session.sides[client], &session.sides[1 - client]);
        Some(Self {
            client: [there.writer(world), back.reader(world)],
            server: [there.reader(world), back.writer(world)],
        })
    }
}

fn first(end: [Option<ProcessId>; 2], wanted: impl Fn(ProcessId) -> bool) -> Option<ProcessId> {
    end.into_iter().flatten().find(|process| wanted(*process))
}

impl Sessions {
    /// A process is about to start something in this container.
    pub fn prepares(&mut self, process: ProcessId, container: Arc<str>) {
        if self.legs.prepared.len() >= ASKERS {
            self.legs.prepared.clear();
        }
        self.legs.prepared.insert(process, container);
    }

    /// A process asked a container engine for a stream to a container, on this stream where its
    /// bytes were seen.
    pub fn asked<D>(
        &mut self,
        process: ProcessId,
        stream: Option<StreamId>,
        request: Request,
        world: &World<'_, D>,
        emit: &mut Emit<'_>,
    ) {
        if self.legs.by_process.len() >= ASKERS || self.legs.by_stream.len() >= ASKERS {
            self.legs.by_process.retain(|process, _| world.processes.exited(*process).is_none());
            self.legs.by_stream.retain(|stream, _| world.streams.get(stream).is_some());
        }
        if let Some(stream) = stream {
            self.legs.by_stream.insert(stream, request.clone());
        }
        let requests = self.legs.by_process.entry(process).or_default();
        if requests.len() < REQUESTS && !requests.contains(&request) {
            requests.push(request);
        }
        self.process_changed(process, world, emit);
    }

    /// A container engine said something: paths may be known now.
    pub fn engine_said<D>(&mut self, world: &World<'_, D>, emit: &mut Emit<'_>) {
        for id in self.open_legs() {
            self.look_again(id, world, emit);
        }
        for id in self.newest_unsettled() {
            self.pump(id, world, emit);
        }
    }

    fn open_legs(&self) -> Vec<u64> {
        self.legs.open.iter().rev().take(LOOKED_AT).copied().collect()
    }

    /// Looks what the session is on its path, and for its counterpart. Returns the sessions whose
    /// messages may go on now.
    pub(super) fn trace<D>(&mut self, id: u64, world: &World<'_, D>) -> Vec<u64> {
        let Some(session) = self.table.get(&id) else { return Vec::new() };
        let Some(ends) = Ends::of(session, world) else { return Vec::new() };
        let kind = self.kind(&ends, world);
        let asked = self.asked_by(session, &ends, world);
        let Some(session) = self.table.get_mut(&id) else { return Vec::new() };
        session.leg.kind = kind;
        session.leg.asked = asked.or(session.leg.asked.take());
        let speaks = session.streams().any(|stream| self.legs.by_stream.contains_key(&stream));
        if session.leg.is_bound() {
            self.tell_far(id, world);
            return Vec::new();
        }
        if session.opened && world.now > session.since.plus(SEARCH) {
            self.legs.open.remove(&id);
            return Vec::new();
        }
        match kind {
            Kind::Whole => {
                self.legs.open.remove(&id);
                Vec::new()
            }
            Kind::Client => {
                self.legs.open.insert(id);
                if speaks {
                    self.legs.speaking.insert(id);
                }
                if let Some(own) = self.behind_another(id, speaks, &ends, world) {
                    self.tell_far(own, world);
                    if own != id {
                        return vec![own];
                    }
                }
                let servers = self.open_legs();
                let servers = servers.into_iter().filter(|other| self.is(*other, Kind::Server));
                for server in servers.collect::<Vec<_>>() {
                    if let Some(bound) = self.find_client(server, world) {
                        return bound;
                    }
                }
                Vec::new()
            }
            Kind::Server => {
                self.legs.open.insert(id);
                self.find_client(id, world).unwrap_or_default()
            }
        }
    }

    /// The other half of a session was taken for one of its own: what it knew of its path is true of
    /// the whole.
    pub(super) fn merge_legs(&mut self, keep: u64, merge: u64, merged: Leg) {
        self.legs.forget(merge);
        if let Some(other) = merged.bound.and_then(|other| self.table.get_mut(&other)) {
            other.leg.bound = Some(keep);
        }
        let Some(session) = self.table.get_mut(&keep) else { return };
        // Its lines were of side 0, which is side 1 now.
        let lines = merged.lines.into_iter().map(|line| Line { side: 1 - line.side, ..line });
        session.leg.lines.extend(lines);
        session.leg.lines.truncate(LINES);
        session.leg.bound = session.leg.bound.or(merged.bound);
        session.leg.silent |= merged.silent;
        session.leg.far = session.leg.far.or(merged.far);
        session.leg.near = session.leg.near.or(merged.near);
    }

    fn is(&self, id: u64, kind: Kind) -> bool {
        self.table.get(&id).is_some_and(|session| session.leg.kind == kind)
    }

    fn kind<D>(&self, ends: &Ends, world: &World<'_, D>) -> Kind {
        let relay = |process| world.processes.is_relay(process);
        if first(ends.server, |p| relay(p) || self.legs.has_asked(p)).is_some() {
            Kind::Client
        } else if first(ends.client, relay).is_some() {
            Kind::Server
        } else {
            Kind::Whole
        }
    }

    /// What the relay of a client's leg asked for; the client itself, where it speaks to the engine.
    fn asked_by<D>(&self, session: &Session, ends: &Ends, world: &World<'_, D>) -> Option<Asked> {
        let said = session.streams().find_map(|stream| self.legs.by_stream.get(&stream));
        let relay = |process| world.processes.is_relay(process);
        let itself = first(ends.server, relay).is_some();
        let clients = ends.client.iter().flatten().filter(|_| itself);
        let askers = ends.server.iter().flatten().chain(clients);
        let asker = askers.clone().find(|process| self.legs.has_asked(**process));
        let only = asker.and_then(|asker| match self.legs.by_process.get(asker)?.as_slice() {
            [one] => Some(one),
            _ => None,
        });
        let request = said.or(only)?.clone();
        let container = asker.and_then(|asker| self.legs.prepared.get(asker)).cloned();
        Some(Asked { request, container })
    }

    /// The counterpart of a server's leg.
    fn find_client<D>(&mut self, server: u64, world: &World<'_, D>) -> Option<Vec<u64>> {
        let session = self.table.get(&server).filter(|session| !session.leg.is_bound())?;
        let process = server_of(session, world)?;
        let clients: Vec<_> = self
            .open_legs()
            .into_iter()
            .filter(|id| self.is(*id, Kind::Client))
            .map(|id| (id, self.evidence(id, process, world)))
            .filter(|(_, evidence)| *evidence != Evidence::Against)
            .collect();
        let pending = |id: &u64| {
            let asked = self.table.get(id).and_then(|client| client.leg.asked.as_ref());
            asked.is_some_and(|asked| asked.is_pending(world))
        };
        // What an engine is about to say is better than lines in common.
        let wait = !self.legs.hurry
            && world.processes.containers.is_connected()
            && world.now < session.since.plus(ENDS_WAIT)
            && clients.iter().any(|(id, _)| pending(id));
        let told: Vec<_> =
            clients.iter().filter(|c| c.1 == Evidence::For).map(|(id, _)| *id).collect();
        let found = match told.as_slice() {
            [one] => Some(*one),
            [] if wait => None,
            [] => self.by_line(server, &clients.iter().map(|c| c.0).collect::<Vec<_>>(), world),
            several => self.by_line(server, several, world),
        };
        if let Some(client) = found {
            return Some(self.bind_legs(client, server, world));
        }
        let far = self.client_of(process, world)?;
        let session = self.table.get_mut(&server)?;
        (session.leg.far.replace(far) != Some(far)).then(|| vec![server])
    }

    /// The only one of `clients` that carried a line which no other leg did but `server`.
    fn by_line<D>(&mut self, server: u64, clients: &[u64], world: &World<'_, D>) -> Option<u64> {
        let session = self.table.get(&server)?;
        let servers: Vec<_> =
            self.open_legs().into_iter().filter(|id| self.is(*id, Kind::Server)).collect();
        let mut unclear = BTreeSet::new();
        for line in session.leg.lines.iter().rev() {
            let carried =
                |id: &u64| self.table.get(id).is_some_and(|other| carries(other, session, line));
            let alike: Vec<_> = clients.iter().filter(|id| carried(id)).copied().collect();
            let [client] = alike.as_slice() else {
                unclear.extend(alike);
                continue;
            };
            let others = servers.iter().filter(|id| **id != server && carried(id));
            let rivals = others.filter(|id| {
                let process = self.table.get(id).and_then(|other| server_of(other, world));
                process.is_none_or(|p| self.evidence(*client, p, world) != Evidence::Against)
            });
            if rivals.count() == 0 {
                return Some(*client);
            }
            unclear.insert(*client);
        }
        if !unclear.is_empty() {
            unclear.insert(server);
        }
        for id in unclear {
            if let Some(session) = self.table.get_mut(&id) {
                session.leg.ambiguous = true;
            }
        }
        None
    }

    /// Of a relay under a name that nobody knows, which speaks to the engine itself, the leg before
    /// it and its own carry the same lines. Returns its own, whose client is another one now.
    fn behind_another<D>(
        &mut self,
        id: u64,
        speaks: bool,
        ends: &Ends,
        world: &World<'_, D>,
    ) -> Option<u64> {
        let mut all = ends.client.iter().chain(&ends.server).flatten();
        if !all.any(|process| self.legs.has_asked(*process)) {
            return None;
        }
        let session = self.table.get(&id)?;
        let related = |client: [Option<ProcessId>; 2], server: [Option<ProcessId>; 2]| {
            let relay = first(server, |process| self.legs.has_asked(process));
            relay.is_some_and(|relay| client.contains(&Some(relay)))
        };
        let others: Vec<_> = if speaks {
            self.open_legs()
        } else {
            self.legs.speaking.iter().rev().take(LOOKED_AT).copied().collect()
        };
        let pair = others.into_iter().filter(|other| *other != id).filter_map(|other| {
            let there = self.table.get(&other).filter(|there| there.leg.kind == Kind::Client)?;
            let their = Ends::of(there, world)?;
            if related(their.client, ends.server) {
                (!session.opened && begins_like(session, there)).then_some((id, other))
            } else {
                let behind = related(ends.client, their.server);
                (behind && !there.opened && begins_like(there, session)).then_some((other, id))
            }
        });
        let (before, own) = pair.min()?;
        let near = Ends::of(self.table.get(&before)?, world)?.client;
        let near = first(near, |process| !world.processes.is_relay(process))?;
        self.legs.open.remove(&before);
        let leg = &mut self.table.get_mut(&before)?.leg;
        leg.bound = Some(own);
        leg.silent = true;
        let leg = &mut self.table.get_mut(&own)?.leg;
        (leg.near.replace(near) != Some(near)).then_some(own)
    }

    /// The process that speaks to the relay that asked for this server, where the relay's streams
    /// say who that is although no line of it was copied.
    fn client_of<D>(&self, server: ProcessId, world: &World<'_, D>) -> Option<ProcessId> {
        let mut relays = self.legs.by_process.iter().filter(|(_, requests)| {
            requests.iter().any(|request| {
                let asked = Asked { request: request.clone(), container: None };
                asked.fits(server, world) == Evidence::For
            })
        });
        let (relay, _) = relays.next()?;
        if relays.next().is_some() || !world.processes.is_relay(*relay) {
            return None;
        }
        let mut clients = world
            .streams
            .iter()
            .filter(|stream| stream.reader() == Some(*relay))
            .filter_map(Stream::writer)
            .filter(|writer| !world.processes.is_relay(*writer));
        let client = clients.next()?;
        clients.all(|other| other == client).then_some(client)
    }

    fn evidence<D>(&self, client: u64, server: ProcessId, world: &World<'_, D>) -> Evidence {
        let Some(client) = self.table.get(&client) else { return Evidence::Against };
        let Some(asked) = &client.leg.asked else { return Evidence::None };
        let found = asked.fits(server, world);
        let named = Ends::of(client, world).is_some_and(|ends| {
            first(ends.server, |process| world.processes.is_relay(process)).is_some()
        });
        // Whoever asked under another name may do more than hand bytes on.
        if named { found } else { found.min(Evidence::None) }
    }

    /// Makes two legs one path. The server's leg is the one that is said, unless the client's already
    /// was.
    fn bind_legs<D>(&mut self, client: u64, server: u64, world: &World<'_, D>) -> Vec<u64> {
        let opened = |id| self.table.get(&id).is_some_and(|session: &Session| session.opened);
        let client_speaks = opened(client) && !opened(server);
        for (id, other, silent) in
            [(client, server, !client_speaks), (server, client, client_speaks)]
        {
            self.legs.open.remove(&id);
            if let Some(session) = self.table.get_mut(&id) {
                session.leg.bound = Some(other);
                session.leg.ambiguous = false;
                session.leg.silent |= silent;
            }
        }
        // Those that were as likely are told apart anew by what is left.
        for id in self.open_legs() {
            if let Some(session) = self.table.get_mut(&id) {
                session.leg.ambiguous = false;
            }
        }
        self.tell_far(client, world);
        self.tell_far(server, world);
        vec![client, server]
    }

    /// Tells the counterparts of a leg who is at its far end.
    fn tell_far<D>(&mut self, id: u64, world: &World<'_, D>) {
        let Some(session) = self.table.get(&id) else { return };
        let Some(ends) = Ends::of(session, world) else { return };
        let relay = |process| world.processes.is_relay(process);
        let (near, bound) = (session.leg.near, session.leg.bound);
        let kind = session.leg.kind;
        let far = match kind {
            Kind::Client => near.or_else(|| first(ends.client, |process| !relay(process))),
            _ => first(ends.server, |process| !relay(process)),
        };
        if let Some(other) = bound.and_then(|other| self.table.get_mut(&other)) {
            match (kind, other.leg.kind) {
                (Kind::Client, Kind::Client) => other.leg.near = far.or(other.leg.near),
                _ => other.leg.far = far.or(other.leg.far),
            }
        }
    }
}

/// The process that a server's leg leads to.
fn server_of<D>(session: &Session, world: &World<'_, D>) -> Option<ProcessId> {
    first(Ends::of(session, world)?.server, |process| !world.processes.is_relay(process))
}

/// Whether the first line of a leg went on to another one: a gateway says its own.
fn begins_like(before: &Session, behind: &Session) -> bool {
    before.leg.lines.front().is_some_and(|line| carries(behind, before, line))
}

/// Whether `session` carried this line of `other`, in the same direction.
fn carries(session: &Session, other: &Session, line: &Line) -> bool {
    let (Some(own), Some(others)) = (session.client_side(), other.client_side()) else {
        return false;
    };
    session.leg.lines.iter().any(|mine| {
        mine.hash == line.hash
            && (mine.side == own) == (line.side == others)
            && mine.at.since(line.at).max(line.at.since(mine.at)) <= SAME_LINE
    })
}

impl Session {
    /// Puts the far ends of the path in the place of its relays.
    pub(super) fn path_ends<D>(
        &self,
        side: usize,
        from: &mut Endpoint,
        to: &mut Endpoint,
        world: &World<'_, D>,
    ) {
        let Some(client) = self.client_side() else { return };
        let (client_end, server_end) = if side == client { (from, to) } else { (to, from) };
        match self.leg.kind {
            Kind::Whole => {}
            Kind::Server => {
                if self.leg.far.is_some() {
                    *client_end = world.processes.endpoint(self.leg.far, Quality::Path);
                } else if self.leg.ambiguous {
                    *client_end = Endpoint::UNKNOWN;
                } else if client_end.process.as_ref().is_none_or(|process| hands_on(&process.comm))
                {
                    *client_end = Endpoint { quality: Quality::Outside, ..Endpoint::UNKNOWN };
                }
            }
            Kind::Client => {
                if self.leg.near.is_some() {
                    *client_end = world.processes.endpoint(self.leg.near, Quality::Path);
                }
                if self.leg.far.is_some() {
                    *server_end = world.processes.endpoint(self.leg.far, Quality::Path);
                } else if let Some(end) = self.leg.asked.as_ref().and_then(|asked| asked.end(world))
                {
                    *server_end = end;
                }
            }
        }
    }

    /// Until when a client's leg waits for its server's.
    pub(super) fn wait_for_server<D>(&self, world: &World<'_, D>) -> Timestamp {
        let alone = || self.since.plus(LEG_WAIT);
        self.leg.asked.as_ref().map_or_else(alone, |asked| asked.wait(self.since, world))
    }

    /// Whether a program with a relay's name may be an end of its own; true once.
    pub(super) fn doubt<D>(&mut self, world: &World<'_, D>) -> bool {
        let strange = match self.leg.kind {
            Kind::Whole => false,
            Kind::Client if self.leg.far.is_some() => false,
            Kind::Client => match self.leg.asked.as_ref().and_then(|asked| asked.end(world)) {
                // It is a relay by its name, and no relay by its place.
                Some(end) => end.process.is_some_and(|server| world.processes.is_relay(server.id)),
                None => self.leg.asked.is_none(),
            },
            Kind::Server => {
                self.leg.far.is_none()
                    && Ends::of(self, world)
                        .and_then(|ends| first(ends.client, |p| world.processes.is_relay(p)))
                        .and_then(|relay| world.processes.info(relay))
                        .is_some_and(|relay| !hands_on(&relay.comm))
            }
        };
        strange && !std::mem::replace(&mut self.leg.doubted, true)
    }
}

/// Relays that stand beside a container and never next to a client.
fn hands_on(comm: &str) -> bool {
    comm.starts_with("containerd-shim") || comm == "conmon" || comm == "dockerd"
}
