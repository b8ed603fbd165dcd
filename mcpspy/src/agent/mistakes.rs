//! The commonest mistakes around containers: each is one line with its fix, and a section of
//! `docs/troubleshooting.md`. What judges is pure and takes what was read.

use std::fmt;

use crate::inventory::docker::{EngineSummary, Permission, Silent};

/// A reason why less is seen than could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// `/proc` does not show the host's processes.
    NoHostPid,
    /// No engine can be reached, though there should be one; why each that was tried does not answer.
    NoSocket(Vec<String>),
    /// Nobody listens on the socket any more.
    StaleSocket(String),
    /// The kernel's type information is not there.
    NoBtf,
    /// These capabilities are missing.
    MissingCapability(Vec<&'static str>),
    /// These options match none of these containers.
    FilterMatchesNothing { options: Vec<String>, names: Vec<String> },
    /// These options go by what only an engine knows, and none answers.
    FilterWithoutEngine(Vec<String>),
    /// The kernel is that of a virtual machine for containers only.
    VirtualMachine(&'static str),
    /// The engine is a user's.
    Rootless(String),
    /// Control groups do not show the ids of containers.
    HiddenCgroups,
    /// A proxy does not let everything through.
    Refused { endpoint: String, refused: Vec<Permission> },
}

impl Mistake {
    /// Its section in `docs/troubleshooting.md`.
    pub(super) const fn section(&self) -> &'static str {
        match self {
            Self::NoHostPid => "pid namespace",
            Self::NoSocket(_) => "container engine",
            Self::StaleSocket(_) => "stale socket",
            Self::NoBtf => "type information",
            Self::MissingCapability(_) => "capabilities",
            Self::FilterMatchesNothing { .. } | Self::FilterWithoutEngine(_) => "container filter",
            Self::VirtualMachine(_) => "virtual machine",
            Self::Rootless(_) => "rootless engine",
            Self::HiddenCgroups => "cgroup paths",
            Self::Refused { .. } => "proxy of an engine",
        }
    }

    /// What was found.
    pub(super) fn found(&self) -> String {
        match self {
            Self::NoHostPid => "/proc shows another pid namespace than the host's".to_owned(),
            Self::NoSocket(tried) if tried.is_empty() => {
                "no container engine can be reached: there is no socket of one".to_owned()
            }
            Self::NoSocket(tried) => {
                format!("no container engine can be reached ({})", tried.join("; "))
            }
            Self::StaleSocket(endpoint) => {
                format!("nobody listens on {endpoint}, though an engine runs")
            }
            Self::NoBtf => "/sys/kernel/btf/vmlinux is not there".to_owned(),
            Self::MissingCapability(names) => format!("without {}", names.join(", ")),
            Self::FilterMatchesNothing { options, names } => {
                let names = if names.is_empty() {
                    "none runs".to_owned()
                } else {
                    format!("there are {}", names.join(", "))
                };
                format!("no container matches {} ({names})", options.join(" "))
            }
            Self::FilterWithoutEngine(options) => format!(
                "{} can match no container: no engine tells more of it than its id",
                options.join(" ")
            ),
            Self::VirtualMachine(what) => format!("this is the kernel of {what}"),
            Self::Rootless(endpoint) => format!("the engine at {endpoint} runs without root"),
            Self::HiddenCgroups => "control groups do not show the ids of containers".to_owned(),
            Self::Refused { endpoint, refused } => {
                let names: Vec<_> = refused.iter().map(|permission| permission.name()).collect();
                format!("{endpoint} refuses {}", names.join(", "))
            }
        }
    }

    /// What is lost by it.
    pub(super) fn lost(&self) -> String {
        match self {
            Self::NoHostPid => "command lines and executables of processes",
            Self::NoSocket(_) => {
                "names, images and labels of containers: they are known by their ids"
            }
            Self::StaleSocket(_) => "names of containers, unless the engine is reached another way",
            Self::NoBtf => "everything",
            Self::MissingCapability(names) if names.contains(&LOAD) => "everything",
            Self::MissingCapability(_) => "files and executables of other users' processes",
            Self::FilterMatchesNothing { .. } => "everything, until such a container starts",
            Self::FilterWithoutEngine(_) => "all that they are to match, until one answers",
            Self::VirtualMachine(_) => "processes outside of it, such as a client on the desktop",
            Self::Rootless(_) => {
                "nothing, but other users' engines are asked only by their sockets"
            }
            Self::HiddenCgroups => "which container a process is in",
            Self::Refused { refused, .. } => {
                let lost: Vec<_> = refused.iter().map(|permission| without(*permission)).collect();
                return lost.join("; ");
            }
        }
        .to_owned()
    }

    /// What helps.
    pub(super) fn fix(&self) -> String {
        match self {
            Self::NoHostPid => "docker run --pid=host, in a Compose file `pid: host`",
            Self::NoSocket(_) => {
                "mount the directory of its socket (-v /var/run:/var/run:ro), name it by \
                 --docker-host, or use --pid=host with CAP_SYS_PTRACE"
            }
            Self::StaleSocket(_) => {
                "mount the directory (-v /var/run:/var/run:ro), not the socket: an engine that is \
                 restarted makes a new one"
            }
            Self::NoBtf => {
                "a kernel built with CONFIG_DEBUG_INFO_BTF; in a container that hides /sys: -v \
                 /sys/kernel/btf:/sys/kernel/btf:ro"
            }
            Self::MissingCapability(names) => {
                let add: Vec<_> = names.iter().map(|name| cap_add(name)).collect();
                return format!("run as root; in a container: {}", add.join(" "));
            }
            Self::FilterMatchesNothing { .. } => {
                "compare it with the names; it applies as soon as such a container starts"
            }
            Self::FilterWithoutEngine(_) => {
                "let mcpspy reach the engine (--docker-host), or give ids: --container 4f1c2a9be07d"
            }
            Self::VirtualMachine(_) => {
                "run the client in a container too, or mcpspy on the machine that has the client"
            }
            Self::Rootless(_) => {
                "nothing to do; in a container mount its directory below /run/user"
            }
            Self::HiddenCgroups => {
                "share the host's: docker run --cgroupns=host, or mount /sys/fs/cgroup of the host"
            }
            Self::Refused { refused, .. } => {
                let set: Vec<_> = refused.iter().map(|p| format!("{}=1", p.name())).collect();
                return format!("set {} in the proxy", set.join(" "));
            }
        }
        .to_owned()
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; lost: {}; fix: {}", self.found(), self.lost(), self.fix())
    }
}

