//! Containers, and peers in them.
//!
//! A container shares the host's /usr and the directories of the peers, all read-only and under
//! their own paths, so that a command means the same inside and outside. The server's command is
//! what a client starts: `docker exec -i NAME ...` or `docker run -i --rm ...`.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::docker::{Engine, IMAGE, absolute};
use crate::monitor::wait_for_exit;
use crate::raw::{Channel, Client};
use crate::{Monitor, Stage, Truth, messages, peers, wait_until};

/// How long a peer may play.
const SCENARIO: Duration = Duration::from_secs(150);

/// A server that can run in a container.
#[derive(Clone, Debug)]
pub enum Server {
    /// With this major version of the Python SDK.
    Python(u8),
    /// With the TypeScript SDK.
    TypeScript,
    /// `raw-peer serve` with these options.
    Raw(&'static [&'static str]),
    /// Any other command.
    Command(Vec<String>),
}

impl Server {
    /// Its command, which becomes the process that logs.
    pub fn words(&self) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        match self {
            Self::Python(major) => peers::python_server(*major).map(path).to_vec(),
            Self::TypeScript => vec!["node".to_owned(), path(peers::typescript_server())],
            Self::Raw(options) => {
                let words = [path(peers::raw_peer()), "serve".to_owned()];
                words.into_iter().chain(options.iter().map(ToString::to_string)).collect()
            }
            Self::Command(words) => words.clone(),
        }
    }

    /// Settings that it needs in its container.
    fn environment(&self) -> Vec<String> {
        match self {
            Self::TypeScript => vec![
                "MCPSPY_END=server".to_owned(),
                format!(
                    "NODE_OPTIONS=--require {}",
                    peers::typescript_dir().join("tee.cjs").display()
                ),
            ],
            _ => Vec::new(),
        }
    }
}

/// The engine, as one test uses it.
#[derive(Debug)]
pub struct Docker<'a> {
    /// The test.
    pub stage: &'a Stage,
    /// The engine.
    pub engine: &'static Engine,
    plays: Cell<u32>,
}

impl<'a> Docker<'a> {
    /// The engine without containers.
    pub fn on(stage: &'a Stage) -> Result<Self> {
        let engine = Engine::get().map_err(anyhow::Error::msg)?;
        engine.remove_all()?;
        Ok(Self { stage, engine, plays: Cell::new(0) })
    }

    /// The monitor, told of this engine.
    pub fn monitor(&self, arguments: &[&str]) -> Result<Monitor> {
        let host = self.engine.host();
        self.stage.monitor(&[&["--docker-host", &*host], arguments].concat())
    }

