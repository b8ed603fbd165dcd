//! Laws that hold for every stream of bytes, tried on made-up traffic: how it is cut does not
//! matter, a hole invents nothing, and nothing panics.

use mcpspy::model::Message;
use mcpspy::protocol::{
    docker_stream::{self, Unwrap},
    jsonrpc::{self, Parsed},
    mcp::Facts,
    ndjson::{Decoder, HELD_BYTES, Line, TAIL},
};

/// xorshift64*: the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 11) % limit as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What peers of all kinds write; `#` becomes a number, so that no two messages are equal.
const PIECES: [&str; 24] = [
    r#"{"jsonrpc":"2.0","id":#,"method":"tools/call","params":{"name":"add","arguments":{"a":1}}}"#,
    r#"{"result":{"content":[{"type":"text","text":"é😀\n{\"jsonrpc\":\"2.0\"}"}]},"jsonrpc":"2.0","id":#}"#,
    r#"{"jsonrpc":"2.0","id":"N#","error":{"code":-32601,"message":"[]{}"}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":[[],[{}],{"a":"N#"}]}}"#,
    r#"[{"jsonrpc":"2.0","id":#,"result":{}},{"jsonrpc":"2.0","method":"n#"}]"#,
    r#"{"jsonrpc":"2.0","method":"m#"}{"jsonrpc":"2.0","method":"n#"}"#,
    r#"{"params":{"nested":{"jsonrpc":"2.0","id":#,"method":"inner"}},"method":"outer","jsonrpc":"2.0"}"#,
    r#"{"params":[{"jsonrpc":"2.0","id":#,"method":"inner"}],"method":"outer","jsonrpc":"2.0"}"#,
    "{\n  \"jsonrpc\": \"2.0\",\n  \"id\": #,\n  \"result\": {\n    \"a\": []\n  }\n}",
    "Content-Length: 36\r\n\r\n{\"jsonrpc\":\"2.0\",\"method\":\"content\"}",
    "",
    "\r",
    "\u{feff}{\"jsonrpc\":\"2.0\",\"method\":\"bom#\"}\r",
    "Server # listening \u{1f680}",
    "[INFO] started #",
    "{ level: 'info', n: # }",
    "{",
    "[",
    "}",
    "{\"level\":\"info\",\"n\":#}",
    "content # is not a header",
    "Content-Length: 12",
    "{\"jsonrpc\":\"2.0\",\"id\":#,\"result\":{\"lone\":\"\\ud800\"}}",
    "{\"jsonrpc\":\"2.0\",\"id\":#,\"result\":{\"broken\":\"",
];

/// Places of those that keep to the framing: one message or one line of text each.
const PLAIN: [usize; 14] = [0, 1, 2, 3, 4, 6, 7, 10, 11, 12, 13, 15, 19, 22];

fn traffic(random: &mut Random, pieces: &[&str]) -> Vec<u8> {
    let mut text = String::new();
    for _ in 0..random.below(30) {
        let number = random.below(1_000_000).to_string();
        text.push_str(&random.pick(pieces).replace('#', &number));
        text.push('\n');
    }
    if random.below(4) == 0 {
        text.pop();
    }
    let mut bytes = text.into_bytes();
    if random.below(4) == 0 && !bytes.is_empty() {
        let place = random.below(bytes.len());
        bytes[place] = 0xff;
    }
    bytes
}

fn splits<'a>(random: &mut Random, mut bytes: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (one, rest) = bytes.split_at((1 + random.below(longest)).min(bytes.len()));
        all.push(one);
        bytes = rest;
    }
    all
}

fn decode(limit: usize, pieces: &[&[u8]]) -> Vec<Line<'static>> {
    let mut decoder = Decoder::new(limit);
    let mut lines = Vec::new();
    for piece in pieces {
        let mut out = Vec::new();
        decoder.push(piece, &mut out);
        lines.extend(out.into_iter().map(Line::into_owned));
        assert!(decoder.buffered() <= limit + 4 * TAIL + HELD_BYTES);
    }
    decoder.finish(&mut lines);
    lines
}

