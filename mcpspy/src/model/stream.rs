//! What identifies a stream of bytes, and which end of it a task was seen at.

/// What carries a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// Anonymous pipe or FIFO.
    Pipe,
    /// `AF_UNIX` stream socket.
    Unix,
}

/// Which way a task moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The task wrote or sent.
    Write,
    /// The task read or received.
    Read,
}

/// One direction of one inode, as the kernel's maps know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Device, the kernel's encoding.
    pub dev: u32,
    /// Inode of the pipe, or of the socket on whose side the call was made.
    pub ino: u64,
    /// Which way.
    pub direction: Direction,
}

/// A stream: bytes that flow one way from whoever writes to whoever reads.
///
/// A pipe is one stream. A Unix socket pair is two, each named by the inode of the socket that is
/// *written*; a reader's record is mapped to it through its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// What carries it.
    pub carrier: Carrier,
    /// Device, the kernel's encoding.
    pub dev: u32,
    /// Inode of the pipe or of the written socket. For a socket whose peer was closed before it was
    /// first seen: the reading socket's inode, with [`StreamId::ORPHAN`] set.
    pub ino: u64,
}

impl StreamId {
    /// Marks the inode of a reading socket whose writer is unknown. Inode numbers of sockets have
    /// 32 bits (`get_next_ino`, fs/inode.c), so the bit is free.
    pub const ORPHAN: u64 = 1 << 63;
}

/// A stream as one record names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamRef {
    /// What carries it.
    pub carrier: Carrier,
    /// Device, the kernel's encoding.
    pub dev: u32,
    /// Inode of the pipe, or of the recorded task's own socket.
    pub ino: u64,
    /// Inode of the peer's socket; 0 for pipes and where it is unknown.
    pub peer: u64,
    /// Which way the recorded task moved the bytes.
    pub direction: Direction,
    /// Tells one life of the kernel's entry from another, ns.
    pub nonce: u64,
}

impl StreamRef {
    /// The stream that the bytes belong to.
    pub const fn id(&self) -> StreamId {
        let ino = match (self.carrier, self.direction) {
            (Carrier::Pipe, _) | (Carrier::Unix, Direction::Write) => self.ino,
            (Carrier::Unix, Direction::Read) if self.peer == 0 => self.ino | StreamId::ORPHAN,
            (Carrier::Unix, Direction::Read) => self.peer,
        };
        StreamId { carrier: self.carrier, dev: self.dev, ino }
    }

    /// The stream in the other direction of the same socket pair; `None` for pipes and where the
    /// peer is unknown.
    pub const fn reverse(&self) -> Option<StreamId> {
        if self.peer == 0 || matches!(self.carrier, Carrier::Pipe) {
            return None;
        }
        let ino = match self.direction {
            Direction::Write => self.peer,
            Direction::Read => self.ino,
        };
        Some(StreamId { carrier: self.carrier, dev: self.dev, ino })
    }

    /// The kernel's entry.
    pub const fn key(&self) -> StreamKey {
        StreamKey { dev: self.dev, ino: self.ino, direction: self.direction }
    }
}

/// A task was seen at an end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointFact {
    /// The stream.
    pub stream: StreamRef,
    /// Position from which on the task is at this end, in this direction's own count.
    pub offset: u64,
}