const fn without(permission: Permission) -> &'static str {
    match permission {
        Permission::Containers => "names of containers",
        Permission::Events => "names of containers that live for less than 5 seconds",
        Permission::Exec => "which `docker exec` started a server",
        Permission::Info => "the name of the engine's host",
        Permission::Version => "the engine's version",
    }
}

/// Either of two, which is why it is no name of one.
const LOAD: &str = "CAP_SYS_ADMIN (or CAP_BPF and CAP_PERFMON)";

fn cap_add(name: &str) -> String {
    let name = name.split(' ').next().unwrap_or(name);
    format!("--cap-add {}", name.trim_start_matches("CAP_"))
}

/// What was read of the surroundings.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each of them is a fact of its own")]
pub(super) struct Surroundings {
    /// Process numbers of the kernel are not those of `/proc`.
    pub(super) foreign_pids: bool,
    /// This process is in a container.
    pub(super) contained: bool,
    /// No engine is to be asked.
    pub(super) disabled: bool,
    /// Effective capabilities, one bit each.
    pub(super) capabilities: Option<u64>,
    /// The kernel's type information is there.
    pub(super) btf: bool,
    /// Release of the kernel.
    pub(super) release: String,
    /// Engines that answer.
    pub(super) engines: Vec<EngineSummary>,
    /// Those that do not.
    pub(super) silent: Vec<Silent>,
    /// Engines run here, whether they answer or not.
    pub(super) daemons: bool,
    /// Control groups of first processes of containers, as `/proc` has them.
    pub(super) cgroups: Vec<String>,
}

