//! A stream of bytes, cut into lines: MCP's framing on standard input and output, one message a
//! line.
//!
//! [`Decoder`] takes bytes as they come, in pieces of any size, and gives [`Line`]s. Beyond the
//! plain rule (LF or CRLF ends a line, blank lines and byte order marks do not count) it knows what
//! real programs do:
//!
//! - `Content-Length:` headers before a body, as in LSP: the body is the line.
//! - One JSON value over several lines (pretty-printed): a line that opens an object or array and
//!   does not close it is held, with those after it, as long as together they are the beginning of
//!   valid JSON. If they turn out not to be, each comes as its own line.
//! - A hole in the stream: the unfinished line is given up, and input is skipped to the next line
//!   end. If the first byte after the hole could start a message (`{`, `[`) or a header (`c`, `C`),
//!   it is taken for the start of a line, because a system call usually starts at a message's
//!   border; such a line has [`Line::after_gap`]. What is left of a message that began in the hole
//!   is not mistaken for one: it has a bracket too many, so it is not JSON.
//!
//! The decoder never holds more than its limit plus what [`HELD_BYTES`] and [`HELD_LINES`] allow, and
//! looks at each byte once.

use std::borrow::Cow;

use memchr::memchr;

use super::json::{Stop, skip_space};
pub use super::line::{Framing, Line, TAIL};
use super::line::{Header, header, starts_with_name};
use super::multiline::Held;
pub use super::multiline::{HELD_BYTES, HELD_LINES};

/// Default for the most bytes kept of one message.
pub const DEFAULT_LIMIT: usize = 16 * 1024 * 1024;

/// Where in the framing the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a line, or at the start of one.
    Line,
    /// Bytes are missing: the next one decides.
    Gap,
    /// In the rest of a line that began in a gap.
    Skip,
    /// In a block of headers, with the length that one of them gave.
    Headers(Option<u64>),
    /// In a body, so many bytes before its end.
    Body(u64),
    /// In the rest of a body that has a hole.
    Discard(u64),
}

/// Cuts one direction of a stream into lines.
#[derive(Clone, Debug)]
pub struct Decoder {
    limit: usize,
    state: State,
    /// Position of the next byte.
    position: u64,
    /// The unfinished line: where it began, how large it is so far, and what is kept of it.
    start: u64,
    size: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    after_gap: bool,
    held: Option<Box<Held>>,
    discarded: u64,
}

