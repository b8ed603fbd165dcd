//! The top-level members of a JSON-RPC message.
//!
//! Of a message larger than the limit only head and tail are there. Keys are read from the head
//! until it breaks off, then from the tail those that close the message: the first place from which
//! `, "key": value ... }` can be read exactly to the end. In valid JSON that place is at top level:
//! at the end all strings and brackets are closed, so a reading that starts within a string or
//! deeper down cannot come out even.

use super::json;
use crate::model::Part;

/// A top-level member: its value, and where that stands in the text unless it came from the tail.
#[derive(Clone, Default)]
pub(super) struct Field<'a>(pub(super) Option<(&'a str, Option<Part>)>);

impl<'a> Field<'a> {
    /// The text of its value.
    pub(super) fn text(&self) -> Option<&'a str> {
        self.0.as_ref().map(|(text, _)| *text)
    }

    /// Where that stands, unless it came from the tail.
    pub(super) fn part(self) -> Option<Part> {
        self.0?.1
    }

    /// Whether it is `null`.
    pub(super) fn is_null(&self) -> bool {
        self.text() == Some("null")
    }
}

/// The top-level members that JSON-RPC knows.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) jsonrpc: Field<'a>,
    pub(super) id: Field<'a>,
    pub(super) method: Field<'a>,
    pub(super) params: Field<'a>,
    pub(super) result: Field<'a>,
    pub(super) error: Field<'a>,
    /// One of them stands twice.
    pub(super) duplicate: bool,
}

impl<'a> Fields<'a> {
    /// Notes a member. The last one of a name counts.
    pub(super) fn set(&mut self, key: &str, value: &'a str, part: Option<Part>) {
        let field = match key {
            "jsonrpc" => &mut self.jsonrpc,
            "id" => &mut self.id,
            "method" => &mut self.method,
            "params" => &mut self.params,
            "result" => &mut self.result,
            "error" => &mut self.error,
            _ => return,
        };
        self.duplicate |= field.0.is_some();
        field.0 = Some((value, part));
    }
}

/// Reads the members that close a message from its last bytes.
pub(super) fn closing_members<'a>(tail: &'a str, fields: &mut Fields<'a>) {
    for comma in memchr::memchr_iter(b',', tail.as_bytes()) {
        let end = json::members(tail, comma + 1, |_, _, _| {});
        if end.is_ok_and(|end| json::skip_space(tail.as_bytes(), end) == tail.len()) {
            // Checked before: nothing is taken from a reading that does not come out even.
            let _end = json::members(tail, comma + 1, |key, value, _| fields.set(key, value, None));
            return;
        }
    }
}
