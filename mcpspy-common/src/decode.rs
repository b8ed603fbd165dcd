//! Reads records: the only place in user space that knows their layout.

use zerocopy::FromBytes;

use crate::record::{CgroupBody, ExitBody, ForkBody, RecordHeader, StreamBody, kind};

/// A record, borrowed from the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord<'a> {
    /// Who and when.
    pub header: RecordHeader,
    /// What.
    pub body: RawBody<'a>,
}

/// The part of a record that depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawBody<'a> {
    /// Bytes of a stream.
    Data(StreamBody, &'a [u8]),
    /// A task at an end of a stream.
    Endpoint(StreamBody),
    /// End of a stream.
    End(StreamBody),
    /// A program was replaced.
    Exec,
    /// A process ended.
    Exit(ExitBody),
    /// A process was created.
    Fork(ForkBody),
    /// A cgroup was seen for the first time.
    Cgroup(&'a CgroupBody),
}

/// Why bytes are not a record. Each means that kernel and user space were built from different
/// sources, or memory corruption: the record is counted and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than its kind needs.
    Short,
    /// The length in the header is not the record's.
    Length,
    /// No such kind.
    Kind(u16),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Short => f.write_str("record is shorter than its kind needs"),
            Self::Length => f.write_str("record length does not match its header"),
            Self::Kind(k) => write!(f, "unknown record kind {k}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Reads one record from the bytes of one ring-buffer entry.
pub fn decode(bytes: &[u8]) -> Result<RawRecord<'_>, DecodeError> {
    let (header, rest) = RecordHeader::read_from_prefix(bytes).map_err(|_| DecodeError::Short)?;
    if header.len as usize != bytes.len() {
        return Err(DecodeError::Length);
    }
    let stream = || StreamBody::read_from_prefix(rest).map_err(|_| DecodeError::Short);
    let body = match header.kind {
        kind::DATA => {
            let (body, payload) = stream()?;
            RawBody::Data(body, payload)
        }
        kind::ENDPOINT => RawBody::Endpoint(stream()?.0),
        kind::END => RawBody::End(stream()?.0),
        kind::EXEC => RawBody::Exec,
        kind::EXIT => {
            RawBody::Exit(ExitBody::read_from_prefix(rest).map_err(|_| DecodeError::Short)?.0)
        }
        kind::FORK => {
            RawBody::Fork(ForkBody::read_from_prefix(rest).map_err(|_| DecodeError::Short)?.0)
        }
        kind::CGROUP => {
            RawBody::Cgroup(CgroupBody::ref_from_prefix(rest).map_err(|_| DecodeError::Short)?.0)
        }
        other => return Err(DecodeError::Kind(other)),
    };
    Ok(RawRecord { header, body })
}
