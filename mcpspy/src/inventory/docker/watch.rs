//! The loop: find engines, follow each of them for ever.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::endpoints::{self, Endpoint};
use super::facts::Known;
use super::session::{Ended, Follower};
use super::{EngineSummary, News, Permission, Silent};
use crate::model::{ContainerId, ContainerInfo, EngineFact, Input, Timestamp};

/// First and longest time between two attempts.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long the first attempts may take before the rest of the program is told how they went.
const FIRST: Duration = Duration::from_secs(12);
/// A socket on which nobody listens for so long is not one of an engine that is being restarted.
const STALE: Duration = Duration::from_secs(30);

/// A connection that ended so soon was not ended because it was idle.
const BRIEF: Duration = Duration::from_secs(5);
/// Long enough for an engine that ends to close its socket.
const AT_ONCE: Duration = Duration::from_millis(50);

type Push = Box<dyn FnMut(Vec<Input>) -> ControlFlow<()> + Send>;

/// Where facts and news go, and what all engines told so far.
pub(super) struct Told {
    clock: fn() -> Timestamp,
    push: Mutex<Push>,
    news: Sender<News>,
    state: Mutex<State>,
    /// An engine went away, or nobody takes facts any more.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Engines that answer, by what tells them apart.
    engines: BTreeMap<String, EngineSummary>,
    /// Which address leads to which engine.
    claims: HashMap<String, Arc<str>>,
    containers: HashMap<ContainerId, (Arc<ContainerInfo>, Option<u32>)>,
    silent: BTreeMap<Arc<str>, Silent>,
    /// The user was told who answers.
    settled: bool,
    /// So far nobody answered.
    alone: bool,
    closed: bool,
}

