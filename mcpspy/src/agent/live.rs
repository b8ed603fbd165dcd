//! A run on the living kernel.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::containers::{self, Listener};
use super::mistakes;
use super::outputs::{self, Outputs, Pressure};
use super::pipeline::{Pipeline, Stages, Work};
use super::report::{Summary, quiet_line, say, start_line};
use super::vigil::{End, Notice, Vigil};
use super::{
    Notify, SIGNAL_BASE, command, engine_config, health, pass_on, spawn_source, with_runtime,
};
use crate::config::{Backend, Monitor, StandardStream};
use crate::engine::{Engine, EngineConfig};
use crate::inventory::{self, Inventory, Requests};
use crate::model::{Input, KernelCounters, Loss, RecordBody};
use crate::recording::{Header, Writer};
use crate::sinks::RunInfo;
use crate::source::live::{BackendChoice, Control, Drain, Live, LiveConfig, boot_now};

/// How long container engines are heard at the end: telling of a process takes them some 50 ms.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// After so many seconds without a message the user is told how to find out why.
const QUIET: u32 = 30;

/// Watches the host, or one command.
pub fn monitor(config: Monitor) -> anyhow::Result<u8> {
    with_runtime(run(config))
}

async fn run(config: Monitor) -> anyhow::Result<u8> {
    let (mut vigil, notify) = Vigil::new()?;
    for remark in &config.remarks {
        tracing::info!("{remark}");
    }
    let mut live = Live::start(&live_config(&config)).inspect_err(|_| say_what_is_missing())?;
    let control = live.control();
    // The kernel's numbers of processes are others' here, where `/proc` is not the host's.
    let foreign_pids = live.kernel_pid() != std::process::id();
    anyhow::ensure!(
        !foreign_pids || config.command.is_empty(),
        "a command can be watched only with the host's pid namespace (docker run --pid=host)"
    );
    let backend = live.backend().name();
    let run = run_info(config.host_name.as_deref());
    let engine = engine_config(config.limits);
    let recorder = recorder(&config, &run, engine, backend)?;
    let closed = notify.clone();
    let outputs =
        Outputs::open(&config.outputs, config.filter.clone(), &run, Pressure::Live, move || {
            closed.tell(Notice::ConsoleClosed);
        })?;
    say(&start_line(&config, backend));
    let pipeline = Pipeline::start(Stages {
        engine: Engine::new(engine).with_containers(config.filter.containers.clone()),
        outputs,
        recorder,
        apply: verdicts(control.clone()),
        clock: Some(boot_now),
        backend: backend.to_owned(),
    })?;
    health::serve(pipeline.pulse(), pipeline.work());
    let work = pipeline.work();
    // The first input: brings the engine the time, so that the run has a beginning.
    work.send(Work::Inputs(vec![Input::Tick(boot_now())])).context("the engine ended")?;
    // With a command, what matters of the past is what it inherits.
    let around = (!config.command.is_empty()).then(std::process::id);
    let before = if foreign_pids { Vec::new() } else { inventory::before(boot_now(), around) };
    work.send(Work::Inputs(before.iter().cloned().map(Input::Process).collect()))
        .context("the engine ended")?;
    let for_facts = pipeline.work();
    let inventory = Inventory::start((!foreign_pids).then_some(&before), boot_now, move |facts| {
        _ = pass_on(&for_facts, facts);
    })
    .context("cannot start a thread")?;
    let drain = live.take_drain().context("the ring has a reader already")?;
    let (engines, mut listener) = containers::start(&config, foreign_pids, pipeline.work())?;
    let drain = start_drain(drain, inventory.requests(), pipeline.work(), notify.clone())?;

    listener.settle();
    if config.command.is_empty() {
        say("monitoring");
    } else {
        let waiting = command::start(&config.command, config.outputs.owner)?;
        live.watch(waiting.pid()).context("cannot watch the command")?;
        say("monitoring");
        vigil.command = i32::try_from(waiting.pid()).ok().and_then(Pid::from_raw);
        wait_for(waiting.release()?, notify.clone())?;
    }
    vigil.until = config.duration.map(|time| Instant::now() + time);
    vigil.each_second = each_second(&config, &pipeline, control.clone(), notify, listener);
    if !config.outputs.files.is_empty() {
        vigil.reopen = Some(Box::new(move || reopen(&work)));
    }

    let end = vigil.wait().await;
    if let End::AtOnce(signal) = end {
        return Ok(SIGNAL_BASE + signal);
    }
    let shutdown = move || {
        // From here on nothing is added to the ring.
        drop(live);
        control.stop();
        drop(drain.join());
        if let Some(engines) = engines {
            // What they have to say of the last processes is on its way.
            std::thread::sleep(LAST_WORDS);
            engines.finish();
        }
        let unread = inventory.finish();
        let summary = pipeline.finish(last_inputs(&control));
        summary.map(|summary| (summary, unread, control.malformed()))
    };
    let (summary, unread, malformed) = match vigil.unless_interrupted(shutdown).await {
        Ok(ended) => ended?,
        Err(signal) => return Ok(SIGNAL_BASE + signal),
    };
    report(&summary, unread, malformed);
    match end {
        End::Source(Err(error)) => Err(anyhow::anyhow!("the ring cannot be read: {error}")),
        End::Command(code) => Ok(code),
        _ => Ok(0),
    }
}

