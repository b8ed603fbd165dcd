//! What the main thread does during a run: wait for a reason to end it.

use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::Notify;
use crate::source::SourceError;

/// What other threads tell the main thread.
#[derive(Debug)]
pub(super) enum Notice {
    /// Nobody reads the console any more.
    ConsoleClosed,
    /// The source ended.
    SourceEnded(Result<(), SourceError>),
    /// The command ended, with this exit code.
    CommandEnded(u8),
}

/// Why a run ends.
#[derive(Debug)]
pub(super) enum End {
    /// The user wants it, its time is over, or nobody looks any more.
    Wanted,
    /// The command ended, with this exit code.
    Command(u8),
    /// The source ended.
    Source(Result<(), SourceError>),
    /// A second signal of this number: no time to clean up.
    AtOnce(u8),
}

/// Waits.
pub(super) struct Vigil {
    notices: UnboundedReceiver<Notice>,
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    second: Interval,
    /// When the run is over.
    pub(super) until: Option<Instant>,
    /// The command's process.
    pub(super) command: Option<Pid>,
    /// Done once a second.
    pub(super) each_second: Box<dyn FnMut()>,
    /// Done when files are to be opened again; `None`: there are none, and a lost terminal ends the
    /// run.
    pub(super) reopen: Option<Box<dyn FnMut()>>,
    /// When the first signal came that asks for the end.
    signalled: Option<Instant>,
}

/// A signal so soon after the first is the same one: `timeout` sends it to its command and then to
/// the whole group.
const SAME: Duration = Duration::from_millis(300);

const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

impl Vigil {
    /// From here on signals are this value's to handle.
    pub(super) fn new() -> anyhow::Result<(Self, Notify)> {
        let (notify, notices) = unbounded_channel();
        let listen = |kind| unix::signal(kind).context("cannot listen to signals");
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let vigil = Self {
            notices,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            second,
            until: None,
            command: None,
            each_second: Box::new(|| {}),
            reopen: None,
            signalled: None,
        };
        Ok((vigil, Notify(notify)))
    }

    /// Returns with a reason to end.
    pub(super) async fn wait(&mut self) -> End {
        loop {
            let over = self.until;
            let over = async move {
                match over {
                    Some(over) => sleep_until(over).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(notice) = self.notices.recv() => match notice {
                    // The command goes on without its console.
                    Notice::ConsoleClosed if self.command.is_some() => {}
                    Notice::ConsoleClosed => return End::Wanted,
                    Notice::SourceEnded(ended) => return End::Source(ended),
                    Notice::CommandEnded(code) => return End::Command(code),
                },
                Some(()) = self.interrupt.recv() => {
                    if let Some(end) = self.signal(INTERRUPT) {
                        return end;
                    }
                }
                Some(()) = self.terminate.recv() => {
                    if let Some(end) = self.signal(TERMINATE) {
                        return end;
                    }
                }
                Some(()) = self.hangup.recv() => match &mut self.reopen {
                    Some(reopen) => reopen(),
                    None if self.command.is_some() => {}
                    None => return End::Wanted,
                },
                _ = self.second.tick() => (self.each_second)(),
                () = over => {
                    self.until = None;
                    if !self.end_command() {
                        return End::Wanted;
                    }
                }
            }
        }
    }

    /// The first signal ends the run, or the command and with it the run; the second ends at once.
    fn signal(&mut self, signal: u8) -> Option<End> {
        if self.is_second() {
            return Some(End::AtOnce(signal));
        }
        if self.command.is_none() {
            return Some(End::Wanted);
        }
        // An interrupt from the terminal reaches the command too; anything else comes only here.
        if signal == TERMINATE {
            self.end_command();
        }
        None
    }

    /// Whether the signal that came is another one than the first.
    fn is_second(&mut self) -> bool {
        self.signalled.get_or_insert_with(Instant::now).elapsed() > SAME
    }

    /// Asks the command to end; `false` where there is none.
    fn end_command(&self) -> bool {
        let Some(command) = self.command else { return false };
        // It may be gone already: then its end is on its way here.
        _ = kill_process(command, Signal::TERM);
        true
    }

    /// Does the last work of a run on another thread. Returns the number of the signal that ended
    /// the wait for it.
    pub(super) async fn unless_interrupted<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, u8> {
        let mut work = tokio::task::spawn_blocking(work);
        loop {
            let signal = tokio::select! {
                done = &mut work => return done.map_err(|_| TERMINATE),
                Some(()) = self.interrupt.recv() => INTERRUPT,
                Some(()) = self.terminate.recv() => TERMINATE,
            };
            if self.is_second() {
                return Err(signal);
            }
        }
    }
}
