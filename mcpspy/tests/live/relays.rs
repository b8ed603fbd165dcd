//! Scenarios with programs that only hand bytes on, and with cgroups. The programs are copies of
//! `cat` under other names.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::traffic::{MESSAGE, Report, go, inode, pattern};

/// Size of the large message.
const LARGE: usize = 1 << 20;
/// A request to an engine, as `docker exec` makes it.
pub(crate) const REQUEST: &[u8] =
    b"POST /v1.41/exec/0123/start HTTP/1.1\r\nHost: docker\r\n\r\n{\"Detach\":false}";
/// Name of a container's cgroup, as systemd makes it for Docker.
pub(crate) const SCOPE: &str =
    "docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";

/// A directory with a copy of `cat`.
struct Copy {
    dir: PathBuf,
    program: PathBuf,
}

impl Copy {
    fn named(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mcpspy-relay-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join(name);
        fs::copy("/bin/cat", &program).unwrap();
        Self { dir, program }
    }

    fn spawn(&self) -> Child {
        piped(&mut Command::new(&self.program))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Sends bytes through a child and waits for all of them.
fn through(child: &mut Child, bytes: &[u8]) {
    let stdin = child.stdin.as_mut().unwrap();
    let stdout = child.stdout.as_mut().unwrap();
    let mut back = vec![0; bytes.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| stdin.write_all(bytes).unwrap());
        stdout.read_exact(&mut back).unwrap();
    });
    assert!(back == bytes);
}

/// Ends a child and reports what went in and out.
fn finish(report: &mut Report, mut child: Child, sent: &[(&str, &[u8])]) {
    let pid = child.id();
    let stdin = child.stdin.take().unwrap();
    let stdout = child.stdout.take().unwrap();
    report.line(&format!("open child {pid}"));
    for (name, bytes) in sent {
        let fd = if name.starts_with("in") { stdin.as_raw_fd() } else { stdout.as_raw_fd() };
        report.wrote(name, fd, bytes);
    }
    drop(stdin);
    drop(stdout);
    child.wait().unwrap();
}

/// A message through a relay.
pub(crate) fn relay(report: &mut Report) {
    let copy = Copy::named("docker");
    let mut child = copy.spawn();
    through(&mut child, MESSAGE);
    through(&mut child, MESSAGE);
    let twice = [MESSAGE, MESSAGE].concat();
    finish(report, child, &[("in", &twice), ("out", &twice)]);
}

/// A message of a mebibyte through one whose name only begins as it must.
pub(crate) fn relay_large(report: &mut Report) {
    let copy = Copy::named("containerd-shim-runc-v2");
    let mut child = copy.spawn();
    through(&mut child, &pattern(LARGE, 9));
    let stdin = child.stdin.as_ref().unwrap().as_raw_fd();
    let stdout = child.stdout.as_ref().unwrap().as_raw_fd();
    report.wrote_pattern("in", stdin, LARGE, 9);
    report.wrote_pattern("out", stdout, LARGE, 9);
    finish(report, child, &[]);
}