    /// Runs the client program.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.engine.docker(arguments)
    }

    /// The options of `docker run` that every container gets.
    pub fn options(&self) -> Result<Vec<String>> {
        let mut words = vec!["--network".to_owned(), "none".to_owned()];
        for mount in self.mounts()? {
            words.extend(["-v".to_owned(), mount]);
        }
        words.extend(["-e".to_owned(), self.pid_setting()]);
        Ok(words)
    }

    fn pid_setting(&self) -> String {
        format!("MCPSPY_PID_SOCKET={}", self.engine.pid_socket().display())
    }

    /// The mounts of every container.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let mut shared = vec![
            PathBuf::from("/usr"),
            absolute(&peers::peers_dir())?,
            peers::source_dir().join("peers"),
            peers::raw_peer(),
        ];
        // Interpreters that are not the system's.
        for program in [peers::python_binary(1), peers::python_binary(2)] {
            let Ok(program) = program.canonicalize() else { continue };
            let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
            if !prefix.starts_with("/usr") && !shared.iter().any(|path| path == prefix) {
                shared.push(prefix.to_owned());
            }
        }
        let mut mounts: Vec<_> =
            shared.iter().map(|path| format!("{0}:{0}:ro", path.display())).collect();
        for path in [self.stage.dir(), &self.engine.pids_dir()] {
            mounts.push(format!("{0}:{0}", path.display()));
        }
        Ok(mounts)
    }

    /// Starts a container that waits for `docker exec`. Returns its id.
    pub fn up(&self, name: &str, options: &[&str]) -> Result<String> {
        let ours = self.options()?;
        let mut words = vec!["run", "-d", "--name", name];
        words.extend(ours.iter().map(String::as_str));
        words.extend(options);
        if !options.contains(&crate::docker::OTHER_IMAGE) {
            words.push(IMAGE);
        }
        words.extend(["sleep", "infinity"]);
        self.docker(&words)
    }

    /// The command that starts a server in a running container.
    pub fn exec(&self, container: &str, server: &Server) -> Vec<String> {
        let mut words = self.cli_words(&["exec", "-i", "-e", "MCPSPY_TRUTH", "-e"]);
        words.push(self.pid_setting());
        for setting in server.environment() {
            words.extend(["-e".to_owned(), setting]);
        }
        words.push(container.to_owned());
        words.extend(Self::inside(server));
        words
    }

    /// The same by a Compose program. It hands on no setting without its value: a shell does.
    pub fn compose_exec(&self, compose: &[String], service: &str, server: &Server) -> Vec<String> {
        let mut script: Vec<_> = compose.iter().map(|word| format!("'{word}'")).collect();
        script.push("exec -T -e \"MCPSPY_TRUTH=$MCPSPY_TRUTH\"".to_owned());
        script.push(format!("-e '{}' '{service}' \"$@\"", self.pid_setting()));
        let mut words =
            vec!["sh".to_owned(), "-c".to_owned(), format!("exec {}", script.join(" "))];
        words.push("compose".to_owned());
        words.extend(Self::inside(server));
        words
    }

    /// The command that starts a server in a container of its own.
    pub fn run(&self, options: &[&str], server: &Server) -> Result<Vec<String>> {
        let mut words = self.cli_words(&["run", "-i", "--rm", "-e", "MCPSPY_TRUTH"]);
        words.extend(self.options()?);
        for setting in server.environment() {
            words.extend(["-e".to_owned(), setting]);
        }
        words.extend(options.iter().map(ToString::to_string));
        words.push(IMAGE.to_owned());
        words.extend(Self::inside(server));
        Ok(words)
    }

    /// A command within a container, so that its logs bear the host's pid.
    pub fn inside(server: &Server) -> Vec<String> {
        let mut words = vec![peers::raw_peer().display().to_string(), "inside".to_owned()];
        words.extend(server.words());
        words
    }

    /// As [`Self::inside`], for a client in the same container, which hands on few settings.
    pub fn beside(&self, server: &Server) -> Vec<String> {
        let mut words = vec!["env".to_owned(), self.pid_setting()];
        words.extend(Self::inside(server));
        words
    }

    fn cli_words(&self, words: &[&str]) -> Vec<String> {
        let host = self.engine.host();
        ["docker", "-H", &host].iter().chain(words).map(ToString::to_string).collect()
    }

    /// Starts a client whose logs, and those of its servers, are its own.
    pub fn spawn(&self, client: &mut Command) -> Result<Play> {
        let number = self.plays.get();
        self.plays.set(number + 1);
        let truth = self.stage.dir().join(format!("play-{number}"));
        fs::create_dir_all(&truth)?;
        let log =
            File::options().append(true).create(true).open(self.stage.dir().join("peers.log"))?;
        let child = client
            .env("MCPSPY_TRUTH", &truth)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {client:?}"))?;
        Ok(Play { child, truth, what: format!("{client:?}") })
    }

    /// Plays a client to its end. Returns what was said.
    pub fn play(&self, client: &mut Command) -> Result<Truth> {
        self.spawn(client.stdin(Stdio::null()).stdout(Stdio::null()))?.finish()
    }

    /// A client below any SDK, with a server by this command.
    pub fn client(&self, server: &[String]) -> Result<Client> {
        let (program, arguments) = server.split_first().context("which server?")?;
        let mut command = Command::new(program);
        command.args(arguments);
        Client::connect_to(self.stage, &Channel::Pipes, command)
    }

    /// What the clients of [`Self::client`] said. Each must have said something else.
    pub fn truth(&self) -> Result<Truth> {
        settle(&self.stage.truth_dir())?;
        self.stage.truth()
    }

    /// Starts a session that nobody outside takes part in, in a container of its own.
    pub fn session_within(&self, name: &str) -> Result<()> {
        let truth = self.stage.dir().join(format!("truth-{name}"));
        fs::create_dir_all(&truth)?;
        let [python, script] = peers::python_server(2);
        let client = script.with_file_name("client.py");
        let mut client = vec![python.display().to_string(), client.display().to_string()];
        client.push("until".to_owned());
        client.extend(self.beside(&Server::Raw(&[])));
        let mut command = self.engine.cli();
        command.args(["run", "-d", "--name", name]).args(self.options()?);
        command.arg("-e").arg(format!("MCPSPY_TRUTH={}", truth.display()));
        command.arg("-e").arg(format!("MCPSPY_UNTIL={}", truth.with_extension("stop").display()));
        command.arg(IMAGE).args(Self::inside(&Server::Command(client)));
        ensure!(command.stdout(Stdio::null()).status()?.success(), "{command:?} failed");
        wait_until("the session within the container began", SCENARIO, || {
            // The client's logs, in the directory named by its pid.
            let dirs = fs::read_dir(&truth)?.collect::<Result<Vec<_>, _>>()?;
            let logs = dirs.iter().filter_map(|dir| fs::read_dir(dir.path()).ok()).flatten();
            let paths = logs.flatten().map(|log| log.path());
            let mut sent = paths.filter(|path| path.extension().is_some_and(|kind| kind == "sent"));
            Ok(sent.any(|path| fs::read(path).is_ok_and(|log| messages(&log).len() > 2)))
        })
    }

    /// Ends a session of [`Self::session_within`]. Returns what was said.
    pub fn end_session_within(&self, name: &str) -> Result<Truth> {
        let truth = self.stage.dir().join(format!("truth-{name}"));
        fs::write(truth.with_extension("stop"), "")?;
        let code = self.docker(&["wait", name])?;
        ensure!(code == "0", "the client in {name} ended with {code}");
        settle(&truth)?;
        Truth::read(&truth)
    }

    /// The host's pid of a container's first process.
    pub fn pid_of(&self, container: &str) -> Result<u32> {
        Ok(self.docker(&["inspect", "--format", "{{.State.Pid}}", container])?.parse()?)
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // What is left is removed when the next test begins, or by the keeper.
        drop(self.engine.remove_all());
    }
}

