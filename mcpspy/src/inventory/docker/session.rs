//! One connection to an engine: what it is, what runs, and what happens until it goes away.

use std::collections::HashMap;
use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, stream};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use super::endpoints::{Address, Endpoint};
use super::facts::{self, Action, Home, Known};
use super::watch::Told;
use super::{EngineSummary, Permission};
use crate::model::ContainerId;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often an engine is asked whether it is still there.
const ALIVE: Duration = Duration::from_secs(30);
/// How often what runs is listed where events are not let through.
const LIST: Duration = Duration::from_secs(5);
/// How many questions are open at once.
const AT_ONCE: usize = 8;
/// First and longest time between two questions for the process of an exec: its event comes first.
const EXEC: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(640));
/// How long to ask for it: an engine under load takes seconds to start a process.
const EXEC_PATIENCE: Duration = Duration::from_secs(10);
/// Most execs whose process is asked for at one time.
const EXECS: usize = 512;
/// Events that wait while containers are listed.
const QUEUE: usize = 1024;

/// How a session ended.
pub(super) enum Ended {
    /// The engine does not answer.
    Failed {
        error: String,
        /// Nobody listens on the socket.
        refused: bool,
    },
    /// It answered, and then there were no more events.
    Closed,
    /// It is followed by another address already.
    Duplicate,
}

/// Why a question has no answer.
enum NoAnswer {
    /// It is not let through.
    Forbidden,
    /// The engine has no answer, or one that cannot be read.
    Other,
    /// There is no engine.
    Gone(Ended),
}

/// Follows one engine.
pub(super) struct Follower {
    endpoint: Endpoint,
    told: Arc<Told>,
    /// To be told when it has answered or failed for the first time.
    first: Option<oneshot::Sender<()>>,
    /// What tells the engine from others, since it is this follower's.
    claimed: Option<String>,
    /// It answered, and has not been lost since.
    connected: bool,
    /// What the user knows to be refused.
    refused: Vec<Permission>,
    running: HashMap<ContainerId, Known>,
    execs: Execs,
}

/// Bounds on what is asked about execs.
struct Execs {
    /// Questions that are open.
    questions: Arc<Semaphore>,
    /// Execs whose process is still to be told.
    waiting: Arc<Semaphore>,
    /// The user knows that some were left out.
    said: bool,
}