fn live_config(config: &Monitor) -> LiveConfig {
    let with_command = !config.command.is_empty();
    LiveConfig {
        backend: match config.backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::Fexit => BackendChoice::Fexit,
            Backend::TpBtf => BackendChoice::TpBtf,
            Backend::RawTp => BackendChoice::RawTp,
        },
        ring_bytes: config.ring_bytes,
        watch_tree: with_command,
        relays: config.relays.clone(),
        container_filter: config.filter.containers.rules_out(),
        never: outputs::own_streams(&config.outputs, with_command),
    }
}

/// Why the programs may not load.
fn say_what_is_missing() {
    for mistake in mistakes::judge(&containers::read(&[], false, true)) {
        tracing::warn!("{mistake}");
    }
}

fn run_info(host: Option<&str>) -> RunInfo {
    let wall = clock_gettime(ClockId::Realtime);
    let boot = boot_now();
    let wall = i128::from(wall.tv_sec) * 1_000_000_000 + i128::from(wall.tv_nsec);
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
    RunInfo {
        run_id: random.map_or_else(
            |_| format!("{:x}-{:x}", boot.0, std::process::id()),
            |id| id.trim().to_owned(),
        ),
        host: host.map_or_else(
            || rustix::system::uname().nodename().to_string_lossy().into_owned(),
            str::to_owned,
        ),
        host_given: host.is_some(),
        version: env!("CARGO_PKG_VERSION"),
        wall_offset_ns: i64::try_from(wall - i128::from(boot.0)).unwrap_or_default(),
    }
}

fn recorder(
    config: &Monitor,
    run: &RunInfo,
    engine: EngineConfig,
    backend: &str,
) -> anyhow::Result<Option<Writer>> {
    let Some(path) = &config.record else { return Ok(None) };
    let system = rustix::system::uname();
    let header = Header {
        version: run.version.to_owned(),
        kernel: system.release().to_string_lossy().into_owned(),
        arch: system.machine().to_string_lossy().into_owned(),
        host: run.host.clone(),
        host_given: run.host_given,
        run_id: run.run_id.clone(),
        backend: backend.to_owned(),
        wall_offset_ns: run.wall_offset_ns,
        max_message: engine.max_message as u64,
        oneway: engine.oneway,
        buffer_total: engine.buffer_total as u64,
        masked: true,
    };
    let writer = Writer::create(path, &header)?;
    if let Some(caller) = config.outputs.owner {
        let given = writer.give_to(caller.uid, caller.gid);
        given.with_context(|| format!("cannot give {} to its user", path.display()))?;
    }
    Ok(Some(writer))
}

/// Applies what the engine decides. A verdict that the kernel does not take costs time or memory,
/// never data: it is said once.
fn verdicts(control: Control) -> Box<dyn FnMut(&crate::model::Command) + Send> {
    let mut said = false;
    Box::new(move |command| {
        if let Err(error) = control.apply(command)
            && !std::mem::replace(&mut said, true)
        {
            tracing::warn!("a verdict could not be passed to the kernel: {error}");
        }
    })
}

