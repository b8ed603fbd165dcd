//! Loads the programs with this kernel's positions, attaches them, and makes them know this
//! process.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use mcpspy_common::config::{
    CAST_MARK, Offsets, Settings, StreamKey as RawKey, class, verdict, window,
};
use mcpspy_common::names::{
    GLOBAL_OFFSETS, GLOBAL_SETTINGS, GLOBAL_SYSCALLS, MAP_COUNTERS, MAP_EVENTS, MAP_KEPT,
    MAP_MUTED, MAP_RELAY_NAMES, MAP_RELAYS, MAP_SCRATCH, MAP_STREAMS, MAP_TREE, MAP_VERDICTS,
};
use mcpspy_common::record::direction;
use mcpspy_common::relay::{NAMES, NameKey};
use zerocopy::IntoBytes;

use super::btf::{Btf, BtfError};
use super::calls::Arch;
use super::control::{Control, Maps, Shared, bytes};
use super::drain::Drain;
use super::probes::{CALLS, PROBES};
use super::relays;
use super::{Backend, BackendChoice, Live, LiveConfig, LiveError, kernel_dev};

/// Where the kernel shows its type information.
pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Scratch buffers beyond one per CPU, for programs that are preempted while they hold one.
const SPARE_SCRATCH: u32 = 2;

/// Cgroups that a filter may leave out at once.
const MUTED_CGROUPS: u32 = 16384;

/// Lines of the verifier's log that are shown.
const LOG_LINES: usize = 20;

/// The kernel programs, empty where they were not built.
#[cfg(not(mcpspy_no_bpf))]
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mcpspy-ebpf"));
#[cfg(mcpspy_no_bpf)]
static OBJECT: &[u8] = &[];

/// Whether the kernel programs are part of this binary.
pub(super) const fn built() -> bool {
    !OBJECT.is_empty()
}

/// What the kernel says of itself; dropped once the programs are loaded, because the two parsed
/// copies take some 20 MB.
pub(super) struct Kernel {
    arch: &'static Arch,
    offsets: Offsets,
    compat_mask: u32,
    pub(super) has_loop: bool,
    /// Names of cgroups can be read.
    pub(super) has_cgroup_names: bool,
    /// `None` before 6.2.
    cast: Option<Cast>,
    btf: aya::Btf,
    pipe_dev: u32,
    socket_dev: u32,
}

impl Kernel {
    /// Reads positions from the type information.
    pub(super) fn read() -> Result<Self, LiveError> {
        let arch = Arch::current().ok_or(LiveError::Architecture(std::env::consts::ARCH))?;
        let no_btf = |error| LiveError::NoBtf { path: BTF_PATH, error };
        let data = std::fs::read(BTF_PATH).map_err(no_btf)?;
        let btf = aya::Btf::parse(&data, aya::Endianness::default())
            .map_err(|error| no_btf(std::io::Error::other(error)))?;
        let own = Btf::parse(data)?;
        let (task_compat, compat_mask) = arch.compat(&own)?;
        let mut offsets = Offsets { task_compat, ..offsets(&own, arch)? };
        let cgroup_names = cgroup_names(&own);
        if let Ok([node_name, node_parent]) = cgroup_names {
            offsets = Offsets { node_name, node_parent, ..offsets };
        }
        let has_loop = own.constant("bpf_func_id", "BPF_FUNC_loop").is_some();
        let (reader, _writer) = rustix::pipe::pipe().map_err(LiveError::system("pipe"))?;
        let (socket, _other) = std::os::unix::net::UnixStream::pair()
            .map_err(|error| LiveError::System { what: "socketpair", error })?;
        let dev = |fd: &dyn AsFd| -> Result<u32, LiveError> {
            let stat = rustix::fs::fstat(fd.as_fd()).map_err(LiveError::system("fstat"))?;
            Ok(kernel_dev(stat.st_dev))
        };
        Ok(Self {
            arch,
            offsets,
            compat_mask,
            has_loop,
            has_cgroup_names: cgroup_names.is_ok(),
            cast: Cast::of(&own),
            btf,
            pipe_dev: dev(&reader)?,
            socket_dev: dev(&socket)?,
        })
    }
}

/// The kernel's function that lets a program read any kernel memory by plain loads.
#[derive(Clone, Copy)]
struct Cast {
    /// Numbers in the type information: of `bpf_rdonly_cast`, and of a structure that begins with a
    /// number of 64 bits.
    function: u32,
    number_type: u32,
}