/// A client that plays. Ended when dropped.
#[derive(Debug)]
pub struct Play {
    /// The client's process.
    pub child: Child,
    truth: PathBuf,
    what: String,
}

impl Play {
    /// Waits for its end, which must be a good one.
    pub fn finish(mut self) -> Result<Truth> {
        let Some(status) = wait_for_exit(&mut self.child, SCENARIO)? else {
            bail!("{} did not end in {SCENARIO:?}; see peers.log", self.what);
        };
        ensure!(status.success(), "{} ended with {status}; see peers.log", self.what);
        self.truth()
    }

    /// What was said so far.
    pub fn truth(&self) -> Result<Truth> {
        settle(&self.truth)?;
        Truth::read(&self.truth)
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Brings the logs of peers in containers, each in a directory named by the host's pid, to where
/// logs are read, under that pid.
fn settle(truth: &Path) -> Result<()> {
    gather(truth, None, truth)
}

fn gather(dir: &Path, pid: Option<&str>, top: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("name of a log")?;
        if path.is_dir() {
            gather(&path, Some(name), top)?;
            fs::remove_dir(&path)?;
        } else if let Some(pid) = pid {
            let mut parts: Vec<_> = name.splitn(3, '-').collect();
            ensure!(parts.len() == 3, "{} is no log", path.display());
            parts[1] = pid;
            fs::rename(&path, top.join(parts.join("-")))?;
        }
    }
    Ok(())
}