impl Told {
    pub(super) fn new(clock: fn() -> Timestamp, push: Push, news: Sender<News>) -> Arc<Self> {
        let state = State { alone: true, ..State::default() };
        Arc::new(Self {
            clock,
            push: Mutex::new(push),
            news,
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn container(&self, known: &Known) {
        let entry = (known.info.clone(), known.init);
        self.state().containers.insert(known.info.id.clone(), entry);
        let (info, init) = (known.info.clone(), known.init);
        self.push(EngineFact::Container { at: (self.clock)(), info, init });
    }

    /// A container that does not run any more. It is still known by its name.
    pub(super) fn died(&self, id: &ContainerId) {
        let Some((info, _)) = self.state().containers.remove(id) else { return };
        self.push(EngineFact::Container { at: (self.clock)(), info, init: None });
    }

    pub(super) fn exec(&self, id: &str, container: ContainerId, pid: u32) {
        self.push(EngineFact::Exec { at: (self.clock)(), id: id.into(), container, pid });
    }

    /// The engine is going to be asked. Only the first time: later ones wait for nobody.
    fn asked(&self, endpoint: &Endpoint) {
        if !self.state().settled {
            self.push(EngineFact::Asked { at: (self.clock)(), engine: endpoint.name.clone() });
        }
    }

    /// The engine answers and has told everything.
    pub(super) fn connected(&self, key: &str, engine: &EngineSummary) {
        let fact = EngineFact::Connected {
            at: (self.clock)(),
            engine: engine.endpoint.clone(),
            containers: engine.containers,
        };
        let (late, first) = {
            let mut state = self.state();
            state.silent.remove(&engine.endpoint);
            state.engines.insert(key.to_owned(), engine.clone());
            (state.settled, std::mem::replace(&mut state.alone, false))
        };
        self.push(fact);
        if late {
            tracing::info!("containers: {}", engine.describe());
            if first {
                self.settle();
            }
        }
    }

    /// Whether this address is the one by which the engine is followed. Another one may be: the
    /// same engine is used once.
    pub(super) fn claim(&self, key: &str, endpoint: &Endpoint) -> bool {
        let mut state = self.state();
        *state.claims.entry(key.to_owned()).or_insert_with(|| endpoint.name.clone())
            == endpoint.name
    }

    /// The engine does not let everything through.
    pub(super) fn refused(&self, endpoint: &Endpoint, refused: &[Permission]) {
        // Nobody may listen: then nobody wants to know.
        let (endpoint, refused) = (endpoint.name.clone(), refused.to_vec());
        drop(self.news.send(News::Refused { endpoint, refused }));
    }

    /// Another address may have the engine.
    pub(super) fn release(&self, key: &str) {
        self.state().claims.remove(key);
    }

    fn lost(&self, key: &str, endpoint: &Endpoint, why: &str) {
        self.state().engines.remove(key);
        self.push(EngineFact::Lost { at: (self.clock)(), engine: endpoint.name.clone() });
        tracing::warn!(
            "containers: {} does not answer any more ({why}); until it does, new containers are \
             known by their ids",
            endpoint.name
        );
        self.changed.notify_one();
    }

    fn push(&self, fact: EngineFact) {
        let mut push = self.push.lock().unwrap_or_else(PoisonError::into_inner);
        if push(vec![Input::Engine(fact)]).is_break() {
            self.state().closed = true;
            self.changed.notify_one();
        }
    }

    fn settle(&self) {
        let daemons = !endpoints::daemons(Path::new("/proc")).is_empty();
        let mut state = self.state();
        state.settled = true;
        // Nobody may listen: then nobody wants to know.
        drop(self.news.send(News::Settled {
            engines: state.engines.values().cloned().collect(),
            silent: state.silent.values().cloned().collect(),
            containers: state.containers.values().cloned().collect(),
            daemons,
        }));
    }
}

/// Finds engines and follows them, until nobody takes facts any more. With addresses that the user
/// gave, only those: whoever puts a proxy in front of an engine does not want it to be bypassed.
pub(super) async fn follow_all(asked: Vec<Endpoint>, told: Arc<Told>) {
    let mut followed: HashMap<Arc<str>, JoinHandle<()>> = HashMap::new();
    let mut pause = BackOff::default();
    loop {
        followed.retain(|_, task| !task.is_finished());
        // Also while one answers: another engine may have been started since.
        let usual = if asked.is_empty() { endpoints::usual(Path::new("/")) } else { asked.clone() };
        try_each(usual, &mut followed, &told).await;
        if asked.is_empty() && told.state().engines.is_empty() {
            let found = endpoints::of_processes(Path::new("/proc"));
            try_each(found, &mut followed, &told).await;
        }
        if !told.state().settled {
            told.settle();
        }
        tokio::select! {
            () = sleep(pause.next()) => {}
            () = told.changed.notified() => pause = BackOff::default(),
        }
        if told.state().closed {
            return;
        }
    }
}

/// Begins to follow those that are new, and waits until each of them has answered or failed once.
async fn try_each(
    found: Vec<Endpoint>,
    followed: &mut HashMap<Arc<str>, JoinHandle<()>>,
    told: &Arc<Told>,
) {
    let mut firsts = Vec::new();
    for endpoint in found {
        followed.entry(endpoint.name.clone()).or_insert_with(|| {
            told.asked(&endpoint);
            let (first, answered) = oneshot::channel();
            firsts.push(answered);
            tokio::spawn(follow(endpoint, told.clone(), first))
        });
    }
    let all = async {
        for first in firsts {
            // A task that ended has failed.
            _ = first.await;
        }
    };
    // Who takes longer is heard later.
    _ = timeout(FIRST, all).await;
}

/// Follows one engine, through all its restarts.
async fn follow(endpoint: Endpoint, told: Arc<Told>, first: oneshot::Sender<()>) {
    let mut follower = Follower::new(endpoint.clone(), told.clone(), first);
    let mut pause = BackOff::default();
    let mut silence = Silence::default();
    loop {
        let began = Instant::now();
        match follower.session().await {
            // It may have closed an idle connection: that is no loss if it answers at once.
            Ended::Closed if began.elapsed() > BRIEF => {
                pause = BackOff::default();
                sleep(AT_ONCE).await;
            }
            Ended::Closed => sleep(pause.next()).await,
            Ended::Duplicate => sleep(BACK_OFF.1).await,
            Ended::Failed { error, refused } => {
                if let Some(key) = follower.give_up() {
                    pause = BackOff::default();
                    told.lost(&key, &endpoint, &error);
                }
                tracing::debug!("containers: {}: {error}", endpoint.name);
                if silence.is_stale(refused) {
                    // Nobody may listen: then nobody wants to know.
                    drop(told.news.send(News::Stale { endpoint: endpoint.name.clone() }));
                }
                if !endpoint.exists() {
                    return;
                }
                let silent = Silent { endpoint: endpoint.name.clone(), error, refused };
                told.state().silent.insert(endpoint.name.clone(), silent);
                follower.answered();
                sleep(pause.next()).await;
                continue;
            }
        }
        silence = Silence::default();
    }
}

/// How long nobody has been listening on a socket.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    said: bool,
}

impl Silence {
    /// Whether it is to be said now that the socket is not the engine's any more.
    fn is_stale(&mut self, refused: bool) -> bool {
        if !refused {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let stale = since.elapsed() >= STALE && !self.said && super::daemon_runs();
        self.said |= stale;
        stale
    }
}

/// Time between attempts: doubled each time.
struct BackOff(Duration);

impl Default for BackOff {
    fn default() -> Self {
        Self(BACK_OFF.0)
    }
}

impl BackOff {
    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(BACK_OFF.1);
        now
    }
}
