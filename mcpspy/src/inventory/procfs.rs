//! Reads processes from `/proc`.
//!
//! All files of one process are opened relative to one open `/proc/PID`, so a reused pid cannot mix
//! two processes: the directory of a process that is gone answers with an error. Nothing here waits
//! for a file system: paths are only named, and inodes are taken from what the kernel has in memory.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::model::{FdFact, FdKind, ProcessFacts, ProcessId, Timestamp};

/// Open files looked at. More are rare, and the ones that matter are opened first.
const MAX_FDS: usize = 4096;
/// Bytes of a command line that are kept.
const MAX_CMDLINE: usize = 4096;
/// Bytes of a cgroup's path that are kept: the last ones, which name the container.
const MAX_CGROUP: usize = 512;
/// A `stat` or `status` file is below 2 KiB; the limit only bounds the read.
const MAX_FILE: usize = 16 * 1024;

/// Reads one process; `None` when it is gone or is not to be seen.
pub fn read_process(pid: u32, at: Timestamp, initial: bool) -> Option<ProcessFacts> {
    read_in(Path::new("/proc"), pid, at, initial)
}

/// Reads all processes.
pub fn scan(at: Timestamp) -> Vec<ProcessFacts> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| read_process(pid, at, true))
        .collect()
}

fn read_in(proc: &Path, pid: u32, at: Timestamp, initial: bool) -> Option<ProcessFacts> {
    let dir = open_process(proc, pid)?;
    let stat = Stat::parse(&read(&dir, "stat", MAX_FILE)?)?;
    let id = ProcessId { pid, start: stat.start };
    let parent = (stat.ppid > 0)
        .then(|| {
            let parent = read(&open_process(proc, stat.ppid)?, "stat", MAX_FILE)?;
            Some(ProcessId { pid: stat.ppid, start: Stat::parse(&parent)?.start })
        })
        .flatten();
    Some(ProcessFacts {
        at,
        id,
        parent,
        comm: stat.comm,
        exe: exe(&dir),
        cmdline: cmdline(&read(&dir, "cmdline", MAX_CMDLINE).unwrap_or_default()),
        uid: read(&dir, "status", MAX_FILE).and_then(|status| effective_uid(&status)),
        fds: fds(&dir),
        cgroup: read(&dir, "cgroup", MAX_FILE).and_then(|file| cgroup(&file)),
        initial,
    })
}

fn open_process(proc: &Path, pid: u32) -> Option<OwnedFd> {
    let path = proc.join(pid.to_string());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

fn read(dir: impl AsFd, name: &str, limit: usize) -> Option<Vec<u8>> {
    let file =
        rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::with_capacity(1024);
    std::fs::File::from(file).take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: Arc<str>,
    ppid: u32,
    start: u64,
}

impl Stat {
    /// The name stands in brackets and may hold brackets, blanks and line ends itself: it ends at
    /// the last closing bracket.
    fn parse(line: &[u8]) -> Option<Self> {
        let open = memchr::memchr(b'(', line)?;
        let close = memchr::memrchr(b')', line)?;
        let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into();
        // Field 3 (state) is the first behind the name.
        let fields = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        let mut fields = fields.split_ascii_whitespace();
        let ppid = fields.nth(4 - 3)?.parse().ok()?;
        let start = fields.nth(22 - 5)?.parse().ok()?;
        Some(Self { comm, ppid, start })
    }
}

/// Second number of the line `Uid:`.
fn effective_uid(status: &[u8]) -> Option<u32> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments joined by blanks. Programs that overwrite their title leave zeros at the end.
fn cmdline(bytes: &[u8]) -> Arc<str> {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let joined: Vec<u8> =
        bytes[..end].iter().map(|&byte| if byte == 0 { b' ' } else { byte }).collect();
    String::from_utf8_lossy(&joined).into()
}

/// One path of those in `/proc/PID/cgroup`: one with a container's id, else one that is not the
/// root, else the root; among those of a kind that of the v2 hierarchy (`0::`), then that of
/// systemd. `None` where there is none.
fn cgroup(file: &[u8]) -> Option<Arc<str>> {
    let paths = file.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (_number, hierarchy, path) = (fields.next()?, fields.next()?, fields.next()?);
        let kind = if has_id(path) { 0 } else { 1 + u8::from(path == b"/") };
        let place = [&b""[..], b"name=systemd", b"pids"].iter().position(|&h| h == hierarchy);
        Some(((kind, place.unwrap_or(3)), path))
    });
    let (_, path) = paths.min_by_key(|&(rank, _)| rank)?;
    let kept = path.get(path.len().saturating_sub(MAX_CGROUP)..).unwrap_or(path);
    Some(String::from_utf8_lossy(kept).into())
}

