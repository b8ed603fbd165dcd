//! From bytes to messages: one file, one protocol.
//!
//! [`ndjson`] cuts a stream of bytes into lines, [`jsonrpc`] reads a line as JSON-RPC 2.0, and
//! [`mcp`] says what a message means. [`docker_stream`] stands in front of them where a container's
//! standard input and output go through its engine. Nothing here does I/O or reads a clock, nothing fails: bytes
//! that make no sense become a value that says so. Memory is bounded by the limit that the decoder
//! is given.
//!
//! ```
//! use mcpspy::protocol::{jsonrpc, mcp::Facts, ndjson::Decoder};
//!
//! let mut decoder = Decoder::new(1024);
//! let (mut lines, mut messages) = (Vec::new(), Vec::new());
//! decoder.push(br#"{"method":"tools/call","params":{"name":"add"},"#, &mut lines);
//! decoder.push(b"\"jsonrpc\":\"2.0\",\"id\":1}\n", &mut lines);
//! for line in &lines {
//!     jsonrpc::parse(line, &mut messages);
//! }
//! assert!(Facts::of(&messages[0]).target.is_some());
//! ```

pub mod docker_stream;
mod fields;
mod json;
pub mod jsonrpc;
mod line;
pub mod mcp;
pub mod methods;
mod multiline;
pub mod ndjson;
