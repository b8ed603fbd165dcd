//! Whole lines in memory on their way to a file descriptor.

use std::fs::File;
use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, poll};

use super::SinkError;

/// Bytes to gather before they are written although nobody asked for a flush. One write of 64 KiB
/// fills a pipe of the usual size; more saves no calls worth the memory.
const GATHER: usize = 64 * 1024;

/// Memory kept for the next lines after one that was huge.
const KEEP_CAPACITY: usize = 4 * GATHER;

/// Gathers the lines of events and writes them: only ever whole lines at a time, so that a reader
/// (and Docker's log drivers) sees a line cut only when a disk is full or a pipe is.
pub(super) struct Lines {
    name: String,
    out: Box<dyn Write + Send>,
    ends_quietly: bool,
    buffer: Vec<u8>,
    /// Where in `buffer` each event ends.
    ends: Vec<usize>,
}

impl Lines {
    /// `name` is for error messages. `ends_quietly`: a reader that went away is an ordinary end.
    pub(super) fn new(name: String, out: Box<dyn Write + Send>, ends_quietly: bool) -> Self {
        Self { name, out, ends_quietly, buffer: Vec::new(), ends: Vec::new() }
    }

    /// Appends the lines of one event by `format`; they must end with a line end. Returns their
    /// size.
    pub(super) fn push(&mut self, format: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.buffer.len();
        format(&mut self.buffer);
        self.ends.push(self.buffer.len());
        self.buffer.len() - start
    }

    /// Takes the last event back, for its lines to go elsewhere.
    pub(super) fn pop(&mut self) -> Vec<u8> {
        self.ends.pop();
        self.buffer.split_off(self.ends.last().copied().unwrap_or(0))
    }

    /// Whether enough is gathered to write it.
    pub(super) fn is_due(&self) -> bool {
        self.buffer.len() >= GATHER
    }

    /// Writes everything. Whether it succeeds or not, nothing is left in the buffer.
    pub(super) fn flush(&mut self) -> Result<(), SinkError> {
        let (written, result) = write_all(&mut *self.out, &self.buffer);
        let undelivered = self.ends.iter().filter(|&&end| end > written).count() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_CAPACITY);
        self.ends.clear();
        result.map_err(|source| SinkError {
            context: format!("cannot write to {}", self.name),
            closed: self.ends_quietly && source.kind() == io::ErrorKind::BrokenPipe,
            source,
            undelivered,
        })
    }

    /// Writes to something else from now on. What was gathered goes there too.
    pub(super) fn redirect(&mut self, out: Box<dyn Write + Send>) {
        self.out = out;
    }
}

/// Like [`Write::write_all`], but says how much got out before an error.
fn write_all(out: &mut dyn Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (written, Err(e)),
        }
    }
    (written, out.flush())
}

/// Standard output without the buffer of [`std::io::stdout`], which would cut lines at its own size.
pub fn stdout() -> io::Result<Box<dyn Write + Send>> {
    Ok(Box::new(Descriptor(File::from(rustix::io::dup(rustix::stdio::stdout())?))))
}

/// A descriptor that somebody else may have set to non-blocking: a terminal shared with a Node
/// program, for example.
struct Descriptor(File);

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes this many bytes, then fails.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.0).min(7);
            self.0 -= n;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failure_says_how_many_events_did_not_get_out() {
        for (room, lost) in [(0, 3), (9, 3), (10, 2), (25, 1), (29, 1), (30, 0)] {
            let mut lines = Lines::new("x".into(), Box::new(Full(room)), false);
            for _ in 0..3 {
                assert_eq!(lines.push(|out| out.extend_from_slice(b"123456789\n")), 10);
            }
            let undelivered = lines.flush().map_or_else(|e| e.undelivered, |()| 0);
            assert_eq!(undelivered, lost, "room for {room} bytes");
        }
    }

    #[test]
    fn only_a_pipe_without_a_reader_ends_quietly() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut lines = Lines::new("standard output".into(), Box::new(writer), true);
        lines.push(|out| out.push(b'\n'));
        assert!(lines.flush().unwrap_err().closed);
        let mut lines = Lines::new("x".into(), Box::new(Full(0)), true);
        lines.push(|out| out.push(b'\n'));
        assert!(!lines.flush().unwrap_err().closed);
    }
}