impl Decoder {
    /// A decoder at the start of a line, at position 0, that keeps at most `limit` bytes of a line.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            state: State::Line,
            position: 0,
            start: 0,
            size: 0,
            head: Vec::new(),
            tail: Vec::new(),
            after_gap: false,
            held: None,
            discarded: 0,
        }
    }

    /// Takes the next bytes of the stream and gives the lines that end in them.
    pub fn push<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<Line<'a>>) {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            let taken = match self.state {
                State::Gap => {
                    self.after_gap = matches!(first, b'{' | b'[' | b'c' | b'C');
                    self.state = if self.after_gap { State::Line } else { State::Skip };
                    0
                }
                State::Skip => {
                    let end = memchr(b'\n', rest);
                    if end.is_some() {
                        self.state = State::Line;
                    }
                    let taken = end.map_or(rest.len(), |end| end + 1);
                    self.discarded += taken as u64;
                    taken
                }
                State::Line | State::Headers(_) => self.push_line(rest, out),
                State::Body(left) => self.push_body(rest, left, out),
                State::Discard(left) => {
                    let taken = up_to(rest, left);
                    self.discarded += taken as u64;
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::Line } else { State::Discard(left) };
                    taken
                }
            };
            self.position += taken as u64;
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    /// Bytes are missing before the next push: so many, or an unknown number. The unfinished line
    /// is given up.
    ///
    /// A decoder that begins in the middle of a stream is told so by `gap(None)`, or `gap(Some(n))`
    /// to begin at position `n`.
    pub fn gap(&mut self, missing: Option<u64>) {
        if missing == Some(0) {
            return;
        }
        self.state = match (self.state, missing) {
            (State::Body(left) | State::Discard(left), Some(missing)) if missing < left => {
                State::Discard(left - missing)
            }
            (State::Body(left) | State::Discard(left), Some(missing)) if missing == left => {
                State::Line
            }
            _ => State::Gap,
        };
        self.position += missing.unwrap_or(0);
        self.discarded += self.size;
        if let Some(held) = self.held.take() {
            self.discarded += held.size();
        }
        self.clear();
    }

    /// The stream ended: gives what is left as unterminated lines.
    pub fn finish(&mut self, out: &mut Vec<Line<'_>>) {
        if self.size > 0 {
            let framing = match self.state {
                State::Body(_) => Framing::ContentLength,
                _ => Framing::Newline,
            };
            let mut line = self.take(framing);
            line.terminated = false;
            line.end = self.position;
            if framing == Framing::Newline {
                self.end_line(line, out);
            } else {
                out.push(line);
            }
        }
        if let Some(held) = self.held.take() {
            held.release(out);
        }
        self.state = State::Line;
    }

    /// Bytes that are held at the moment.
    pub fn buffered(&self) -> usize {
        self.head.len() + self.tail.len() + self.held.as_ref().map_or(0, |held| held.buffered())
    }

    /// Position in the stream of the next byte to push.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the unfinished line cannot become a message: it begins like text.
    pub fn is_text(&self) -> bool {
        let first = self.head.iter().find(|byte| !byte.is_ascii_whitespace());
        self.state == State::Line
            && self.held.is_none()
            && first.is_some_and(|byte| !matches!(byte, b'{' | b'[' | 0xEF))
    }

    /// Bytes given up so far because of gaps: received, but part of a message that has a hole.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    fn push_line<'a>(&mut self, rest: &'a [u8], out: &mut Vec<Line<'a>>) -> usize {
        let Some(end) = memchr(b'\n', rest) else {
            self.keep(rest);
            return rest.len();
        };
        let (content, taken) = (rest.get(..end).unwrap_or_default(), end + 1);
        let line = if self.size == 0 && content.len() <= self.limit {
            Line {
                head: Cow::Borrowed(content),
                tail: Vec::new(),
                size: content.len() as u64,
                truncated: false,
                start: self.position,
                end: self.position + taken as u64,
                terminated: true,
                after_gap: std::mem::take(&mut self.after_gap),
                framing: Framing::Newline,
            }
        } else {
            self.keep(content);
            let mut line = self.take(Framing::Newline);
            line.end = self.position + taken as u64;
            line
        };
        self.end_line(line, out);
        taken
    }

    fn push_body<'a>(&mut self, rest: &'a [u8], left: u64, out: &mut Vec<Line<'a>>) -> usize {
        if self.size == 0
            && !matches!(rest.first(), Some(b'{' | b'[' | b' ' | b'\t' | b'\r' | b'\n'))
        {
            // No JSON follows: it was text that looked like a header.
            self.state = State::Line;
            return 0;
        }
        let taken = up_to(rest, left);
        let content = rest.get(..taken).unwrap_or_default();
        let left = left - taken as u64;
        if left > 0 {
            self.keep(content);
            self.state = State::Body(left);
            return taken;
        }
        self.state = State::Line;
        self.keep(content);
        let mut line = self.take(Framing::ContentLength);
        line.end = self.position + taken as u64;
        out.push(line);
        taken
    }

    /// Adds bytes to the unfinished line.
    fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.size == 0 {
            self.start = self.position;
        }
        self.size += bytes.len() as u64;
        let room = self.limit - self.head.len();
        let (head, over) = bytes.split_at(room.min(bytes.len()));
        let needed = self.head.len() + head.len();
        if needed > self.head.capacity() {
            // As `Vec` grows by itself, but never beyond the limit.
            let capacity = needed.max(self.head.capacity() * 2).max(256).min(self.limit);
            self.head.reserve_exact(capacity - self.head.len());
        }
        self.head.extend_from_slice(head);
        if !over.is_empty() {
            // One byte more than the tail, since the last one may turn out to be a line end's CR.
            let over = over.get(over.len().saturating_sub(TAIL + 1)..).unwrap_or(over);
            self.tail.extend_from_slice(over);
            if self.tail.len() > 4 * TAIL {
                self.tail.drain(..self.tail.len() - (TAIL + 1));
            }
        }
    }

    /// Takes the unfinished line out.
    fn take(&mut self, framing: Framing) -> Line<'static> {
        let mut line = Line {
            head: Cow::Owned(std::mem::take(&mut self.head)),
            tail: std::mem::take(&mut self.tail),
            size: self.size,
            truncated: false,
            start: if self.size == 0 { self.position } else { self.start },
            end: 0,
            terminated: true,
            after_gap: self.after_gap,
            framing,
        };
        self.clear();
        if framing == Framing::ContentLength {
            line.limit_tail();
        }
        line
    }

    fn clear(&mut self) {
        self.size = 0;
        self.head = Vec::new();
        self.tail = Vec::new();
        self.after_gap = false;
    }

    /// Decides what a whole line is.
    fn end_line<'a>(&mut self, mut line: Line<'a>, out: &mut Vec<Line<'a>>) {
        line.strip();
        if let State::Headers(length) = self.state {
            match header(&line) {
                Some(Header::Length(length)) => {
                    self.state = State::Headers(Some(length));
                    return;
                }
                Some(Header::Other) => return,
                Some(Header::End) => {
                    self.state = match length {
                        Some(length) if length > 0 => State::Body(length),
                        _ => State::Line,
                    };
                    return;
                }
                None => self.state = State::Line,
            }
        }
        if line.size == 0 {
            return;
        }
        if let Some(b'c' | b'C') = line.head.first() {
            let length = match header(&line) {
                Some(Header::Length(length)) => Some(Some(length)),
                _ if starts_with_name(&line.head, b"content-type:") => Some(None),
                _ => None,
            };
            if let Some(length) = length {
                // No JSON goes on with this: what was held was none.
                if let Some(held) = self.held.take() {
                    held.release(out);
                }
                self.state = State::Headers(length);
                return;
            }
        }
        if self.held.is_some() || line.opens_value() {
            self.hold(line, out);
        } else {
            out.push(line);
        }
    }

    /// Tries a line as the beginning or continuation of a value over several lines.
    fn hold<'a>(&mut self, line: Line<'a>, out: &mut Vec<Line<'a>>) {
        let mut held = self.held.take().unwrap_or_default();
        let fits = held.has_room(&line, self.limit);
        match held.read(&line) {
            Err(Stop::More) if fits => {
                held.add(&line);
                self.held = Some(held);
            }
            Ok(end) if fits && skip_space(&line.head, end) == line.head.len() => {
                held.add(&line);
                out.push(held.join());
            }
            _ => {
                let continued = !held.is_empty();
                held.release(out);
                if continued && line.opens_value() {
                    self.hold(line, out);
                } else {
                    out.push(line);
                }
            }
        }
    }
}

