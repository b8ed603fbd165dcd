//! The connection between a client and a container engine's API, which becomes the standard input
//! and output of a container's process.
//!
//! A client asks to attach (`POST /v1.41/containers/ID/attach?stdin=1...`) or to start a command
//! (`POST /v1.41/exec/ID/start`). The engine agrees (`101 UPGRADED`), and from then on the client's
//! bytes are standard input as it is, while the engine's come in frames: eight bytes say which
//! output it is and how long the frame is. Frames do not follow lines, and a process with a
//! terminal has none.
//!
//! [`Unwrap`] stands in front of the line decoder on every Unix socket. It leaves what is not such
//! a connection as it is.

mod head;

use memchr::{memchr2, memmem};

use head::{Fields, Target, hijack};
pub use head::{Request, prepares, request};

/// Most bytes that are held: the head of a request or of an answer.
pub const HEAD: usize = 16 * 1024;

/// Frames are below this size: engines copy 32 KiB at a time.
const FRAME: u32 = 1024 * 1024;

/// Who speaks in this direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Engine,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first of whatever comes; the ones held could still be more than one thing.
    Look,
    /// In a head.
    Head,
    /// In a body, so many before its end. So many at its beginning were also those of an answer's
    /// head; `None` since one was not. (The answer to `HEAD` tells a length and has no body.)
    Body(u64, Option<usize>),
    /// In the line before a chunk, with its length so far; `true` behind the number.
    ChunkLine(u64, bool),
    Chunk(u64),
    /// In the line end behind a chunk.
    ChunkEnd,
    /// In the lines behind the last chunk; whether this one is empty so far.
    Trailer(bool),
    /// In a frame's header.
    Frame,
    /// In a frame, so many before its end; whether it is standard output.
    Payload(u32, bool),
    /// In frames, after a hole. So many more are given up in the search for a header.
    Search(u32),
    /// Payload, to the end.
    Plain,
}

/// Takes the HTTP and the frames off one direction of a connection with a container engine.
///
/// Bytes of a connection of any other kind pass as they are, as do those that make no sense.
#[derive(Clone, Debug)]
pub struct Unwrap {
    state: State,
    side: Option<Side>,
    /// The last head asked for the connection or gave it away.
    hijacked: bool,
    /// A head was one of an engine's API: so are those after it.
    engine: bool,
    request: Option<Request>,
    /// The head, frame header or first bytes seen so far.
    held: Vec<u8>,
}

impl Default for Unwrap {
    fn default() -> Self {
        Self::new()
    }
}

impl Unwrap {
    /// For a direction of which nothing was seen so far. It need not be at its beginning.
    pub const fn new() -> Self {
        Self {
            state: State::Look,
            side: None,
            hijacked: false,
            engine: false,
            request: None,
            held: Vec::new(),
        }
    }

    /// Takes the next bytes; adds those to `out` that a process reads from its standard input or
    /// wrote to its standard output. Those of its standard error are dropped.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.state {
                State::Plain => {
                    out.extend_from_slice(rest);
                    rest.len()
                }
                State::Look => self.look(rest, out),
                State::Head => self.head(rest, out),
                State::Body(left, shared) => self.body(rest, left, shared),
                State::ChunkLine(size, behind) => self.chunk_line(rest, size, behind),
                State::Chunk(left) => {
                    let taken = up_to(rest, left);
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    taken
                }
                State::ChunkEnd => {
                    if rest.first() == Some(&b'\n') {
                        self.state = State::ChunkLine(0, false);
                    }
                    1
                }
                State::Trailer(empty) => {
                    self.state = match rest.first() {
                        Some(b'\n') if empty => State::Look,
                        Some(b'\n') => State::Trailer(true),
                        Some(b'\r') => State::Trailer(empty),
                        _ => State::Trailer(false),
                    };
                    1
                }
                State::Frame => self.frame(rest, out),
                State::Payload(left, passes) => {
                    let taken = up_to(rest, left.into());
                    if passes {
                        out.extend_from_slice(rest.get(..taken).unwrap_or_default());
                    }
                    let left = left.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                    self.state =
                        if left == 0 { State::Frame } else { State::Payload(left, passes) };
                    taken
                }
                State::Search(left) => self.search(rest, left),
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    /// What the client asked for last, in the client's direction.
    pub const fn request(&self) -> Option<&Request> {
        self.request.as_ref()
    }

