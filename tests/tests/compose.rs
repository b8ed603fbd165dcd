//! The files of `compose/`: what each container may really do, by both versions of Compose, with an
//! engine of the test's own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mcpspy_e2e::raw::{Channel, Client};
use mcpspy_e2e::{Need, Stage, live, peers, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const NEEDS: &[Need] = &[
    Need::Program("dockerd"),
    Need::Program("docker"),
    Need::Program("docker-compose"),
    Need::Program("unshare"),
];

const START: Duration = Duration::from_secs(60);

/// `CAP_DAC_READ_SEARCH`, `CAP_SYS_PTRACE`, `CAP_SYS_ADMIN`: what `compose/with-mcpspy.yml` gives.
const THREE: u64 = 1 << 2 | 1 << 19 | 1 << 21;

/// An image that holds nothing but the way to the host's programs.
const BARE: &str = "mcpspy-test-bare";

/// An engine in a network namespace of its own: it touches no bridge and no rule of the host.
struct Engine {
    daemon: Child,
    dir: PathBuf,
}

impl Engine {
    fn start(stage: &Stage) -> Result<Self> {
        // A short path: that of a socket has at most 107 bytes.
        let dir = std::env::temp_dir().join(format!("mcpspy-engine-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let log = File::create(stage.dir().join("dockerd.log"))?;
        let daemon = Command::new("unshare")
            .args(["-n", "dockerd", "--bridge", "none", "--iptables=false", "--data-root"])
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("-H")
            .arg(format!("unix://{}", dir.join("docker.sock").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let engine = Self { daemon, dir };
        wait_until("the engine answers", START, || {
            Ok(engine.docker(&["version"]).stderr(Stdio::null()).output()?.status.success())
        })?;
        Ok(engine)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command.env("DOCKER_SOCK", self.socket()).env("MCPSPY_IMAGE", BARE);
        command.env("SOCKET_PROXY_IMAGE", BARE).stdin(Stdio::null());
        command
    }

    fn docker(&self, words: &[&str]) -> Command {
        let mut command = self.command("docker");
        command.args(words);
        command
    }

    fn inspect(&self, container: &str) -> Result<Value> {
        let text = run(&mut self.docker(&["inspect", container]))?;
        let mut all: Vec<Value> = serde_json::from_str(&text)?;
        all.pop().context("no such container")
    }

    /// Makes [`BARE`].
    fn bare_image(&self, stage: &Stage) -> Result<()> {
        let root = stage.dir().join("bare");
        fs::create_dir_all(root.join("usr"))?;
        for name in ["bin", "lib", "lib64"] {
            let link = root.join(name);
            std::os::unix::fs::symlink(format!("usr/{name}"), link)?;
        }
        let tar = stage.dir().join("bare.tar");
        run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."))?;
        let mut import = self.docker(&["import"]);
        import.args(["--change", r#"ENTRYPOINT ["/usr/bin/sleep","600"]"#]).arg(&tar).arg(BARE);
        run(&mut import).map(drop)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Its containers go first: they would keep its directory busy.
        let script = "docker ps -aq | xargs -r docker rm -f";
        drop(self.command("sh").args(["-c", script]).stdout(Stdio::null()).status());
        if let Some(pid) = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw) {
            // Not killed: containerd is its child, and ends with it.
            _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) && begun.elapsed() < START {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Runs it to its end and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn file(name: &str) -> PathBuf {
    peers::source_dir().join("../compose").join(name)
}

/// The versions of Compose of this machine: 1.29, and 2 where there is one.
fn versions(engine: &Engine) -> Result<Vec<Vec<String>>> {
    let mut versions = vec![vec!["docker-compose".to_owned()]];
    let config = std::env::var("MCPSPY_COMPOSE_V2")
        .unwrap_or_else(|_| peers::target_dir().join("docker").display().to_string());
    let own = ["docker", "compose"].map(str::to_owned).to_vec();
    let brought = ["docker", "--config", &config, "compose"].map(str::to_owned).to_vec();
    let works = |words: &Vec<String>| {
        let mut version = engine.command(&words[0]);
        version.args(&words[1..]).arg("version").output().is_ok_and(|done| done.status.success())
    };
    versions.extend([own, brought].into_iter().find(works));
    ensure!(works(&versions[0]), "docker-compose does not run");
    Ok(versions)
}

fn compose(engine: &Engine, version: &[String], files: &[PathBuf]) -> Command {
    let mut command = engine.command(&version[0]);
    command.args(&version[1..]).args(["-p", "mcpspy-test"]);
    for file in files {
        command.arg("-f").arg(file);
    }
    command
}

/// What the monitor's container of one variant may do.
struct Rights {
    files: &'static [&'static str],
    capabilities: &'static [&'static str],
    privileged: bool,
    /// Where something of the host or a volume is mounted, and whether it can be written.
    mounts: &'static [(&'static str, bool)],
    /// Begin of the network's name.
    network: &'static str,
    environment: &'static [&'static str],
}

const USUAL: &[&str] = &["DAC_READ_SEARCH", "SYS_ADMIN", "SYS_PTRACE"];
const SOCKET: &[(&str, bool)] = &[("/var/run/docker.sock", false)];
const PLAIN: Rights = Rights {
    files: &["with-mcpspy.yml"],
    capabilities: USUAL,
    privileged: false,
    mounts: SOCKET,
    network: "none",
    environment: &[],
};

const VARIANTS: &[Rights] = &[
    PLAIN,
    Rights {
        files: &["with-mcpspy.yml", "audit.yml"],
        mounts: &[("/audit", true), ("/var/run/docker.sock", false)],
        environment: &["MCPSPY_OUTPUT=/audit/events.jsonl", "MCPSPY_OUTPUT_KEEP=5"],
        ..PLAIN
    },
    Rights {
        files: &["with-mcpspy.yml", "opt-in.yml"],
        environment: &["MCPSPY_OPT_IN=true"],
        ..PLAIN
    },
    Rights {
        files: &["with-mcpspy.yml", "one-project.yml"],
        environment: &["MCPSPY_PROJECT=shop"],
        ..PLAIN
    },
    Rights { files: &["with-mcpspy.yml", "privileged.yml"], privileged: true, ..PLAIN },
    Rights {
        files: &["with-socket-proxy.yml"],
        mounts: &[],
        network: "mcpspy-test_engine",
        environment: &["MCPSPY_DOCKER_HOST=tcp://socket-proxy:2375"],
        ..PLAIN
    },
    Rights {
        files: &["with-bpf-caps.yml"],
        capabilities: &["BPF", "DAC_READ_SEARCH", "PERFMON", "SYS_PTRACE"],
        ..PLAIN
    },
];

impl Rights {
    fn check(&self, found: &Value) -> Result<()> {
        let host = &found["HostConfig"];
        let names = |list: &Value| -> BTreeSet<String> {
            let list = list.as_array().into_iter().flatten().filter_map(Value::as_str);
            list.map(|name| name.trim_start_matches("CAP_").to_owned()).collect()
        };
        let wanted: BTreeSet<_> = self.capabilities.iter().map(|&name| name.to_owned()).collect();
        ensure!(names(&host["CapAdd"]) == wanted, "added: {}", host["CapAdd"]);
        ensure!(host["CapDrop"] == json!(["ALL"]), "dropped: {}", host["CapDrop"]);
        ensure!(host["Privileged"] == self.privileged, "privileged: {}", host["Privileged"]);
        ensure!(host["PidMode"] == "host", "pid: {}", host["PidMode"]);
        ensure!(host["ReadonlyRootfs"] == true, "the root can be written");
        let network = host["NetworkMode"].as_str().unwrap_or_default();
        ensure!(network == self.network, "network: {network}");
        let mounts: BTreeSet<_> = found["Mounts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|mount| (mount["Destination"].as_str().unwrap_or("?"), mount["RW"] == true))
            .collect();
        ensure!(mounts == self.mounts.iter().copied().collect(), "mounts: {mounts:?}");
        let environment = names(&found["Config"]["Env"]);
        for variable in self.environment {
            ensure!(environment.contains(*variable), "no {variable} in {environment:?}");
        }
        let log = &host["LogConfig"];
        ensure!(log["Type"] == "json-file" && log["Config"]["max-size"] == "10m", "log: {log}");
        ensure!(found["Name"] == "/mcpspy", "name: {}", found["Name"]);
        Ok(())
    }
}

#[test]
fn every_variant_has_the_rights_that_it_says_and_no_others() {
    live(NEEDS, |stage| {
        let engine = Engine::start(stage)?;
        engine.bare_image(stage)?;
        for version in versions(&engine)? {
            for variant in VARIANTS {
                let files: Vec<_> = variant.files.iter().map(|name| file(name)).collect();
                let what = format!("{version:?} {:?}", variant.files);
                let mut create = compose(&engine, &version, &files);
                create.args(["up", "--no-start"]).env("MCPSPY_PROJECT", "shop");
                match run(&mut create) {
                    Ok(_) => {}
                    // Engine 20.10 does not know them, and says so before it creates anything.
                    Err(error)
                        if variant.capabilities.contains(&"BPF")
                            && error.to_string().contains("CAP_BPF") =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error.context(what)),
                }
                variant.check(&engine.inspect("mcpspy")?).context(what)?;
                let mut down = compose(&engine, &version, &files);
                run(down.args(["down", "-v"]).env("MCPSPY_PROJECT", "shop"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn overlay_beside_a_running_stack_restarts_none_of_its_containers() {
    live(NEEDS, |stage| {
        let engine = Engine::start(stage)?;
        engine.bare_image(stage)?;
        let stack = stage.dir().join("docker-compose.yml");
        let text = format!(
            "services:\n  shop:\n    image: {BARE}\n    network_mode: none\n    volumes:\n      - /usr:/usr:ro\n"
        );
        fs::write(&stack, text)?;
        for version in versions(&engine)? {
            let alone = [stack.clone()];
            run(compose(&engine, &version, &alone).args(["up", "-d"]))?;
            let ids = || run(&mut engine.docker(&["ps", "-q", "--no-trunc"]));
            let before = ids()?;
            let started = engine.inspect(before.trim())?["State"]["StartedAt"].clone();
            let both = [stack.clone(), file("with-mcpspy.yml")];
            run(compose(&engine, &version, &both).args(["up", "-d", "--no-build"]))
                .or_else(without_program)?;
            let now = engine.inspect(before.trim())?;
            ensure!(now["State"]["StartedAt"] == started, "{version:?}: it was restarted");
            ensure!(now["State"]["Running"] == true, "{version:?}: it does not run");
            run(compose(&engine, &version, &both).args(["down", "-t", "0"]))?;
        }
        Ok(())
    });
}

/// The monitor's container has no `/usr` here, so it cannot start: only the other one is looked at.
fn without_program(error: anyhow::Error) -> Result<String> {
    let started = error.to_string().contains("sleep");
    if started { Ok(String::new()) } else { Err(error) }
}

#[test]
fn monitor_in_its_container_captures_what_runs_on_the_host() {
    live(NEEDS, |stage| {
        let Some(binary) = static_binary() else {
            bail!("no static binary: cargo xtask image builds one, or MCPSPY_STATIC_BIN names it");
        };
        let engine = Engine::start(stage)?;
        let context = stage.dir().join("image");
        fs::create_dir_all(&context)?;
        fs::copy(&binary, context.join("mcpspy"))?;
        let dockerfile = peers::source_dir().join("../docker/Dockerfile.prebuilt");
        let mut build = engine.docker(&["build", "-q", "-t", "mcpspy-test", "-f"]);
        run(build.arg(&dockerfile).arg(&context))?;
        for version in versions(&engine)? {
            let files = [file("with-mcpspy.yml")];
            let mut up = compose(&engine, &version, &files);
            run(up.args(["up", "-d", "--no-build"]).env("MCPSPY_IMAGE", "mcpspy-test"))?;
            captures(stage, &engine).with_context(|| logs(&engine))?;
            run(compose(&engine, &version, &files).arg("down"))?;
        }
        Ok(())
    });
}

fn captures(stage: &Stage, engine: &Engine) -> Result<()> {
    let healthy = || {
        let health = engine.docker(&["exec", "mcpspy", "/mcpspy", "health"]).output()?;
        Ok(health.status.success())
    };
    wait_until("the monitor is healthy", START, healthy)?;
    wait_until("the monitor monitors", START, || Ok(logs(engine).contains("monitoring")))?;

    let found = engine.inspect("mcpspy")?;
    let pid = found["State"]["Pid"].as_u64().context("no pid")?;
    ensure!(effective(pid)? == THREE, "capabilities {:x}", effective(pid)?);

    let mut client = Client::connect(stage, &Channel::Pipes, &[])?;
    client.initialize()?;
    client.call("7", "echo", r#"{"text":"seen from a container"}"#)?;
    let server = format!("[{}]", client.server_pid());
    client.close()?;
    wait_until("the call is in the log", START, || {
        let logs = logs(engine);
        let mut lines = logs.lines().filter(|line| line.contains(&server));
        Ok(lines.any(|line| line.contains("RESP tools/call echo id=7")))
    })
}

/// The capabilities that the process has.
fn effective(pid: u64) -> Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(u64::from_str_radix(line.context("no CapEff")?.trim(), 16)?)
}

fn logs(engine: &Engine) -> String {
    match engine.docker(&["logs", "mcpspy"]).output() {
        Ok(done) => [done.stdout, done.stderr]
            .map(|part| String::from_utf8_lossy(&part).into_owned())
            .concat(),
        Err(error) => error.to_string(),
    }
}

/// The binary that runs without a C library.
fn static_binary() -> Option<PathBuf> {
    let built = format!("{}-unknown-linux-musl/release/mcpspy", std::env::consts::ARCH);
    let path = std::env::var_os("MCPSPY_STATIC_BIN")
        .map_or_else(|| peers::target_dir().join(built), PathBuf::from);
    path.exists().then_some(path)
}
