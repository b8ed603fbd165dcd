//! What a real engine tells. Starts one of its own, without network; needs root and Docker's
//! `dockerd`, and is skipped where they are missing.

#![cfg(feature = "live")]

use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mcpspy::inventory::docker::{DockerConfig, DockerInventory, News};
use mcpspy::model::{ContainerInfo, EngineFact, Input, Timestamp};

type Facts = Arc<Mutex<Vec<EngineFact>>>;

/// An engine of its own, which ends with the test.
struct Engine {
    directory: tempfile::TempDir,
    daemon: Child,
}

impl Engine {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let daemon = Self::daemon(directory.path());
        let engine = Self { directory, daemon };
        engine.wait_until_it_answers();
        engine
    }

    /// Without a network namespace of its own it would take the host's bridge away.
    fn daemon(directory: &Path) -> Child {
        let path = |name: &str| directory.join(name).display().to_string();
        let log = std::fs::File::create(directory.join("log")).expect("a log");
        Command::new("unshare")
            .args(["-n", "dockerd", "--bridge", "none", "--iptables=false"])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "-H", &format!("unix://{}", path("docker.sock"))])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("unshare starts")
    }

    fn wait_until_it_answers(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.docker(&["version"]).0 {
            assert!(Instant::now() < until, "the engine does not start");
            sleep(Duration::from_millis(100));
        }
    }

    fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }

    fn docker(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("docker")
            .args(["-H", &self.host()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("docker starts");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success(), text)
    }

    fn done(&self, arguments: &[&str]) -> String {
        let (well, text) = self.docker(arguments);
        assert!(well, "docker {arguments:?}");
        text
    }

    /// An image of links only: its programs are the host's.
    fn import_image(&self) {
        let root = self.directory.path().join("image");
        for name in ["usr", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(name)).expect("a directory");
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{name}"), root.join(name)).expect("a link");
        }
        let archive = self.directory.path().join("image.tar").display().to_string();
        let root = root.display().to_string();
        let packed = Command::new("tar").args(["-C", &root, "-cf", &archive, "."]).status();
        assert!(packed.is_ok_and(|status| status.success()), "tar");
        self.done(&["import", &archive, "links:1"]);
    }

    fn run(&self, name: &str, arguments: &[&str], command: &[&str]) -> String {
        let common = ["run", "-d", "--network", "none", "-v", "/usr:/usr:ro", "--name", name];
        self.done(&[&common[..], arguments, &["links:1"], command].concat())
    }

    fn stop(&mut self) {
        let pid = self.daemon.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().is_ok_and(|status| status.success()));
        self.daemon.wait().expect("an end");
    }

    fn restart(&mut self) {
        self.daemon = Self::daemon(self.directory.path());
        self.wait_until_it_answers();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            let (_, ids) = self.docker(&["ps", "-aq"]);
            for id in ids.lines() {
                self.docker(&["rm", "-f", id]);
            }
            self.stop();
        }
    }
}

fn now() -> Timestamp {
    Timestamp(1)
}

fn follow(host: String) -> (DockerInventory, Receiver<News>, Facts) {
    let facts = Facts::default();
    let taken = facts.clone();
    let config = DockerConfig { hosts: vec![host] };
    let (inventory, news) = DockerInventory::start(&config, now, move |inputs| {
        let mut facts = taken.lock().expect("a list");
        for input in inputs {
            let Input::Engine(fact) = input else { panic!("{input:?}") };
            facts.push(fact);
        }
        ControlFlow::Continue(())
    })
    .expect("a thread");
    (inventory, news, facts)
}

/// Waits for a fact, from the beginning of the list.
fn wait<T>(facts: &Facts, what: &str, matches: impl Fn(&EngineFact) -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = facts.lock().expect("a list").iter().find_map(&matches) {
            return found;
        }
        assert!(Instant::now() < until, "{what}: {:?}", facts.lock());
        sleep(Duration::from_millis(20));
    }
}

fn named(fact: &EngineFact, name: &str) -> Option<(Arc<ContainerInfo>, Option<u32>)> {
    match fact {
        EngineFact::Container { info, init, .. } if info.name.as_deref() == Some(name) => {
            Some((info.clone(), *init))
        }
        _ => None,
    }
}

fn forget(facts: &Facts) {
    facts.lock().expect("a list").clear();
}

/// Why the test cannot run here.
fn missing() -> Option<&'static str> {
    let there = |program: &str| {
        let asked = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    if !rustix::process::geteuid().is_root() {
        Some("not root")
    } else if !there("dockerd") || !there("docker") || !there("unshare") {
        Some("no dockerd")
    } else {
        None
    }
}