    /// Whether the connection is a process's input and output: in the client's direction as soon
    /// as that was asked for, in the engine's as soon as it was granted, or frames were met.
    pub const fn upgraded(&self) -> bool {
        self.hijacked
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.capacity()
    }

    /// Whether all bytes from here on pass as they are, so that they need not be pushed. After a
    /// hole this stays so.
    pub const fn is_plain(&self) -> bool {
        matches!(self.state, State::Plain)
    }

    /// Bytes are missing before the next push. What was held is given up; where there were frames,
    /// so is everything up to the next header of one.
    pub fn gap(&mut self) {
        self.held = Vec::new();
        self.state = match self.state {
            State::Plain => State::Plain,
            State::Frame | State::Payload(..) => State::Search(FRAME),
            State::Search(left) => State::Search(left),
            // As if met in the middle.
            _ => {
                self.side = None;
                State::Look
            }
        };
    }

    /// Gives back what is held: from here on, everything passes.
    fn pass(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.held = Vec::new();
        self.state = State::Plain;
    }

    fn look(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        self.held.extend(rest.first());
        let held = self.held.as_slice();
        let begins = |with: &[u8]| held.starts_with(with) || with.starts_with(held);
        let asks = self.side != Some(Side::Engine);
        let answers = self.side != Some(Side::Client) && !self.hijacked;
        let http =
            asks && REQUESTS.iter().any(|method| begins(method)) || answers && begins(ANSWER);
        // A client sends no frames.
        let framed = self.side != Some(Side::Client) && is_frame(held, 1);
        if http {
            if REQUESTS.contains(&held) {
                (self.state, self.side, self.hijacked) = (State::Head, Some(Side::Client), false);
            } else if held == ANSWER {
                (self.state, self.side) = (State::Head, Some(Side::Engine));
            }
        } else if framed {
            if held.len() == 8 {
                self.hijacked = true;
                self.side = Some(Side::Engine);
                self.begin_frame(out);
            }
        } else {
            self.pass(out);
        }
        1
    }

    fn head(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        let before = self.held.len();
        let taken = rest.len().min(HEAD.saturating_sub(before));
        self.held.extend_from_slice(rest.get(..taken).unwrap_or_default());
        // The end may lie across two pushes.
        let from = before.saturating_sub(3);
        let end = memmem::find(self.held.get(from..).unwrap_or_default(), b"\r\n\r\n");
        if let Some(end) = end.map(|end| from + end + 4) {
            self.held.truncate(end);
            match self.side {
                Some(Side::Client) => self.asked(out),
                _ => self.answered(out),
            }
            return end - before;
        }
        if self.held.len() >= HEAD {
            self.pass(out);
        }
        taken
    }

    fn asked(&mut self, out: &mut Vec<u8>) {
        let target = Target::of(&self.held);
        let Some(target) = target.filter(|target| self.engine || target.is_engines()) else {
            self.pass(out);
            return;
        };
        let request = hijack(&target);
        let fields = Fields::of(&self.held);
        self.hijacked = request.is_some();
        self.engine = true;
        self.request = request.or(self.request.take());
        self.state = match fields.length {
            _ if fields.chunked => State::ChunkLine(0, false),
            None | Some(0) => State::Look,
            Some(length) => State::Body(length, None),
        };
        self.held.clear();
        self.held.shrink_to(64);
    }

