//! A JSON-RPC message as it stood on the wire.

use std::ops::Range;
use std::sync::Arc;

/// A JSON-RPC id, typed: `1` is not `"1"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RequestId {
    /// An integer in the range of 64 bits.
    Integer(i64),
    /// Any other number, as it was written (fractions, exponents, more than 64 bits).
    Number(Arc<str>),
    /// A string, unescaped.
    String(Arc<str>),
}

/// What a message is by its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Has a method and an id.
    Request,
    /// Has a result or an error.
    Response,
    /// Has a method and no id.
    Notification,
}

/// A part of a message's text, by byte positions.
pub type Part = Range<usize>;

/// What is unusual in a message that could be read all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Anomaly {
    /// A key stands twice at top level; the last one counts.
    DuplicateKey,
    /// Both `result` and `error` are present.
    ResultAndError,
    /// The text is not valid UTF-8; invalid bytes are shown as U+FFFD.
    InvalidUtf8,
    /// `id` is `null`.
    NullId,
    /// The message came in an array.
    Batch,
    /// `params` is neither an object nor an array.
    ParamsType,
}

/// One JSON-RPC 2.0 message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Request, response or notification.
    pub kind: MessageKind,
    /// The id; `None` in notifications, and in error responses with `null` or no id.
    pub id: Option<RequestId>,
    /// The method, unescaped; `None` in responses.
    pub method: Option<Arc<str>>,
    /// Exact text of this message (of the element, in a batch). Of a truncated message: its head.
    pub raw: Arc<str>,
    /// Where `params` stands in `raw`.
    pub params: Option<Part>,
    /// Where `result` stands in `raw`.
    pub result: Option<Part>,
    /// Where `error` stands in `raw`.
    pub error: Option<Part>,
    /// Bytes of the message on the wire, line end not included.
    pub size: u64,
    /// Only the head of the message was kept: it was larger than the limit.
    pub truncated: bool,
    /// Position within its batch and size of the batch.
    pub batch: Option<(u32, u32)>,
    /// What is unusual in it.
    pub anomalies: Vec<Anomaly>,
}

impl Message {
    /// The text of a part.
    pub fn text(&self, part: &Part) -> &str {
        self.raw.get(part.clone()).unwrap_or_default()
    }
}
