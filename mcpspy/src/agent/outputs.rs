//! Opens the outputs and hands them events.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::config::{self, Format, PayloadLimit, StandardStream};
use crate::filter::Filter;
use crate::inventory::procfs::kernel_dev;
use crate::model::{Event, EventBody};
use crate::sinks::console::{Console, ConsoleOptions};
use crate::sinks::jsonl::{Jsonl, JsonlOptions};
use crate::sinks::per_container::PerContainer;
use crate::sinks::{Limits, PathPattern, Payload, Queue, Report, RunInfo, Sink, WhenFull};

/// All outputs of a run, behind one filter.
pub(super) struct Outputs {
    filter: Filter,
    queues: Vec<Queue>,
    ready: Vec<Arc<Event>>,
    filtered: u64,
}

/// Whether an output may hold up what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// A live run: a screen that stands still must not slow the capture.
    Live,
    /// A replay: everything can wait.
    Replay,
}

impl Outputs {
    /// Opens all of them, or none. `on_closed` is called when nobody reads the console any more.
    pub(super) fn open(
        settings: &config::Outputs,
        filter: Filter,
        run: &RunInfo,
        pressure: Pressure,
        on_closed: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut sinks: Vec<(String, Box<dyn Sink>)> = Vec::new();
        for path in &settings.files {
            let options = JsonlOptions {
                payload: payload(settings.file_payload),
                max_size: settings.max_size,
                keep: settings.keep,
                owner: settings.owner.map(|caller| (caller.uid, caller.gid)),
            };
            let labels = &settings.show_labels;
            let sink: Box<dyn Sink> = match PathPattern::parse(path)? {
                Some(pattern) => Box::new(PerContainer::create(pattern, run, options, labels)?),
                None => Box::new(Jsonl::create(path, run, options)?.show_labels(labels)),
            };
            sinks.push((path.display().to_string(), sink));
        }
        let mut queues = Vec::new();
        for (name, sink) in sinks {
            let queue = Queue::spawn(&name, sink, WhenFull::Block, Limits::default(), || {})
                .context("cannot start a thread")?;
            queues.push(queue);
        }
        if let Some(console_settings) = &settings.console {
            let (name, sink) = console(console_settings, run, &settings.show_labels)?;
            let when_full = match pressure {
                Pressure::Live => WhenFull::DropNewest,
                Pressure::Replay => WhenFull::Block,
            };
            let queue = Queue::spawn(name, sink, when_full, Limits::default(), on_closed)
                .context("cannot start a thread")?;
            queues.push(queue);
        }
        Ok(Self { filter, queues, ready: Vec::new(), filtered: 0 })
    }

    /// Takes one event; [`Self::send`] passes it on.
    pub(super) fn take(&mut self, event: Event) {
        if self.filter.matches(&event) {
            self.ready.push(Arc::new(event));
        } else if matches!(event.body, EventBody::Message(_)) {
            self.filtered += 1;
        }
    }

    /// Hands on what was taken.
    pub(super) fn send(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        for queue in &self.queues {
            queue.send_all(self.ready.iter().cloned());
        }
        self.ready.clear();
    }

    /// Messages that the filter left out.
    pub(super) fn filtered(&self) -> u64 {
        self.filtered
    }

    /// Opens the files again, after somebody else rotated them.
    pub(super) fn reopen(&self) {
        self.queues.iter().for_each(Queue::reopen);
    }

    /// Writes out everything and ends the threads.
    pub(super) fn finish(&mut self, patience: Duration) -> Vec<Report> {
        self.send();
        self.queues.iter().map(|queue| queue.finish(patience)).collect()
    }
}

fn payload(limit: PayloadLimit) -> Payload {
    match limit {
        PayloadLimit::Full => Payload::Full,
        PayloadLimit::None => Payload::None,
        PayloadLimit::Bytes(bytes) => Payload::Limit(bytes),
    }
}

fn console(
    settings: &config::Console,
    run: &RunInfo,
    labels: &[String],
) -> anyhow::Result<(&'static str, Box<dyn Sink>)> {
    let (name, writer) = match settings.stream {
        StandardStream::Out => ("stdout", crate::sinks::stdout()),
        StandardStream::Err => ("stderr", stderr()),
    };
    let writer = writer.with_context(|| format!("cannot write to {name}"))?;
    let payload = payload(settings.payload);
    let sink: Box<dyn Sink> = match settings.format {
        Format::Json => Box::new(
            Jsonl::to(name, writer, run, payload).show_labels(labels).max_line(settings.max_line),
        ),
        Format::Text => {
            let options = ConsoleOptions {
                color: settings.color,
                buffers: settings.buffers,
                payload,
                max_line: settings.max_line,
                utc: jiff::tz::TimeZone::try_system().is_err(),
            };
            Box::new(Console::new(writer, run.clone(), options))
        }
    };
    Ok((name, sink))
}

fn stderr() -> std::io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(File::from(rustix::io::dup(rustix::stdio::stderr())?)))
}

/// The pipes and sockets that mcpspy writes to, which it must never capture: device in the kernel's
/// encoding and inode.
///
/// With a command, standard output is the command's, and may well be what is to be watched.
pub(super) fn own_streams(settings: &config::Outputs, with_command: bool) -> Vec<(u32, u64)> {
    let identity = |stat: &rustix::fs::Stat| {
        let dev = kernel_dev(rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        (dev, stat.st_ino)
    };
    let streams: Vec<_> =
        [rustix::fs::fstat(rustix::stdio::stdout()), rustix::fs::fstat(rustix::stdio::stderr())]
            .into_iter()
            .map(|stat| stat.ok().filter(is_stream).map(|stat| identity(&stat)))
            .collect();
    let [stdout, stderr] = streams.as_slice() else { return Vec::new() };
    let shared: Vec<_> = if with_command { stdout.iter().copied().collect() } else { Vec::new() };
    let fifos = settings.files.iter().filter(|path| is_fifo(path));
    let files =
        fifos.filter_map(|path| rustix::fs::stat(path.as_path()).ok()).map(|s| identity(&s));
    let own = stdout.iter().chain(stderr).copied().chain(files);
    own.filter(|stream| !shared.contains(stream)).collect()
}

fn is_stream(stat: &rustix::fs::Stat) -> bool {
    use rustix::fs::FileType;
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket)
}

fn is_fifo(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.file_type().is_fifo())
}