/// A shell that says a message and becomes a relay.
pub(crate) fn relay_by_exec(report: &mut Report) {
    let copy = Copy::named("podman");
    let script = "read -r line; printf '%s\\n' \"$line\"; exec \"$0\"";
    let mut child = piped(Command::new("/bin/sh").args(["-c", script]).arg(&copy.program));
    through(&mut child, MESSAGE);
    // Until the shell is the other program.
    let exe = format!("/proc/{}/exe", child.id());
    while fs::read_link(&exe).unwrap() != copy.program {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    through(&mut child, MESSAGE);
    let twice = [MESSAGE, MESSAGE].concat();
    finish(report, child, &[("in", &twice), ("out", &twice)]);
}

/// A relay that lives before anybody looks.
pub(crate) struct Early(Copy, Child);

impl Early {
    pub(crate) fn start() -> Self {
        let copy = Copy::named("conmon");
        let mut child = copy.spawn();
        through(&mut child, b"it runs\n");
        Self(copy, child)
    }

    pub(crate) fn talk(mut self, report: &mut Report) {
        through(&mut self.1, MESSAGE);
        finish(report, self.1, &[("in", MESSAGE), ("out", MESSAGE)]);
        drop(self.0);
    }
}

/// What a relay writes to a socket: a request to an engine, then a message.
pub(crate) fn relay_request(report: &mut Report) {
    let copy = Copy::named("docker");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let theirs: OwnedFd = theirs.into();
    let theirs_inode = inode(theirs.as_raw_fd());
    let mut child =
        Command::new(&copy.program).stdin(Stdio::piped()).stdout(theirs).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut ours = &ours;
    for bytes in [REQUEST, MESSAGE] {
        stdin.write_all(bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        ours.read_exact(&mut back).unwrap();
        assert!(back == bytes);
    }
    drop(stdin);
    child.wait().unwrap();
    report.line(&format!("open child {}", child.id()));
    let text = String::from_utf8_lossy(MESSAGE).replace('\n', "\\n");
    report.line(&format!("wrote socket {theirs_inode} {} {text}", MESSAGE.len()));
}

/// Heads of calls on a socket to an engine, and whether a call that begins so is copied.
pub(crate) const HEADS: [(&[u8], bool); 8] = [
    (b"\x01\0\0\0\0\0\x13\x80{\"jsonrpc\":", true),
    (b"\0\0\0\0\0\0\x13\x80  {\"a\"", true),
    (b"\x02\0\0\0\0\0\x13\x80some text", false),
    (b"\x03\0\0\0\0\0\x13\x80{\"jsonrpc\":", false),
    (b"POST /containers/", true),
    (b"GET /containers/", false),
    (b"HTTP/1.1 101 UPGRADED\r\n", true),
    (b"HTTP/1.1 200 OK\r\n", false),
];

/// A call that begins with one of these and is too large to be copied for its size.
pub(crate) fn call(head: &[u8]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.resize(4999, b'.');
    bytes.push(b'\n');
    bytes
}

/// Calls of all kinds on a socket.
pub(crate) fn sniff(report: &mut Report) {
    let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut back = vec![0; 5000];
    for (head, _) in HEADS {
        ours.write_all(&call(head)).unwrap();
        theirs.read_exact(&mut back).unwrap();
    }
    report.wrote("socket", ours.as_raw_fd(), b"");
}

/// A message through a program in a cgroup that is left out, and one after it no longer is.
pub(crate) fn muted(report: &mut Report) {
    let Some(group) = Group::new(Path::new(&format!("mcpspy-muted-{}", std::process::id()))) else {
        return report.line("open cgroup 0");
    };
    let copy = Copy::named("plain");
    let mut child = copy.spawn();
    group.enter(child.id());
    report.line(&format!("open cgroup {}", fs::metadata(&group.0).unwrap().ino()));
    go();
    through(&mut child, MESSAGE);
    report.line("open unmute 1");
    go();
    through(&mut child, MESSAGE);
    let twice = [MESSAGE, MESSAGE].concat();
    finish(report, child, &[("in", &twice), ("out", &twice)]);
}

/// A process that lives for a moment in a cgroup of its own.
pub(crate) fn short_lived(report: &mut Report) {
    let slice = format!("mcpspy-{}.slice", std::process::id());
    let Some(outer) = Group::new(Path::new(&slice)) else {
        return report.line("open group 0");
    };
    let inner = Group::new(&Path::new(&slice).join(SCOPE)).unwrap();
    let script = "echo $$ > \"$0\"/cgroup.procs; exec true";
    let mut child = Command::new("/bin/sh").args(["-c", script]).arg(&inner.0).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    report.line(&format!("open group {}", fs::metadata(&inner.0).unwrap().ino()));
    drop(inner);
    drop(outer);
}

/// A cgroup of the v2 tree.
struct Group(PathBuf);

impl Group {
    /// `None` where there is no such tree, or it may not be changed.
    fn new(name: &Path) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let mount = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find_map(|m| (m.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(m[1])))?;
        let path = mount.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn enter(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended may count for a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
