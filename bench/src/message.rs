//! MCP messages of a fixed size.
//!
//! Ids have ten digits from the first to the last, so that a message is made by writing ten bytes
//! into a template.

use anyhow::{Context, Result};

/// Smallest id.
const FIRST_ID: u64 = 1_000_000_000;
/// Digits of an id.
const DIGITS: usize = 10;
/// Where the id's digits begin in [`Template::request`] and [`Template::response`].
const ID_AT: usize = r#"{"jsonrpc":"2.0","id":"#.len();

/// What the client sends first.
pub(crate) const INITIALIZE: &[u8] = concat!(
    r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","#,
    r#""capabilities":{},"clientInfo":{"name":"mcpspy-bench","version":"1"}}}"#,
    "\n"
)
.as_bytes();

/// What the server answers.
pub(crate) const INITIALIZED: &[u8] = concat!(
    r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","#,
    r#""capabilities":{"tools":{}},"serverInfo":{"name":"mcpspy-bench-server","version":"1"}}}"#,
    "\n"
)
.as_bytes();

/// What the client says then.
pub(crate) const READY: &[u8] =
    concat!(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, "\n").as_bytes();

/// A message whose id can be set.
pub(crate) struct Template(Vec<u8>);

impl Template {
    /// A call of the tool `echo`, `size` bytes with the line end.
    pub(crate) fn request(size: usize) -> Result<Self> {
        Self::padded(
            r#"{"jsonrpc":"2.0","id":1000000000,"method":"tools/call","params":{"name":"echo","arguments":{"text":""#,
            "\"}}}\n",
            size,
        )
    }

    /// Its answer, of the same size.
    pub(crate) fn response(size: usize) -> Result<Self> {
        Self::padded(
            r#"{"jsonrpc":"2.0","id":1000000000,"result":{"content":[{"type":"text","text":""#,
            "\"}]}}\n",
            size,
        )
    }

    fn padded(head: &str, tail: &str, size: usize) -> Result<Self> {
        let padding = size
            .checked_sub(head.len() + tail.len())
            .with_context(|| format!("a message has at least {} bytes", head.len() + tail.len()))?;
        Ok(Self([head, &"x".repeat(padding), tail].concat().into_bytes()))
    }

    /// The message number `n`.
    pub(crate) fn numbered(&mut self, n: u64) -> &[u8] {
        let mut rest = FIRST_ID + n;
        for digit in self.0[ID_AT..ID_AT + DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        &self.0
    }
}

/// The number of a message that a [`Template`] made; `None` for the ones of the handshake.
pub(crate) fn number(line: &[u8]) -> Option<u64> {
    let digits = line.get(ID_AT..ID_AT + DIGITS)?;
    let id: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    id.checked_sub(FIRST_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_json_of_the_asked_size() {
        for template in [Template::request(300), Template::response(300)] {
            let mut template = template.unwrap();
            let line = template.numbered(4711);
            assert_eq!(line.len(), 300);
            assert_eq!(number(line), Some(4711));
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert_eq!(value["id"], 1_000_004_711);
        }
        assert!(Template::request(50).is_err());
        for line in [INITIALIZE, INITIALIZED, READY] {
            serde_json::from_slice::<serde_json::Value>(line).unwrap();
            assert_eq!(number(line), None);
        }
    }
}
