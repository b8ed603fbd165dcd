//! Where an engine may be reached.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One way to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As people write it: `unix:///var/run/docker.sock`.
    pub(super) name: Arc<str>,
    pub(super) address: Address,
    /// The engine's process, where its socket was found through it.
    pub(super) process: Option<u32>,
}

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host and port: a proxy in front of an engine.
    Http(String),
}

impl Endpoint {
    /// Reads an address as `DOCKER_HOST` has it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let address = match text.split_once("://") {
            None if text.starts_with('/') => Address::Unix(text.into()),
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(path.into()),
            Some(("tcp" | "http", host)) if !host.trim_matches('/').is_empty() => {
                let host = host.trim_end_matches('/');
                let port =
                    host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Address::Http(if port { host.to_owned() } else { format!("{host}:2375") })
            }
            _ => {
                return Err(format!(
                    "`{text}` is no address of an engine that mcpspy can use: unix:///PATH, \
                     tcp://HOST:PORT or http://HOST:PORT"
                ));
            }
        };
        let name = match &address {
            Address::Unix(path) => format!("unix://{}", path.display()),
            Address::Http(host) => format!("tcp://{host}"),
        };
        Ok(Self { name: name.into(), address, process: None })
    }

    fn unix(path: PathBuf, process: Option<u32>) -> Self {
        let name = format!("unix://{}", path.display()).into();
        Self { name, address: Address::Unix(path), process }
    }

    /// Whether what it was found by is still there.
    pub(super) fn exists(&self) -> bool {
        match (&self.address, self.process) {
            (Address::Unix(path), Some(_)) => path.exists(),
            _ => true,
        }
    }
}

/// The sockets that engines usually have, where they exist below this root.
pub(super) fn usual(root: &Path) -> Vec<Endpoint> {
    let mut paths = vec![root.join("var/run/docker.sock"), root.join("run/podman/podman.sock")];
    let mut users: Vec<_> = std::fs::read_dir(root.join("run/user"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    users.sort();
    for user in users {
        paths.extend([user.join("docker.sock"), user.join("podman/podman.sock")]);
    }
    // `/var/run` is a link to `/run` almost everywhere.
    let mut seen = HashSet::new();
    paths.retain(|path| is_socket(path) && path.canonicalize().is_ok_and(|path| seen.insert(path)));
    paths.into_iter().map(|path| Endpoint::unix(path, None)).collect()
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.file_type().is_socket())
}

/// Sockets of all running Docker engines, reached through their processes. Needs the host's
/// processes in `/proc` and the right to follow their root; needs no mount, and survives that the
/// engine makes its socket anew.
pub(super) fn of_processes(proc: &Path) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for pid in daemons(proc) {
        let directory = proc.join(pid.to_string());
        let Ok(arguments) = std::fs::read(directory.join("cmdline")) else { continue };
        for path in sockets_of(&arguments) {
            let path = directory.join("root").join(path.strip_prefix("/").unwrap_or(&path));
            if is_socket(&path) {
                found.push(Endpoint::unix(path, Some(pid)));
                break;
            }
        }
    }
    found
}

/// Processes that are a Docker engine. Never the first process: its root is that of the host or of
/// this container, and often not to be read.
pub(super) fn daemons(proc: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = std::fs::read_dir(proc)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != 1 && is_daemon(&proc.join(pid.to_string()).join("exe")))
        .collect();
    found.sort_unstable();
    found
}

fn is_daemon(exe: &Path) -> bool {
    let Ok(target) = std::fs::read_link(exe) else { return false };
    let name = target.file_name().map(OsStr::as_bytes).unwrap_or_default();
    name == b"dockerd" || name == b"dockerd (deleted)"
}