impl Cast {
    fn of(btf: &Btf) -> Option<Self> {
        Some(Self {
            function: btf.function("bpf_rdonly_cast")?,
            number_type: btf.structure("timespec64")?,
        })
    }

    /// The object with calls of this function in place of those marked [`CAST_MARK`].
    fn put_into(self, object: &[u8]) -> Vec<u64> {
        const WORD: usize = size_of::<u64>();
        // A call of a helper, and of a function that the type information of the kernel names
        // (`BPF_PSEUDO_KFUNC_CALL` as the source register).
        let instruction = |registers: u8, number: u32| {
            let [a, b, c, d] = number.to_ne_bytes();
            u64::from_ne_bytes([0x85, registers, 0, 0, a, b, c, d])
        };
        let marked = instruction(0, CAST_MARK);
        let patched = instruction(0x20, self.function);
        object
            .chunks(WORD)
            .map(|chunk| {
                let mut bytes = [0; WORD];
                bytes[..chunk.len()].copy_from_slice(chunk);
                let word = u64::from_ne_bytes(bytes);
                if word == marked { patched } else { word }
            })
            .collect()
    }
}

fn offsets(btf: &Btf, arch: &Arch) -> Result<Offsets, BtfError> {
    let [regs_nr, regs_arg0, regs_arg1, regs_arg2, regs_arg3] = arch.registers(btf)?;
    let task = |member| btf.offset("task_struct", member);
    let file = Window::over([btf.offset("file", "f_op")?, btf.offset("file", "f_inode")?]);
    let inode = Window::over([btf.offset("inode", "i_sb")?, btf.offset("inode", "i_ino")?]);
    let inode_in_alloc = btf.offset("socket_alloc", "vfs_inode")?;
    let socket_in_alloc = btf.offset("socket_alloc", "socket")?;
    Ok(Offsets {
        regs_nr,
        regs_arg0,
        regs_arg1,
        regs_arg2,
        regs_arg3,
        task_compat: 0,
        task_pid: task("pid")?,
        task_tgid: task("tgid")?,
        task_start_boottime: task("start_boottime")?,
        task_group_leader: task("group_leader")?,
        task_real_parent: task("real_parent")?,
        task_cred: task("cred")?,
        task_comm: task("comm")?,
        task_files: task("files")?,
        task_signal: task("signal")?,
        task_exit_code: task("exit_code")?,
        cred_euid: btf.offset("cred", "euid")?,
        signal_live: btf.offset("signal_struct", "live")?,
        files_fdt: btf.offset("files_struct", "fdt")?,
        fdt_max_fds: btf.offset("fdtable", "max_fds")?,
        fdt_fd: btf.offset("fdtable", "fd")?,
        file_window: file.start,
        file_size: file.size,
        file_op: file.members[0],
        file_inode: file.members[1],
        inode_window: inode.start,
        inode_size: inode.size,
        window_sb: inode.members[0],
        window_ino: inode.members[1],
        inode_mode: btf.offset("inode", "i_mode")?,
        inode_ino: btf.offset("inode", "i_ino")?,
        inode_generation: btf.offset("inode", "i_generation")?,
        super_dev: btf.offset("super_block", "s_dev")?,
        socket_to_inode: inode_in_alloc
            .checked_sub(socket_in_alloc)
            .ok_or_else(|| BtfError::NoMember("socket_alloc".into(), "vfs_inode".into()))?,
        socket_type: btf.offset("socket", "type")?,
        socket_ops: btf.offset("socket", "ops")?,
        socket_sk: btf.offset("socket", "sk")?,
        sock_family: btf.offset("sock", "__sk_common.skc_family")?,
        sock_socket: btf.offset("sock", "sk_socket")?,
        unix_peer: btf.offset("unix_sock", "peer")?,
        task_mm: task("mm")?,
        mm_exe_file: btf.offset("mm_struct", "exe_file")?,
        file_dentry: btf.offset("file", "f_path.dentry")?,
        dentry_name: btf.offset("dentry", "d_name.name")?,
        node_name: 0,
        node_parent: 0,
        task_cgroups: task("cgroups")?,
        css_set_default: btf.offset("css_set", "dfl_cgrp")?,
        cgroup_node: btf.offset("cgroup", "kn")?,
        node_id: btf.offset("kernfs_node", "id")?,
    })
}

