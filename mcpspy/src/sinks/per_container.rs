//! JSON lines in a file for each container.
//!
//! Each file is a [`Jsonl`] of its own: opened, rotated and opened again as that does. One that fails
//! stops no other: what it does not take is told to the queue by [`Sink::take_lost`], which counts it,
//! and said in the file itself once it can be opened again.
//!
//! What is of no session and no container, status and some losses, goes to the file of the host, where all of it
//! stands, and to every file that is open: a loss is to be seen where its messages would be.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;

use super::jsonl::{Jsonl, JsonlOptions};
use super::path_pattern::PathPattern;
use super::queue::DropReason;
use super::{RunInfo, Sink, SinkError};
use crate::model::{
    ContainerInfo, Endpoint, Event, EventBody, Lost, LostStage, SessionInfo, Timestamp,
};

/// Most files open at once: a small part of the 1024 descriptors that a process usually has.
const OPEN: usize = 64;
/// Most closed files of which it is kept what they missed. What more of them miss is still counted by
/// the queue, like all of it.
const GAPS: usize = 1024;

/// Writes each event to the file of its container.
pub struct PerContainer {
    pattern: PathPattern,
    run: RunInfo,
    options: JsonlOptions,
    labels: Vec<String>,
    files: FxHashMap<PathBuf, File>,
    /// What files missed that were closed to make room, until they are opened again.
    gaps: FxHashMap<PathBuf, Gap>,
    /// Counts uses of files.
    uses: u64,
    /// Numbers of the events that no file took.
    lost: Vec<u64>,
    open: usize,
}

/// One file.
struct File {
    /// `None` since it failed.
    sink: Option<Jsonl>,
    last_use: u64,
    /// What it took since the last flush.
    unflushed: Vec<Taken>,
    /// What it did not take since it failed.
    gap: Option<Gap>,
}

#[derive(Clone, Copy)]
struct Taken {
    seq: u64,
    at: Timestamp,
    message: bool,
    /// This copy decides whether the event counts as delivered.
    counts: bool,
}

/// Events in a row that one file did not take.
struct Gap {
    first: Taken,
    until: Timestamp,
    messages: u64,
}

impl PerContainer {
    /// Opens no file yet, but the directory before the first placeholder must be there.
    pub fn create(
        pattern: PathPattern,
        run: &RunInfo,
        options: JsonlOptions,
        labels: &[String],
    ) -> Result<Self, SinkError> {
        let root = pattern.root();
        let found = fs::metadata(&root).and_then(|metadata| {
            if metadata.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
        });
        found.map_err(|source| SinkError {
            context: format!("cannot write to {}: {}", pattern.text(), root.display()),
            source,
            closed: false,
            undelivered: 0,
        })?;
        Ok(Self {
            pattern,
            run: run.clone(),
            options,
            labels: labels.to_vec(),
            files: FxHashMap::default(),
            gaps: FxHashMap::default(),
            uses: 0,
            lost: Vec::new(),
            open: OPEN,
        })
    }

    /// Writes to one file, which is opened for that.
    fn put(&mut self, path: &Path, event: &Event, counts: bool) {
        self.uses += 1;
        if !self.files.contains_key(path) {
            self.make_room();
            let gap = self.gaps.remove(path);
            let file = File { sink: None, last_use: 0, unflushed: Vec::new(), gap };
            self.files.insert(path.to_owned(), file);
            self.try_open(path);
        }
        let Some(file) = self.files.get_mut(path) else { return };
        file.last_use = self.uses;
        let taken = Taken {
            seq: event.seq,
            at: event.at,
            message: matches!(event.body, EventBody::Message(_)),
            counts,
        };
        file.unflushed.push(taken);
        let Some(sink) = &mut file.sink else {
            file.lose(1, &mut self.lost);
            return;
        };
        if let Err(error) = sink.write(event) {
            file.fail(path, &error, &mut self.lost);
        }
    }

    /// Opens a file that is not open, and says in it what it missed.
    fn try_open(&mut self, path: &Path) {
        let directories = create_directories(&self.pattern.root(), path, self.options.owner);
        let opened = directories
            .map_err(|source| SinkError {
                context: format!("cannot create the directory of {}", path.display()),
                source,
                closed: false,
                undelivered: 0,
            })
            .and_then(|()| Jsonl::create(path, &self.run, self.options));
        let Some(file) = self.files.get_mut(path) else { return };
        match opened {
            Ok(sink) => {
                let mut sink = sink.show_labels(&self.labels);
                let told = file.gap.take().map_or(Ok(()), |gap| sink.write(&gap.event()));
                file.sink = Some(sink);
                if let Err(error) = told {
                    file.fail(path, &error, &mut self.lost);
                }
            }
            Err(error) => file.fail(path, &error, &mut self.lost),
        }
    }