/// A task that ends with its session.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    pub(super) fn new(endpoint: Endpoint, told: Arc<Told>, first: oneshot::Sender<()>) -> Self {
        Self {
            endpoint,
            told,
            first: Some(first),
            claimed: None,
            connected: false,
            refused: Vec::new(),
            running: HashMap::new(),
            execs: Execs {
                questions: Arc::new(Semaphore::new(AT_ONCE)),
                waiting: Arc::new(Semaphore::new(EXECS)),
                said: false,
            },
        }
    }

    /// The first attempt is over, well or not.
    pub(super) fn answered(&mut self) {
        if let Some(first) = self.first.take() {
            // Whoever asked did not wait so long.
            _ = first.send(());
        }
    }

    /// The engine may be another's; returns which one it was if it had answered.
    pub(super) fn give_up(&mut self) -> Option<String> {
        let key = self.claimed.take()?;
        self.told.release(&key);
        std::mem::take(&mut self.connected).then_some(key)
    }

    /// Connects and follows the engine until it goes away.
    pub(super) async fn session(&mut self) -> Ended {
        match self.try_session().await {
            Ok(never) | Err(never) => never,
        }
    }

    async fn try_session(&mut self) -> Result<Ended, Ended> {
        let api = connect(&self.endpoint)?;
        let mut refused = Vec::new();
        let version = allowed(ask(api.version()).await, Permission::Version, &mut refused)?;
        // A busy engine takes long for it, and nothing depends on it.
        let info =
            allowed(ask(api.info()).await, Permission::Info, &mut refused).unwrap_or_default();
        let mut engine = facts::summary(&self.endpoint.name, version.as_ref(), info.as_ref());
        let key = facts::engine_key(&engine, info.as_ref());
        if !self.told.claim(&key, &self.endpoint) {
            self.answered();
            return Ok(Ended::Duplicate);
        }
        self.claimed = Some(key.clone());
        let nobody = "0".repeat(64);
        allowed(ask(api.inspect_exec(&nobody)).await, Permission::Exec, &mut refused)?;

        // From here on nothing is missed: what happens while the containers are listed waits.
        let (mut events, _subscribed) = subscribe(&api);
        let home = Home { runtime: engine.runtime.clone(), host: engine.host.clone() };
        let listed = self.list(&api, &home, false).await;
        allowed(listed, Permission::Containers, &mut refused)?;
        let mut first = events.try_recv().ok();
        if let Some(Err(error)) = &first
            && matches!(no_answer(error), NoAnswer::Forbidden)
        {
            refused.push(Permission::Events);
            first = None;
        }
        engine.containers =
            self.running.values().filter(|known| known.init.is_some()).count() as u64;
        let mut listing = refused.contains(&Permission::Events);
        self.say_refused(refused, &mut engine);
        if !std::mem::replace(&mut self.connected, true) {
            self.told.connected(&key, &engine);
        }
        self.answered();

        let mut alive = interval_at(Instant::now() + ALIVE, ALIVE);
        let mut list = interval_at(Instant::now() + LIST, LIST);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        list.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Questions about containers, asked beside each other: while one starts, its engine does not
        // answer those about it, and others must not wait for their names.
        let mut answers = FuturesUnordered::new();
        let look = |id: String| {
            let (api, home) = (&api, &home);
            async move { (ContainerId(id.as_str().into()), inspect(api, &id, home).await) }
        };
        if let Some(first) = first {
            match first {
                Ok(event) => answers.extend(self.event(&api, &home, event).map(look)),
                Err(_) => return Ok(Ended::Closed),
            }
        }
        loop {
            tokio::select! {
                event = events.recv(), if !listing => match event {
                    Some(Ok(event)) => answers.extend(self.event(&api, &home, event).map(look)),
                    Some(Err(error)) if matches!(no_answer(&error), NoAnswer::Forbidden) => {
                        listing = true;
                        self.say_refused(vec![Permission::Events], &mut engine);
                    }
                    Some(Err(_)) | None => return Ok(Ended::Closed),
                },
                Some((container, answer)) = answers.next() => match answer {
                    Ok(known) if self.running.get(&container).is_some_and(|old| *old != known) => {
                        self.told.container(&known);
                        self.running.insert(container, known);
                    }
                    Err(NoAnswer::Gone(ended)) => return Err(ended),
                    // Nothing new; or it is gone, or lived too briefly to be asked for.
                    Ok(_) | Err(_) => {}
                },
                _ = list.tick(), if listing => {
                    if let Err(NoAnswer::Gone(ended)) = self.list(&api, &home, true).await {
                        return Err(ended);
                    }
                }
                _ = alive.tick() => {
                    if let Err(NoAnswer::Gone(ended)) = ask(api.ping()).await {
                        return Err(ended);
                    }
                }
            }
        }
    }

    fn say_refused(&mut self, refused: Vec<Permission>, engine: &mut EngineSummary) {
        engine.refused.extend(refused);
        engine.refused.sort_unstable();
        engine.refused.dedup();
        if !engine.refused.is_empty() && self.refused != engine.refused {
            self.refused.clone_from(&engine.refused);
            self.told.refused(&self.endpoint, &self.refused);
        }
    }

    /// Tells all containers that run; with `changes` only those that it has not told as they are.
    async fn list(&mut self, api: &Docker, home: &Home, changes: bool) -> Result<(), NoAnswer> {
        let filters = HashMap::from([("status".to_owned(), vec!["running".to_owned()])]);
        let options = ListContainersOptions { filters: Some(filters), ..Default::default() };
        let entries = ask(api.list_containers(Some(options))).await?;
        let answers = stream::iter(entries).map(|entry| async move {
            let answer = match entry.id.as_deref() {
                Some(id) => inspect(api, id, home).await,
                None => Err(NoAnswer::Other),
            };
            match answer {
                // Between the two questions it went away, or it may not be asked for by itself.
                Err(NoAnswer::Other | NoAnswer::Forbidden) => Ok(facts::listed(entry, home)),
                answer => answer.map(Some),
            }
        });
        let mut answers = std::pin::pin!(answers.buffer_unordered(AT_ONCE));
        let mut before = std::mem::take(&mut self.running);
        while let Some(answer) = answers.next().await {
            let known = match answer {
                Ok(Some(known)) => known,
                Ok(None) => continue,
                Err(gone) => {
                    self.running.extend(before);
                    return Err(gone);
                }
            };
            let old = before.remove(&known.info.id);
            if !changes || old.as_ref() != Some(&known) {
                self.told.container(&known);
            }
            self.running.insert(known.info.id.clone(), known);
        }
        for id in before.keys() {
            self.told.died(id);
        }
        Ok(())
    }

    /// Takes an event. Returns the container that is worth a look.
    fn event(&mut self, api: &Docker, home: &Home, event: EventMessage) -> Option<String> {
        let (action, actor) = (event.action?, event.actor?);
        let id = actor.id.filter(|id| !id.is_empty())?;
        let attributes = actor.attributes.unwrap_or_default();
        let container = ContainerId(id.as_str().into());
        match facts::action(&action) {
            Action::Changed => {
                if !self.running.contains_key(&container) {
                    // While a container starts, its engine does not answer questions about it; what
                    // the event itself says is here before the first byte.
                    let known = facts::mentioned(&id, attributes, home);
                    self.told.container(&known);
                    self.running.insert(container.clone(), known);
                }
                return Some(id);
            }
            Action::Died => {
                if let Some(known) = self.running.get_mut(&container) {
                    known.init = None;
                }
                self.told.died(&container);
            }
            Action::Removed => {
                self.running.remove(&container);
                self.told.died(&container);
            }
            Action::Exec(command) => {
                let health = self.running.get(&container).and_then(|known| known.health.as_deref());
                if let Some(exec) = attributes.get("execID")
                    && health != Some(command)
                {
                    self.exec(api, exec.clone(), container);
                }
            }
            Action::Other => {}
        }
        None
    }

    /// Asks for the process of an exec. It is there a moment after its event.
    fn exec(&mut self, api: &Docker, exec: String, container: ContainerId) {
        let Ok(place) = self.execs.waiting.clone().try_acquire_owned() else {
            if !std::mem::replace(&mut self.execs.said, true) {
                tracing::warn!(
                    "containers: {} starts more than {EXECS} processes at once: not all of them \
                     are asked for",
                    self.endpoint.name
                );
            }
            return;
        };
        let (api, told) = (api.clone(), self.told.clone());
        let questions = self.execs.questions.clone();
        tokio::spawn(async move {
            let _place = place;
            let until = Instant::now() + EXEC_PATIENCE;
            let mut pause = EXEC.0;
            loop {
                let answer = {
                    // Only while the question is open: one that is slow to start holds up no other.
                    let Ok(_turn) = questions.acquire().await else { return };
                    ask(api.inspect_exec(&exec)).await
                };
                let Ok(answer) = answer else { return };
                if let Some(pid) = answer.pid.and_then(facts::pid_of) {
                    told.exec(&exec, container, pid);
                    return;
                }
                if answer.exit_code.is_some() || Instant::now() >= until {
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(EXEC.1);
            }
        });
    }
}

