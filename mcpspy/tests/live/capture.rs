//! Runs a traffic process under the kernel side and collects what is seen of it.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mcpspy::model::{
    Command, Data, Direction, Input, KernelCounters, Record, RecordBody, StreamKey, StreamTotal,
    Verdict,
};
use mcpspy::source::Source as _;
use mcpspy::source::live::{BackendChoice, Live, LiveConfig, LiveError, kernel_dev};

use crate::traffic;

/// How a traffic process is watched.
#[expect(clippy::struct_excessive_bools, reason = "each is a way to watch, of its own")]
pub(crate) struct Options {
    pub(crate) scenario: &'static str,
    pub(crate) backend: BackendChoice,
    /// Stream that is kept, or ignored, once the traffic names it.
    pub(crate) keep: Option<&'static str>,
    pub(crate) ignore: Option<&'static str>,
    /// Watch all processes and not only the traffic's tree.
    pub(crate) whole_host: bool,
    /// Write JSON to a pipe of this process meanwhile.
    pub(crate) own_traffic: bool,
    pub(crate) ring_bytes: u32,
    /// Rule out a pipe of this process.
    pub(crate) never: bool,
    /// Start the traffic before the monitor.
    pub(crate) early: bool,
    /// Leave out the cgroup that the traffic names `cgroup`, until it says `unmute`.
    pub(crate) mute: bool,
}

impl Options {
    pub(crate) fn of(scenario: &'static str) -> Self {
        Self {
            scenario,
            backend: BackendChoice::Auto,
            keep: None,
            ignore: None,
            whole_host: false,
            own_traffic: false,
            ring_bytes: LiveConfig::default().ring_bytes,
            never: false,
            early: false,
            mute: false,
        }
    }
}

/// A stream as the traffic says it wrote it.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) ino: u64,
    pub(crate) bytes: Vec<u8>,
}

/// What was seen.
pub(crate) struct Capture {
    pub(crate) pid: u32,
    pub(crate) kernel_pid: u32,
    pub(crate) records: Vec<Record>,
    pub(crate) expected: Vec<Expected>,
    pub(crate) counters: KernelCounters,
    pub(crate) totals: Vec<StreamTotal>,
    pub(crate) malformed: u64,
    pub(crate) never: Option<u64>,
    /// Numbers that the traffic told, by name.
    pub(crate) told: Vec<(String, u64)>,
}

impl Capture {
    pub(crate) fn data<'a>(
        &'a self,
        stream: &'a Expected,
        direction: Direction,
    ) -> impl Iterator<Item = (&'a Record, &'a Data)> {
        self.records.iter().filter_map(move |record| match &record.body {
            RecordBody::Data(data)
                if data.stream.ino == stream.ino && data.stream.direction == direction =>
            {
                Some((record, data))
            }
            _ => None,
        })
    }

    /// A number that the traffic told.
    pub(crate) fn told(&self, name: &str) -> u64 {
        self.told.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub(crate) fn stream(&self, name: &str) -> &Expected {
        self.expected.iter().find(|stream| stream.name == name).unwrap()
    }

    /// Bytes read from a stream that were copied there, with the position of the first.
    pub(crate) fn read(&self, ino: u64) -> (u64, Vec<u8>) {
        let mut start = None;
        let mut bytes = Vec::new();
        for record in &self.records {
            let RecordBody::Data(data) = &record.body else { continue };
            if data.written() || data.stream.id().ino != ino {
                continue;
            }
            assert!(data.reader_copy);
            let from = *start.get_or_insert(data.offset);
            assert_eq!(data.offset, from + bytes.len() as u64, "a hole");
            assert!(!record.task.relay);
            bytes.extend_from_slice(&data.bytes);
        }
        (start.unwrap_or_default(), bytes)
    }

    /// Bytes written to a stream; panics at a hole.
    pub(crate) fn written(&self, stream: &Expected) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, data) in self.data(stream, Direction::Write) {
            assert_eq!(data.offset, bytes.len() as u64, "{}: a hole", stream.name);
            assert_eq!(data.skipped, 0, "{}: ruled out", stream.name);
            bytes.extend_from_slice(&data.bytes);
        }
        bytes
    }

    pub(crate) fn reader_copies(&self, stream: &Expected) -> usize {
        self.records
            .iter()
            .filter(|r| match &r.body {
                RecordBody::Data(d) => d.reader_copy && d.stream.id().ino == stream.ino,
                _ => false,
            })
            .count()
    }

    /// Process and position of each endpoint record of a stream.
    pub(crate) fn endpoints(&self, stream: &Expected, direction: Direction) -> Vec<(u32, u64)> {
        self.records
            .iter()
            .filter_map(|r| match r.body {
                RecordBody::Endpoint(fact)
                    if fact.stream.id().ino == stream.ino && fact.stream.direction == direction =>
                {
                    Some((r.task.process.pid, fact.offset))
                }
                _ => None,
            })
            .collect()
    }
}

