//! Rebuilds streams: records of calls become bytes in order, with every hole known.
//!
//! Pure. `Assembler` orders the bytes of one stream, [`Table`] holds all streams within limits.

mod assembler;
mod stream;
mod table;

pub use assembler::{Chunk, Copy, Piece};
pub use stream::{Stream, StreamPiece};
pub use table::{Limits, Table};