/// What may be better.
pub(super) fn judge(around: &Surroundings) -> Vec<Mistake> {
    let mut found = Vec::new();
    if !around.btf {
        found.push(Mistake::NoBtf);
    }
    found.extend(around.capabilities.and_then(missing_capabilities));
    if around.foreign_pids {
        found.push(Mistake::NoHostPid);
    }
    let expected = around.contained || around.daemons || !around.silent.is_empty();
    if around.engines.is_empty() && !around.disabled && expected {
        let tried = around.silent.iter();
        let tried = tried.map(|silent| format!("{}: {}", silent.endpoint, silent.error));
        let stale = around.silent.iter().find(|silent| silent.refused && around.daemons);
        found.push(match stale {
            Some(silent) => Mistake::StaleSocket(silent.endpoint.to_string()),
            None => Mistake::NoSocket(tried.collect()),
        });
    }
    found.extend(virtual_machine(&around.release, &around.engines).map(Mistake::VirtualMachine));
    for engine in &around.engines {
        if !engine.refused.is_empty() {
            let (endpoint, refused) = (engine.endpoint.to_string(), engine.refused.clone());
            found.push(Mistake::Refused { endpoint, refused });
        }
        if is_rootless(engine) {
            found.push(Mistake::Rootless(engine.endpoint.to_string()));
        }
    }
    let shown = around.cgroups.iter().any(|paths| shows_id(paths));
    if !around.foreign_pids && !around.cgroups.is_empty() && !shown {
        found.push(Mistake::HiddenCgroups);
    }
    found
}

fn missing_capabilities(effective: u64) -> Option<Mistake> {
    // Bits as in include/uapi/linux/capability.h.
    let has = |bit: u32| effective >> bit & 1 == 1;
    let (read_search, ptrace, admin, perfmon, bpf) = (has(2), has(19), has(21), has(38), has(39));
    let missing = [
        (admin || bpf && perfmon, LOAD),
        (ptrace, "CAP_SYS_PTRACE"),
        (read_search, "CAP_DAC_READ_SEARCH"),
    ];
    let missing: Vec<_> = missing.iter().filter(|(has, _)| !has).map(|&(_, name)| name).collect();
    (!missing.is_empty()).then_some(Mistake::MissingCapability(missing))
}

/// Virtual machines that exist for containers: the desktop around them has another kernel.
fn virtual_machine(release: &str, engines: &[EngineSummary]) -> Option<&'static str> {
    let desktop = engines.iter().any(|engine| {
        engine.host.as_deref() == Some("docker-desktop") || engine.system == "Docker Desktop"
    });
    if desktop || release.contains("linuxkit") {
        return Some("Docker Desktop's virtual machine");
    }
    release.to_ascii_lowercase().contains("microsoft").then_some("WSL 2's virtual machine")
}

fn is_rootless(engine: &EngineSummary) -> bool {
    engine.rootless || engine.endpoint.starts_with("unix:///run/user/")
}

