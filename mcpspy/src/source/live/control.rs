//! What may be asked of the kernel side while it runs: verdicts, counters, totals.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData, PerCpuArray};
use mcpspy_common::config::{StreamKey as RawKey, StreamState, verdict};
use mcpspy_common::names::counter;
use mcpspy_common::record::{carrier, direction};
use zerocopy::{FromBytes, IntoBytes};

use super::LiveError;
use super::record::{raw_key, total};
use crate::model::{Command, KernelCounters, StreamTotal, Verdict};

/// Bytes of a key and of an entry, as aya's maps take them.
pub(super) type KeyBytes = [u8; size_of::<RawKey>()];
pub(super) type StateBytes = [u8; size_of::<StreamState>()];
/// Map from a stream to its entry.
pub(super) type StateMap = HashMap<MapData, KeyBytes, StateBytes>;

/// The maps that user space reads and writes while the programs run.
pub(super) struct Maps {
    pub(super) streams: StateMap,
    pub(super) kept: StateMap,
    pub(super) verdicts: HashMap<MapData, KeyBytes, u32>,
    pub(super) tree: HashMap<MapData, u32, u32>,
    /// `None` without a filter.
    pub(super) muted: Option<HashMap<MapData, u64, u32>>,
    pub(super) counters: PerCpuArray<MapData, [u64; counter::COUNT]>,
}

/// What drain and control share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    pub(super) malformed: AtomicU64,
    /// Cgroups that found the table of muted ones full.
    pub(super) muted_full: AtomicU64,
}

/// How often a program ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Its name.
    pub name: &'static str,
    /// Runs; 0 unless `kernel.bpf_stats_enabled` is set.
    pub runs: u64,
    /// Time spent in them, ns; 0 unless `kernel.bpf_stats_enabled` is set.
    pub nanoseconds: u64,
    /// Runs left out because the program was active on that CPU already.
    pub missed: u64,
    /// Instructions that the verifier looked at.
    pub verified: u64,
}

