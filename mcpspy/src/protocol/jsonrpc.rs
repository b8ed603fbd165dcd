//! A line of text, read as JSON-RPC 2.0.
//!
//! [`parse`] takes a line and says what it is. A message is what the specification calls one
//! (`"jsonrpc": "2.0"` at top level, and a method, or a result or an error), in any order of keys,
//! in batches, and with the faults of hand-written peers noted as [`Anomaly`] where a reader could
//! still understand it. A peer must not be able to hide a message by a fault that the other peer
//! forgives: where in doubt, it is a message.
//!
//! Of a message larger than the limit only head and tail are there; `fields.rs` says what can be
//! known of it.

use std::borrow::Cow;
use std::sync::Arc;

use memchr::memmem;

use super::fields::{Field, Fields, closing_members};
use super::json::{self, Stop};
use super::ndjson::Line;
use crate::model::{Anomaly, Message, MessageKind, RequestId};

/// Most messages taken from one line. MCP's batches hold a few; without a limit, 16 MiB of tiny
/// ones would need ten times their size.
pub const MAX_BATCH: u32 = 65_536;

/// What a line is. Unless it is [`Parsed::Messages`] it can still have held usable messages, which
/// [`parse`] gave (a batch with a bad element).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// One message or more.
    Messages,
    /// No JSON: text, most often a program's log.
    NotJson,
    /// JSON, but not JSON-RPC 2.0.
    NotRpc,
    /// Looks like JSON-RPC 2.0, but no peer could use it.
    Malformed {
        /// What is wrong, for a person.
        reason: &'static str,
    },
}

const fn malformed(reason: &'static str) -> Parsed {
    Parsed::Malformed { reason }
}

/// Reads a line and adds its messages to `out`.
pub fn parse(line: &Line<'_>, out: &mut Vec<Message>) -> Parsed {
    let (text, lossy) = match std::str::from_utf8(&line.head) {
        Ok(text) => (Cow::Borrowed(text), false),
        // The limit cut a character.
        Err(error) if line.truncated && error.error_len().is_none() => {
            let valid = line.head.get(..error.valid_up_to()).unwrap_or_default();
            (String::from_utf8_lossy(valid), false)
        }
        Err(_) => (String::from_utf8_lossy(&line.head), true),
    };
    let context = Context { text: &text, line, lossy };
    let start = json::skip_space(text.as_bytes(), 0);
    match text.as_bytes().get(start) {
        Some(b'{' | b'[') if line.truncated => context.truncated(start, out),
        Some(b'{' | b'[') => context.values(start, out),
        // A scalar can be a line of its own, and a line of text can look like its beginning.
        Some(b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') if !line.truncated => {
            match json::skip_value(text.as_bytes(), start) {
                Ok(end) if json::skip_space(text.as_bytes(), end) == text.len() => Parsed::NotRpc,
                _ => Parsed::NotJson,
            }
        }
        _ => Parsed::NotJson,
    }
}

/// An id from its JSON text; `None` for `null` and everything that cannot be an id.
pub fn request_id(text: &str) -> Option<RequestId> {
    match text.as_bytes().first()? {
        b'"' => Some(RequestId::String(json::string(text, usize::MAX)?.into())),
        b'-' | b'0'..=b'9' => Some(match text.parse() {
            Ok(integer) => RequestId::Integer(integer),
            Err(_) => RequestId::Number(text.into()),
        }),
        _ => None,
    }
}

struct Context<'a> {
    text: &'a str,
    line: &'a Line<'a>,
    /// The line was not valid UTF-8.
    lossy: bool,
}

