//! Reads a recording.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::format::{DataEntry, Entry, KINDS};
use super::{FORMAT, Header, SLOTS};
use crate::model::{
    CgroupFact, Data, EndpointFact, Input, Loss, ProcessId, Record, RecordBody, StreamRef,
    StreamTotal, Task, Timestamp,
};

/// Longest line that is read. A data record is far below it; only a file that is no recording has
/// longer ones.
const LONGEST_LINE: u64 = 64 * 1024 * 1024;

/// A recording could not be read.
#[derive(Debug)]
pub struct ReadError {
    /// The line, from 1; 0 where the file could not be opened.
    pub line: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a recording could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The file cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The first line is no header.
    #[error("not a recording of mcpspy: it does not begin with a header")]
    NoHeader,
    /// The format is newer than this program.
    #[error("the recording has format {found}, this mcpspy reads up to {FORMAT}: use a newer one")]
    Format {
        /// The format's version.
        found: u64,
    },
    /// The file ends within the line.
    #[error("cut off in the middle of the line: the recording was not written to its end")]
    Cut,
    /// The line is far too long.
    #[error("longer than 64 MiB")]
    TooLong,
    /// The line is not what the format says.
    #[error("{0}")]
    Invalid(String),
    /// A kind of input that this program does not know.
    #[error("unknown input `{kind}`: the recording was written by mcpspy {version}, this is {}",
        env!("CARGO_PKG_VERSION"))]
    UnknownKind {
        /// The kind.
        kind: String,
        /// Who wrote it.
        version: String,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        self.reason.fmt(f)
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason.source()
    }
}

/// Reads the inputs of a recording, one after the other; ends after the first error.
#[derive(Debug)]
pub struct Reader<R: BufRead = BufReader<File>> {
    input: R,
    line: u64,
    buffer: Vec<u8>,
    version: String,
    tasks: Vec<Option<Task>>,
    streams: Vec<Option<StreamRef>>,
    done: bool,
}

impl Reader {
    /// Opens a recording and reads its header.
    pub fn open(path: &Path) -> Result<(Header, Self), ReadError> {
        let file = File::open(path).map_err(|error| ReadError { line: 0, reason: error.into() })?;
        Self::new(BufReader::with_capacity(256 * 1024, file))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    pub fn new(input: R) -> Result<(Header, Self), ReadError> {
        let mut reader = Self {
            input,
            line: 0,
            buffer: Vec::new(),
            version: String::new(),
            tasks: Vec::new(),
            streams: Vec::new(),
            done: false,
        };
        match reader.header() {
            Ok(header) => {
                reader.version.clone_from(&header.version);
                Ok((header, reader))
            }
            Err(reason) => Err(ReadError { line: 1, reason }),
        }
    }

    fn header(&mut self) -> Result<Header, Reason> {
        #[derive(Deserialize)]
        struct First {
            mcpcap: u64,
        }
        let Some(terminated) = self.next_line()? else { return Err(Reason::NoHeader) };
        match serde_json::from_slice::<First>(&self.buffer) {
            Ok(First { mcpcap }) if mcpcap > u64::from(FORMAT) => {
                Err(Reason::Format { found: mcpcap })
            }
            Ok(_) => serde_json::from_slice(&self.buffer)
                .map_err(|error| Reason::Invalid(visible(&format!("not a valid header: {error}")))),
            Err(_) if !terminated && self.buffer.starts_with(b"{\"mcpcap\"") => Err(Reason::Cut),
            Err(_) => Err(Reason::NoHeader),
        }
    }

    /// Reads the next line into the buffer, without its line end; says whether it had one. `None`
    /// at the end of the file.
    fn next_line(&mut self) -> Result<Option<bool>, Reason> {
        self.buffer.clear();
        self.line += 1;
        let read =
            self.input.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut self.buffer)? as u64;
        let terminated = self.buffer.pop_if(|last| *last == b'\n').is_some();
        match read {
            0 => Ok(None),
            read if read > LONGEST_LINE && !terminated => Err(Reason::TooLong),
            _ => Ok(Some(terminated)),
        }
    }

