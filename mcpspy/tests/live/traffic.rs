//! The traffic process: writes and reads in every way, and reports what it wrote.
//!
//! The report is a file of lines: `open NAME INODE` when a stream is there, `wrote NAME INODE
//! LENGTH SEED TEXT` at the end, where the bytes are TEXT (with `\n` escaped), or for large streams
//! generated from SEED.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mcpspy::source::live::{Live, LiveConfig};

use crate::capture::Expected;
use crate::relays;

/// A message as MCP has it.
pub(crate) const MESSAGE: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}\n";
/// The call in the scenario `ignored` before which the verdict is there.
pub(crate) const JUDGED: &[u8] = b"{\"judged\":true}\n";
/// FIFOs made one after the other in the scenario `fifos`.
pub(crate) const FIFOS: usize = 8;

const VARIABLE: &str = "MCPSPY_TRAFFIC";
const REPORT: &str = "MCPSPY_TRAFFIC_REPORT";

/// Starts a traffic process, which waits for a line on its standard input.
pub(crate) fn spawn(scenario: &str) -> (Child, PathBuf) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let report =
        std::env::temp_dir().join(format!("mcpspy-traffic-{}-{number}", std::process::id()));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "traffic_process", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, scenario)
        .env(REPORT, &report)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, report)
}

/// What the report says was written.
pub(crate) fn parse(report: &str) -> Vec<Expected> {
    report
        .lines()
        .filter_map(|line| line.strip_prefix("wrote "))
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let name = words.next().unwrap().to_owned();
            let ino = words.next().unwrap().parse().unwrap();
            let size: usize = words.next().unwrap().parse().unwrap();
            let text = words.next().unwrap();
            let bytes = match text.strip_prefix("seed ") {
                Some(seed) => pattern(size, seed.parse().unwrap()),
                None => text.replace("\\n", "\n").into_bytes(),
            };
            assert_eq!(bytes.len(), size);
            Expected { name, ino, bytes }
        })
        .collect()
}