impl Context<'_> {
    /// One value, or several on one line; each an object or an array.
    fn values(&self, start: usize, out: &mut Vec<Message>) -> Parsed {
        let bytes = self.text.as_bytes();
        let first = out.len();
        let (mut at, mut count, mut verdict) = (start, 0_u32, None);
        loop {
            let value = match bytes.get(at) {
                Some(b'{') => self.object(at, None, out),
                Some(b'[') => self.batch(at, out),
                _ => Err(Stop::Invalid),
            };
            let Ok((end, parsed)) = value else {
                // Not JSON as a whole: then it is no list of values either.
                out.truncate(first);
                return self.not_json();
            };
            count += 1;
            verdict = Some(worse(verdict, parsed));
            at = json::skip_space(bytes, end);
            if at == bytes.len() {
                return verdict.unwrap_or(Parsed::NotRpc);
            }
            if count >= MAX_BATCH {
                return malformed("too many messages on one line");
            }
            if self.line.after_gap {
                // The line may have begun earlier: then this is the inside of something.
                out.truncate(first);
                return self.not_json();
            }
        }
    }

    /// Why a text that began like a message is none.
    fn not_json(&self) -> Parsed {
        if memmem::find(self.text.as_bytes(), b"\"jsonrpc\"").is_none() || self.line.after_gap {
            Parsed::NotJson
        } else if self.line.terminated {
            malformed("not valid JSON")
        } else {
            malformed("the stream ended in the middle of it")
        }
    }

    /// The elements of the array at `start`. Checks all of it before the first is given.
    fn batch(&self, start: usize, out: &mut Vec<Message>) -> Result<(usize, Parsed), Stop> {
        let bytes = self.text.as_bytes();
        let mut size = 0_u32;
        let end = json::elements(bytes, start, |_, _| size = size.saturating_add(1))?;
        let (mut index, mut verdict) = (0, None);
        json::elements(bytes, start, |at, _| {
            let parsed = if index >= MAX_BATCH {
                malformed("too many messages in one batch")
            } else if bytes.get(at) == Some(&b'{') {
                self.object(at, Some((index, size)), out).map_or(Parsed::NotJson, |(_, it)| it)
            } else {
                Parsed::NotRpc
            };
            index += 1;
            verdict = Some(worse(verdict, parsed));
        })?;
        Ok((end, verdict.unwrap_or(Parsed::NotRpc)))
    }

    /// The object at `start`, as a message if it is one.
    fn object(
        &self,
        start: usize,
        batch: Option<(u32, u32)>,
        out: &mut Vec<Message>,
    ) -> Result<(usize, Parsed), Stop> {
        let mut fields = Fields::default();
        let end = json::members(self.text, start + 1, |key, value, place| {
            fields.set(key, value, Some(place.start - start..place.end - start));
        })?;
        let raw = self.text.get(start..end).unwrap_or_default();
        Ok((end, self.message(fields, raw, batch, out)))
    }

    /// What can be said of a line of which only head and tail are there.
    fn truncated(&self, start: usize, out: &mut Vec<Message>) -> Parsed {
        let bytes = self.text.as_bytes();
        if bytes.get(start) == Some(&b'[') {
            let (mut index, mut any) = (0, false);
            let cut = json::elements(bytes, start, |at, end| {
                if bytes.get(at) == Some(&b'{') && end.is_some() && index < MAX_BATCH {
                    let parsed = self.object(at, Some((index, 0)), out);
                    any |= matches!(parsed, Ok((_, Parsed::Messages)));
                }
                index += 1;
            });
            // How many there were in all is not known: as many as could be counted.
            for message in out.iter_mut().rev().take(if any { index as usize } else { 0 }) {
                if let Some((_, size @ 0)) = &mut message.batch {
                    *size = index;
                }
            }
            return match cut {
                Err(Stop::More | Stop::Cut) if any => malformed("batch larger than the limit"),
                Err(Stop::More | Stop::Cut) => Parsed::NotRpc,
                _ => Parsed::NotJson,
            };
        }
        let raw = self.text.get(start..).unwrap_or_default();
        let tail = String::from_utf8_lossy(&self.line.tail);
        let missing = self.line.size - (self.line.head.len() + self.line.tail.len()) as u64;
        if missing == 0 {
            // A little too large: all of it is there to be read, only the head is kept.
            let whole = [raw, &tail].concat();
            let mut fields = Fields::default();
            let end = json::members(&whole, 1, |key, value, place| {
                let part = place.start..place.end.min(raw.len());
                fields.set(key, value, (part.start < part.end).then_some(part));
            });
            return match end {
                Ok(_) => self.message(fields, raw, None, out),
                Err(_) => self.not_json(),
            };
        }
        let (mut fields, mut id_cut) = (Fields::default(), false);
        let stop = json::members(raw, 1, |key, value, place| {
            id_cut |= key == "id" && place.end == raw.len();
            fields.set(key, value, Some(place));
        });
        match stop {
            Err(Stop::More | Stop::Cut) if id_cut => malformed("cut off in the middle of its id"),
            Err(Stop::More | Stop::Cut) => {
                closing_members(&tail, &mut fields);
                self.message(fields, raw, None, out)
            }
            _ => Parsed::NotJson,
        }
    }

    /// Makes a message of the members of an object, if they are those of one.
    fn message(
        &self,
        fields: Fields<'_>,
        raw: &str,
        batch: Option<(u32, u32)>,
        out: &mut Vec<Message>,
    ) -> Parsed {
        let Fields { jsonrpc, id, method, params, mut result, mut error, duplicate } = fields;
        let called = method.0.is_some();
        if jsonrpc.text().and_then(|text| json::string(text, 8)).as_deref() != Some("2.0") {
            return match jsonrpc.text() {
                Some("2" | "2.0") if called => malformed("`jsonrpc` is a number"),
                _ => Parsed::NotRpc,
            };
        }
        let mut anomalies = Vec::new();
        let name = match method.text().map(|text| json::string(text, usize::MAX)) {
            Some(None) => return malformed("`method` is not a string"),
            Some(Some(name)) => Some(Arc::from(name)),
            None => None,
        };
        let request_id = id.text().and_then(request_id);
        if id.is_null() {
            anomalies.push(Anomaly::NullId);
        } else if id.0.is_some() && request_id.is_none() {
            return malformed("`id` is neither a string nor a number");
        }
        let kind = if called {
            if request_id.is_some() { MessageKind::Request } else { MessageKind::Notification }
        } else {
            // Some peers always write both, one of them null.
            match (result.0.is_some(), error.0.is_some()) {
                (false, false) => return malformed("no method, result or error"),
                (true, true) if error.is_null() => error = Field::default(),
                (true, true) if result.is_null() => result = Field::default(),
                (true, true) => anomalies.push(Anomaly::ResultAndError),
                _ => {}
            }
            if request_id.is_none() && error.0.is_none() {
                return malformed("a result without an id");
            }
            MessageKind::Response
        };
        if params.text().is_some_and(|text| !text.starts_with(['{', '['])) {
            anomalies.push(Anomaly::ParamsType);
        }
        for (found, anomaly) in [
            (duplicate, Anomaly::DuplicateKey),
            (self.lossy, Anomaly::InvalidUtf8),
            (batch.is_some(), Anomaly::Batch),
        ] {
            if found {
                anomalies.push(anomaly);
            }
        }
        let whole = !self.line.truncated || batch.is_some();
        out.push(Message {
            kind,
            id: request_id,
            method: name,
            raw: Arc::from(raw),
            params: params.part(),
            result: result.part(),
            error: error.part(),
            size: if whole && (batch.is_some() || raw.len() < self.text.len()) {
                raw.len() as u64
            } else {
                self.line.size
            },
            truncated: !whole,
            batch,
            anomalies,
        });
        Parsed::Messages
    }
}