    fn answered(&mut self, out: &mut Vec<u8>) {
        let fields = Fields::of(&self.held);
        let status = self.held.get(9..12).unwrap_or_default();
        let unbounded = fields.length.is_none() && !fields.chunked;
        let upgraded = match status {
            b"101" => fields.upgrade_tcp || fields.raw_stream,
            // To a client that did not ask for an upgrade by name.
            b"200" => fields.raw_stream && unbounded,
            _ => false,
        };
        if !upgraded && (!(self.engine || fields.engine) || status == b"101") {
            self.pass(out);
            return;
        }
        (self.engine, self.hijacked) = (true, upgraded);
        self.state = match (status, fields.length) {
            _ if upgraded => State::Look,
            ([b'1', ..] | b"204" | b"304", _) | (_, Some(0)) => State::Look,
            _ if fields.chunked => State::ChunkLine(0, false),
            (_, Some(length)) => State::Body(length, Some(0)),
            (_, None) => State::Body(u64::MAX, Some(0)),
        };
        self.held.clear();
        self.held.shrink_to(64);
    }

    fn body(&mut self, rest: &[u8], left: u64, shared: Option<usize>) -> usize {
        let Some(shared) = shared else {
            let taken = up_to(rest, left);
            let left = left - taken as u64;
            self.state = if left == 0 { State::Look } else { State::Body(left, None) };
            return taken;
        };
        if rest.first() != ANSWER.get(shared) {
            self.state = State::Body(left, None);
            return 0;
        }
        let seen = ANSWER.get(..=shared).unwrap_or_default();
        if seen == ANSWER || left == 1 {
            self.held.extend_from_slice(seen);
            self.state = if seen == ANSWER { State::Head } else { State::Look };
        } else {
            self.state = State::Body(left - 1, Some(shared + 1));
        }
        1
    }

    fn chunk_line(&mut self, rest: &[u8], size: u64, behind: bool) -> usize {
        let byte = rest.first().copied().unwrap_or_default();
        let digit = char::from(byte).to_digit(16).filter(|_| !behind);
        self.state = match (byte, digit) {
            (b'\n', _) if size == 0 => State::Trailer(true),
            (b'\n', _) => State::Chunk(size),
            (_, Some(digit)) => {
                State::ChunkLine(size.saturating_mul(16).saturating_add(digit.into()), false)
            }
            (_, None) => State::ChunkLine(size, true),
        };
        1
    }

    fn frame(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        self.held.extend(rest.first());
        if !is_frame(&self.held, 0) {
            self.pass(out);
        } else if self.held.len() == 8 {
            self.begin_frame(out);
        }
        1
    }

    fn search(&mut self, rest: &[u8], left: u32) -> usize {
        let rest = rest.get(..up_to(rest, left.into())).unwrap_or_default();
        let skip = if self.held.is_empty() { memchr2(1, 2, rest).unwrap_or(rest.len()) } else { 0 };
        let taken = skip.max(1);
        let left = left.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        self.state = State::Search(left);
        if skip == 0 {
            self.held.extend(rest.first());
            while !self.held.is_empty() && !is_frame(&self.held, 1) {
                self.held.remove(0);
            }
            if self.held.len() == 8 {
                self.begin_frame(&mut Vec::new());
                return taken;
            }
        }
        if left == 0 {
            // No frame is that long, so there are none.
            self.held.clear();
            self.held.shrink_to(64);
            self.state = State::Plain;
        }
        taken
    }

    /// A whole header is held.
    fn begin_frame(&mut self, out: &mut Vec<u8>) {
        if let [kind, _, _, _, length @ ..] = self.held.as_slice()
            && let Ok(length) = <[u8; 4]>::try_from(length)
        {
            let length = u32::from_be_bytes(length);
            // 0 is standard input, which an engine may repeat; beyond 1 is standard error and its own.
            self.state =
                if length == 0 { State::Frame } else { State::Payload(length, *kind <= 1) };
            self.held.clear();
            self.held.shrink_to(64);
        } else {
            self.pass(out);
        }
    }
}

