//! Writes a recording.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::hash::Hash;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::Serialize;

use super::engine::{AskedEntry, ConnectedEntry, ContainerEntry, ContainerExecEntry, LostEntry};
use super::format::{
    CgroupEntry, CountersEntry, DataEntry, EndEntry, Entry, ExitEntry, ForkEntry, ProcessEntry,
    StreamEntry, TaskEntry, TaskOnly, TickEntry, TotalEntry,
};
use super::{FORMAT, Header, Redactor, SLOTS};
use crate::model::{
    CgroupFact, Data, EngineFact, Input, Loss, ProcessId, Record, RecordBody, StreamRef,
    StreamTotal, Task,
};

/// Why a recording could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file cannot be opened or written.
    #[error("cannot write the recording {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Only a regular file can become a recording.
    #[error("cannot write the recording {path}: not a regular file")]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
}

/// Writes inputs to a recording, in the order in which the engine handles them.
#[derive(Debug)]
pub struct Writer<W: Write = BufWriter<File>> {
    out: W,
    mask: bool,
    tasks: Slots<TaskKey>,
    streams: Slots<StreamRef>,
    /// One for each number that stands for a stream.
    redactors: Vec<Redactor>,
}

/// Everything in a [`Task`].
type TaskKey = (ProcessId, u32, u32, u32, u64, Arc<str>, bool);

impl Writer {
    /// Creates the file, or empties it, for its owner alone (mode 0600), and writes the header.
    /// Follows no symbolic link, since the path may lie in a directory that others can write to
    /// and the monitor is root.
    pub fn create(path: &Path, header: &Header) -> Result<Self, WriteError> {
        let failed = |source| WriteError::Io { path: path.to_owned(), source };
        // Without `NONBLOCK` the open call waits where the path is a FIFO.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(WriteError::NotAFile { path: path.to_owned() });
        }
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        Self::new(BufWriter::with_capacity(256 * 1024, file), header).map_err(failed)
    }

    /// Gives the file to the user for whom it was recorded (behind sudo).
    pub fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
        std::os::unix::fs::fchown(self.out.get_ref(), Some(uid), Some(gid))
    }
}