/// From a cgroup to its name and to the one above it.
fn cgroup_names(btf: &Btf) -> Result<[u32; 2], BtfError> {
    Ok([
        btf.offset("kernfs_node", "name")?,
        // Renamed in 6.15.
        btf.offset("kernfs_node", "__parent").or_else(|_| btf.offset("kernfs_node", "parent"))?,
    ])
}

/// A part of a structure that holds two members of eight bytes.
struct Window {
    start: u32,
    size: u32,
    /// Their positions within it.
    members: [u32; 2],
}

impl Window {
    fn over(members: [u32; 2]) -> Self {
        let start = members[0].min(members[1]);
        let size = members[0].max(members[1]) + 8 - start;
        if size as usize > window::SIZE {
            return Self { start: 0, size: 0, members };
        }
        Self { start, size, members: members.map(|member| member - start) }
    }
}

/// How the programs are tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) backend: Backend,
    pub(super) reads: Reads,
}

/// How kernel memory is read, the cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// All of it by plain loads.
    Cast,
    /// Structures that the verifier knows the type of by plain loads, the rest by a helper.
    Typed,
    /// All of it by a helper.
    Helper,
}

impl Reads {
    pub(super) const ALL: [Self; 3] = [Self::Cast, Self::Typed, Self::Helper];
}

/// Loads, attaches, tells the programs who this process is.
pub(super) fn start(config: &LiveConfig) -> Result<Live, LiveError> {
    if !built() {
        return Err(LiveError::NotBuilt);
    }
    let backends: &[Backend] = match config.backend {
        BackendChoice::Auto => &[Backend::TpBtf, Backend::RawTp],
        BackendChoice::TpBtf => &[Backend::TpBtf],
        BackendChoice::RawTp => &[Backend::RawTp],
        BackendChoice::Fexit => return Err(LiveError::NoFexit),
    };
    let kernel = Kernel::read()?;
    let mut refusals = Vec::new();
    let mut denied = true;
    let attempts = backends
        .iter()
        .flat_map(|&backend| Reads::ALL.map(|reads| Attempt { backend, reads }))
        .filter(|attempt| attempt.reads != Reads::Cast || kernel.cast.is_some());
    for attempt in attempts {
        match load(&kernel, attempt, config) {
            Ok(ebpf) => return finish(ebpf, attempt.backend, config),
            Err(Refusal::Other(error)) => return Err(error),
            Err(Refusal::Program { hook, error, denied: by_permission }) => {
                denied &= by_permission;
                let how = match attempt.reads {
                    Reads::Cast => "",
                    Reads::Typed => ", without casts",
                    Reads::Helper => ", without plain loads",
                };
                refusals.push(format!("{} at {hook}{how}: {error}", attempt.backend.name()));
            }
        }
    }
    if denied {
        return Err(LiveError::Permission);
    }
    Err(LiveError::Refused(refusals.join("\n")))
}

/// Why an attempt failed.
pub(super) enum Refusal {
    /// The kernel refused a program: the next backend may load.
    Program { hook: &'static str, error: String, denied: bool },
    /// No other attempt would go better.
    Other(LiveError),
}

impl<E: Into<LiveError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Loads and attaches all programs of a backend but the one that looks at calls, which is only
/// loaded.
pub(super) fn load(
    kernel: &Kernel,
    attempt: Attempt,
    config: &LiveConfig,
) -> Result<Ebpf, Refusal> {
    let scratch = scratch_slots();
    let ring = ring_size(config);
    let cast = kernel.cast.filter(|_| attempt.reads == Reads::Cast);
    let settings = Settings {
        compat_mask: kernel.compat_mask,
        pipe_dev: kernel.pipe_dev,
        socket_dev: kernel.socket_dev,
        tree: u32::from(config.watch_tree),
        has_loop: u32::from(kernel.has_loop),
        direct: u32::from(attempt.reads != Reads::Helper),
        scratch,
        wake_bytes: ring / 8,
        cgroup_filter: u32::from(config.container_filter),
        cgroup_names: u32::from(kernel.has_cgroup_names),
        // With all CPUs together at most half as much again.
        ask_bytes: ring / 16 / scratch,
        number_type: cast.map_or(0, |cast| cast.number_type),
    };
    let object = cast.map(|cast| cast.put_into(OBJECT));
    let table: [u8; class::TABLE] = kernel.arch.table();
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&kernel.btf))
        .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
        .override_global(GLOBAL_OFFSETS, kernel.offsets.as_bytes(), true)
        .override_global(GLOBAL_SETTINGS, settings.as_bytes(), true)
        .override_global(GLOBAL_SYSCALLS, &table[..], true)
        .map_max_entries(MAP_EVENTS, ring)
        .map_max_entries(MAP_SCRATCH, scratch)
        .map_max_entries(MAP_RELAY_NAMES, relay_names(config))
        .map_max_entries(MAP_MUTED, if config.container_filter { MUTED_CGROUPS } else { 1 })
        .load(object.as_deref().map_or(OBJECT, |words| words.as_bytes()))
        .map_err(object_error)?;
    for probe in &PROBES {
        let name = probe.program(attempt.backend);
        let loaded = match ebpf.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.load(probe.hook, &kernel.btf),
            Some(Program::RawTracePoint(program)) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        if let Err(error) = loaded {
            if !probe.required {
                tracing::warn!(hook = probe.hook, lost = probe.lost, "optional hook refused");
                continue;
            }
            return Err(refusal(probe.hook, &error));
        }
    }
    Ok(ebpf)
}

