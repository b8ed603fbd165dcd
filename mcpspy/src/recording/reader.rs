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
    Data, EndpointFact, Input, Loss, ProcessId, Record, RecordBody, StreamRef, StreamTotal, Task,
    Timestamp,
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
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Carrier, Direction, Exit, FdFact, FdKind, KernelCounters, ProcessFacts};
    use crate::recording::Writer;

    fn header() -> Header {
        Header {
            version: "9.8.7".to_owned(),
            kernel: "6.18.0".to_owned(),
            host: "h\u{e9}".to_owned(),
            wall_offset_ns: -5,
            max_message: 16 << 20,
            oneway: true,
            ..Header::default()
        }
    }

    fn task(pid: u32) -> Task {
        Task {
            process: ProcessId { pid, start: u64::MAX },
            tid: pid + 1,
            ppid: 1,
            uid: 1000,
            cgroup: 77,
            comm: "py\"th\non".into(),
        }
    }

    fn stream(ino: u64, direction: Direction) -> StreamRef {
        let (carrier, peer) =
            if ino.is_multiple_of(2) { (Carrier::Pipe, 0) } else { (Carrier::Unix, ino + 1) };
        StreamRef { carrier, dev: 12, ino, peer, direction, nonce: 99 }
    }

    fn record(at: u64, pid: u32, body: RecordBody) -> Input {
        Input::Record(Record { at: Timestamp(at), task: task(pid), body })
    }

    fn data_of(ino: u64, bytes: &[u8]) -> RecordBody {
        RecordBody::Data(Data {
            stream: stream(ino, Direction::Write),
            offset: 7,
            skipped: 0,
            call_len: bytes.len() as u64,
            call_offset: 0,
            reader_copy: false,
            bytes: bytes.to_vec(),
        })
    }

    /// One input of every kind.
    fn inputs() -> Vec<Input> {
        let fact = EndpointFact { stream: stream(5, Direction::Read), offset: 3 };
        let facts = ProcessFacts {
            at: Timestamp(4),
            id: ProcessId { pid: 3, start: 4 },
            parent: Some(ProcessId { pid: 1, start: 0 }),
            comm: Arc::from("sh"),
            exe: Arc::from("/bin/sh"),
            cmdline: Arc::from("sh -c 'x'"),
            uid: None,
            fds: Some(vec![
                FdFact { kind: FdKind::Pipe, dev: 1, ino: 2, readable: true, writable: false },
                FdFact { kind: FdKind::Socket, dev: 1, ino: 3, readable: true, writable: true },
            ]),
            initial: true,
        };
        let bare =
            ProcessFacts { parent: None, uid: Some(0), fds: None, initial: false, ..facts.clone() };
        let total =
            StreamTotal { stream: stream(8, Direction::Write), offset: u64::MAX, skipped: 1 };
        let counters = KernelCounters { records: 1, unseen_calls: u64::MAX, ..Default::default() };
        let partial = RecordBody::Data(Data {
            stream: stream(6, Direction::Read),
            offset: 1 << 40,
            skipped: 9,
            call_len: 100_000,
            call_offset: 32768,
            reader_copy: true,
            bytes: b"\x80\x00half".to_vec(),
        });
        vec![
            record(1, 10, data_of(4, "{\"a\":\"\u{e9}\\n\"}\r\n\0".as_bytes())),
            record(2, 11, partial),
            record(2, 10, data_of(4, b"")),
            record(3, 10, RecordBody::Endpoint(fact)),
            record(3, 10, RecordBody::End(fact)),
            record(4, 10, RecordBody::Exec),
            record(5, 10, RecordBody::Exit(Exit::Code(3))),
            record(5, 11, RecordBody::Exit(Exit::Signal(9))),
            record(6, 10, RecordBody::Fork(ProcessId { pid: 12, start: 13 })),
            Input::Loss(Loss::Counters { at: Timestamp(7), counters }),
            Input::Loss(Loss::Stream { at: Timestamp(8), total }),
            Input::Process(facts),
            Input::Process(bare),
            Input::Tick(Timestamp(u64::MAX)),
        ]
    }

    fn write(header: &Header, inputs: &[Input]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, header).unwrap();
        for input in inputs {
            writer.input(input).unwrap();
        }
        file
    }

    fn read(file: &[u8]) -> (Vec<Input>, Option<ReadError>) {
        let (mut inputs, mut error) = (Vec::new(), None);
        match Reader::new(file) {
            Ok((_, reader)) => {
                for input in reader {
                    match input {
                        Ok(input) => inputs.push(input),
                        Err(fault) => error = Some(fault),
                    }
                }
            }
            Err(fault) => error = Some(fault),
        }
        (inputs, error)
    }

    #[test]
    fn what_is_written_is_read() {
        let file = write(&header(), &inputs());
        let (read_header, reader) = Reader::new(file.as_slice()).unwrap();
        assert_eq!(read_header, header());
        assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), inputs());
    }

    #[test]
    fn more_tasks_and_streams_than_numbers() {
        let many: Vec<_> = (0..3 * SLOTS)
            .map(|pid| record(1, pid % (2 * SLOTS), data_of(u64::from(pid), b"x")))
            .collect();
        assert_eq!(read(&write(&header(), &many)).0, many);
    }

    #[test]
    fn a_line_costs_little_more_than_its_payload() {
        let many = vec![record(1 << 50, 10, data_of(4, &[b'x'; 300])); 1000];
        assert!(write(&header(), &many).len() < 1000 * (300 + 100));
    }

    #[test]
    fn a_cut_file_gives_what_is_whole_and_names_the_line() {
        let file = write(&header(), &inputs());
        for end in 1..file.len() {
            let (found, error) = read(&file[..end]);
            assert_eq!(found, inputs()[..found.len()], "{end}");
            let ends = file[end - 1] == b'\n' || file[end] == b'\n';
            match error {
                None => assert!(ends, "{end}"),
                Some(error) => {
                    let lines = file[..end].split(|byte| *byte == b'\n').count() as u64;
                    assert!(!ends && error.line == lines, "{end}: {error}");
                    assert!(matches!(error.reason, Reason::Cut | Reason::NoHeader), "{error}");
                }
            }
        }
    }

    #[test]
    fn errors_say_where_and_why() {
        let start = String::from_utf8(write(&header(), &[])).unwrap();
        for (file, expected) in [
            (String::new(), "line 1: not a recording"),
            ("{\"kind\":\"message\"}\n".to_owned(), "line 1: not a recording"),
            ("{\"mcpcap\":2}\n".to_owned(), "line 1: the recording has format 2"),
            ("{\"mcpcap\":1,\"oneway\":7}\n".to_owned(), "line 1: not a valid header"),
            (
                format!("{start}{{\"ti\u{202e}ck\":{{}}}}\n"),
                "line 2: unknown input `ti\u{202e}ck`: the recording was written by mcpspy 9.8.7",
            ),
            (format!("{start}\n\n{{\"tick\":{{}}}}\n"), "line 4: missing field `at`"),
            (format!("{start}{{\"tick\":5}}\n"), "line 2: invalid type"),
            (format!("{start}{{\"exec\":{{\"at\":1,\"t\":0}}}}\n"), "line 2: task 0 was not"),
            (format!("{start}garbage\n"), "line 2: expected value"),
            (format!("{start}garbage"), "line 2: cut off"),
        ] {
            let (found, error) = read(file.as_bytes());
            assert_eq!(found, []);
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(expected), "{file}: {error}");
        }
        let missing = Reader::open(Path::new("/no/such.mcpcap")).unwrap_err().to_string();
        assert!(missing.starts_with("cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn too_long_a_line_is_refused() {
        let start = write(&header(), &[]);
        let endless = start.as_slice().chain(io::repeat(b' '));
        let (_, mut reader) = Reader::new(BufReader::new(endless)).unwrap();
        assert!(matches!(reader.next(), Some(Err(ReadError { line: 2, reason: Reason::TooLong }))));
        assert!(reader.next().is_none());
    }

    #[test]
    fn changed_bytes_never_panic() {
        let file = write(&header(), &inputs());
        for place in (0..file.len()).step_by(5) {
            for byte in *b"\"{}[]:,\n9-\\\xff" {
                let mut changed = file.clone();
                changed[place] = byte;
                let _read = read(&changed);
            }
            let mut changed = file.clone();
            changed.remove(place);
            let _read = read(&changed);
        }
    }

    #[test]
    fn credentials_are_masked_across_records() {
        let masked = Header { masked: true, ..header() };
        let pieces: [&[u8]; 3] =
            [b"GET / HTTP/1.1\r\nAuthor", b"ization: Bearer s", b"ecret\r\nA: b"];
        let mut offset = 0;
        let inputs: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let body = RecordBody::Data(Data {
                    stream: stream(4, Direction::Write),
                    offset,
                    skipped: 0,
                    call_len: 100,
                    call_offset: offset,
                    reader_copy: false,
                    bytes: piece.to_vec(),
                });
                offset += piece.len() as u64;
                record(1, 1, body)
            })
            .collect();
        let mut payload = Vec::new();
        for input in read(&write(&masked, &inputs)).0 {
            if let Input::Record(Record { body: RecordBody::Data(data), .. }) = input {
                payload.extend(data.bytes);
            }
        }
        let expected: &[u8] = b"GET / HTTP/1.1\r\nAuthorization: ****** ******\r\nA: b";
        assert_eq!(payload, expected);
        assert_eq!(read(&write(&header(), &inputs)).0, inputs);
    }
}
