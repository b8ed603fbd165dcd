//! What the monitor wrote, compared with what the load sent.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::load::Sent;

/// The fields of a line that matter here; `docs/events.md` describes them.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default, rename = "type")]
    message_type: Option<Cow<'a, str>>,
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    from: Option<End>,
    #[serde(default)]
    session: Option<Session>,
    #[serde(default)]
    size_bytes: u64,
    #[serde(default)]
    bytes: Option<u64>,
}

#[derive(Deserialize)]
struct End {
    #[serde(default)]
    pid: Option<u32>,
}

#[derive(Deserialize)]
struct Session {
    id: Value,
}

/// What was captured of one load.
#[derive(Default, Debug)]
pub(crate) struct Captured {
    /// Its messages.
    pub(crate) messages: u64,
    /// Those that came twice or more often.
    pub(crate) twice: u64,
    /// Calls of which both the request and the response came.
    pub(crate) whole_calls: u64,
    /// Bytes of its messages, line ends included.
    pub(crate) bytes: u64,
    /// Bytes that were reported as lost in its session.
    pub(crate) lost_bytes: u64,
    /// Losses of unknown size.
    pub(crate) lost_unknown: u64,
    /// The last line, with the counters.
    pub(crate) stopped: Value,
}

impl Captured {
    /// Reads the monitor's JSONL and picks what the load sent.
    pub(crate) fn read(path: &Path, sent: &Sent) -> Result<Self> {
        const REQUEST: u8 = 1;
        const RESPONSE: u8 = 2;
        let mut captured = Self::default();
        let mut seen = vec![0u8; usize::try_from(sent.calls)?];
        let mut sessions = HashSet::new();
        let mut lost = Vec::new();
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut text = Vec::new();
        while reader.read_until(b'\n', &mut text)? > 0 {
            let line: Line = serde_json::from_slice(&text).with_context(|| {
                format!("{}: not an event: {}", path.display(), String::from_utf8_lossy(&text))
            })?;
            let from = line.from.as_ref().and_then(|end| end.pid);
            match &*line.kind {
                "message" if from == Some(sent.client) || from == Some(sent.server) => {
                    captured.messages += 1;
                    captured.bytes += line.size_bytes + 1;
                    if let Some(session) = line.session {
                        sessions.insert(session.id.to_string());
                    }
                    let mark = match line.message_type.as_deref() {
                        Some("request") => REQUEST,
                        Some("response") => RESPONSE,
                        _ => 0,
                    };
                    let number = line.id.and_then(|id| id.as_u64()?.checked_sub(1_000_000_000));
                    if let Some(seen) = number.and_then(|n| seen.get_mut(usize::try_from(n).ok()?))
                    {
                        captured.twice += u64::from(*seen & mark != 0);
                        *seen |= mark;
                    }
                }
                "lost" => {
                    if let Some(session) = line.session {
                        lost.push((session.id.to_string(), line.bytes));
                    }
                }
                "status" => captured.stopped = serde_json::from_slice(&text)?,
                _ => {}
            }
            text.clear();
        }
        for (_, bytes) in lost.iter().filter(|(session, _)| sessions.contains(session)) {
            captured.lost_bytes += bytes.unwrap_or(0);
            captured.lost_unknown += u64::from(bytes.is_none());
        }
        captured.whole_calls = memchr::memchr_iter(REQUEST | RESPONSE, &seen).count() as u64;
        Ok(captured)
    }

    /// Whether each message came once.
    pub(crate) fn is_complete(&self, sent: &Sent) -> bool {
        self.messages == sent.messages
            && self.bytes == sent.bytes
            && self.twice == 0
            && self.whole_calls == sent.calls
    }

    /// A counter of the monitor's last line.
    pub(crate) fn counter(&self, name: &str) -> Option<u64> {
        fn find(value: &Value, name: &str) -> Option<u64> {
            match value {
                Value::Object(fields) => fields
                    .get(name)
                    .and_then(Value::as_u64)
                    .or_else(|| fields.values().find_map(|inner| find(inner, name))),
                _ => None,
            }
        }
        find(&self.stopped, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_and_a_doubled_message_are_noticed() {
        let line = |kind: &str, id: u64, pid: u32| {
            format!(
                r#"{{"kind":"message","type":"{kind}","id":{id},"from":{{"pid":{pid}}},"session":{{"id":1}},"size_bytes":299}}"#
            )
        };
        let sent = Sent { client: 1, server: 2, calls: 2, messages: 4, bytes: 1200, seconds: 1.0 };
        let mut lines = [
            line("request", 1_000_000_000, 1),
            line("response", 1_000_000_000, 2),
            line("request", 1_000_000_001, 1),
            line("response", 1_000_000_001, 2),
            r#"{"kind":"lost","bytes":300,"session":{"id":1}}"#.to_owned(),
            r#"{"kind":"status","kernel":{"ring_full_bytes":300}}"#.to_owned(),
        ];
        let path = std::env::temp_dir().join(format!("mcpspy-bench-{}.jsonl", std::process::id()));
        std::fs::write(&path, lines.join("\n")).unwrap();
        let captured = Captured::read(&path, &sent).unwrap();
        assert!(captured.is_complete(&sent), "{captured:?}");
        assert_eq!(captured.lost_bytes, 300);
        assert_eq!(captured.counter("ring_full_bytes"), Some(300));

        lines[3] = lines[0].clone();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let captured = Captured::read(&path, &sent).unwrap();
        assert!(!captured.is_complete(&sent));
        assert_eq!((captured.twice, captured.whole_calls), (1, 1));
        std::fs::remove_file(path).unwrap();
    }
}
