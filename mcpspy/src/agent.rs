//! The wiring: source and inventory → engine → filter → sinks. The only module that knows every
//! stage.
//!
//! ```text
//!  drain thread ────────┐
//!  inventory thread ────┤ bounded channel      ┌─► queue ─► sink thread (file)
//!  counters, ticks ─────┴───► engine thread ───┤
//!                           │      │           └─► queue ─► sink thread (console)
//!                  recorder ◄      ► commands to the kernel
//! ```
//!
//! The main thread waits for signals and timers. A run ends in this order, so that nothing is lost
//! that was captured: the programs are detached, the drain reads what the ring still holds, the
//! inventory ends, totals of the streams and the kernel's counters become the last inputs, the
//! engine decides what waits, the sinks write, the recording is closed, the ledgers are printed.

#![cfg_attr(
    not(feature = "live"),
    expect(dead_code, reason = "a build that can only replay uses a part of it")
)]

#[cfg(feature = "live")]
mod check;
mod command;
#[cfg(feature = "live")]
mod containers;
#[cfg(feature = "live")]
mod health;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "live")]
mod mistakes;
mod outputs;
mod pipeline;
mod report;
mod vigil;

use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::sync::mpsc::UnboundedSender;

#[cfg(feature = "live")]
pub use self::check::check;
pub use self::command::become_command;
#[cfg(feature = "live")]
pub use self::health::health;
#[cfg(feature = "live")]
pub use self::live::monitor;
use self::outputs::{Outputs, Pressure};
use self::pipeline::{Pipeline, Stages, Work};
pub use self::report::say;
use self::vigil::{End, Notice, Vigil};
use crate::config::{Limits, Replay};
use crate::engine::{Engine, EngineConfig};
use crate::model::Input;
use crate::sinks::RunInfo;
use crate::source::{self, Source};

/// Exit code when a second signal ended the run at once.
const SIGNAL_BASE: u8 = 128;

/// Feeds a recording. No root, no kernel, no clock: the recorded ticks are all the time there is.
pub fn replay(config: Replay) -> anyhow::Result<u8> {
    with_runtime(async {
        let (mut vigil, notify) = Vigil::new()?;
        let file = config.file.display().to_string();
        let (header, source) =
            source::replay::Replay::open(&config.file).with_context(|| file.clone())?;
        let run = RunInfo {
            run_id: header.run_id.clone(),
            host: header.host.clone(),
            host_given: header.host_given,
            version: env!("CARGO_PKG_VERSION"),
            wall_offset_ns: header.wall_offset_ns,
        };
        // What was recorded decides, unless the user says otherwise: so the events are the same.
        let limits = Limits {
            max_message: config.limits.max_message.or(usize::try_from(header.max_message).ok()),
            oneway: config.limits.oneway || header.oneway,
        };
        let closed = notify.clone();
        let outputs =
            Outputs::open(&config.outputs, config.filter, &run, Pressure::Replay, move || {
                closed.tell(Notice::ConsoleClosed);
            })?;
        let pipeline = Pipeline::start(Stages {
            engine: Engine::new(engine_config(limits)),
            outputs,
            recorder: None,
            apply: Box::new(|_| {}),
            clock: None,
            backend: header.backend,
        })?;
        let work = pipeline.work();
        let source = source.speed(config.speed);
        spawn_source("replay", source, notify, move |batch| pass_on(&work, batch))?;

        let end = vigil.wait().await;
        let summary = match vigil.unless_interrupted(move || pipeline.finish(Vec::new())).await {
            Ok(summary) => summary?,
            Err(signal) => return Ok(SIGNAL_BASE + signal),
        };
        for warning in summary.warnings() {
            tracing::warn!("{warning}");
        }
        match end {
            End::Source(Err(error)) => Err(anyhow::anyhow!("{file}: {error}")),
            End::AtOnce(signal) => Ok(SIGNAL_BASE + signal),
            _ => Ok(0),
        }
    })
}

/// Without the kernel side there is nothing to monitor with.
#[cfg(not(feature = "live"))]
pub fn monitor(_: crate::config::Monitor) -> anyhow::Result<u8> {
    anyhow::bail!(
        "this binary was built without the feature `live` and can only replay recordings; build it \
         with `cargo xtask setup` and `cargo build --release`"
    )
}

/// Without the kernel side there is nothing to check.
#[cfg(not(feature = "live"))]
pub fn check(_: &crate::config::Docker) -> anyhow::Result<u8> {
    anyhow::bail!("this binary was built without the feature `live` and can only replay recordings")
}

/// Without the kernel side there is no monitor to ask.
#[cfg(not(feature = "live"))]
pub fn health() -> anyhow::Result<u8> {
    anyhow::bail!("this binary was built without the feature `live` and can only replay recordings")
}

/// Runs a job on this thread. What it leaves behind, blocked in a write for example, is not waited
/// for.
fn with_runtime(job: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let code = runtime.block_on(job);
    runtime.shutdown_background();
    code
}

fn engine_config(limits: Limits) -> EngineConfig {
    let mut config = EngineConfig { oneway: limits.oneway, ..EngineConfig::default() };
    if let Some(max_message) = limits.max_message {
        config.max_message = max_message;
        // Two messages of the largest size under way at once, as by default.
        config.buffer_total = config.buffer_total.max(max_message.saturating_mul(2));
    }
    config
}

/// Hands a batch to the engine; waits while the engine is behind.
fn pass_on(work: &SyncSender<Work>, batch: Vec<Input>) -> ControlFlow<()> {
    match work.send(Work::Inputs(batch)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

/// Runs a source on a thread of its own.
fn spawn_source(
    name: &str,
    mut source: impl Source + 'static,
    notify: Notify,
    mut push: impl FnMut(Vec<Input>) -> ControlFlow<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let ended = source.run(&mut push);
            notify.tell(Notice::SourceEnded(ended));
        })
        .context("cannot start a thread")
}

/// Tells the main thread.
#[derive(Clone, Debug)]
struct Notify(UnboundedSender<Notice>);

impl Notify {
    fn tell(&self, notice: Notice) {
        // The main thread does not listen any more: it is about to end.
        drop(self.0.send(notice));
    }
}