/// How many of `bytes` belong to something that ends after `left` more.
fn up_to(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(limit: usize, pieces: &[&[u8]]) -> Vec<Line<'static>> {
        let mut decoder = Decoder::new(limit);
        let mut all = Vec::new();
        for piece in pieces {
            let mut out = Vec::new();
            decoder.push(piece, &mut out);
            all.extend(out.into_iter().map(Line::into_owned));
            assert!(decoder.buffered() <= limit + 4 * TAIL + HELD_BYTES);
        }
        decoder.finish(&mut all);
        assert_eq!(decoder.buffered(), 0);
        assert_eq!(decoder.position(), pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        all
    }

    fn texts(input: &str) -> Vec<String> {
        let whole = lines(DEFAULT_LIMIT, &[input.as_bytes()]);
        let bytes: Vec<_> = input.as_bytes().chunks(1).collect();
        assert_eq!(whole, lines(DEFAULT_LIMIT, &bytes), "byte by byte: {input:?}");
        whole.iter().map(|line| String::from_utf8_lossy(&line.head).into_owned()).collect()
    }

    #[test]
    fn lines_end_where_peers_end_them() {
        for (input, expected) in [
            ("", vec![]),
            ("\n\r\n \n\t\n", vec![]),
            ("a\nb\n", vec!["a", "b"]),
            ("a\r\nb\r\n", vec!["a", "b"]),
            ("a\rb\n", vec!["a\rb"]),
            ("a", vec!["a"]),
            ("a\r", vec!["a"]),
            ("\u{feff}{}\n\u{feff}{}\r\n", vec!["{}", "{}"]),
            ("\u{feff}\n", vec![]),
            (" {} \n", vec![" {} "]),
            ("h\u{e9}llo \u{1f600}\n", vec!["h\u{e9}llo \u{1f600}"]),
        ] {
            assert_eq!(texts(input), expected, "{input:?}");
        }
    }

    #[test]
    fn content_length_bodies_are_lines() {
        let message = "{\"jsonrpc\":\"2.0\",\n\"method\":\"\u{e9}\"}";
        let length = message.len();
        for header in [
            format!("Content-Length: {length}\r\n\r\n"),
            format!("content-length:{length}\n\n"),
            format!("Content-Type: application/vscode-jsonrpc\r\nCONTENT-LENGTH: {length}\r\n\r\n"),
            format!("Content-Length: {length}\r\nContent-Type: a; charset=utf-8\r\n\r\n"),
        ] {
            let input = format!("noise\n{header}{message}{header}{message}\n{{}}\n");
            assert_eq!(texts(&input), ["noise", message, message, "{}"], "{header:?}");
            let all = lines(DEFAULT_LIMIT, &[input.as_bytes()]);
            let framing: Vec<_> = all.iter().map(|line| line.framing).collect();
            let (newline, length) = (Framing::Newline, Framing::ContentLength);
            assert_eq!(framing, [newline, length, length, newline]);
        }
    }

    #[test]
    fn what_only_looks_like_headers_swallows_nothing() {
        for (input, expected) in [
            ("Content-Length: 5\n\nabc\n{}\n", vec!["abc", "{}"]),
            ("Content-Length: 5\n{}\n", vec!["{}"]),
            ("Content-Length: many\n{}\n", vec!["Content-Length: many", "{}"]),
            ("Content-Length: 99999999999\n\n{}\n", vec!["Content-Length: 99999999999", "{}"]),
            ("Content-Length: 0\n\n{}\n", vec!["{}"]),
            ("content is king\n{}\n", vec!["content is king", "{}"]),
            ("Content-Type: text\n\n{}\n", vec!["{}"]),
        ] {
            assert_eq!(texts(input), expected, "{input:?}");
        }
    }

    #[test]
    fn values_over_several_lines_are_one() {
        let pretty = "{\n  \"a\": [\n    1,\n\n    {}\n  ]\n}";
        let joined = "{\n  \"a\": [\n    1,\n    {}\n  ]\n}";
        assert_eq!(texts(&format!("x\n{pretty}\ny\n{pretty}")), ["x", joined, "y", joined]);
        assert_eq!(texts(&pretty.replace('\n', "\r\n")), [joined]);
        let all = lines(DEFAULT_LIMIT, &[pretty.as_bytes(), b"\n"]);
        assert_eq!(all[0].framing, Framing::Multiline);
        assert_eq!((all[0].start, all[0].end), (0, pretty.len() as u64 + 1));
    }

    #[test]
    fn what_only_begins_like_a_value_comes_line_by_line() {
        for input in [
            "[INFO] started\n{}",
            "{ name: 'x'\n{}",
            "{\n  name: 'x',\n}\n{}",
            "[\n{\"id\":1}\n{\"id\":2}\n[\n{}",
            "{\"open\n{}",
            "{\n\"a\":1,\n{\n\"b\":2\n]",
            "{\n}x\n{}",
            "{",
            "[\n[\n{\"a\":",
        ] {
            assert_eq!(texts(input), input.lines().collect::<Vec<_>>(), "{input:?}");
        }
        let long = vec!["["; HELD_LINES + 5].join("\n");
        assert_eq!(texts(&long).len(), HELD_LINES + 5);
    }

    #[test]
    fn too_large_lines_keep_head_tail_and_size() {
        for size in [10, 11, 12, 10 + TAIL, 11 + TAIL, 10 + 20 * TAIL] {
            let text: String = ('a'..='z').cycle().take(size).collect();
            for end in ["\n", "\r\n", ""] {
                let input = format!("{text}{end}next\n");
                let input = if end.is_empty() { text.clone() } else { input };
                for piece in [1, 7, 100_000] {
                    let pieces: Vec<_> = input.as_bytes().chunks(piece).collect();
                    let all = lines(10, &pieces);
                    let line = &all[0];
                    assert_eq!(*line.head, text.as_bytes()[..10]);
                    let tail = size.saturating_sub(TAIL).max(10);
                    assert_eq!(line.tail, text.as_bytes()[tail..], "{size} {end:?} {piece}");
                    assert_eq!((line.size, line.truncated), (size as u64, size > 10));
                    assert_eq!(all.len(), if end.is_empty() { 1 } else { 2 });
                }
            }
        }
    }

    #[test]
    fn a_large_line_in_small_pieces_takes_no_more_than_the_limit() {
        let mut decoder = Decoder::new(1 << 20);
        let mut out = Vec::new();
        for _ in 0..(1 << 20) {
            decoder.push(b"xx", &mut out);
        }
        assert!(decoder.head.capacity() <= 1 << 20);
        assert!(decoder.buffered() <= (1 << 20) + 5 * TAIL);
    }

    #[test]
    fn after_a_gap() {
        // Before the gap, missing bytes, after it; the lines and which of them is only assumed.
        type Case = (&'static str, Option<u64>, &'static str, Vec<(&'static str, bool)>);
        let cases: [Case; 9] = [
            ("a\nb", Some(3), "c\nd\n", vec![("a", false), ("c", true), ("d", false)]),
            ("a\nb", None, "rest\nd\n", vec![("a", false), ("d", false)]),
            ("{\"a\":", None, "{\"b\":1}\n", vec![("{\"b\":1}", true)]),
            ("{\n", Some(1), "}\n{}\n", vec![("{}", false)]),
            ("", None, "\n{}\n", vec![("{}", false)]),
            ("x", Some(0), "y\n", vec![("xy", false)]),
            ("Content-Length: 9\n\n{12", Some(4), "89{}\n", vec![("{}", false)]),
            ("Content-Length: 9\n\n{12", Some(6), "{}\n", vec![("{}", false)]),
            ("Content-Length: 9\n\n{12", Some(9), "x\n{}\n", vec![("{}", false)]),
        ];
        for (before, missing, after, expected) in cases {
            let mut decoder = Decoder::new(100);
            let mut out = Vec::new();
            decoder.push(before.as_bytes(), &mut out);
            decoder.gap(missing);
            decoder.push(after.as_bytes(), &mut out);
            decoder.finish(&mut out);
            let found: Vec<_> = out
                .iter()
                .map(|line| (std::str::from_utf8(&line.head).unwrap(), line.after_gap))
                .collect();
            assert_eq!(found, expected, "{before:?} {missing:?} {after:?}");
            let position = (before.len() + after.len()) as u64 + missing.unwrap_or(0);
            assert_eq!(decoder.position(), position);
        }
    }

    #[test]
    fn positions_are_those_of_the_stream() {
        let mut decoder = Decoder::new(100);
        let mut out = Vec::new();
        decoder.gap(Some(1000));
        decoder.push(b"{}\r\n{", &mut out);
        decoder.push(b"}\n", &mut out);
        decoder.gap(Some(50));
        decoder.push(b"tail\n[]", &mut out);
        decoder.finish(&mut out);
        let places: Vec<_> =
            out.iter().map(|line| (line.start, line.end, line.terminated)).collect();
        assert_eq!(places, [(1000, 1004, true), (1004, 1007, true), (1062, 1064, false)]);
        assert_eq!(decoder.discarded(), 5);
    }
}
