//! Plain types that travel between the stages. Standard library only: no I/O, no serialisation.
//!
//! A number that came from the kernel keeps its unit in its type or its name.

mod container;
mod event;
mod input;
mod message;
mod process;
mod stream;

pub use container::{ContainerId, ContainerInfo, EngineFact};
pub use event::{
    CloseCause, Endpoint, Event, EventBody, Finding, Lost, LostStage, MessageEvent, Outcome, Peer,
    Quality, RequestRef, SessionChange, SessionEvent, SessionInfo, Severity, Status, Target,
    Transport,
};
pub use input::{
    CgroupFact, Command, Data, Exit, Input, KernelCounters, Loss, Record, RecordBody, StreamTotal,
    Task, Verdict,
};
pub use message::{Anomaly, Message, MessageKind, Part, RequestId};
pub use process::{FdFact, FdKind, ProcessFacts, ProcessId, ProcessInfo};
pub use stream::{Carrier, Direction, EndpointFact, StreamId, StreamKey, StreamRef};

/// Boot clock, nanoseconds. The only time the core knows: it comes with the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time `ns` nanoseconds later, at most the end of time.
    #[must_use]
    pub const fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds from `earlier` to this time, 0 where `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