/// Entries for the names of relays: the known ones, the prefix, and those of the configuration.
fn relay_names(config: &LiveConfig) -> u32 {
    u32::try_from(NAMES.len() + 1 + config.relays.len()).unwrap_or(u32::MAX)
}

/// The kernel takes only powers of two, of a page at least.
fn ring_size(config: &LiveConfig) -> u32 {
    config.ring_bytes.max(1 << 16).checked_next_power_of_two().unwrap_or(1 << 31)
}

/// Possible CPUs, which may be more than there are now, and some to spare.
fn scratch_slots() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    u32::try_from(cpus).unwrap_or(1) + SPARE_SCRATCH
}

fn object_error(error: EbpfError) -> LiveError {
    match error {
        EbpfError::MapError(aya::maps::MapError::CreateError { io_error, .. })
            if io_error.kind() == ErrorKind::PermissionDenied =>
        {
            LiveError::Permission
        }
        EbpfError::MapError(error) => LiveError::Map(error),
        other => LiveError::Object(Box::new(other)),
    }
}

fn refusal(hook: &'static str, error: &ProgramError) -> Refusal {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let tail = log.lines().rev().take(LOG_LINES).collect::<Vec<_>>();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        // EACCES is also what the verifier says; then there is a log.
        let denied = tail.is_empty() && io_error.raw_os_error() == Some(1);
        let error = if tail.is_empty() {
            io_error.to_string()
        } else {
            format!("{io_error}\n  {}", tail.join("\n  "))
        };
        return Refusal::Program { hook, error, denied };
    }
    Refusal::Program { hook, error: error.to_string(), denied: false }
}

/// Attaches the loaded programs of the hooks that `which` takes.
fn attach(
    ebpf: &mut Ebpf,
    backend: Backend,
    which: impl Fn(&str) -> bool,
) -> Result<(), LiveError> {
    for probe in PROBES.iter().filter(|probe| which(probe.hook)) {
        let done = match ebpf.program_mut(probe.program(backend)) {
            Some(Program::BtfTracePoint(program)) => attach_tp(program),
            Some(Program::RawTracePoint(program)) => attach_raw(program, probe.hook),
            _ => Ok(()),
        };
        match done {
            Ok(()) => {}
            Err(error) if probe.required => {
                return Err(LiveError::Refused(format!(
                    "{} at {}: {error}",
                    backend.name(),
                    probe.hook
                )));
            }
            Err(error) => {
                tracing::warn!(hook = probe.hook, lost = probe.lost, %error, "not attached");
            }
        }
    }
    Ok(())
}

fn attach_tp(program: &mut BtfTracePoint) -> Result<(), ProgramError> {
    if program.fd().is_ok() {
        program.attach()?;
    }
    Ok(())
}

fn attach_raw(program: &mut RawTracePoint, hook: &str) -> Result<(), ProgramError> {
    if program.fd().is_ok() {
        program.attach(hook)?;
    }
    Ok(())
}