    /// Closes the file that was not used for the longest time, where as many as may be are open.
    fn make_room(&mut self) {
        if self.files.len() < self.open {
            return;
        }
        let oldest = self.files.iter().min_by_key(|(_, file)| file.last_use);
        if let Some(path) = oldest.map(|(path, _)| path.clone())
            && let Some(mut file) = self.files.remove(&path)
        {
            file.flush(&path, &mut self.lost);
            if let Some(gap) = file.gap
                && self.gaps.len() < GAPS
            {
                self.gaps.insert(path, gap);
            }
        }
    }
}

impl Sink for PerContainer {
    fn write(&mut self, event: &Event) -> Result<(), SinkError> {
        let place = place(event);
        if let Place::Of(container) = place {
            self.put(&self.pattern.render(container), event, true);
        } else {
            let host = self.pattern.render(None);
            let others: Vec<_> = self.files.keys().filter(|path| **path != host).cloned().collect();
            for path in others {
                self.put(&path, event, false);
            }
            self.put(&host, event, true);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        for (path, file) in &mut self.files {
            file.flush(path, &mut self.lost);
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        let paths: Vec<_> = self.files.keys().cloned().collect();
        for path in paths {
            let Some(file) = self.files.get_mut(&path) else { continue };
            file.flush(&path, &mut self.lost);
            // Not by the file's own way to open again: its directory may have been moved too.
            file.sink = None;
            self.try_open(&path);
        }
        Ok(())
    }

    fn take_lost(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.lost)
    }
}

impl File {
    fn flush(&mut self, path: &Path, lost: &mut Vec<u64>) {
        if let Some(sink) = &mut self.sink {
            match sink.flush() {
                Ok(()) => self.unflushed.clear(),
                Err(error) => self.fail(path, &error, lost),
            }
        }
    }

    fn fail(&mut self, path: &Path, error: &SinkError, lost: &mut Vec<u64>) {
        tracing::error!(
            "{error}; events for {} are lost and counted until it can be opened again (SIGHUP)",
            path.display()
        );
        self.sink = None;
        self.lose(usize::try_from(error.undelivered).unwrap_or(usize::MAX), lost);
    }

    /// The last `n` of what it took did not get out; the rest did.
    fn lose(&mut self, n: usize, lost: &mut Vec<u64>) {
        let from = self.unflushed.len().saturating_sub(n);
        for taken in self.unflushed.drain(..).skip(from) {
            let gap = self.gap.get_or_insert(Gap { first: taken, until: taken.at, messages: 0 });
            gap.until = taken.at;
            gap.messages += u64::from(taken.message);
            lost.extend(taken.counts.then_some(taken.seq));
        }
    }
}

impl Gap {
    fn event(&self) -> Event {
        Event {
            seq: self.first.seq,
            at: self.until,
            body: EventBody::Lost(Lost {
                stage: LostStage::Sink,
                reason: DropReason::WriteFailed.name(),
                bytes: None,
                messages: Some(self.messages),
                since: Some(self.first.at),
                session: None,
                from: None,
            }),
        }
    }
}

/// Where an event belongs.
enum Place<'a> {
    /// To this container, or to the host.
    Of(Option<&'a ContainerInfo>),
    /// To all.
    Everywhere,
}

fn place(event: &Event) -> Place<'_> {
    match &event.body {
        EventBody::Message(message) => {
            Place::Of(container(Some(&message.session), [Some(&message.to), Some(&message.from)]))
        }
        EventBody::Session(event) => Place::Of(container(Some(&event.session), [None, None])),
        EventBody::Finding(finding) => Place::Of(container(
            finding.session.as_deref(),
            [Some(&finding.to), Some(&finding.from)],
        )),
        EventBody::Lost(lost) => {
            match (container(lost.session.as_deref(), [lost.from.as_ref(), None]), &lost.session) {
                (None, None) => Place::Everywhere,
                (found, _) => Place::Of(found),
            }
        }
        EventBody::Status(_) => Place::Everywhere,
    }
}

/// The server's container, else the client's, else that of one of the ends themselves.
fn container<'a>(
    session: Option<&'a SessionInfo>,
    ends: [Option<&'a Endpoint>; 2],
) -> Option<&'a ContainerInfo> {
    let session =
        session.into_iter().flat_map(|session| [&session.server_end, &session.client_end]);
    session.chain(ends.into_iter().flatten()).find_map(|end| end.container.as_deref())
}

/// Creates what is missing of the directories between `root` and the file, for their owner alone.
fn create_directories(root: &Path, file: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut missing: Vec<_> = file
        .ancestors()
        .skip(1)
        .take_while(|directory| *directory != root && !directory.as_os_str().is_empty())
        .collect();
    missing.reverse();
    for directory in missing {
        match DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => {
                if let Some((user, group)) = owner {
                    chown(directory, Some(user), Some(group))?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