/// Talks to the running programs; cheap to clone.
#[derive(Clone)]
pub struct Control {
    maps: Arc<Mutex<Maps>>,
    shared: Arc<Shared>,
    programs: Arc<[(&'static str, OwnedFd)]>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Control {
    pub(super) fn new(
        maps: Maps,
        shared: Arc<Shared>,
        programs: Vec<(&'static str, OwnedFd)>,
    ) -> Self {
        Self { maps: Arc::new(Mutex::new(maps)), shared, programs: programs.into() }
    }

    /// The maps are valid at any point, so a panic elsewhere does not matter.
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what the engine decided.
    pub fn apply(&self, command: &Command) -> Result<(), LiveError> {
        let (key, decision) = match command {
            Command::Verdict(key, decision) => (key, decision),
            Command::Cgroup { id, copy } => {
                self.mute(*id, !copy);
                return Ok(());
            }
        };
        let key = raw_key(key);
        let mut maps = self.maps();
        match decision {
            Verdict::Ignore => maps.verdicts.insert(bytes(&key), verdict::IGNORE, 0)?,
            Verdict::Keep => {
                maps.verdicts.insert(bytes(&key), verdict::KEEP, 0)?;
                reconsider(&mut maps, &key);
            }
            Verdict::Forget(newest) => forget(&mut maps, &key, *newest),
        }
        Ok(())
    }

    /// Leaves out the bytes of a cgroup's processes, or no longer. Where the table is full they are
    /// copied, and the filter of events leaves them out.
    fn mute(&self, id: u64, mute: bool) {
        let mut maps = self.maps();
        let Some(muted) = &mut maps.muted else { return };
        if !mute {
            // Not there is as good.
            drop(muted.remove(&id));
        } else if muted.insert(id, 1, 0).is_err() {
            self.shared.muted_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds a process to the watched tree.
    pub(super) fn watch(&self, pid: u32) -> Result<(), LiveError> {
        Ok(self.maps().tree.insert(pid, 1, 0)?)
    }

    /// The kernel's counters since the start.
    pub fn counters(&self) -> Result<KernelCounters, LiveError> {
        let maps = self.maps();
        let mut sum = [0u64; counter::COUNT];
        for cpu in maps.counters.get(&0, 0)?.iter() {
            for (total, value) in sum.iter_mut().zip(cpu) {
                *total = total.wrapping_add(*value);
            }
        }
        Ok(KernelCounters {
            records: sum[counter::RECORDS],
            admitted_bytes: sum[counter::ADMITTED_BYTES],
            copied_bytes: sum[counter::COPIED_BYTES],
            ring_full: sum[counter::RING_FULL],
            ring_full_bytes: sum[counter::RING_FULL_BYTES],
            ring_full_facts: sum[counter::RING_FULL_FACTS],
            fault_bytes: sum[counter::FAULT_BYTES],
            scratch_busy_bytes: sum[counter::SCRATCH_BUSY_BYTES],
            cut_bytes: sum[counter::CUT_BYTES],
            soft_skip_bytes: sum[counter::SOFT_SKIP_BYTES],
            table_full: sum[counter::TABLE_FULL],
            compat_calls: sum[counter::COMPAT_CALLS],
            unseen_calls: sum[counter::UNSEEN_CALLS],
            muted_bytes: sum[counter::MUTED_BYTES],
            relays_full: sum[counter::RELAYS_FULL],
            muted_full: self.shared.muted_full.load(Ordering::Relaxed),
        })
    }

    /// Totals of the streams judged MCP, both ends of each.
    pub fn stream_totals(&self) -> Vec<StreamTotal> {
        totals(&self.maps().kept)
    }

    /// How often each program ran.
    pub fn program_runs(&self) -> Vec<ProgramRuns> {
        self.programs.iter().map(|(name, fd)| runs(name, fd)).collect()
    }

    /// Records that could not be decoded: kernel and user space do not fit each other.
    pub fn malformed(&self) -> u64 {
        self.shared.malformed.load(Ordering::Relaxed)
    }

    /// Makes the drain end once the ring is empty.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    pub(super) fn set_verdict(&self, key: &RawKey, value: u32) -> Result<(), LiveError> {
        Ok(self.maps().verdicts.insert(bytes(key), value, 0)?)
    }

    pub(super) fn clear_verdict(&self, key: &RawKey) -> Result<(), LiveError> {
        Ok(self.maps().verdicts.remove(&bytes(key))?)
    }

    pub(super) fn entry(&self, key: &RawKey) -> Option<StreamState> {
        let maps = self.maps();
        let key = bytes(key);
        let found = maps.streams.get(&key, 0).or_else(|_| maps.kept.get(&key, 0)).ok()?;
        StreamState::read_from_bytes(&found).ok()
    }
}

/// Makes the kernel look anew at a reader that it met while the stream was ruled out: such a reader
/// was never announced, and an entry that says so is not looked at again.
fn reconsider(maps: &mut Maps, key: &RawKey) {
    let ruled_out = maps
        .streams
        .get(&bytes(key), 0)
        .ok()
        .and_then(|entry| StreamState::read_from_bytes(&entry).ok())
        .is_some_and(|entry| entry.verdict == verdict::IGNORE);
    if ruled_out && key.direction == u32::from(direction::READ) {
        // Gone already is as good.
        drop(maps.streams.remove(&bytes(key)));
    }
}

/// Forgets a stream at both ends: the reader's entry was kept on the writer's verdict. Entries
/// younger than `newest` belong to another stream with the same inode.
fn forget(maps: &mut Maps, key: &RawKey, newest: u64) {
    let kept = |maps: &Maps, key: &RawKey| {
        let entry = maps.kept.get(&bytes(key), 0).ok()?;
        StreamState::read_from_bytes(&entry).ok()
    };
    let peer = kept(maps, key)
        .filter(|entry| entry.carrier == u32::from(carrier::UNIX))
        .map_or(key.ino, |entry| entry.peer);
    let other = RawKey {
        ino: peer,
        direction: key.direction ^ u32::from(direction::READ ^ direction::WRITE),
        ..*key
    };
    for key in [key, &other] {
        if kept(maps, key).is_some_and(|entry| entry.nonce > newest) {
            continue;
        }
        // Not there is as good.
        drop(maps.verdicts.remove(&bytes(key)));
        drop(maps.kept.remove(&bytes(key)));
    }
}

fn totals(map: &StateMap) -> Vec<StreamTotal> {
    // An entry that goes away during the walk ends it early or is left out; the caller asks again
    // at the next tick.
    map.iter()
        .filter_map(Result::ok)
        .filter_map(|(key, entry)| {
            let key = RawKey::read_from_bytes(&key).ok()?;
            total(&key, &StreamState::read_from_bytes(&entry).ok()?)
        })
        .collect()
}

pub(super) fn bytes(key: &RawKey) -> KeyBytes {
    let mut out = KeyBytes::default();
    out.copy_from_slice(key.as_bytes());
    out
}

/// The kernel shows these in the descriptor's `fdinfo` (kernel/bpf/syscall.c,
/// `bpf_prog_show_fdinfo`).
fn runs(name: &'static str, fd: &OwnedFd) -> ProgramRuns {
    let mut runs = ProgramRuns { name, ..ProgramRuns::default() };
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim().parse().unwrap_or(0);
        match key {
            "run_cnt" => runs.runs = value,
            "run_time_ns" => runs.nanoseconds = value,
            "recursion_misses" => runs.missed = value,
            "verified_insns" => runs.verified = value,
            _ => {}
        }
    }
    runs
}