/// The Unix sockets of a `dockerd`, by its arguments: `-H unix:///x`, `--host=...`; the usual one
/// where none is named, or where it is handed one by systemd.
fn sockets_of(arguments: &[u8]) -> Vec<PathBuf> {
    let arguments: Vec<_> = arguments.split(|&byte| byte == 0).collect();
    let mut paths = Vec::new();
    let mut take = |value: &[u8]| {
        if let Some(path) = value.strip_prefix(b"unix://") {
            let path = PathBuf::from(OsStr::from_bytes(path));
            // A link to `/run` would be followed from the root of this process, not from the other's.
            if let Ok(rest) = path.strip_prefix("/var/run") {
                paths.push(Path::new("/run").join(rest));
            }
            paths.push(path);
        }
    };
    for (index, argument) in arguments.iter().enumerate().skip(1) {
        match *argument {
            b"-H" | b"--host" => take(arguments.get(index + 1).copied().unwrap_or_default()),
            _ => {
                let glued = [&b"--host="[..], b"-H=", b"-H"];
                if let Some(value) = glued.iter().find_map(|start| argument.strip_prefix(*start)) {
                    take(value);
                }
            }
        }
    }
    paths.retain(|path| path.is_absolute());
    paths.push("/run/docker.sock".into());
    paths.push("/var/run/docker.sock".into());
    paths
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn addresses() {
        for (text, name) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("/run/x.sock", "unix:///run/x.sock"),
            ("tcp://proxy:2375", "tcp://proxy:2375"),
            ("http://proxy/", "tcp://proxy:2375"),
            ("tcp://[::1]:80", "tcp://[::1]:80"),
        ] {
            assert_eq!(&*Endpoint::parse(text).expect(text).name, name);
        }
        for text in ["ssh://me@host", "unix://relative", "x", "", "tcp://", "npipe:////./pipe/x"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arguments_of_the_daemon_name_its_socket() {
        let first = |line: &str| {
            let arguments = line.replace(' ', "\0");
            sockets_of(arguments.as_bytes())[0].display().to_string()
        };
        assert_eq!(first("dockerd"), "/run/docker.sock");
        assert_eq!(first("dockerd -H fd:// --containerd=x"), "/run/docker.sock");
        assert_eq!(first("dockerd -H unix:///a"), "/a");
        assert_eq!(first("dockerd -Hunix:///a"), "/a");
        assert_eq!(first("dockerd -H tcp://0.0.0.0:2375 --host=unix:///b"), "/b");
        assert_eq!(first("dockerd --host unix:///c"), "/c");
        assert_eq!(first("dockerd -H"), "/run/docker.sock");
    }

    #[test]
    fn usual_sockets_are_found_once() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        std::fs::create_dir_all(root.join("run/user/1000/podman")).expect("directories");
        std::fs::create_dir_all(root.join("var")).expect("a directory");
        symlink("../run", root.join("var/run")).expect("a link");
        let _docker = UnixListener::bind(root.join("run/docker.sock")).expect("a socket");
        let _user = UnixListener::bind(root.join("run/user/1000/podman/podman.sock"));
        std::fs::write(root.join("run/user/1000/docker.sock"), "").expect("a file");
        let found: Vec<_> = usual(root).into_iter().map(|found| found.name).collect();
        let root = root.display();
        let expected = [
            format!("unix://{root}/var/run/docker.sock"),
            format!("unix://{root}/run/user/1000/podman/podman.sock"),
        ];
        assert_eq!(found.iter().map(|name| &**name).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_daemon_is_found_by_its_process() {
        let proc = tempfile::tempdir().expect("a directory");
        let proc = proc.path();
        for (pid, exe) in [(1, "dockerd"), (7, "bash"), (9, "dockerd")] {
            let directory = proc.join(pid.to_string());
            std::fs::create_dir_all(directory.join("root/run")).expect("directories");
            symlink(Path::new("/usr/bin").join(exe), directory.join("exe")).expect("a link");
            std::fs::write(directory.join("cmdline"), "dockerd\0-H\0fd://\0").expect("a file");
            let _socket = UnixListener::bind(directory.join("root/run/docker.sock"));
        }
        assert_eq!(daemons(proc), [9]);
        let found = of_processes(proc);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].process, Some(9));
        assert!(found[0].exists());
    }
}