/// One capture at a time: two cores.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

static NOT_BUILT: OnceLock<bool> = OnceLock::new();

/// Whether this machine lacks what the test needs; says so.
pub(crate) fn skip() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return true;
    }
    let start = || matches!(Live::start(&LiveConfig::default()), Err(LiveError::NotBuilt));
    if *NOT_BUILT.get_or_init(start) {
        println!("skipped: built without kernel programs");
        return true;
    }
    false
}

pub(crate) fn backends() -> [BackendChoice; 2] {
    [BackendChoice::TpBtf, BackendChoice::RawTp]
}

/// Runs a scenario; `None` where it cannot be run here.
pub(crate) fn capture(options: &Options) -> Option<Capture> {
    if skip() {
        return None;
    }
    let _turn = turn();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let stat = rustix::fs::fstat(writer.as_fd()).unwrap();
    let config = LiveConfig {
        backend: options.backend,
        watch_tree: !options.whole_host,
        ring_bytes: options.ring_bytes,
        never: vec![(kernel_dev(stat.st_dev), stat.st_ino)],
        container_filter: options.mute,
        ..LiveConfig::default()
    };
    let early = options.early.then(|| {
        let traffic = traffic::spawn(options.scenario);
        wait_for(&traffic.1, "ready");
        traffic
    });
    let mut live = Live::start(&config).unwrap();
    let mut drain = live.take_drain().unwrap();
    let control = live.control();
    let records = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&records);
    let thread = std::thread::spawn(move || {
        drain
            .run(&mut |batch| {
                let batch = batch.into_iter().filter_map(|input| match input {
                    Input::Record(record) => Some(record),
                    _ => None,
                });
                sink.lock().unwrap().extend(batch);
                ControlFlow::Continue(())
            })
            .unwrap();
    });
    let (mut child, report) = early.unwrap_or_else(|| traffic::spawn(options.scenario));
    let pid = child.id();
    wait_for(&report, "ready");
    if !options.whole_host {
        live.watch(pid).unwrap();
    }
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"\n").unwrap();
    if let Some((name, verdict)) = options
        .keep
        .map(|name| (name, Verdict::Keep))
        .or(options.ignore.map(|name| (name, Verdict::Ignore)))
    {
        let stream = wait_for(&report, name);
        let key =
            StreamKey { dev: kernel_dev(stat.st_dev), ino: stream, direction: Direction::Write };
        control.apply(&Command::Verdict(key, verdict)).unwrap();
        input.write_all(b"\n").unwrap();
    }
    if options.mute {
        let id = wait_for(&report, "cgroup");
        if id == 0 {
            println!("skipped: no cgroup v2 tree that may be changed");
            child.wait().unwrap();
            return None;
        }
        control.apply(&Command::Cgroup { id, copy: false }).unwrap();
        input.write_all(b"\n").unwrap();
        wait_for(&report, "unmute");
        control.apply(&Command::Cgroup { id, copy: true }).unwrap();
        input.write_all(b"\n").unwrap();
    }
    if options.own_traffic || options.never {
        rustix::io::write(&writer, b"{\"own\":1}\n").unwrap();
        rustix::io::read(&reader, &mut [0; 64]).unwrap();
    }
    let status = child.wait().unwrap();
    // What the kernel wrote is in the ring by now; the exit record follows at once.
    std::thread::sleep(Duration::from_millis(20));
    control.stop();
    thread.join().unwrap();
    let text = std::fs::read_to_string(&report).unwrap();
    std::fs::remove_file(&report).unwrap();
    assert!(status.success(), "the traffic failed: {text}");
    let records = std::mem::take(&mut *records.lock().unwrap());
    Some(Capture {
        pid,
        kernel_pid: live.kernel_pid(),
        records,
        expected: traffic::parse(&text),
        counters: control.counters().unwrap(),
        totals: control.stream_totals(),
        malformed: control.malformed(),
        never: Some(stat.st_ino),
        told: told(&text),
    })
}

fn told(report: &str) -> Vec<(String, u64)> {
    report
        .lines()
        .filter_map(|line| line.strip_prefix("open ")?.split_once(' '))
        .map(|(name, number)| (name.to_owned(), number.parse().unwrap()))
        .collect()
}

/// Waits until the traffic names a stream; returns its inode.
fn wait_for(report: &std::path::Path, name: &str) -> u64 {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(report).unwrap_or_default();
        let found = text.lines().find_map(|line| {
            let mut words = line.split(' ');
            (words.next() == Some("open") && words.next() == Some(name))
                .then(|| words.next().unwrap().parse().unwrap())
        });
        if let Some(ino) = found {
            return ino;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no stream {name}: {text}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