/// Of two verdicts on parts of a line the one to report.
fn worse(one: Option<Parsed>, other: Parsed) -> Parsed {
    match (one, other) {
        (None, other) => other,
        (Some(bad @ Parsed::Malformed { .. }), _) | (_, bad @ Parsed::Malformed { .. }) => bad,
        (Some(Parsed::Messages), Parsed::Messages) => Parsed::Messages,
        (Some(Parsed::Messages), _) | (_, Parsed::Messages) => {
            malformed("a value that is no message stands with messages")
        }
        (Some(one), _) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Part;
    use crate::protocol::ndjson::Decoder;

    fn read(text: impl AsRef<[u8]>, limit: usize) -> (Parsed, Vec<Message>) {
        let (mut lines, mut messages) = (Vec::new(), Vec::new());
        let mut decoder = Decoder::new(limit);
        let text = [text.as_ref(), b"\n"].concat();
        decoder.push(&text, &mut lines);
        assert_eq!(lines.len(), 1, "{}", String::from_utf8_lossy(&text));
        let parsed = parse(&lines[0], &mut messages);
        (parsed, messages)
    }

    fn one(text: impl AsRef<[u8]>) -> Message {
        let (parsed, mut messages) = read(&text, 1 << 26);
        assert_eq!(parsed, Parsed::Messages, "{}", String::from_utf8_lossy(text.as_ref()));
        assert_eq!(messages.len(), 1);
        messages.remove(0)
    }

    fn part<'a>(message: &'a Message, part: Option<&Part>) -> Option<&'a str> {
        part.map(|part| message.text(part))
    }

    #[test]
    fn messages_in_any_order_of_keys() {
        use MessageKind::{Notification, Request, Response};
        // Python, TypeScript and hand-written shapes.
        for (text, kind, id, method) in [
            (
                r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"a":1}}"#,
                Request,
                "0",
                "initialize",
            ),
            (
                r#"{"method":"tools/call","params":{"name":"x"},"jsonrpc":"2.0","id":1}"#,
                Request,
                "1",
                "tools/call",
            ),
            (r#"{"result":{"content":[]},"jsonrpc":"2.0","id":"a\u0062"}"#, Response, "\"ab\"", ""),
            (
                r#" { "jsonrpc" : "2.0" , "id" : -7 , "error" : { "code" : -1 } } "#,
                Response,
                "-7",
                "",
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
                Notification,
                "",
                "notifications/initialized",
            ),
            (r#"{"jsonrpc":"2.0","error":{"code":-32700}}"#, Response, "", ""),
            (
                r#"{"\u006ason\u0072pc":"2\u002e0","m\u0065thod":"a/\u00e9"}"#,
                Notification,
                "",
                "a/é",
            ),
            (r#"{"jsonrpc":"2.0","id":1.50,"result":null}"#, Response, "1.50", ""),
            (
                r#"{"jsonrpc":"2.0","id":9223372036854775807,"result":1}"#,
                Response,
                "9223372036854775807",
                "",
            ),
            (
                r#"{"jsonrpc":"2.0","id":92233720368547758070,"result":1}"#,
                Response,
                "92233720368547758070",
                "",
            ),
        ] {
            let message = one(text);
            assert_eq!(message.kind, kind, "{text}");
            let found = match &message.id {
                Some(RequestId::Integer(id)) => id.to_string(),
                Some(RequestId::Number(id)) => id.to_string(),
                Some(RequestId::String(id)) => format!("{:?}", &**id),
                None => String::new(),
            };
            assert_eq!(found, id, "{text}");
            assert_eq!(message.method.as_deref().unwrap_or_default(), method, "{text}");
            assert_eq!(&*message.raw, text.trim(), "{text}");
            assert_eq!(message.anomalies, [], "{text}");
        }
        assert_ne!(request_id("1"), request_id("\"1\""));
        assert!(matches!(request_id("1.0"), Some(RequestId::Number(_))));
    }

    #[test]
    fn parts_stand_where_they_say() {
        let message =
            one(r#"{"method":"x","params": {"n":12345678901234567890.10} ,"jsonrpc":"2.0"}"#);
        assert_eq!(
            part(&message, message.params.as_ref()),
            Some(r#"{"n":12345678901234567890.10}"#)
        );
        let message = one(r#"  {"result":[1, 2],"jsonrpc":"2.0","id":"é"}"#);
        assert_eq!(part(&message, message.result.as_ref()), Some("[1, 2]"));
        assert_eq!(message.size, message.raw.len() as u64);
    }

    #[test]
    fn faults_that_a_reader_can_forgive_are_noted() {
        for (text, expected) in [
            (r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, vec![Anomaly::NullId]),
            (r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#, vec![Anomaly::NullId]),
            (
                r#"{"jsonrpc":"1.0","id":2,"method":"a","jsonrpc":"2.0","method":"b"}"#,
                vec![Anomaly::DuplicateKey],
            ),
            (r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#, vec![Anomaly::ResultAndError]),
            (r#"{"jsonrpc":"2.0","id":1,"result":{},"error":null}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"result":null,"error":{}}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[]}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":null}"#, vec![Anomaly::ParamsType]),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#, vec![]),
            (r#"{"jsonrpc":"2.0","id":1,"result":"\ud800 \udc00 \u0000"}"#, vec![]),
        ] {
            assert_eq!(one(text).anomalies, expected, "{text}");
        }
        let message = one(b"{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"params\":{\"a\":\"\xff\"}}");
        assert_eq!(message.anomalies, [Anomaly::InvalidUtf8]);
        assert_eq!(part(&message, message.params.as_ref()), Some("{\"a\":\"\u{fffd}\"}"));
        let text = r#"{"jsonrpc":"1.0","id":2,"method":"a","jsonrpc":"2.0","method":"b"}"#;
        assert_eq!(one(text).method.as_deref(), Some("b"));
    }

    #[test]
    fn what_is_no_message() {
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        for (text, expected) in [
            ("Server running on stdio", Parsed::NotJson),
            ("[INFO] {} ]", Parsed::NotJson),
            ("123 lines", Parsed::NotJson),
            ("null and void", Parsed::NotJson),
            ("{oops}", Parsed::NotJson),
            ("{\"a\":1}}", Parsed::NotJson),
            ("\u{1f680} ready", Parsed::NotJson),
            ("42", Parsed::NotRpc),
            ("\"text\"", Parsed::NotRpc),
            ("[]", Parsed::NotRpc),
            ("[1,2]", Parsed::NotRpc),
            ("{}", Parsed::NotRpc),
            ("{\"level\":\"info\",\"msg\":\"jsonrpc 2.0\"}", Parsed::NotRpc),
            ("{\"id\":1,\"method\":\"x\"}", Parsed::NotRpc),
            ("{\"jsonrpc\":\"1.0\",\"method\":\"x\"}", Parsed::NotRpc),
            ("{\"a\":{\"jsonrpc\":\"2.0\",\"method\":\"x\"}}", Parsed::NotRpc),
            (&format!("{deep}]"), Parsed::NotJson),
        ] {
            let (parsed, messages) = read(text, 1 << 26);
            assert_eq!((parsed, messages.len()), (expected, 0), "{text}");
        }
        for text in [
            r#"{"jsonrpc":2.0,"method":"x"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","method":5}"#,
            r#"{"jsonrpc":"2.0","method":"x","id":{}}"#,
            r#"{"jsonrpc":"2.0","result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"x",}"#,
            "{\"jsonrpc\":\"2.0\",\"method\":\"a\tb\"}",
        ] {
            let (parsed, messages) = read(text, 1 << 26);
            assert!(matches!(parsed, Parsed::Malformed { .. }), "{text}: {parsed:?}");
            assert_eq!(messages, [], "{text}");
        }
    }

    #[test]
    fn depth_hides_nothing() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let message = one(format!(r#"{{"params":{{"a":{deep}}},"method":"x","jsonrpc":"2.0"}}"#));
        assert_eq!(message.method.as_deref(), Some("x"));
    }

    #[test]
    fn batches_and_several_values_on_a_line() {
        let (a, b) =
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, r#"{"jsonrpc":"2.0","method":"y"}"#);
        let (parsed, messages) = read(format!("[ {a} , {b}]"), 1 << 20);
        assert_eq!(parsed, Parsed::Messages);
        let found: Vec<_> = messages.iter().map(|it| (&*it.raw, it.batch, it.size)).collect();
        assert_eq!(found, [(a, Some((0, 2)), a.len() as u64), (b, Some((1, 2)), b.len() as u64)]);
        assert_eq!(messages[0].anomalies, [Anomaly::Batch]);

        let (parsed, messages) = read(format!("{a}{b} [{a}]"), 1 << 20);
        assert_eq!((parsed, messages.len()), (Parsed::Messages, 3));
        assert_eq!((messages[0].batch, messages[0].size), (None, a.len() as u64));

        for (text, count) in [
            (format!("[{a},1,{b}]"), 2),
            (format!("{a}{{}}"), 1),
            (format!("{a}{b}x"), 0),
            (format!("[{a},{b}"), 0),
            (format!("{a}}}"), 0),
        ] {
            let (parsed, messages) = read(&text, 1 << 20);
            assert!(matches!(parsed, Parsed::Malformed { .. }), "{text}: {parsed:?}");
            assert_eq!(messages.len(), count, "{text}");
        }
    }

    #[test]
    fn of_a_truncated_message_all_that_can_be_known_is() {
        let long = format!("é,\\\"id\\\":9}}{}", "x".repeat(5000));
        let request = format!(
            r#"{{"method":"tools/call","params":{{"name":"t","a":[{{"b":"{long}"}}]}},"jsonrpc":"2.0","id":"last"}}"#
        );
        let first = format!(r#"{{"jsonrpc":"2.0","id":5,"result":{{"c":["{long}",{{"id":6}}]}}}}"#);
        let last = format!(r#"{{"result":{{"c":["{long}"],"id":6}},"jsonrpc":"2.0","id":7}}"#);
        for limit in [60, 70, 80] {
            let (parsed, messages) = read(&request, limit);
            assert_eq!((parsed, messages.len()), (Parsed::Messages, 1), "{limit}");
            let message = &messages[0];
            assert_eq!(message.kind, MessageKind::Request);
            assert_eq!(message.id, Some(RequestId::String("last".into())));
            assert_eq!(message.method.as_deref(), Some("tools/call"));
            assert!(message.truncated);
            assert_eq!(message.size, request.len() as u64);
            assert!(message.raw.len() <= limit && request.starts_with(&*message.raw));
            assert!(part(message, message.params.as_ref()).unwrap().starts_with(r#"{"name":"t""#));
            for (text, id) in [(&first, 5), (&last, 7)] {
                let (_, messages) = read(text, limit);
                assert_eq!(messages[0].id, Some(RequestId::Integer(id)));
                assert_eq!(messages[0].kind, MessageKind::Response);
            }
        }
        // Cut within a character, within the id, and a little below the limit.
        for limit in 1..first.len() {
            let (parsed, messages) = read(&first, limit);
            let known = messages.iter().all(|it| it.id == Some(RequestId::Integer(5)));
            assert!(known, "{limit}: {parsed:?} {messages:?}");
            assert_eq!(messages.len(), usize::from(parsed == Parsed::Messages));
        }
        let little = read(&last, last.len() - 3).1.remove(0);
        assert_eq!((little.id, little.truncated), (Some(RequestId::Integer(7)), true));
        assert_eq!(read("x".repeat(9000), 100).0, Parsed::NotJson);
        assert_eq!(read(format!("{{\"a\":\"{long}\"}}"), 100).0, Parsed::NotRpc);
        let batch =
            format!(r#"[{{"jsonrpc":"2.0","method":"a"}},{{"jsonrpc":"2.0","x":"{long}"}}]"#);
        let (parsed, messages) = read(batch, 100);
        assert!(matches!(parsed, Parsed::Malformed { .. }));
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].batch, messages[0].truncated), (Some((0, 2)), false));
    }
}
