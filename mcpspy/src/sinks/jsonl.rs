//! JSON lines: to a file, or to standard output.
//!
//! How a file is opened, and why:
//! - It is appended to, never emptied. A last line without its end (a crash, a full disk) gets one
//!   first, so that it spoils no line but its own.
//! - A file that we create gets mode 0600 and belongs to `owner`: payloads are private, and the user
//!   behind `sudo` is to read them. A file that exists keeps its mode and owner: through a symbolic
//!   link it may be anybody's, and who may read it was decided before.
//! - Symbolic links are followed. The path is the user's word, `/dev/stdout`, `latest.jsonl` and
//!   mounted volumes are links often enough, and in `/tmp` the kernel itself (`protected_symlinks`)
//!   refuses those that a stranger planted. A link to nothing is refused: creating a file where a link
//!   happens to point is what attacks with links are made of.
//! - Rotation renames the file that the link pointed to when it was opened, never the link.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::lines::{self, Lines};
use super::schema::Encoder;
use super::{Payload, RunInfo, Sink, SinkError};
use crate::model::Event;

/// How JSON lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonlOptions {
    /// How much of the messages' texts.
    pub payload: Payload,
    /// Rotate before the file would grow beyond this many bytes. A longer line gets a file of its
    /// own.
    pub max_size: Option<u64>,
    /// Rotated files to keep: `FILE.1` is the youngest.
    pub keep: u32,
    /// User and group of files that are created.
    pub owner: Option<(u32, u32)>,
}

/// Writes one JSON object per line.
pub struct Jsonl {
    lines: Lines,
    encoder: Encoder,
    file: Option<Target>,
}

impl Jsonl {
    /// Writes to standard output.
    pub fn stdout(run: &RunInfo, payload: Payload) -> io::Result<Self> {
        Ok(Self::to("standard output", lines::stdout()?, run, payload))
    }

    /// Writes to `out`, whose reader may go away quietly.
    pub fn to(name: &str, out: Box<dyn Write + Send>, run: &RunInfo, payload: Payload) -> Self {
        Self {
            lines: Lines::new(name.to_owned(), out, true),
            encoder: Encoder::new(run, payload),
            file: None,
        }
    }

    /// Appends to the file at `path`.
    pub fn create(path: &Path, run: &RunInfo, options: JsonlOptions) -> Result<Self, SinkError> {
        let (file, target) = Target::open(path.to_owned(), options)?;
        Ok(Self {
            lines: Lines::new(path.display().to_string(), Box::new(file), false),
            encoder: Encoder::new(run, options.payload),
            file: Some(target),
        })
    }

    /// Shows these labels of containers.
    #[must_use]
    pub fn show_labels(mut self, labels: &[String]) -> Self {
        self.encoder = self.encoder.show_labels(labels);
        self
    }

    /// Keeps each line below this many bytes: see [`Encoder::max_line`].
    #[must_use]
    pub fn max_line(mut self, bytes: Option<usize>) -> Self {
        self.encoder = self.encoder.max_line(bytes);
        self
    }
}

impl Sink for Jsonl {
    fn write(&mut self, event: &Event) -> Result<(), SinkError> {
        let size = self.lines.push(|out| self.encoder.encode(event, out)) as u64;
        if let Some(target) = &mut self.file
            && target.must_rotate(size)
        {
            let line = self.lines.pop();
            self.lines
                .flush()
                .map_err(|error| SinkError { undelivered: error.undelivered + 1, ..error })?;
            let rotated = target.rotate();
            self.lines.push(|out| out.extend_from_slice(&line));
            match rotated {
                Ok(file) => self.lines.redirect(Box::new(file)),
                // Better a file that is too large than events that are lost.
                Err(error) => tracing::warn!("{error}; it grows on"),
            }
        }
        if let Some(target) = &mut self.file {
            target.size += size;
        }
        if self.lines.is_due() { self.lines.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.lines.flush()
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        if let Some(target) = &self.file {
            let (file, target) = Target::open(target.path.clone(), target.options)?;
            self.lines.redirect(Box::new(file));
            self.file = Some(target);
        }
        Ok(())
    }
}

/// The file that is written.
struct Target {
    /// As the user named it.
    path: PathBuf,
    /// Where it is, links resolved; `None` for what cannot be rotated (pipes, devices).
    place: Option<PathBuf>,
    options: JsonlOptions,
    size: u64,
    /// Rotate beyond this size; grows when a rotation failed.
    limit: Option<u64>,
}

impl Target {
    fn open(path: PathBuf, options: JsonlOptions) -> Result<(File, Self), SinkError> {
        let opened = open(&path, options.owner).and_then(|(mut file, regular)| {
            let size = if regular { complete_last_line(&mut file)? } else { 0 };
            let place = if regular { Some(fs::canonicalize(&path)?) } else { None };
            Ok((file, size, place))
        });
        let (file, size, place) = opened.map_err(|source| failure("open", &path, source))?;
        Ok((file, Self { path, place, options, size, limit: options.max_size }))
    }

    fn must_rotate(&self, more: u64) -> bool {
        let over = self.limit.is_some_and(|limit| self.size.saturating_add(more) > limit);
        over && self.size > 0 && self.place.is_some()
    }

    /// Moves the files up one place and creates a new one.
    fn rotate(&mut self) -> Result<File, SinkError> {
        let Some(place) = self.place.clone() else {
            return Err(failure("rotate", &self.path, io::ErrorKind::Unsupported.into()));
        };
        let moved = move_up(&place, self.options.keep);
        let created = moved.and_then(|()| open(&place, self.options.owner));
        match created {
            Ok((file, _)) => {
                self.size = 0;
                self.limit = self.options.max_size;
                Ok(file)
            }
            Err(source) => {
                self.limit = self.options.max_size.map(|max| max.saturating_add(self.size));
                Err(failure("rotate", &place, source))
            }
        }
    }
}

fn failure(what: &str, path: &Path, source: io::Error) -> SinkError {
    let context = format!("cannot {what} {}", path.display());
    SinkError { context, source, closed: false, undelivered: 0 }
}

/// Opens for appending; whether it is a regular file.
fn open(path: &Path, owner: Option<(u32, u32)>) -> io::Result<(File, bool)> {
    // First as a new file: only what we created may change its owner.
    let new = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path);
    match new {
        Ok(file) => {
            // A umask may have taken more away than we want, never less.
            file.set_permissions(Permissions::from_mode(0o600))?;
            if let Some((user, group)) = owner {
                fchown(&file, Some(user), Some(group))?;
            }
            return Ok((file, true));
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(io::Error::new(
                e.kind(),
                "it is a symbolic link to a file that is not there",
            ));
        }
        Err(e) => return Err(e),
    };
    // A FIFO opened for reading too would never tell that its reader went away.
    let stream = kind.is_fifo() || kind.is_char_device();
    Ok((OpenOptions::new().read(!stream).append(true).open(path)?, kind.is_file()))
}

/// Ends a last line that has no end; the size of the file.
fn complete_last_line(file: &mut File) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    if size == 0 {
        return Ok(0);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(size);
    }
    file.write_all(b"\n")?;
    Ok(size + 1)
}

/// `x` becomes `x.1`, `x.1` becomes `x.2` and so on; the oldest goes.
fn move_up(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    let numbered = |n: u32| {
        let mut name = OsString::from(path);
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    for n in (1..keep).rev() {
        match fs::rename(numbered(n), numbered(n + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests;