/// Whether 64 hexadecimal digits stand in a row, as in the paths of nearly all container engines.
fn has_id(path: &[u8]) -> bool {
    path.split(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')).any(|digits| digits.len() == 64)
}

fn exe(dir: &OwnedFd) -> Arc<str> {
    rustix::fs::readlinkat(dir, "exe", Vec::new())
        .map(|path| path.to_string_lossy().into())
        .unwrap_or_default()
}

/// The pipes and sockets; `None` where the table cannot be read.
fn fds(process: &OwnedFd) -> Option<Vec<FdFact>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let table = rustix::fs::openat(process, "fd", flags, Mode::empty()).ok()?;
    let entries = Dir::read_from(&table).ok()?;
    let mut found = Vec::new();
    let names = entries.filter_map(Result::ok).filter(|entry| entry.file_name() != c".");
    for entry in names.filter(|entry| entry.file_name() != c"..").take(MAX_FDS) {
        match fd(&table, entry.file_name()) {
            Ok(Some(fact)) => found.push(fact),
            // Not a pipe or socket, or closed meanwhile.
            Ok(None) | Err(Errno::NOENT) => {}
            // The process is gone: half a table would look like a whole one.
            Err(_) => return None,
        }
    }
    Some(found)
}

fn fd(table: &OwnedFd, name: &std::ffi::CStr) -> Result<Option<FdFact>, Errno> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    // What the kernel has in memory is enough, and a hung network file system cannot hold us up.
    let file = match rustix::fs::statx(table, name, AtFlags::STATX_DONT_SYNC, wanted) {
        Ok(file) => file,
        Err(Errno::ACCESS | Errno::PERM | Errno::STALE | Errno::IO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = match FileType::from_raw_mode(file.stx_mode.into()) {
        FileType::Fifo => FdKind::Pipe,
        FileType::Socket => FdKind::Socket,
        _ => return Ok(None),
    };
    // The mode of the link itself says how the file was opened (fs/proc/fd.c, tid_fd_update_inode).
    let link = rustix::fs::statx(
        table,
        name,
        AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC,
        StatxFlags::MODE,
    )?;
    let access = Mode::from_raw_mode(link.stx_mode.into());
    Ok(Some(FdFact {
        kind,
        dev: kernel_dev(file.stx_dev_major, file.stx_dev_minor),
        ino: file.stx_ino,
        readable: access.contains(Mode::RUSR),
        writable: access.contains(Mode::WUSR),
    }))
}

/// The kernel's own encoding of a device number (`MKDEV`), as records carry it.
pub const fn kernel_dev(major: u32, minor: u32) -> u32 {
    (major << 20) | (minor & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use super::*;

    const AT: Timestamp = Timestamp(5);

    #[test]
    fn a_name_may_hold_anything() {
        let tail = "S 42 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        for name in ["cat", "a b", "a) R 1 (b", ") ", "", "(((", "x\ny"] {
            let line = format!("17 ({name}) {tail}\n");
            let expected = Stat { comm: name.into(), ppid: 42, start: 987_654 };
            assert_eq!(Stat::parse(line.as_bytes()), Some(expected), "{name}");
        }
        for bad in ["", "17 (x", "17 (x) S", "17 (x) S 1 2 3", ")("] {
            assert_eq!(Stat::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn command_lines() {
        for (bytes, expected) in [
            (&b""[..], ""),
            (b"cat\0", "cat"),
            (b"sh\0-c\0a  b\0", "sh -c a  b"),
            (b"nginx: worker\0\0\0\0", "nginx: worker"),
            (b"x\0\0y\0", "x  y"),
            (b"\xff\0", "\u{fffd}"),
        ] {
            assert_eq!(&*cmdline(bytes), expected);
        }
    }

    #[test]
    fn the_cgroup_is_the_one_that_names_a_container() {
        let id = "0123456789abcdef".repeat(4);
        for (file, expected) in [
            ("0::/user.slice/session-3.scope\n", Some("/user.slice/session-3.scope")),
            ("0::/\n", Some("/")),
            ("0::/../..\n", Some("/../..")),
            ("9:name=systemd:/\n4:memory:/x\n0::/\n", Some("/x")),
            ("4:memory:/x\n8:pids:/y\n9:name=systemd:/z\n0::/\n", Some("/z")),
            ("4:memory:/x\n8:pids:/y\n9:name=systemd:/\n0::/\n", Some("/y")),
            ("9:name=systemd:/z\n0::/a:b\n", Some("/a:b")),
            ("9:name=systemd:/docker/ID\n8:pids:/ID\n0::/y\n", Some("/docker/ID")),
            ("9:cpu,cpuacct:/docker/ID\n0::/docker-ID.scope\n", Some("/docker-ID.scope")),
            ("9:cpuset:/docker/ID\n0::/0ID\n", Some("/docker/ID")),
            ("", None),
            ("garbage\n:\n", None),
        ] {
            let [file, expected] = [Some(file), expected].map(|t| t.map(|t| t.replace("ID", &id)));
            let found = cgroup(file.unwrap_or_default().as_bytes());
            assert_eq!(found.as_deref(), expected.as_deref());
        }
        let long = format!("0::/{}\u{e9}/docker/{id}\n", "x/".repeat(1000));
        let found = cgroup(long.as_bytes()).expect("a path");
        assert!(found.len() <= MAX_CGROUP && found.ends_with(&id), "{found}");
        assert_eq!(cgroup(b"0::/\xff\n").as_deref(), Some("/\u{fffd}"));
    }

    #[test]
    fn the_effective_uid_is_the_second() {
        assert_eq!(effective_uid(b"Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid(b"Name:\tUid:\n"), None);
    }

    #[test]
    fn reads_itself() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let facts = read_process(std::process::id(), AT, false).expect("this process");
        assert_eq!((facts.at, facts.initial), (AT, false));
        assert_eq!(facts.uid, Some(rustix::process::geteuid().as_raw()));
        assert!(facts.exe.starts_with('/'), "{}", facts.exe);
        assert!(facts.cmdline.starts_with(&*std::env::args().next().expect("a name")));
        assert!(facts.parent.is_some());
        let cgroup = std::fs::read_to_string("/proc/self/cgroup").expect("own cgroups");
        assert_eq!(facts.cgroup.is_some(), cgroup.contains(':'));

        let stat = rustix::fs::fstat(&reader).expect("fstat");
        let dev = kernel_dev(rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let fds = facts.fds.expect("own table");
        let ends: Vec<_> = fds.iter().filter(|fd| fd.ino == stat.st_ino).collect();
        assert!(ends.iter().all(|fd| fd.dev == dev && fd.kind == FdKind::Pipe));
        let mut access: Vec<_> = ends.iter().map(|fd| (fd.readable, fd.writable)).collect();
        access.sort_unstable();
        assert_eq!(access, [(false, true), (true, false)]);
        assert!(writer.as_raw_fd() > 0);
    }

    #[test]
    fn a_child_has_this_parent() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::piped())
            .spawn()
            .expect("sleep is everywhere");
        let own = read_process(std::process::id(), AT, false).expect("this process");
        let facts = read_process(child.id(), AT, true).expect("the child");
        assert_eq!(facts.parent, Some(own.id));
        assert!(facts.initial);
        let scanned = scan(AT);
        assert!(scanned.iter().any(|process| process.id == facts.id));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(read_process(child.id(), AT, false), None);
    }
}