/// Bytes that look like JSON at the start and differ everywhere.
pub(crate) fn pattern(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = b"{\"".to_vec();
    let mut state = seed | 1;
    while bytes.len() < size {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub(crate) struct Report(std::fs::File);

impl Report {
    pub(crate) fn line(&mut self, line: &str) {
        // One write per line, or a reader could see half of it.
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    fn open(&mut self, name: &str, fd: RawFd) {
        let line = format!("open {name} {}", inode(fd));
        self.line(&line);
    }
    pub(crate) fn wrote(&mut self, name: &str, fd: RawFd, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).replace('\n', "\\n");
        let line = format!("wrote {name} {} {} {text}", inode(fd), bytes.len());
        self.line(&line);
    }
    pub(crate) fn wrote_pattern(&mut self, name: &str, fd: RawFd, size: usize, seed: u64) {
        let line = format!("wrote {name} {} {size} seed {seed}", inode(fd));
        self.line(&line);
    }
}

/// Runs the scenario that the environment names, if any.
pub(crate) fn main() {
    let Ok(scenario) = std::env::var(VARIABLE) else { return };
    let report = std::fs::File::create(std::env::var(REPORT).unwrap()).unwrap();
    let mut report = Report(report);
    if scenario == "monitor" {
        monitor(&mut report);
    }
    // Made before this process is watched, for `peek`.
    let early = socketpair();
    send(early.0.as_raw_fd(), MESSAGE);
    let relay = (scenario == "relay-early").then(relays::Early::start);
    report.line("open ready 0");
    go();
    match scenario.as_str() {
        "calls" => calls(&mut report),
        "big" => big(&mut report),
        "iovecs" => iovecs(&mut report),
        "bytes" => bytes(&mut report),
        "readers" => readers(&mut report),
        "fifos" => fifos(),
        "flood" => flood(&mut report),
        "peek" => peek(&mut report, &early.1),
        "ignored" => ignored(&mut report),
        "relay" => relays::relay(&mut report),
        "relay-large" => relays::relay_large(&mut report),
        "relay-by-exec" => relays::relay_by_exec(&mut report),
        "relay-early" => relay.unwrap().talk(&mut report),
        "relay-request" => relays::relay_request(&mut report),
        "sniff" => relays::sniff(&mut report),
        "muted" => relays::muted(&mut report),
        "short-lived" => relays::short_lived(&mut report),
        other => panic!("no scenario {other}"),
    }
    // Not through the test harness, whose own output would be traffic.
    std::process::exit(0);
}

/// Waits for a line on standard input, byte by byte.
pub(crate) fn go() {
    let mut byte = [0];
    while byte[0] != b'\n' {
        std::io::stdin().lock().read_exact(&mut byte).unwrap();
    }
}

pub(crate) fn inode(fd: RawFd) -> u64 {
    // SAFETY: an all-zero `stat` is a value, and the kernel fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(fd, &raw mut stat), 0);
        stat.st_ino
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn socketpair() -> (OwnedFd, OwnedFd) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    (a.into(), b.into())
}

fn vector(bytes: &[u8], piece: usize) -> Vec<libc::iovec> {
    bytes
        .chunks(piece)
        .map(|c| libc::iovec { iov_base: c.as_ptr() as *mut _, iov_len: c.len() })
        .collect()
}

fn header(vector: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zero is an empty message.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector.as_mut_ptr();
    header.msg_iovlen = vector.len();
    header
}

fn send(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the buffer is valid for its length.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
    assert_eq!(n, bytes.len() as isize);
}

/// Moves a message through a stream by one pair of calls.
type Way = fn(RawFd, RawFd, &[u8], &mut [u8]) -> (isize, isize);

// SAFETY of all of these: buffers and vectors are valid for their lengths during the call.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
const PIPE_WAYS: [(&str, Way); 3] = [
    ("write", |w, r, out, back| unsafe {
        (
            libc::write(w, out.as_ptr().cast(), out.len()),
            libc::read(r, back.as_mut_ptr().cast(), back.len()),
        )
    }),
    ("writev", |w, r, out, back| unsafe {
        let (a, b) = (vector(out, 7), vector(back, 9));
        (libc::writev(w, a.as_ptr(), a.len() as i32), libc::readv(r, b.as_ptr(), b.len() as i32))
    }),
    ("pwritev2", |w, r, out, back| unsafe {
        let (a, b) = (vector(out, 7), vector(back, 9));
        (
            libc::syscall(libc::SYS_pwritev2, w, a.as_ptr(), a.len(), -1i64, -1i64, 0) as isize,
            libc::syscall(libc::SYS_preadv2, r, b.as_ptr(), b.len(), -1i64, -1i64, 0) as isize,
        )
    }),
];

#[expect(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
const SOCKET_WAYS: [(&str, Way); 4] = [
    ("send", |w, r, out, back| unsafe {
        (
            libc::send(w, out.as_ptr().cast(), out.len(), 0),
            libc::recv(r, back.as_mut_ptr().cast(), back.len(), 0),
        )
    }),
    ("sendmsg", |w, r, out, back| unsafe {
        let (mut a, mut b) = (vector(out, 7), vector(back, 9));
        let (a, mut b) = (header(&mut a), header(&mut b));
        (libc::sendmsg(w, &raw const a, 0), libc::recvmsg(r, &raw mut b, 0))
    }),
    ("sendmmsg", |w, r, out, back| unsafe {
        // Two messages; the receiver's first vector is larger than what comes.
        let (first, second) = out.split_at(out.len() / 2);
        let (mut a, mut b) = (vector(first, 5), vector(second, 6));
        let mut messages = [
            libc::mmsghdr { msg_hdr: header(&mut a), msg_len: 0 },
            libc::mmsghdr { msg_hdr: header(&mut b), msg_len: 0 },
        ];
        let sent = libc::sendmmsg(w, messages.as_mut_ptr(), 2, 0);
        assert_eq!(sent, 2);
        let sent = messages.iter().map(|m| m.msg_len as isize).sum();
        let mut c = vector(back, 1000);
        let mut message = [libc::mmsghdr { msg_hdr: header(&mut c), msg_len: 0 }];
        let mut got = 0;
        while got < sent {
            assert_eq!(libc::recvmmsg(r, message.as_mut_ptr(), 1, 0, std::ptr::null_mut()), 1);
            got += message[0].msg_len as isize;
        }
        (sent, got)
    }),
    ("mixed", |w, r, out, back| unsafe {
        (
            libc::sendto(w, out.as_ptr().cast(), out.len(), 0, std::ptr::null(), 0),
            libc::read(r, back.as_mut_ptr().cast(), back.len()),
        )
    }),
];

fn through(report: &mut Report, name: &str, way: Way, (w, r): (&OwnedFd, &OwnedFd)) {
    let mut written = Vec::new();
    let mut back = vec![0; 4096];
    for n in 0..3 {
        let mut message = String::new();
        writeln!(message, "{{\"way\":\"{name}\",\"n\":{n}}}").unwrap();
        let (sent, got) = way(w.as_raw_fd(), r.as_raw_fd(), message.as_bytes(), &mut back);
        assert_eq!(sent, message.len() as isize, "{name}");
        assert_eq!(got, sent, "{name}");
        written.extend_from_slice(message.as_bytes());
    }
    report.wrote(name, w.as_raw_fd(), &written);
}

fn calls(report: &mut Report) {
    for (name, way) in PIPE_WAYS {
        let (r, w) = pipe();
        through(report, name, way, (&w, &r));
        if name == "write" {
            drop(w);
            let mut end = [0; 16];
            assert_eq!(rustix::io::read(&r, &mut end).unwrap(), 0);
            assert_eq!(rustix::io::read(&r, &mut end).unwrap(), 0);
        }
    }
    for (name, way) in PIPE_WAYS {
        let (a, b) = socketpair();
        if name != "pwritev2" {
            through(report, &format!("socket-{name}"), way, (&a, &b));
        }
    }
    for (name, way) in SOCKET_WAYS {
        let (a, b) = socketpair();
        through(report, name, way, (&a, &b));
    }
    let path = std::env::temp_dir().join(format!("mcpspy-fifo-{}", std::process::id()));
    let fifo = make_fifo(&path);
    through(report, "fifo", PIPE_WAYS[0].1, (&fifo, &fifo));
    std::fs::remove_file(path).unwrap();
}

fn make_fifo(path: &std::path::Path) -> OwnedFd {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    std::fs::File::options().read(true).write(true).open(path).unwrap().into()
}

fn big(report: &mut Report) {
    const SIZE: usize = 16 << 20;
    let (r, w) = pipe();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut got = 0;
        while got < 2 * SIZE + 2 {
            got += rustix::io::read(&r, &mut buffer).unwrap();
        }
    });
    // Lets the writer be known: what is read before its first call returns is copied there too.
    rustix::io::write(&w, b"{\"").unwrap();
    let bytes = pattern(2 * SIZE + 2, 77);
    for half in [&bytes[2..SIZE + 2], &bytes[SIZE + 2..]] {
        assert_eq!(rustix::io::write(&w, half).unwrap(), SIZE);
    }
    reader.join().unwrap();
    report.wrote_pattern("big", w.as_raw_fd(), bytes.len(), 77);
}