fn finish(mut ebpf: Ebpf, backend: Backend, config: &LiveConfig) -> Result<Live, LiveError> {
    let mut maps = Maps {
        streams: HashMap::try_from(take(&mut ebpf, MAP_STREAMS)?)?,
        kept: HashMap::try_from(take(&mut ebpf, MAP_KEPT)?)?,
        verdicts: HashMap::try_from(take(&mut ebpf, MAP_VERDICTS)?)?,
        tree: HashMap::try_from(take(&mut ebpf, MAP_TREE)?)?,
        counters: PerCpuArray::try_from(take(&mut ebpf, MAP_COUNTERS)?)?,
        muted: if config.container_filter {
            Some(HashMap::try_from(take(&mut ebpf, MAP_MUTED)?)?)
        } else {
            None
        },
    };
    let mut running = HashMap::try_from(take(&mut ebpf, MAP_RELAYS)?)?;
    let names = relays::Names::new(&config.relays);
    let mut map = HashMap::<_, NameKey, u32>::try_from(take(&mut ebpf, MAP_RELAY_NAMES)?)?;
    for (name, value) in names.entries() {
        map.insert(name, value, 0)?;
    }
    let ring = RingBuf::try_from(take(&mut ebpf, MAP_EVENTS)?)?;
    for &(dev, ino) in &config.never {
        for direction in [direction::WRITE, direction::READ] {
            let key = RawKey { ino, dev, direction: u32::from(direction) };
            maps.verdicts.insert(bytes(&key), verdict::NEVER, 0)?;
        }
    }
    let programs = PROBES
        .iter()
        .filter_map(|probe| {
            let name = probe.program(backend);
            Some((name, duplicate(ebpf.program(name)?)?))
        })
        .collect();
    let shared = Arc::new(Shared::default());
    let control = Control::new(maps, Arc::clone(&shared), programs);
    let drain = Drain::new(ring, ring_size(config) as usize, shared)?;
    let mark = Mark::new(&control)?;
    if config.watch_tree {
        // Otherwise the mark itself would be left out.
        control.watch(std::process::id())?;
    }
    attach(&mut ebpf, backend, |hook| hook != CALLS)?;
    relays::fill(&mut running, &names)?;
    attach(&mut ebpf, backend, |hook| hook == CALLS)?;
    let seen_pid = mark.write(&control)?;
    Ok(Live { _ebpf: ebpf, backend, control, drain: Some(drain), seen_pid })
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LiveError> {
    ebpf.take_map(name)
        .ok_or_else(|| LiveError::Map(aya::maps::MapError::InvalidName { name: name.to_owned() }))
}

fn duplicate(program: &Program) -> Option<OwnedFd> {
    program.fd().ok()?.as_fd().try_clone_to_owned().ok()
}

/// A pipe on which this process writes one byte, so that the programs learn its number: in a pid
/// namespace of its own, [`std::process::id`] is not what the kernel counts by.
pub(super) struct Mark {
    writer: OwnedFd,
    socket: OwnedFd,
    /// Open for as long as something is written to them.
    _others: [OwnedFd; 2],
    key: RawKey,
    socket_key: RawKey,
}

impl Mark {
    /// Marks the pipe; before the programs are attached.
    pub(super) fn new(control: &Control) -> Result<Self, LiveError> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(LiveError::system("pipe"))?;
        let key = write_key(&writer)?;
        control.set_verdict(&key, verdict::SELF_MARK)?;
        let (socket, other) = std::os::unix::net::UnixStream::pair()
            .map_err(|error| LiveError::System { what: "socketpair", error })?;
        let socket_key = write_key(&socket)?;
        control.set_verdict(&socket_key, verdict::NEVER)?;
        let others = [reader, other.into()];
        Ok(Self { writer, socket: socket.into(), _others: others, key, socket_key })
    }

    /// Writes the byte; returns this process's number as the kernel counts. From a byte on a
    /// socket, before that, the kernel learns what Unix sockets look like.
    pub(super) fn write(&self, control: &Control) -> Result<u32, LiveError> {
        rustix::io::write(&self.socket, b"\n").map_err(LiveError::system("write"))?;
        rustix::io::write(&self.writer, b"{").map_err(LiveError::system("write"))?;
        let seen = control.entry(&self.key).map_or(0, |entry| entry.pid);
        control.clear_verdict(&self.key)?;
        control.clear_verdict(&self.socket_key)?;
        if seen == 0 { Err(LiveError::Blind) } else { Ok(seen) }
    }
}

fn write_key(fd: &impl AsFd) -> Result<RawKey, LiveError> {
    let stat = rustix::fs::fstat(fd).map_err(LiveError::system("fstat"))?;
    Ok(RawKey {
        ino: stat.st_ino,
        dev: kernel_dev(stat.st_dev),
        direction: u32::from(direction::WRITE),
    })
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