/// Whether there is an id of 64 digits in the paths. Relative ones have it too.
fn shows_id(paths: &str) -> bool {
    paths.split(|letter: char| !letter.is_ascii_hexdigit()).any(|part| part.len() == 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u64 = !0;

    fn well() -> Surroundings {
        Surroundings {
            capabilities: Some(ROOT),
            btf: true,
            release: "6.1.0-18-amd64".to_owned(),
            ..Surroundings::default()
        }
    }

    fn engine(endpoint: &str) -> EngineSummary {
        EngineSummary {
            endpoint: endpoint.into(),
            runtime: "docker".into(),
            version: "27.0".to_owned(),
            host: Some("box".into()),
            system: "Debian".to_owned(),
            rootless: false,
            refused: Vec::new(),
            containers: 1,
        }
    }

    fn silent(refused: bool) -> Silent {
        Silent { endpoint: "unix:///var/run/docker.sock".into(), error: String::new(), refused }
    }

    fn sections(around: &Surroundings) -> Vec<&'static str> {
        judge(around).iter().map(Mistake::section).collect()
    }

    #[test]
    fn nothing_is_wrong_with_a_plain_host() {
        assert_eq!(judge(&well()), []);
        let engines = vec![engine("unix:///var/run/docker.sock")];
        assert_eq!(judge(&Surroundings { engines, daemons: true, ..well() }), []);
        assert_eq!(judge(&Surroundings { disabled: true, daemons: true, ..well() }), []);
    }

    #[test]
    fn each_mistake_is_noticed() {
        let id = "0".repeat(64);
        let private = vec![format!("0::/../{id}\n")];
        for (around, section) in [
            (Surroundings { foreign_pids: true, ..well() }, "pid namespace"),
            (Surroundings { contained: true, ..well() }, "container engine"),
            (Surroundings { daemons: true, ..well() }, "container engine"),
            (Surroundings { daemons: true, silent: vec![silent(true)], ..well() }, "stale socket"),
            (
                Surroundings { contained: true, silent: vec![silent(true)], ..well() },
                "container engine",
            ),
            (Surroundings { btf: false, ..well() }, "type information"),
            (Surroundings { capabilities: Some(0), ..well() }, "capabilities"),
            (Surroundings { release: "6.6.31-linuxkit".to_owned(), ..well() }, "virtual machine"),
            (
                Surroundings { release: "5.15.153.1-microsoft-standard-WSL2".into(), ..well() },
                "virtual machine",
            ),
            (
                Surroundings {
                    engines: vec![EngineSummary {
                        host: Some("docker-desktop".into()),
                        ..engine("unix:///var/run/docker.sock")
                    }],
                    ..well()
                },
                "virtual machine",
            ),
            (
                Surroundings {
                    engines: vec![engine("unix:///run/user/1000/docker.sock")],
                    ..well()
                },
                "rootless engine",
            ),
            (
                Surroundings {
                    engines: vec![EngineSummary { rootless: true, ..engine("tcp://x:1") }],
                    ..well()
                },
                "rootless engine",
            ),
            (Surroundings { cgroups: vec!["0::/\n".to_owned()], ..well() }, "cgroup paths"),
            (
                Surroundings {
                    engines: vec![EngineSummary {
                        refused: vec![Permission::Events],
                        ..engine("tcp://proxy:2375")
                    }],
                    ..well()
                },
                "proxy of an engine",
            ),
        ] {
            assert_eq!(sections(&around), [section], "{around:?}");
        }
        assert_eq!(sections(&Surroundings { cgroups: private, ..well() }), [""; 0]);
    }

    #[test]
    fn capabilities_are_named() {
        let missing = |bits: &[u32]| {
            let effective = bits.iter().fold(0, |all, bit| all | 1 << bit);
            missing_capabilities(effective).map(|mistake| mistake.fix())
        };
        assert_eq!(missing(&[2, 19, 21]), None);
        assert_eq!(missing(&[2, 19, 38, 39]), None);
        let fix = missing(&[2, 21]).expect("a mistake");
        assert_eq!(fix, "run as root; in a container: --cap-add SYS_PTRACE");
        let fix = missing(&[38]).expect("a mistake");
        assert!(
            fix.ends_with("--cap-add SYS_ADMIN --cap-add SYS_PTRACE --cap-add DAC_READ_SEARCH")
        );
    }

    #[test]
    fn each_has_its_section_one_line_and_a_fix() {
        let page = include_str!("../../../docs/troubleshooting.md");
        for mistake in [
            Mistake::NoHostPid,
            Mistake::NoSocket(vec!["unix:///x: no such file".to_owned()]),
            Mistake::StaleSocket("unix:///var/run/docker.sock".to_owned()),
            Mistake::NoBtf,
            Mistake::MissingCapability(vec![LOAD]),
            Mistake::FilterMatchesNothing {
                options: vec!["--service shp".to_owned()],
                names: vec!["shop".to_owned()],
            },
            Mistake::FilterWithoutEngine(vec!["--opt-in".to_owned()]),
            Mistake::VirtualMachine("Docker Desktop's virtual machine"),
            Mistake::Rootless("unix:///run/user/1000/docker.sock".to_owned()),
            Mistake::HiddenCgroups,
            Mistake::Refused {
                endpoint: "tcp://proxy:2375".to_owned(),
                refused: vec![Permission::Events, Permission::Exec],
            },
        ] {
            let section = mistake.section();
            assert!(page.contains(&format!("\n### {section}\n")), "{section}");
            let line = mistake.to_string();
            assert!(!line.contains('\n') && !mistake.fix().is_empty(), "{line}");
        }
    }
}