fn iovecs(report: &mut Report) {
    for (name, size) in [("small", 1024 * 8), ("large", 1024 * 60)] {
        let (r, w) = pipe();
        let bytes = pattern(size, 5);
        let vector = vector(&bytes, size / 1024);
        // SAFETY: the vector points into `bytes`.
        let n = unsafe { libc::writev(w.as_raw_fd(), vector.as_ptr(), 1024) };
        assert_eq!(n, size as isize);
        let mut back = vec![0; size];
        assert_eq!(rustix::io::read(&r, &mut back).unwrap(), size);
        report.wrote_pattern(name, w.as_raw_fd(), size, 5);
    }
}

fn bytes(report: &mut Report) {
    let (r, w) = pipe();
    let mut written = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut put = |bytes: &[u8]| {
        assert_eq!(rustix::io::write(&w, bytes).unwrap(), bytes.len());
        assert_eq!(rustix::io::read(&r, &mut buffer).unwrap(), bytes.len());
        written.extend_from_slice(bytes);
    };
    for _ in 0..4000 {
        put(b"some text that is no JSON, as servers print it when they start\n");
    }
    for byte in MESSAGE {
        put(&[*byte]);
    }
    report.wrote("bytes", w.as_raw_fd(), &written);
}

fn readers(report: &mut Report) {
    let (r, w) = pipe();
    // One byte on these lets a reader read one message, and tells that it has.
    let turns: Vec<_> = (0..2).map(|_| (pipe(), pipe())).collect();
    let mut children = Vec::new();
    for (go, done) in &turns {
        // SAFETY: the child only reads and writes descriptors and leaves.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut buffer = [0; 256];
            for _ in 0..2 {
                rustix::io::read(&go.0, &mut buffer[..1]).unwrap();
                rustix::io::read(&r, &mut buffer).unwrap();
                rustix::io::write(&done.1, b"x").unwrap();
            }
            // SAFETY: leaves without running the parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        children.push(child);
    }
    let mut written = Vec::new();
    for _ in 0..2 {
        for (go, done) in &turns {
            rustix::io::write(&w, MESSAGE).unwrap();
            written.extend_from_slice(MESSAGE);
            rustix::io::write(&go.1, b"x").unwrap();
            rustix::io::read(&done.0, &mut [0; 1]).unwrap();
        }
    }
    for child in children {
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    report.wrote("shared", w.as_raw_fd(), &written);
}

fn fifos() {
    let path = std::env::temp_dir().join(format!("mcpspy-reuse-{}", std::process::id()));
    for _ in 0..FIFOS {
        let fifo = make_fifo(&path);
        rustix::io::write(&fifo, MESSAGE).unwrap();
        rustix::io::read(&fifo, &mut [0; 256]).unwrap();
        drop(fifo);
        std::fs::remove_file(&path).unwrap();
    }
}

fn flood(report: &mut Report) {
    let (r, w) = pipe();
    let mut written = Vec::new();
    let mut put = |n: u32| {
        let message = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"n{n}\"}}\n");
        rustix::io::write(&w, message.as_bytes()).unwrap();
        rustix::io::read(&r, &mut [0; 256]).unwrap();
        written.extend_from_slice(message.as_bytes());
    };
    put(0);
    report.open("kept", w.as_raw_fd());
    go();
    put(1);
    put(2);
    // SAFETY: the child only uses descriptors and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        for _ in 0..20_000 {
            let (r, w) = pipe();
            rustix::io::write(&w, MESSAGE).unwrap();
            rustix::io::read(&r, &mut [0; 256]).unwrap();
        }
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    for n in 3..200 {
        put(n);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    put(200);
    report.wrote("kept", w.as_raw_fd(), &written);
}