/// Starts the drain. What it sees of processes is what the inventory reads.
fn start_drain(
    mut drain: Drain,
    requests: Requests,
    work: SyncSender<Work>,
    notify: Notify,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let first = requests.clone();
    drain.on_first_sight(Box::new(move |process| first.seen(process, boot_now())));
    spawn_source("drain", drain, notify, move |batch| {
        for input in &batch {
            let Input::Record(record) = input else { continue };
            match record.body {
                // On a stream that is new to it: its open files have changed.
                RecordBody::Endpoint(_) => requests.seen(record.task.process, record.at),
                RecordBody::Data(ref data) if data.offset == 0 => {
                    requests.seen(record.task.process, record.at);
                }
                RecordBody::Exec => requests.exec(record.task.process, record.at),
                _ => {}
            }
        }
        pass_on(&work, batch)
    })
}

/// Waits for the command on a thread of its own.
fn wait_for(mut child: Child, notify: Notify) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("command".to_owned())
        .spawn(move || {
            // The command has no other parent, so waiting for it cannot fail.
            let code = child.wait().map_or(1, command::exit_code);
            notify.tell(Notice::CommandEnded(code));
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Opening may have to wait for the engine, and the main thread must not.
fn reopen(work: &SyncSender<Work>) {
    let work = work.clone();
    let spawned = std::thread::Builder::new().spawn(move || drop(work.send(Work::Reopen)));
    if let Err(error) = spawned {
        tracing::error!("cannot open the files again: {error}");
    }
}

/// What is looked at once a second: losses, a console that is gone, a run without messages.
fn each_second(
    config: &Monitor,
    pipeline: &Pipeline,
    control: Control,
    notify: Notify,
    mut listener: Listener,
) -> Box<dyn FnMut()> {
    let work = pipeline.work();
    let mut told = KernelCounters::default();
    let on_stdout = |console: &crate::config::Console| console.stream == StandardStream::Out;
    let watch_stdout = config.outputs.console.as_ref().is_some_and(on_stdout);
    let mut quiet = Quiet { heard: pipeline.heard(), seconds: 0, line: quiet_line(config) };
    Box::new(move || {
        if let Ok(counters) = control.counters()
            && lossy(&counters) != lossy(&told)
        {
            let input = Input::Loss(Loss::Counters { at: boot_now(), counters });
            // When the engine is behind it is told a second later.
            if work.try_send(Work::Inputs(vec![input])).is_ok() {
                told = counters;
            }
        }
        if watch_stdout && stdout_is_closed() {
            notify.tell(Notice::ConsoleClosed);
        }
        listener.look();
        quiet.look();
    })
}

/// The counters that mean that something was lost.
fn lossy(counters: &KernelCounters) -> [u64; 8] {
    [
        counters.ring_full,
        counters.ring_full_bytes,
        counters.ring_full_facts,
        counters.fault_bytes,
        counters.scratch_busy_bytes,
        counters.cut_bytes,
        counters.table_full,
        counters.relays_full,
    ]
}

/// Whether the reader of standard output is gone: `mcpspy | head` should not live on until the next
/// message.
fn stdout_is_closed() -> bool {
    let stdout = rustix::stdio::stdout();
    let mut wanted = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wanted, Some(&now)).is_ok() && wanted[0].revents().contains(PollFlags::ERR)
}

/// Says once, after a while without messages, how to find out why.
struct Quiet {
    heard: Arc<AtomicBool>,
    seconds: u32,
    line: String,
}

impl Quiet {
    fn look(&mut self) {
        if self.seconds < QUIET {
            self.seconds += 1;
            if self.seconds == QUIET && !self.heard.load(Ordering::Relaxed) {
                say(&self.line);
            }
        }
    }
}

/// What the engine is told at the end: holes at the end of streams, the kernel's last counters, and
/// the time.
fn last_inputs(control: &Control) -> Vec<Input> {
    let at = boot_now();
    let totals = control.stream_totals().into_iter();
    let mut last: Vec<_> = totals.map(|total| Input::Loss(Loss::Stream { at, total })).collect();
    match control.counters() {
        Ok(counters) => last.push(Input::Loss(Loss::Counters { at, counters })),
        Err(error) => tracing::warn!("the kernel's counters cannot be read: {error}"),
    }
    last.push(Input::Tick(at));
    last
}

fn report(summary: &Summary, unread: u64, malformed: u64) {
    if tracing::enabled!(tracing::Level::INFO) {
        summary.ledgers().iter().for_each(|line| say(line));
    }
    for warning in summary.warnings() {
        tracing::warn!("{warning}");
    }
    if unread > 0 {
        tracing::warn!("{unread} processes were not looked up: too many at once");
    }
    if malformed > 0 {
        tracing::warn!("{malformed} records could not be decoded; please report it");
    }
}