    fn next_input(&mut self) -> Result<Option<Input>, Reason> {
        loop {
            let Some(terminated) = self.next_line()? else { return Ok(None) };
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            // Taken out, since the entry borrows from it while the tables change.
            let buffer = std::mem::take(&mut self.buffer);
            let input = match serde_json::from_slice::<Entry<'_>>(&buffer) {
                Ok(entry) => self.entry(entry),
                Err(_) if !terminated => Err(Reason::Cut),
                Err(error) => Err(self.refuse(&buffer, &error)),
            };
            self.buffer = buffer;
            if let Some(input) = input? {
                return Ok(Some(input));
            }
        }
    }

    /// Why a line is no entry.
    fn refuse(&self, line: &[u8], error: &serde_json::Error) -> Reason {
        let kind = serde_json::from_slice::<serde_json::Map<_, _>>(line)
            .ok()
            .and_then(|members| members.into_iter().next())
            .filter(|(kind, _)| !KINDS.contains(&kind.as_str()));
        match kind {
            Some((kind, _)) => {
                Reason::UnknownKind { kind: visible(&kind), version: visible(&self.version) }
            }
            None => Reason::Invalid(visible(&error.to_string())),
        }
    }

    /// The input that an entry is; `None` where it only gives a number a meaning.
    fn entry(&mut self, entry: Entry<'_>) -> Result<Option<Input>, Reason> {
        let record = match entry {
            Entry::Task(entry) => {
                let number = entry.t;
                return define(&mut self.tasks, number, entry.into_model());
            }
            Entry::Stream(entry) => {
                let number = entry.s;
                return define(&mut self.streams, number, entry.into_model());
            }
            Entry::Process(entry) => return Ok(Some(Input::Process(entry.into_model()))),
            Entry::Engine(entry) => return Ok(Some(Input::Engine(entry.into_model()))),
            Entry::EngineAsked(entry) => return Ok(Some(Input::Engine(entry.into_model()))),
            Entry::EngineLost(entry) => return Ok(Some(Input::Engine(entry.into_model()))),
            Entry::Container(entry) => return Ok(Some(Input::Engine(entry.into_model()))),
            Entry::ContainerExec(entry) => return Ok(Some(Input::Engine(entry.into_model()))),
            Entry::Tick(entry) => return Ok(Some(Input::Tick(Timestamp(entry.at)))),
            Entry::Counters(entry) => {
                let at = Timestamp(entry.at);
                let counters = entry.into_model();
                return Ok(Some(Input::Loss(Loss::Counters { at, counters })));
            }
            Entry::Total(entry) => {
                let stream = self.stream(entry.s)?;
                let total = StreamTotal { stream, offset: entry.o, skipped: entry.skipped };
                return Ok(Some(Input::Loss(Loss::Stream { at: Timestamp(entry.at), total })));
            }
            Entry::Data(entry) => {
                let (at, t) = (entry.at, entry.t);
                let stream = self.stream(entry.s)?;
                self.record(at, t, RecordBody::Data(data(stream, entry)?))?
            }
            Entry::Seen(entry) => {
                let fact = EndpointFact { stream: self.stream(entry.s)?, offset: entry.o };
                self.record(entry.at, entry.t, RecordBody::Endpoint(fact))?
            }
            Entry::End(entry) => {
                let fact = EndpointFact { stream: self.stream(entry.s)?, offset: entry.o };
                self.record(entry.at, entry.t, RecordBody::End(fact))?
            }
            Entry::Exec(entry) => self.record(entry.at, entry.t, RecordBody::Exec)?,
            Entry::Exit(entry) => {
                let exit = entry.exit().ok_or_else(|| {
                    Reason::Invalid("`exit` needs either `code` or `signal`".to_owned())
                })?;
                self.record(entry.at, entry.t, RecordBody::Exit(exit))?
            }
            Entry::Fork(entry) => {
                let child = ProcessId { pid: entry.pid, start: entry.start };
                self.record(entry.at, entry.t, RecordBody::Fork(child))?
            }
            Entry::Cgroup(entry) => {
                let fact = CgroupFact { id: entry.id, path: entry.path.into() };
                self.record(entry.at, entry.t, RecordBody::Cgroup(fact))?
            }
        };
        Ok(Some(Input::Record(record)))
    }

    fn record(&self, at: u64, task: u32, body: RecordBody) -> Result<Record, Reason> {
        let task = self
            .tasks
            .get(task as usize)
            .cloned()
            .flatten()
            .ok_or_else(|| Reason::Invalid(format!("task {task} was not defined before")))?;
        Ok(Record { at: Timestamp(at), task, body })
    }

    fn stream(&self, stream: u32) -> Result<StreamRef, Reason> {
        self.streams
            .get(stream as usize)
            .copied()
            .flatten()
            .ok_or_else(|| Reason::Invalid(format!("stream {stream} was not defined before")))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Input, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.next_input() {
            Ok(Some(input)) => Some(Ok(input)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(reason) => {
                self.done = true;
                Some(Err(ReadError { line: self.line, reason }))
            }
        }
    }
}

/// Text from a file, for a terminal.
fn visible(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn define<T: Clone>(
    table: &mut Vec<Option<T>>,
    number: u32,
    value: T,
) -> Result<Option<Input>, Reason> {
    if number >= SLOTS {
        return Err(Reason::Invalid(format!("the number {number} is not below {SLOTS}")));
    }
    let place = number as usize;
    if place >= table.len() {
        table.resize(place + 1, None);
    }
    if let Some(slot) = table.get_mut(place) {
        *slot = Some(value);
    }
    Ok(None)
}

fn data(stream: StreamRef, entry: DataEntry<'_>) -> Result<Data, Reason> {
    let bytes = match (entry.b, entry.b64) {
        (Some(text), None) => text.into_owned().into_bytes(),
        (None, Some(text)) => STANDARD
            .decode(text.as_bytes())
            .map_err(|error| Reason::Invalid(format!("`b64` is not base64: {error}")))?,
        _ => return Err(Reason::Invalid("`data` needs either `b` or `b64`".to_owned())),
    };
    // Positions are added up all over the engine; those of a real stream end far below.
    let length = bytes.len() as u64;
    if entry.o.checked_add(length).is_none() || entry.call_at.checked_add(length).is_none() {
        return Err(Reason::Invalid("a position beyond the end of numbers".to_owned()));
    }
    Ok(Data {
        stream,
        offset: entry.o,
        skipped: entry.skipped,
        call_len: entry.call.unwrap_or(length),
        call_offset: entry.call_at,
        reader_copy: entry.reader,
        bytes,
    })
}

#[cfg(test)]
mod tests;
