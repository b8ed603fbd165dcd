//! Programs that only hand bytes on: their names, and the processes that run one already when the
//! programs are attached. The kernel side knows of all others by itself.

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData, MapError};
use mcpspy_common::relay::{NAMES, NameKey, PREFIX, START, WHOLE, key};

/// What `/proc` adds to the name of a file that was removed.
const REMOVED: &[u8] = b" (deleted)";

/// Looks at one process: it may have replaced its program meanwhile as often.
const LOOKS: usize = 8;

/// Inode of the initial pid namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_NAMESPACE: &str = "pid:[4026531836]";

/// The names.
#[derive(Debug)]
pub(super) struct Names(HashSet<NameKey>);

impl Names {
    /// The known names and `further` ones.
    pub(super) fn new(further: &[String]) -> Self {
        let names = NAMES.iter().copied().chain(further.iter().map(String::as_str));
        let keys = names.filter_map(|name| {
            let key = key(name.as_bytes());
            if key.is_none() {
                tracing::warn!(name, "not the name of an executable, or too long: left out");
            }
            key
        });
        Self(keys.collect())
    }

    /// Entries for the kernel.
    pub(super) fn entries(&self) -> impl Iterator<Item = (NameKey, u32)> {
        let prefix = key(PREFIX.as_bytes()).map(|key| (key, START));
        self.0.iter().map(|key| (*key, WHOLE)).chain(prefix)
    }

    /// Whether a program of this name only hands bytes on. Says what the kernel side says
    /// (mcpspy-ebpf, relay.rs).
    fn has(&self, name: &[u8]) -> bool {
        name.starts_with(PREFIX.as_bytes()) || key(name).is_some_and(|key| self.0.contains(&key))
    }
}

/// Fills in the processes that run such a program. The hooks of exec, fork and exit are attached by
/// now, that of calls is not.
///
/// A process may end, and replace its program, between the look at it and the entry in the map, and
/// its entry would then stand for whoever gets its number. So it is looked at again after the entry
/// was made or removed, until the entry says what was there after it. From then on the hooks keep it
/// right; a process that gets the number of one that has ended is entered anew when it is forked.
pub(super) fn fill(map: &mut HashMap<MapData, u32, u32>, names: &Names) -> Result<(), MapError> {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if namespace != Path::new(INITIAL_NAMESPACE) {
        // Process numbers are others here than in the kernel.
        tracing::debug!("relays that run already are not known: another pid namespace");
        return Ok(());
    }
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return Ok(()) };
    let pids = processes
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own);
    for pid in pids {
        let mut entered = false;
        for _ in 0..LOOKS {
            let relay = is_relay(pid, names);
            if relay == entered {
                break;
            }
            if relay {
                map.insert(pid, 1, 0)?;
            } else {
                // The kernel may have removed it.
                drop(map.remove(&pid));
            }
            entered = relay;
        }
    }
    Ok(())
}

/// Whether a process runs such a program now. One that cannot be looked at is taken for another.
fn is_relay(pid: u32, names: &Names) -> bool {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
    runs_one(exe, || std::fs::read(format!("/proc/{pid}/comm")), names)
}

/// Without `CAP_SYS_PTRACE` the executables of others are not shown, but their names are: cut after
/// 15 bytes, which is enough for all that are known.
fn runs_one(
    exe: io::Result<PathBuf>,
    comm: impl FnOnce() -> io::Result<Vec<u8>>,
    names: &Names,
) -> bool {
    match exe {
        Ok(path) => path.file_name().is_some_and(|name| {
            let name = name.as_bytes();
            names.has(name.strip_suffix(REMOVED).unwrap_or(name))
        }),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            comm().is_ok_and(|comm| names.has(comm.strip_suffix(b"\n").unwrap_or(&comm)))
        }
        // A thread of the kernel, or it has ended.
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_met_whole_but_for_one() {
        let names = Names::new(&["my-bridge".to_owned(), "n".repeat(31), String::new()]);
        for name in ["docker", "dockerd", "containerd", "containerd-shim", "my-bridge"] {
            assert!(names.has(name.as_bytes()), "{name}");
        }
        assert!(names.has(b"containerd-shim-runc-v2"));
        assert!(names.has(b"containerd-shim-with-a-name-that-fills-more-than-a-key"));
        let long = "n".repeat(31);
        for name in ["docker-mcp", "docker-init", "docke", "containerd-shi", "", &long] {
            assert!(!names.has(name.as_bytes()), "{name}");
        }
        assert_eq!(names.entries().count(), NAMES.len() + 2);
    }
    #[test]
    fn a_process_whose_executable_is_not_shown_is_known_by_its_name() {
        let names = Names::new(&["my-bridge".to_owned()]);
        let comm = |comm: &'static str| move || Ok(comm.into());
        let hidden = || Err(io::ErrorKind::PermissionDenied.into());
        for name in ["dockerd\n", "containerd-shim\n", "com.docker.cli\n", "my-bridge\n"] {
            assert!(runs_one(hidden(), comm(name), &names), "{name}");
        }
        assert!(!runs_one(hidden(), comm("python3\n"), &names));
        assert!(!runs_one(hidden(), || Err(io::ErrorKind::NotFound.into()), &names));
        // What is shown decides.
        assert!(!runs_one(Ok("/usr/bin/python3".into()), comm("docker\n"), &names));
        assert!(runs_one(Ok("/usr/bin/docker (deleted)".into()), comm("x\n"), &names));
        assert!(!runs_one(Err(io::ErrorKind::NotFound.into()), comm("docker\n"), &names));
    }
}