#[test]
fn an_engine_tells_all_that_happens_to_its_containers() {
    if let Some(why) = missing() {
        assert!(std::env::var_os("MCPSPY_REQUIRE_LIVE").is_none(), "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    let mut engine = Engine::start();
    engine.import_image();
    let labels = ["--label", "com.docker.compose.project=shop", "--label", "a=b"];
    let early = engine.run("early", &labels, &["/usr/bin/sleep", "600"]);

    // What ran before.
    let (inventory, news, facts) = follow(engine.host());
    let (info, init) = wait(&facts, "list", |fact| named(fact, "early"));
    assert_eq!((&*info.id.0, &*info.runtime), (&*early, "docker"));
    assert_eq!((info.image.as_deref(), info.project.as_deref()), (Some("links:1"), Some("shop")));
    assert!(info.image_digest.as_deref().is_some_and(|digest| digest.starts_with("sha256:")));
    assert_eq!(info.label("a"), Some("b"));
    let pid = engine.done(&["inspect", "-f", "{{.State.Pid}}", "early"]);
    assert_eq!(init.map(|pid| pid.to_string()), Some(pid));
    wait(&facts, "connected", |fact| match fact {
        EngineFact::Connected { containers: 1, .. } => Some(()),
        _ => None,
    });
    match news.recv_timeout(Duration::from_secs(20)) {
        Ok(News::Settled { engines, containers, .. }) => {
            assert_eq!((engines.len(), containers.len()), (1, 1));
            assert!(!engines[0].version.is_empty() && engines[0].refused.is_empty());
        }
        other => panic!("{other:?}"),
    }

    // What starts, is renamed, and ends.
    forget(&facts);
    engine.run("late", &[], &["/usr/bin/sleep", "600"]);
    wait(&facts, "start", |fact| named(fact, "late").filter(|(_, init)| init.is_some()));
    assert!(facts.lock().expect("a list").iter().any(|fact| {
        // It has its name before it runs.
        named(fact, "late").is_some_and(|(_, init)| init.is_none())
    }));
    engine.done(&["rename", "late", "later"]);
    wait(&facts, "rename", |fact| named(fact, "later").filter(|(_, init)| init.is_some()));
    engine.done(&["kill", "later"]);
    wait(&facts, "end", |fact| named(fact, "later").filter(|(_, init)| init.is_none()));

    // A process that is started in a container.
    let mut exec = Command::new("docker")
        .args(["-H", &engine.host(), "exec", "early", "/usr/bin/sleep", "5"])
        .spawn()
        .expect("docker starts");
    let (container, pid) = wait(&facts, "exec", |fact| match fact {
        EngineFact::Exec { container, pid, id, .. } if id.len() == 64 => {
            Some((container.clone(), *pid))
        }
        _ => None,
    });
    assert_eq!(&*container.0, early);
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).expect("a running process");
    assert!(command.starts_with(b"/usr/bin/sleep\x005"), "{}", String::from_utf8_lossy(&command));
    drop(exec.kill());
    drop(exec.wait());

    // One that lives for a moment has its name.
    engine.done(&[
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "/usr:/usr:ro",
        "--name",
        "brief",
        "links:1",
        "/usr/bin/true",
    ]);
    wait(&facts, "brief", |fact| named(fact, "brief"));

    // The engine goes away and comes back.
    forget(&facts);
    engine.stop();
    wait(&facts, "loss", |fact| matches!(fact, EngineFact::Lost { .. }).then_some(()));
    sleep(Duration::from_secs(2));
    let losses = |fact: &&EngineFact| matches!(fact, EngineFact::Lost { .. });
    assert_eq!(facts.lock().expect("a list").iter().filter(losses).count(), 1);
    engine.restart();
    wait(&facts, "return", |fact| matches!(fact, EngineFact::Connected { .. }).then_some(()));
    engine.run("again", &[], &["/usr/bin/sleep", "600"]);
    wait(&facts, "start after the return", |fact| {
        named(fact, "again").filter(|(_, init)| init.is_some())
    });
    inventory.finish();
}

#[test]
fn without_an_engine_nothing_is_told_and_nothing_waits() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = format!("unix://{}", directory.path().join("docker.sock").display());
    let (inventory, news, facts) = follow(host.clone());
    match news.recv_timeout(Duration::from_secs(5)) {
        Ok(News::Settled { engines, silent, .. }) => {
            assert!(engines.is_empty());
            assert_eq!((silent.len(), &*silent[0].endpoint), (1, &*host));
        }
        other => panic!("{other:?}"),
    }
    let began = Instant::now();
    inventory.finish();
    assert!(began.elapsed() < Duration::from_secs(1));
    // That it was asked is all there is to tell.
    let facts = facts.lock().expect("a list");
    assert!(matches!(facts.as_slice(), [EngineFact::Asked { .. }]), "{facts:?}");
}
