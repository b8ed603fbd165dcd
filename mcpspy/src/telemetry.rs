//! The program's own counters: every drop has a reason and a name.
//!
//! Pure: plain numbers that one thread owns. What other threads count (the queues of the sinks)
//! comes as a [`SinkLedger`]; what the kernel counts comes as [`KernelCounters`].
//!
//! Two ledgers hold, and are checked at exit and in tests:
//!
//! - bytes ([`bytes_balance`]): what the kernel found worth copying was copied or has a reason;
//!   what was copied was assembled into a stream, was a second copy, or has a reason;
//! - messages ([`messages_balance`]): what was decoded was delivered, filtered, withheld, or has a
//!   reason, for each sink.
//!
//! ```
//! use mcpspy::telemetry::{Counter, Counters};
//!
//! let mut counters = Counters::default();
//! counters.add(Counter::ReceivedBytes, 40);
//! counters.add(Counter::AssembledBytes, 40);
//! assert_eq!(counters.get(Counter::AssembledBytes), 40);
//! assert_eq!(Counter::AssembledBytes.name(), "assembled_bytes");
//! ```

use std::fmt;

use crate::model::KernelCounters;

/// Makes the enum, its names and its list from one table, so that none can be forgotten.
macro_rules! counters {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// One counter of user space. Names are stable: they appear in metrics and in
        /// `docs/events.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[$doc])+ $variant,)+
        }

        impl Counter {
            /// All counters, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Stable name, snake case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

counters! {
    /// Inputs handled by the engine.
    Inputs = "inputs",
    /// Data records handled by the engine.
    DataRecords = "data_records",
    /// Bytes in those: left side of the byte ledger of user space.
    ReceivedBytes = "received_bytes",
    /// Bytes handed to a decoder, in order.
    AssembledBytes = "assembled_bytes",
    /// Bytes that were there already: a reader's copy of what its writer gave, or the reverse.
    DuplicateBytes = "duplicate_bytes",
    /// Bytes of requests to container engines: read for what they ask for, and no stream of messages.
    IgnoredBytes = "ignored_bytes",

    /// Streams seen.
    Streams = "streams",
    /// Streams evicted because the table was full.
    StreamsEvicted = "streams_evicted",
    /// Holes found in streams.
    Gaps = "gaps",
    /// Bytes of the holes whose size is known.
    GapBytes = "gap_bytes",
    /// Holes of unknown size (a new life of the kernel's entry).
    GapsUnknown = "gaps_unknown",

    /// Messages decoded: left side of the message ledger.
    DecodedMessages = "decoded_messages",
    /// Messages that became events.
    EmittedMessages = "emitted_messages",
    /// Messages on streams without a return path, not asked for with `--oneway`.
    WithheldOneway = "withheld_oneway",
    /// Messages of JSON-RPC streams that did not turn out to be MCP.
    WithheldNotMcp = "withheld_not_mcp",
    /// Messages that were copies of messages reported elsewhere on their path.
    WithheldDuplicate = "withheld_duplicate",
    /// Events of messages that the user's filters left out.
    FilteredMessages = "filtered_messages",

    /// Messages larger than the limit, of which only the head was kept (a part of the decoded).
    TruncatedMessages = "truncated_messages",
    /// Lines on MCP streams that are not JSON-RPC.
    NoiseLines = "noise_lines",
    /// Lines that began or ended in a hole: what they were is unknown.
    BrokenLines = "broken_lines",
    /// Responses paired with their request.
    PairedResponses = "paired_responses",
    /// Responses whose request was not seen.
    UnpairedResponses = "unpaired_responses",
    /// Requests given up: their table was full or their session ended.
    AbandonedRequests = "abandoned_requests",
    /// Sessions opened.
    SessionsOpened = "sessions_opened",
    /// Sessions closed.
    SessionsClosed = "sessions_closed",
    /// Messages sent with one end unknown.
    UnknownEnds = "unknown_ends",
    /// Processes forgotten because their table was full.
    ProcessesEvicted = "processes_evicted",
}

impl Counter {
    /// Reasons for which a decoded message did not become an event.
    pub const NOT_EMITTED: &'static [Self] =
        &[Self::WithheldOneway, Self::WithheldNotMcp, Self::WithheldDuplicate];
}

/// The counters of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Counter::ALL.len()])
    }
}

impl Counters {
    /// Adds `n`.
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] = self.0[counter as usize].saturating_add(n);
    }

    /// The value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Sum of several.
    pub fn sum(&self, counters: &[Counter]) -> u64 {
        counters.iter().map(|&counter| self.get(counter)).sum()
    }

    /// Adds what another thread counted.
    pub fn merge(&mut self, other: &Self) {
        for &counter in Counter::ALL {
            self.add(counter, other.get(counter));
        }
    }

    /// Names and values, in a stable order.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter.name(), self.get(counter)))
    }
}

/// What became of the messages that were handed to one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkLedger {
    /// What the sink is, for a person: a path, `stdout`.
    pub name: String,
    /// Messages written.
    pub delivered: u64,
    /// Messages not written, by reason.
    pub dropped: Vec<(&'static str, u64)>,
}

/// One side that must equal the sum of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// What is balanced.
    pub name: String,
    /// Its value.
    pub total: u64,
    /// Where it went. Parts that are 0 are kept, so that a reader sees the whole identity.
    pub parts: Vec<(&'static str, u64)>,
}

