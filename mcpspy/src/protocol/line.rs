//! One line of a stream, and what can be told from a line alone.

use std::borrow::Cow;

use memchr::memchr;

/// Bytes kept of the end of a line that is larger than the limit. The TypeScript SDK writes
/// `jsonrpc` and `id` last; no id seen in practice comes near this.
pub const TAIL: usize = 1024;

/// Largest believable `Content-Length`; a larger one is text that looks like a header.
const LARGEST_BODY: u64 = 1 << 30;

/// How a line was told from the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// By a line end.
    Newline,
    /// By a `Content-Length` header, as LSP does. MCP does not allow it; some servers do it.
    ContentLength,
    /// By its brackets: one JSON value over several lines. MCP does not allow it.
    Multiline,
}

/// One line, most often one message. It borrows from the pushed bytes where it lies in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes, line end not included; of a larger one, the first bytes up to the limit.
    pub head: Cow<'a, [u8]>,
    /// The last bytes (at most [`TAIL`]) beyond the head of a line larger than the limit.
    pub tail: Vec<u8>,
    /// Its true size in bytes, line end not included.
    pub size: u64,
    /// It was larger than the limit.
    pub truncated: bool,
    /// Position of its first byte in the stream.
    pub start: u64,
    /// Position after its last byte, line end included.
    pub end: u64,
    /// Its end was seen; not so for the last line of a stream without line end.
    pub terminated: bool,
    /// It is only assumed to begin here: the bytes before it are missing.
    pub after_gap: bool,
    /// How it was told from the next one.
    pub framing: Framing,
}

impl Line<'_> {
    /// The same line with bytes of its own.
    pub fn into_owned(self) -> Line<'static> {
        Line { head: Cow::Owned(self.head.into_owned()), ..self }
    }

    /// Takes the CR of a CRLF and the byte order mark off.
    pub(super) fn strip(&mut self) {
        if self.tail.last() == Some(&b'\r') {
            self.tail.pop();
            self.size -= 1;
        } else if self.tail.is_empty() && self.head.last() == Some(&b'\r') {
            match &mut self.head {
                Cow::Borrowed(head) => *head = head.get(..head.len() - 1).unwrap_or_default(),
                Cow::Owned(head) => drop(head.pop()),
            }
            self.size -= 1;
        }
        if self.head.starts_with(b"\xef\xbb\xbf") {
            match &mut self.head {
                Cow::Borrowed(head) => *head = head.get(3..).unwrap_or_default(),
                Cow::Owned(head) => drop(head.drain(..3)),
            }
            self.size -= 3;
        }
        if self.head.iter().all(u8::is_ascii_whitespace) && self.tail.is_empty() {
            self.head = Cow::Borrowed(b"");
            self.size = 0;
        }
        self.limit_tail();
    }

    pub(super) fn limit_tail(&mut self) {
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        self.truncated = self.size > self.head.len() as u64;
    }

    /// Whether it starts an object or array and does not look like the end of one: decided by two
    /// bytes, so that ordinary lines are not read twice.
    pub(super) fn opens_value(&self) -> bool {
        matches!(self.head.first(), Some(b'{' | b'['))
            && !matches!(self.head.trim_ascii_end().last(), Some(b'}' | b']'))
            && !self.after_gap
    }
}

/// A line in a block of headers.
pub(super) enum Header {
    /// `Content-Length`.
    Length(u64),
    /// Another one.
    Other,
    /// The blank line after the last one.
    End,
}

/// Reads a line as a header; `None` where it is none, or none that can be believed.
pub(super) fn header(line: &Line<'_>) -> Option<Header> {
    let text = line.head.as_ref();
    if text.is_empty() {
        return Some(Header::End);
    }
    let colon = memchr(b':', text.get(..64.min(text.len()))?)?;
    let (name, value) = (text.get(..colon)?, text.get(colon + 1..)?);
    if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') || name.is_empty() {
        return None;
    }
    if !name.eq_ignore_ascii_case(b"content-length") {
        return Some(Header::Other);
    }
    let value = std::str::from_utf8(value.trim_ascii()).ok()?;
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|length| digits && *length <= LARGEST_BODY).map(Header::Length)
}

/// Whether a line starts with this lower-case name.
pub(super) fn starts_with_name(text: &[u8], name: &[u8]) -> bool {
    text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}