fn peek(report: &mut Report, socket: &OwnedFd) {
    let mut buffer = [0u8; 256];
    for flags in [libc::MSG_PEEK, libc::MSG_PEEK, 0] {
        // SAFETY: the buffer is valid for its length.
        let n = unsafe {
            libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags)
        };
        assert_eq!(n, MESSAGE.len() as isize);
    }
    report.wrote("peeked", socket.as_raw_fd(), MESSAGE);
}

fn ignored(report: &mut Report) {
    let (r, w) = pipe();
    let mut buffer = [0; 256];
    let mut put = |bytes: &[u8]| {
        rustix::io::write(&w, bytes).unwrap();
        rustix::io::read(&r, &mut buffer).unwrap();
    };
    put(b"text\n");
    report.open("noise", w.as_raw_fd());
    go();
    put(JUDGED);
    put(b"more text\n");
    put(b"  [ 1, 2 ]\n");
    put(MESSAGE);
    put(b"text\n");
    report.wrote("noise", w.as_raw_fd(), b"");
}

/// Loads the programs and stays until it is killed.
fn monitor(report: &mut Report) -> ! {
    let before: Vec<u32> = program_ids();
    let live = Live::start(&LiveConfig::default()).unwrap();
    let new = program_ids().into_iter().filter(|id| !before.contains(id));
    let ids: Vec<String> = new.map(|id| id.to_string()).collect();
    report.line(&ids.join(" "));
    std::thread::sleep(std::time::Duration::from_secs(60));
    drop(live);
    std::process::exit(0);
}

fn program_ids() -> Vec<u32> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| program.name_as_str().is_some_and(|name| name.starts_with("call_")))
        .map(|program| program.id())
        .collect()
}
