//! A container engine of the tests' own: a Docker daemon in a network namespace of its own, with
//! its own data, socket and containers. No other engine or bridge of the machine is touched.
//!
//! All tests of one binary share it. A shell keeps it: that shell ends the engine when the test
//! process is gone, however that came about, and ends what an earlier run may have left.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{peers, wait_until};

/// How long the engine may take to answer, and its keeper to end an earlier one.
const READY: Duration = Duration::from_secs(60);

/// The image of all containers: links to a /usr that is mounted from the host.
pub const IMAGE: &str = "mcpspy-e2e/base:1";
/// Another name of the same content.
pub const OTHER_IMAGE: &str = "mcpspy-e2e/other:2";

/// Keeps the engine. `$1`: directory of its pid file, log and data; `$2`: of its sockets.
/// It takes `start` and `stop` from its input, and ends everything at the end of that.
/// The lock is not for the daemon: it says that the keeper lives.
const KEEPER: &str = r#"
exec 9>"$1/lock"; flock 9
mkdir -p "$2/pids"
host="unix://$2/docker.sock"
pid=
start() {
    unshare -n dockerd --data-root "$1/data" --exec-root "$2/exec" -H "$host" --bridge none \
        --iptables=false --ip-forward=false --pidfile "$1/docker.pid" --live-restore \
        9>&- </dev/null >>"$1/dockerd.log" 2>&1 &
    pid=$!
}
stop() {
    kill "$1" 2>/dev/null
    for _ in $(seq 200); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$1" 2>/dev/null
}
ours() { [ -n "$1" ] && tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "$2"; }
old=$(cat "$1/docker.pid" 2>/dev/null)
if ours "$old" "$1/docker.pid"; then stop "$old"; fi
: >"$1/dockerd.log"
start "$1" "$2"
echo started
while read -r order; do
    case $order in
    stop) stop "$pid"; wait "$pid" ;;
    start) start "$1" "$2" ;;
    esac
done
# Containers outlive the daemon, so it must live to end them.
kill -0 "$pid" 2>/dev/null || start "$1" "$2"
for _ in $(seq 100); do docker -H "$host" version >/dev/null 2>&1 && break; sleep 0.1; done
docker -H "$host" ps -aq | xargs -r docker -H "$host" rm -f >/dev/null 2>&1
stop "$pid"; wait "$pid"
# The daemon mounts its data onto itself.
umount "$1/data" 2>/dev/null
rm -rf "$1/data" "$2"
"#;

/// The running engine.
#[derive(Debug)]
pub struct Engine {
    /// Pid file, log, data: below the build directory, where a later run finds them.
    dir: PathBuf,
    /// Sockets and FIFOs: their paths must be short.
    run: PathBuf,
    orders: Mutex<ChildStdin>,
    _keeper: Child,
}