impl Balance {
    /// Whether total and parts agree.
    pub fn holds(&self) -> bool {
        self.total == self.parts.iter().map(|(_, value)| value).sum::<u64>()
    }

    /// Whether everything went to the first part, the good one.
    pub fn complete(&self) -> bool {
        self.parts.first().is_some_and(|&(_, good)| good == self.total)
    }
}

/// `received_bytes 40 = assembled_bytes 38 + late 2`: the first part always, others where not 0.
impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.name, self.total, if self.holds() { "=" } else { "!=" })?;
        let mut shown = 0;
        for (index, (name, value)) in self.parts.iter().enumerate() {
            if index == 0 || *value > 0 {
                if shown > 0 {
                    f.write_str(" + ")?;
                }
                write!(f, "{name} {value}")?;
                shown += 1;
            }
        }
        Ok(())
    }
}

/// The byte ledger: of the kernel, of the way to the engine, and of the engine.
///
/// `kernel` is `None` where no kernel counted (a recording without counters).
pub fn bytes_balance(kernel: Option<&KernelCounters>, counters: &Counters) -> Vec<Balance> {
    let mut balances = Vec::with_capacity(3);
    if let Some(kernel) = kernel {
        balances.push(Balance {
            name: "admitted".to_owned(),
            total: kernel.admitted_bytes,
            parts: vec![
                ("copied", kernel.copied_bytes),
                ("ring_full", kernel.ring_full_bytes),
                ("fault", kernel.fault_bytes),
                ("scratch_busy", kernel.scratch_busy_bytes),
                ("cut", kernel.cut_bytes),
            ],
        });
        balances.push(Balance {
            name: "copied".to_owned(),
            total: kernel.copied_bytes,
            parts: vec![("received", counters.get(Counter::ReceivedBytes))],
        });
    }
    let parts = vec![
        ("assembled", counters.get(Counter::AssembledBytes)),
        ("duplicate", counters.get(Counter::DuplicateBytes)),
        ("ignored", counters.get(Counter::IgnoredBytes)),
    ];
    balances.push(Balance {
        name: "received".to_owned(),
        total: counters.get(Counter::ReceivedBytes),
        parts,
    });
    balances
}

/// The message ledger: of the engine, and of each sink.
pub fn messages_balance(counters: &Counters, sinks: &[SinkLedger]) -> Vec<Balance> {
    let mut parts = vec![("emitted", counters.get(Counter::EmittedMessages))];
    parts.extend(Counter::NOT_EMITTED.iter().map(|&c| (c.name(), counters.get(c))));
    let mut balances = vec![Balance {
        name: "decoded".to_owned(),
        total: counters.get(Counter::DecodedMessages),
        parts,
    }];
    balances.extend(sinks.iter().map(|sink| {
        let filtered = counters.get(Counter::FilteredMessages);
        let mut parts = vec![("delivered", sink.delivered), ("filtered", filtered)];
        parts.extend(&sink.dropped);
        let total = counters.get(Counter::EmittedMessages);
        Balance { name: format!("emitted to {}", sink.name), total, parts }
    }));
    balances
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_snake_case() {
        let names: HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
    }

    #[test]
    fn slots_follow_the_list() {
        for (slot, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, slot, "{}", counter.name());
        }
    }

    #[test]
    fn a_balance_tells_a_missing_byte() {
        let mut counters = Counters::default();
        counters.add(Counter::ReceivedBytes, 10);
        counters.add(Counter::AssembledBytes, 7);
        counters.add(Counter::IgnoredBytes, 2);
        let missing = &bytes_balance(None, &counters)[0];
        assert!(!missing.holds());
        assert_eq!(missing.to_string(), "received 10 != assembled 7 + ignored 2");

        counters.add(Counter::DuplicateBytes, 1);
        assert!(bytes_balance(None, &counters)[0].holds());
    }

    #[test]
    fn kernel_and_engine_are_one_chain() {
        let kernel = KernelCounters {
            admitted_bytes: 100,
            copied_bytes: 80,
            ring_full_bytes: 15,
            cut_bytes: 5,
            ..KernelCounters::default()
        };
        let mut counters = Counters::default();
        counters.add(Counter::ReceivedBytes, 80);
        counters.add(Counter::AssembledBytes, 80);
        let balances = bytes_balance(Some(&kernel), &counters);
        assert!(balances.iter().all(Balance::holds));
        assert!(!balances[0].complete());
        assert!(balances[1].complete() && balances[2].complete());
    }

    #[test]
    fn each_sink_has_its_own_balance() {
        let mut counters = Counters::default();
        counters.add(Counter::DecodedMessages, 5);
        counters.add(Counter::EmittedMessages, 4);
        counters.add(Counter::WithheldOneway, 1);
        counters.add(Counter::FilteredMessages, 1);
        let sinks = [
            SinkLedger { name: "file".into(), delivered: 3, ..SinkLedger::default() },
            SinkLedger { name: "stdout".into(), delivered: 2, ..SinkLedger::default() },
        ];
        let held: Vec<_> = messages_balance(&counters, &sinks).iter().map(Balance::holds).collect();
        assert_eq!(held, [true, true, false]);
    }
}