const REQUESTS: [&[u8]; 5] = [b"GET /", b"POST /", b"HEAD /", b"PUT /", b"DELETE /"];
const ANSWER: &[u8] = b"HTTP/1.";

/// Whether these up to 8 bytes can begin a frame of at least `least` bytes.
fn is_frame(bytes: &[u8], least: u32) -> bool {
    let kinds = if least == 0 { 0..=3 } else { 0..=2 };
    let begins = |index: usize, byte: u8| match index {
        0 => kinds.contains(&byte),
        1..=4 => byte == 0,
        5 => u32::from(byte) << 16 < FRAME,
        _ => true,
    };
    let length = bytes.get(4..8).and_then(|length| <[u8; 4]>::try_from(length).ok());
    bytes.iter().enumerate().all(|(index, byte)| begins(index, *byte))
        && length.is_none_or(|length| u32::from_be_bytes(length) >= least)
}

fn up_to(bytes: &[u8], limit: u64) -> usize {
    usize::try_from(limit).map_or(bytes.len(), |limit| limit.min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const LINE: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n";
    const UPGRADED: &str = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\
        Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

    fn frame(kind: u8, payload: &str) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 0, 0], length.as_slice(), payload.as_bytes()].concat()
    }

    fn start(id: &str) -> String {
        let body = "{\"Detach\":false,\"Tty\":false}\n";
        format!(
            "POST /v1.41/exec/{id}/start HTTP/1.1\r\nHost: api.moby.localhost\r\n\
             User-Agent: Docker-Client/28.2.2 (linux)\r\nContent-Length: {}\r\n\
             Connection: Upgrade\r\nContent-Type: application/json\r\nUpgrade: tcp\r\n\r\n{body}",
            body.len()
        )
    }

    /// Whole and byte by byte.
    fn unwrap(bytes: &[u8]) -> (String, Unwrap) {
        let (mut whole, mut out) = (Unwrap::new(), Vec::new());
        whole.push(bytes, &mut out);
        let (mut each, mut again) = (Unwrap::new(), Vec::new());
        for byte in bytes.chunks(1) {
            each.push(byte, &mut again);
            assert!(each.held.len() <= HEAD);
        }
        assert_eq!((&out, whole.state, &whole.held), (&again, each.state, &each.held));
        (String::from_utf8_lossy(&out).into_owned(), whole)
    }

    #[test]
    fn what_a_client_sends_after_its_request_is_standard_input() {
        let text = format!("{}{LINE}{LINE}", start(ID));
        let (out, unwrap) = unwrap(text.as_bytes());
        assert_eq!(out, format!("{LINE}{LINE}"));
        assert_eq!(unwrap.request(), Some(&Request::Exec(ID.into())));
        assert!(unwrap.upgraded() && unwrap.is_plain());
    }

    #[test]
    fn a_connection_can_be_used_before_it_is_handed_over() {
        let client = format!(
            "HEAD /_ping HTTP/1.1\r\nHost: x\r\n\r\n\
             POST /v1.41/containers/create HTTP/1.1\r\nContent-Length: 14\r\n\r\n{{\"Image\":\"x\"}} \
             POST /v1.41/build HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             6;x=1\r\n{{\"a\":\n\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nT: x\r\n\r\n{}{LINE}",
            start(ID)
        );
        let (out, client) = unwrap(client.as_bytes());
        assert_eq!((out.as_str(), client.request().is_some()), (LINE, true));

        let mut engine =
            b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\n".to_vec();
        // The answer to `HEAD` has no body, that to `GET` has.
        engine.extend(engine.clone());
        engine.extend(b"OKHTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n");
        engine.extend(b"9\r\n{\"Id\":1}\n\r\n0\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n");
        engine.extend(UPGRADED.as_bytes());
        engine.extend([frame(1, LINE), frame(2, "warning\n"), frame(1, &LINE[..7])].concat());
        engine.extend([frame(2, LINE), frame(1, ""), frame(1, &LINE[7..])].concat());
        let (out, engine) = unwrap(&engine);
        assert_eq!(out, format!("{LINE}{LINE}"));
        assert!(engine.upgraded() && engine.request().is_none());
    }

    #[test]
    fn an_engine_can_grant_it_without_an_upgrade() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n";
        let all = [format!("{head}\r\n").into_bytes(), frame(1, LINE)].concat();
        assert_eq!(unwrap(&all).0, LINE);
        // Logs come in chunks.
        let text =
            format!("{head}Api-Version: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n");
        let (out, logs) = unwrap(text.as_bytes());
        assert!(out.is_empty() && !logs.upgraded());
    }

    #[test]
    fn a_refused_request_leaves_http() {
        let client = format!("{}GET /v1.41/info HTTP/1.1\r\n\r\n{}{LINE}", start(ID), start(ID));
        assert_eq!(unwrap(client.as_bytes()).0, LINE);
        let refused =
            "HTTP/1.1 409 Conflict\r\nServer: Docker/20.10\r\nContent-Length: 3\r\n\r\n{}\n";
        let all = [refused.as_bytes(), UPGRADED.as_bytes(), &frame(1, LINE)].concat();
        assert_eq!(unwrap(&all).0, LINE);
    }

    #[test]
    fn a_terminal_has_no_frames() {
        let text = format!("{UPGRADED}HTTP/1.1 is text\r\n{LINE}");
        let (out, unwrap) = unwrap(text.as_bytes());
        assert_eq!(out, format!("HTTP/1.1 is text\r\n{LINE}"));
        assert!(unwrap.upgraded());
    }

    #[test]
    fn frames_are_known_when_met_in_the_middle() {
        let (out, unwrap) = unwrap(&[frame(2, "x"), frame(1, LINE)].concat());
        assert_eq!(out, LINE);
        assert!(unwrap.upgraded());
    }

    #[test]
    fn other_connections_pass_as_they_are() {
        for text in [
            LINE,
            "Content-Length: 2\r\n\r\n{}",
            "POST /mcp HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nx",
            "GET me",
            "l\u{1}",
            "\0\0\0\u{b}x",
            "\u{1}\0\0\0\0\u{10}\0\0x",
            "\u{1}\0\0\0\0\0\0\0x",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let (out, unwrap) = unwrap(text.as_bytes());
            assert_eq!((out.as_str(), unwrap.upgraded(), unwrap.is_plain()), (text, false, true));
        }
        let long = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(HEAD));
        assert_eq!(unwrap(long.as_bytes()).0, long);
    }

    #[test]
    fn a_hole_costs_the_frame_that_it_is_in() {
        let (mut unwrap, mut out) = (Unwrap::new(), Vec::new());
        unwrap.push(&frame(1, LINE)[..20], &mut out);
        unwrap.gap();
        out.clear();
        unwrap.push(&[&b"rest\n\x01\x02"[..], &frame(2, LINE), &frame(1, LINE)].concat(), &mut out);
        assert_eq!(out, LINE.as_bytes());
        // Where there are none, not more is given up than a frame can hold.
        unwrap.gap();
        unwrap.push(&vec![1; FRAME as usize], &mut Vec::new());
        out.clear();
        unwrap.push(LINE.as_bytes(), &mut out);
        assert_eq!(out, LINE.as_bytes());
        // Standard input has no frames.
        let (mut unwrap, mut out) = (Unwrap::new(), Vec::new());
        unwrap.push(start(ID).as_bytes(), &mut out);
        unwrap.gap();
        unwrap.push(LINE.as_bytes(), &mut out);
        unwrap.gap();
        unwrap.push(LINE.as_bytes(), &mut out);
        assert_eq!(out, [LINE, LINE].concat().as_bytes());
        assert!(unwrap.upgraded());
    }
}