fn connect(endpoint: &Endpoint) -> Result<Docker, Ended> {
    let patience = PATIENCE.as_secs();
    let api = match &endpoint.address {
        Address::Unix(path) => match path.to_str() {
            Some(path) => Docker::connect_with_unix(path, patience, API_DEFAULT_VERSION),
            None => Err(Error::SocketNotFoundError(path.display().to_string())),
        },
        Address::Http(host) => Docker::connect_with_http(host, patience, API_DEFAULT_VERSION),
    };
    api.map_err(|error| match error {
        Error::SocketNotFoundError(_) => {
            Ended::Failed { error: "there is no such socket".to_owned(), refused: false }
        }
        error => Ended::Failed { error: error.to_string(), refused: false },
    })
}

/// Reads the events of containers, from a moment ago on.
fn subscribe(api: &Docker) -> (Receiver<Result<EventMessage, Error>>, Task) {
    let now = clock_gettime(ClockId::Realtime);
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("event".to_owned(), facts::ACTIONS.map(str::to_owned).to_vec()),
    ]);
    // The subscription itself takes a moment too.
    let since = Some((now.tv_sec - 1).to_string());
    let options = EventsOptions { since, filters: Some(filters), ..Default::default() };
    let (give, take) = channel(QUEUE);
    let api = api.clone();
    let task = tokio::spawn(async move {
        let mut events = std::pin::pin!(api.events(Some(options)));
        while let Some(event) = events.next().await {
            let last = event.is_err();
            if give.send(event).await.is_err() || last {
                return;
            }
        }
    });
    (take, Task(task))
}

async fn inspect(api: &Docker, id: &str, home: &Home) -> Result<Known, NoAnswer> {
    let answer = ask(api.inspect_container(id, None::<InspectContainerOptions>)).await?;
    facts::inspected(answer, home).ok_or(NoAnswer::Other)
}

/// Asks, and waits only so long.
async fn ask<T>(question: impl Future<Output = Result<T, Error>>) -> Result<T, NoAnswer> {
    if let Ok(answer) = timeout(PATIENCE, question).await {
        return answer.map_err(|error| no_answer(&error));
    }
    let error = format!("no answer within {} seconds", PATIENCE.as_secs());
    Err(NoAnswer::Gone(Ended::Failed { error, refused: false }))
}

/// What is known without the answer; fails only where there is no engine.
fn allowed<T>(
    answer: Result<T, NoAnswer>,
    permission: Permission,
    refused: &mut Vec<Permission>,
) -> Result<Option<T>, Ended> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(NoAnswer::Forbidden) => {
            refused.push(permission);
            Ok(None)
        }
        Err(NoAnswer::Other) => Ok(None),
        Err(NoAnswer::Gone(ended)) => Err(ended),
    }
}

fn no_answer(error: &Error) -> NoAnswer {
    match error {
        Error::DockerResponseServerError { status_code: 401 | 403 | 405, .. } => {
            NoAnswer::Forbidden
        }
        Error::DockerResponseServerError { .. }
        | Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. } => NoAnswer::Other,
        error => {
            let (text, refused) = cause(error);
            NoAnswer::Gone(Ended::Failed { error: text, refused })
        }
    }
}

/// The innermost reason, and whether it is that nobody listens.
fn cause(error: &Error) -> (String, bool) {
    let mut text = error.to_string();
    let mut refused = false;
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        let kind = inner.downcast_ref::<io::Error>().map(io::Error::kind);
        refused |= kind == Some(io::ErrorKind::ConnectionRefused);
        source = inner.source();
    }
    (text, refused)
}