impl<W: Write> Writer<W> {
    /// Writes the header to `out`, and later the inputs.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        #[derive(Serialize)]
        struct First<'a> {
            mcpcap: u32,
            #[serde(flatten)]
            header: &'a Header,
        }
        line(&mut out, &First { mcpcap: FORMAT, header })?;
        Ok(Self {
            out,
            mask: header.masked,
            tasks: Slots::default(),
            streams: Slots::default(),
            redactors: Vec::new(),
        })
    }

    /// Adds an input.
    pub fn input(&mut self, input: &Input) -> io::Result<()> {
        match input {
            Input::Record(record) => self.record(record),
            Input::Loss(Loss::Counters { at, counters }) => {
                self.entry(&Entry::Counters(CountersEntry::new(at.0, counters)))
            }
            Input::Loss(Loss::Stream { at, total }) => {
                let StreamTotal { stream, offset, skipped } = total;
                let s = self.stream(stream)?;
                self.entry(&Entry::Total(TotalEntry { at: at.0, s, o: *offset, skipped: *skipped }))
            }
            Input::Process(facts) => {
                self.entry(&Entry::Process(Box::new(ProcessEntry::new(facts))))
            }
            Input::Engine(fact) => self.engine(fact),
            Input::Tick(at) => self.entry(&Entry::Tick(TickEntry { at: at.0 })),
        }
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn record(&mut self, record: &Record) -> io::Result<()> {
        let Record { at, task, body } = record;
        let (at, t) = (at.0, self.task(task)?);
        match body {
            RecordBody::Data(data) => self.data(at, t, data),
            RecordBody::Endpoint(fact) => {
                let s = self.stream(&fact.stream)?;
                self.entry(&Entry::Seen(EndEntry { at, t, s, o: fact.offset }))
            }
            RecordBody::End(fact) => {
                let s = self.stream(&fact.stream)?;
                self.entry(&Entry::End(EndEntry { at, t, s, o: fact.offset }))
            }
            RecordBody::Exec => self.entry(&Entry::Exec(TaskOnly { at, t })),
            RecordBody::Exit(exit) => self.entry(&Entry::Exit(ExitEntry::new(at, t, *exit))),
            RecordBody::Fork(ProcessId { pid, start }) => {
                self.entry(&Entry::Fork(ForkEntry { at, t, pid: *pid, start: *start }))
            }
            RecordBody::Cgroup(CgroupFact { id, path }) => {
                let path = Cow::Borrowed(&**path);
                self.entry(&Entry::Cgroup(CgroupEntry { at, t, id: *id, path }))
            }
        }
    }

    fn engine(&mut self, fact: &EngineFact) -> io::Result<()> {
        let entry = match fact {
            EngineFact::Connected { at, engine, containers } => Entry::Engine(ConnectedEntry {
                at: at.0,
                engine: Cow::Borrowed(engine),
                containers: *containers,
            }),
            EngineFact::Asked { at, engine } => {
                Entry::EngineAsked(AskedEntry { at: at.0, engine: Cow::Borrowed(engine) })
            }
            EngineFact::Lost { at, engine } => {
                Entry::EngineLost(LostEntry { at: at.0, engine: Cow::Borrowed(engine) })
            }
            EngineFact::Container { at, info, init } => {
                Entry::Container(Box::new(ContainerEntry::new(at.0, info, *init)))
            }
            EngineFact::Exec { at, id, container, pid } => {
                Entry::ContainerExec(ContainerExecEntry {
                    at: at.0,
                    id: Cow::Borrowed(id),
                    container: Cow::Borrowed(&container.0),
                    pid: *pid,
                })
            }
        };
        self.entry(&entry)
    }

    fn data(&mut self, at: u64, t: u32, data: &Data) -> io::Result<()> {
        let Data { stream, offset, skipped, call_len, call_offset, reader_copy, bytes } = data;
        let s = self.stream(stream)?;
        let mut bytes = Cow::Borrowed(bytes.as_slice());
        if self.mask
            && let Some(redactor) = self.redactors.get_mut(s as usize)
        {
            redactor.mask(bytes.to_mut(), *call_offset == 0);
        }
        let (b, b64) = match std::str::from_utf8(&bytes) {
            Ok(text) => (Some(Cow::Borrowed(text)), None),
            Err(_) => (None, Some(Cow::Owned(STANDARD.encode(&bytes)))),
        };
        let entry = Entry::Data(DataEntry {
            at,
            t,
            s,
            o: *offset,
            skipped: *skipped,
            call: (*call_len != bytes.len() as u64).then_some(*call_len),
            call_at: *call_offset,
            reader: *reader_copy,
            b,
            b64,
        });
        line(&mut self.out, &entry)
    }

    /// The number of a task; says what it stands for where that is new.
    fn task(&mut self, task: &Task) -> io::Result<u32> {
        let Task { process, tid, ppid, uid, cgroup, comm, relay } = task;
        let key = (*process, *tid, *ppid, *uid, *cgroup, Arc::clone(comm), *relay);
        let (t, new) = self.tasks.get(&key);
        if new {
            self.entry(&Entry::Task(TaskEntry::new(t, task)))?;
        }
        Ok(t)
    }

    fn stream(&mut self, stream: &StreamRef) -> io::Result<u32> {
        let (s, new) = self.streams.get(stream);
        if new {
            match self.redactors.get_mut(s as usize) {
                Some(redactor) => *redactor = Redactor::default(),
                None => self.redactors.push(Redactor::default()),
            }
            self.entry(&Entry::Stream(StreamEntry::new(s, stream)))?;
        }
        Ok(s)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        line(&mut self.out, entry)
    }
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Gives numbers below [`SLOTS`] to keys; the oldest one is given anew when all are taken.
#[derive(Debug)]
struct Slots<K> {
    numbers: HashMap<K, u32>,
    keys: Vec<K>,
    next: u32,
}

impl<K> Default for Slots<K> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), keys: Vec::new(), next: 0 }
    }
}

impl<K: Clone + Eq + Hash> Slots<K> {
    /// The number of `key`, and whether it is new.
    fn get(&mut self, key: &K) -> (u32, bool) {
        if let Some(number) = self.numbers.get(key) {
            return (*number, false);
        }
        let number = self.next;
        self.next = (self.next + 1) % SLOTS;
        match self.keys.get_mut(number as usize) {
            Some(old) => {
                self.numbers.remove(old);
                *old = key.clone();
            }
            None => self.keys.push(key.clone()),
        }
        self.numbers.insert(key.clone(), number);
        (number, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_anew_when_all_are_taken() {
        let mut slots = Slots::default();
        for key in 0..SLOTS {
            assert_eq!(slots.get(&key), (key, true));
        }
        assert_eq!(slots.get(&5), (5, false));
        assert_eq!(slots.get(&9999), (0, true));
        assert_eq!(slots.get(&0), (1, true));
        assert_eq!(slots.get(&9999), (0, false));
    }

    #[test]
    fn only_a_regular_file_is_written_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mcpcap");
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let mut writer = Writer::create(&path, &Header::default()).unwrap();
        writer.flush().unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\"mcpcap\":1,"));
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(metadata.len() < 1000);

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for path in [&link, &folder.path().join("no/such"), Path::new("/dev/null")] {
            assert!(Writer::create(path, &Header::default()).is_err(), "{}", path.display());
        }
    }
}
