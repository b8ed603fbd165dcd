//! Recorded captures, `.mcpcap`: the engine's inputs as JSON Lines.
//!
//! The first line is the [`Header`]: who recorded, where, and the settings that decide what the
//! engine makes of the inputs. Each further line is one input, or says what a small number in later
//! lines stands for (`task`, `stream`). A payload is text where it is valid UTF-8 and base64 where
//! it is not. `docs/recording.md` describes the format for others.
//!
//! The types in `format.rs` are the file's own: those of [`crate::model`] can change without a word
//! about files.

mod engine;
mod format;
mod reader;
mod redact;
mod writer;

use serde::{Deserialize, Serialize};

pub use reader::{ReadError, Reader, Reason};
pub use redact::Redactor;
pub use writer::{WriteError, Writer};

/// Version of the format, the value of `mcpcap` in the first line. It grows when a reader of the
/// version before would misread a file; new kinds of input do not need that, since a reader names
/// the kind that it does not know.
pub const FORMAT: u32 = 1;

/// Numbers that can stand for tasks or streams at one time. A line can give a number a new meaning,
/// so that neither writer nor reader needs more memory in a long recording.
const SLOTS: u32 = 4096;

/// What a recording says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Version of mcpspy that recorded.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Architecture.
    pub arch: String,
    /// Name of the host.
    pub host: String,
    /// The user gave that name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_given: bool,
    /// Id of the run.
    pub run_id: String,
    /// Backend that captured.
    pub backend: String,
    /// Wall clock minus boot clock, ns.
    pub wall_offset_ns: i64,
    /// The engine's `max_message`.
    pub max_message: u64,
    /// The engine's `oneway`.
    pub oneway: bool,
    /// The engine's `buffer_total`.
    pub buffer_total: u64,
    /// Values of headers that carry credentials are masked.
    pub masked: bool,
}