impl Engine {
    /// The engine of this process, started at the first call; or why there is none.
    pub fn get() -> Result<&'static Self, String> {
        static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
        let start = || Self::start().map_err(|error| format!("no Docker engine: {error:#}"));
        ENGINE.get_or_init(start).as_ref().map_err(Clone::clone)
    }

    fn start() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "needs root");
        let paths = std::env::var_os("PATH").unwrap_or_default();
        for program in ["docker", "dockerd", "containerd", "runc", "unshare", "flock", "tar"] {
            let found = std::env::split_paths(&paths).any(|dir| dir.join(program).exists());
            ensure!(found, "no {program} on this machine");
        }
        let dir = absolute(&peers::target_dir().join("docker-engine"))?;
        let mut hasher = DefaultHasher::new();
        dir.hash(&mut hasher);
        let run = PathBuf::from(format!("/run/mcpspy-e2e-{:08x}", hasher.finish() as u32));
        fs::create_dir_all(&dir)?;
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "mcpspy-engine-keeper"])
            .args([&dir, &run])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for the tests; the keeper sees the end of its input.
            .process_group(0)
            .spawn()?;
        // The keeper of an earlier run may still be ending its engine.
        let mut started = String::new();
        let said = keeper.stdout.take().context("stdout of the keeper")?;
        BufReader::new(said).read_line(&mut started)?;
        ensure!(started == "started\n", "its keeper ended");
        let orders = Mutex::new(keeper.stdin.take().context("stdin of the keeper")?);
        let engine = Self { dir, run, orders, _keeper: keeper };
        engine.wait_ready()?;
        // A daemon that was ended hard left its containers.
        engine.remove_all()?;
        engine.import_images()?;
        engine.tell_pids()?;
        Ok(engine)
    }

    /// Where it answers, as `DOCKER_HOST` says it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("docker.sock")
    }

    /// Where containers find the socket that tells them their pids; the same path in all.
    pub fn pids_dir(&self) -> PathBuf {
        self.run.join("pids")
    }

    /// The socket that tells a process its pid.
    pub fn pid_socket(&self) -> PathBuf {
        self.pids_dir().join("socket")
    }

    /// The client program, speaking to this engine.
    pub fn cli(&self) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.host()]).stdin(Stdio::null());
        command
    }

    /// Runs the client program and returns what it printed.
    pub fn docker<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let output = self.cli().args(arguments).output()?;
        if !output.status.success() {
            let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
            bail!("docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The daemon's process.
    pub fn pid(&self) -> Result<u32> {
        Ok(fs::read_to_string(self.dir.join("docker.pid"))?.trim().parse()?)
    }

    /// Ends the daemon; its containers live on.
    pub fn stop(&self) -> Result<()> {
        let pid = self.pid()?;
        self.order("stop")?;
        wait_until("the daemon is gone", READY, || Ok(!Path::new(&format!("/proc/{pid}")).exists()))
    }

    /// Starts the daemon again.
    pub fn start_again(&self) -> Result<()> {
        self.order("start")?;
        self.wait_ready()
    }

    fn order(&self, order: &str) -> Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(writeln!(orders, "{order}")?)
    }

    fn wait_ready(&self) -> Result<()> {
        let answers = || Ok(self.docker(&["version", "--format", "{{.Server.Version}}"]).is_ok());
        wait_until("the engine answers", READY, answers).with_context(|| {
            let log = fs::read_to_string(self.dir.join("dockerd.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(4).collect();
            format!("its log ends with {tail:?}")
        })
    }

    /// The content of the images, as `docker import` takes it.
    pub fn image_archive(&self) -> PathBuf {
        self.dir.join("image.tar")
    }

    /// Removes every container.
    pub fn remove_all(&self) -> Result<()> {
        let all = self.docker(&["ps", "-aq"])?;
        let mut arguments = vec!["rm", "-f"];
        arguments.extend(all.split_whitespace());
        if arguments.len() > 2 {
            // One that ends by itself in the meantime is no failure.
            drop(self.docker(&arguments));
        }
        Ok(())
    }

    fn import_images(&self) -> Result<()> {
        let root = self.dir.join("image");
        for dir in ["usr", "etc", "tmp", "run", "var"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let links = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")];
        for (name, to) in links.into_iter().chain([("lib64", "usr/lib64"), ("var/run", "../run")]) {
            if root.join(name).symlink_metadata().is_err() {
                symlink(to, root.join(name))?;
            }
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        let archive = self.image_archive();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
        ensure!(tar.status()?.success(), "tar failed");
        let archive = archive.display().to_string();
        self.docker(&["import", &archive, IMAGE])?;
        self.docker(&["import", "--change", "LABEL kind=other", &archive, OTHER_IMAGE])?;
        Ok(())
    }

    /// Tells each process that connects which pid the host knows it by.
    fn tell_pids(&self) -> Result<()> {
        let path = self.pid_socket();
        if path.exists() {
            fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        std::thread::spawn(move || {
            for mut caller in listener.incoming().flatten() {
                if let Ok(who) = rustix::net::sockopt::socket_peercred(&caller) {
                    // A caller that was ended does not need it.
                    drop(write!(caller, "{}", who.pid.as_raw_nonzero()));
                }
            }
        });
        Ok(())
    }
}

/// The path without links; it must exist or be creatable.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path)?;
    path.canonicalize().with_context(|| path.display().to_string())
}