fn messages(lines: &[Line<'_>]) -> Vec<Message> {
    let mut messages = Vec::new();
    for line in lines {
        let before = messages.len();
        let parsed = jsonrpc::parse(line, &mut messages);
        assert!(parsed != Parsed::Messages || messages.len() > before);
    }
    for message in &messages {
        let _facts = Facts::of(message);
        for part in [&message.params, &message.result, &message.error].into_iter().flatten() {
            assert!(message.raw.get(part.clone()).is_some_and(|text| !text.is_empty()));
        }
    }
    messages
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn how_a_stream_is_cut_does_not_matter() {
    let mut random = Random(1);
    for _ in 0..300 {
        let bytes = traffic(&mut random, &PIECES);
        for limit in [1 << 20, 64, 7] {
            let whole = decode(limit, &[&bytes]);
            let each: Vec<_> = bytes.chunks(1).collect();
            assert_eq!(whole, decode(limit, &each), "{}", shown(&bytes));
            for longest in [3, 20, 200] {
                let pieces = splits(&mut random, &bytes, longest);
                assert_eq!(whole, decode(limit, &pieces), "{}", shown(&bytes));
            }
            messages(&whole);
        }
    }
}

#[test]
fn lines_lie_where_they_say_and_do_not_overlap() {
    let mut random = Random(2);
    for _ in 0..300 {
        let bytes = traffic(&mut random, &PIECES);
        let mut end = 0;
        for line in decode(1 << 20, &[&bytes]) {
            assert!(end <= line.start && line.start < line.end && line.end <= bytes.len() as u64);
            end = line.end;
            let place = line.start as usize..line.end as usize;
            let first = line.head.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let found = bytes[place].windows(first.len()).any(|window| window == first);
            assert!(found, "{}", shown(&line.head));
        }
    }
}

#[test]
fn what_follows_a_whole_line_does_not_change_it() {
    let mut random = Random(3);
    for piece in PLAIN.map(|place| PIECES[place]) {
        let line = format!("{piece}\n");
        let alone = decode(1 << 20, &[line.as_bytes()]);
        for _ in 0..20 {
            let mut bytes = line.clone().into_bytes();
            bytes.extend(traffic(&mut random, &PIECES));
            let all = decode(1 << 20, &[&bytes]);
            assert_eq!(all.get(..alone.len()), Some(alone.as_slice()), "{piece}");
        }
    }
}

/// Whichever pieces get lost, each message was in the input, in this order.
#[test]
fn a_hole_invents_nothing() {
    let mut random = Random(4);
    let plain = PLAIN.map(|place| PIECES[place]);
    let mut all = 0;
    for round in 0..3000 {
        let bytes = traffic(&mut random, &plain);
        let expected = messages(&decode(1 << 20, &[&bytes]));
        let mut decoder = Decoder::new(1 << 20);
        let mut found = Vec::new();
        for piece in splits(&mut random, &bytes, 150) {
            if random.below(4) == 0 {
                let known = random.below(2) == 0;
                decoder.gap(known.then_some(piece.len() as u64));
            } else {
                decoder.push(piece, &mut found);
            }
        }
        decoder.finish(&mut found);
        let mut rest = expected.iter();
        for message in messages(&found) {
            all += 1;
            assert!(
                rest.any(|real| real.raw == message.raw && real.kind == message.kind),
                "round {round}: {message:?} in {}",
                shown(&bytes)
            );
        }
    }
    assert!(all > 5000, "{all}");
}

/// A hole costs only the messages that it touches.
#[test]
fn a_hole_between_messages_costs_only_what_was_in_it() {
    let mut random = Random(5);
    for _ in 0..200 {
        let mut decoder = Decoder::new(1 << 20);
        let (mut sent, mut found) = (0, Vec::new());
        let line = b"{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n";
        for _ in 0..50 {
            if random.below(3) == 0 {
                decoder.gap(Some(1 + random.next() % 100));
            } else {
                decoder.push(line, &mut found);
                sent += 1;
            }
        }
        assert_eq!(messages(&found).len(), sent);
    }
}

#[test]
fn broken_messages_never_panic() {
    let mut random = Random(6);
    for _ in 0..20_000 {
        let number = random.below(1000).to_string();
        let mut bytes = random.pick(&PIECES).replace('#', &number).into_bytes();
        for _ in 0..=random.below(3) {
            if bytes.is_empty() {
                break;
            }
            let place = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[place] = *random.pick(b"{}[]\",:\\0u-.eE\n\r \x00\xff\xc3"),
                1 => drop(bytes.remove(place)),
                _ => bytes.truncate(place),
            }
        }
        for limit in [1 << 20, 40, 5] {
            messages(&decode(limit, &[&bytes]));
        }
    }
}

/// The scanner agrees with `serde_json` on what is JSON, where that has no limits of its own.
#[test]
fn what_is_json_is_what_serde_says() {
    let valid = r#"{"jsonrpc":"2.0","id":-1.5e3,"method":"a\n\u00e9","params":[true,{"b":null}]}"#;
    let mut random = Random(7);
    let mut agreed = 0;
    for _ in 0..50_000 {
        let mut text = valid.to_owned().into_bytes();
        for _ in 0..=random.below(2) {
            let place = random.below(text.len());
            match random.below(2) {
                0 => text[place] = *random.pick(b"{}[]\",:\\0u-.eE 1at"),
                _ => drop(text.remove(place)),
            }
        }
        // The scanner takes lone surrogates, which one changed digit can make.
        let shape = shown(&text).replace("\\ud", "\\u0").replace("\\uD", "\\u0");
        let json = serde_json::from_str::<serde_json::Value>(&shape).is_ok();
        let mut out = Vec::new();
        for line in decode(1 << 20, &[&text]) {
            let refused = match jsonrpc::parse(&line, &mut out) {
                Parsed::NotJson => true,
                Parsed::Malformed { reason } => !json && !reason.starts_with('`'),
                _ => false,
            };
            assert_ne!(json, refused, "{}", shown(&text));
        }
        agreed += usize::from(json);
    }
    assert!(agreed > 1000, "{agreed}");
}

/// What goes through the socket of a container engine, and through others.
const ENGINE_PIECES: [&str; 17] = [
    "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /v1.41/containers/create HTTP/1.1\r\nContent-Length: 9\r\n\r\n{\"a\":1.2}",
    "POST /containers/srv/attach?stdin=1&stream=1 HTTP/1.1\r\nUpgrade: tcp\r\n\r\n",
    "POST /build HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "POST /mcp HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK",
    "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\n",
    "HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
    "\u{1}\0\0\0\0\0\0\u{5}{\"a\":",
    "\u{1}\0\0\0\0\0\0\u{3}1}\n",
    "\u{2}\0\0\0\0\0\0\u{5}oops\n",
    "\u{2}\0\0\0\0\u{10}\0\0",
    "\u{1}\0\0",
    "{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n",
    "HTTP/1.",
    "POST /",
];

#[test]
fn how_an_engines_connection_is_cut_does_not_matter() {
    let mut random = Random(8);
    for _ in 0..5000 {
        let mut bytes = Vec::new();
        for _ in 0..random.below(8) {
            bytes.extend(random.pick(&ENGINE_PIECES).bytes());
        }
        for _ in 0..random.below(3) {
            if !bytes.is_empty() {
                let place = random.below(bytes.len());
                bytes[place] = *random.pick(b"\0\x01\x02\x03\r\n0f/: {H\xff");
            }
        }
        let _request = docker_stream::request(&bytes);
        let hole = (random.below(3) == 0).then(|| random.below(bytes.len() + 1));
        let unwrap = |pieces: &mut dyn FnMut(&[u8]) -> Vec<usize>| {
            let (mut unwrap, mut out) = (Unwrap::new(), Vec::new());
            let (before, behind) = bytes.split_at(hole.unwrap_or(bytes.len()));
            for part in [before, behind] {
                let mut rest = part;
                for length in pieces(part) {
                    let (one, others) = rest.split_at(length);
                    unwrap.push(one, &mut out);
                    rest = others;
                }
                if hole.is_some() {
                    unwrap.gap();
                }
            }
            assert!(out.len() <= bytes.len());
            (out, unwrap.request().cloned(), unwrap.upgraded(), unwrap.is_plain())
        };
        let whole = unwrap(&mut |part| vec![part.len()]);
        assert_eq!(whole, unwrap(&mut |part| vec![1; part.len()]), "{}", shown(&bytes));
        for longest in [3, 20] {
            let cut = unwrap(&mut |part| {
                splits(&mut random, part, longest).into_iter().map(<[u8]>::len).collect()
            });
            assert_eq!(whole, cut, "{}", shown(&bytes));
        }
    }
}

/// Whatever an engine puts around it, the line decoder behind it reads what the process wrote.
#[test]
fn frames_hide_no_message() {
    let mut random = Random(9);
    for _ in 0..500 {
        let bytes = traffic(&mut random, &PIECES);
        let mut framed = b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n".to_vec();
        for piece in splits(&mut random, &bytes, 40) {
            for (kind, payload) in [(2, &b"noise {\n"[..]), (1, piece)] {
                if kind == 1 || random.below(3) == 0 {
                    framed.extend([kind, 0, 0, 0, 0, 0, 0, payload.len() as u8]);
                    framed.extend(payload);
                }
            }
        }
        let (mut unwrap, mut out) = (Unwrap::new(), Vec::new());
        for piece in splits(&mut random, &framed, 30) {
            unwrap.push(piece, &mut out);
        }
        assert_eq!(out, bytes, "{}", shown(&framed));
    }
}
