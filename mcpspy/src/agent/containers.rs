//! What a run says of containers and their engines: at the start who answers and what is wrong, later
//! what changes.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::mistakes::{Mistake, Surroundings, judge};
use super::pass_on;
use super::pipeline::Work;
use super::report::say;
use crate::config::{Docker, Monitor};
use crate::filter::ContainerFilter;
use crate::inventory::docker::{DockerConfig, DockerInventory, EngineSummary, News, daemon_runs};
use crate::source::live::boot_now;

/// How long the start waits for engines. One that is slower is told later.
const PATIENCE: Duration = Duration::from_millis(800);
/// Most names in one line.
const NAMES: usize = 20;

/// Starts to follow engines.
pub(super) fn start(
    config: &Monitor,
    foreign_pids: bool,
    work: SyncSender<Work>,
) -> anyhow::Result<(Option<DockerInventory>, Listener)> {
    let (inventory, news) = if config.docker.disabled {
        (None, None)
    } else {
        let push = move |inputs| pass_on(&work, inputs);
        let started = DockerInventory::start(&settings(&config.docker), boot_now, push);
        let (inventory, news) = started.context("cannot follow container engines")?;
        (Some(inventory), Some(news))
    };
    let listener = Listener {
        news,
        filter: Some(config.filter.containers.clone()),
        by_name: config.filter.containers.by_name(),
        quiet: !config.command.is_empty(),
        foreign_pids,
        settled: false,
    };
    Ok((inventory, listener))
}

pub(super) fn settings(docker: &Docker) -> DockerConfig {
    DockerConfig { hosts: docker.hosts.clone() }
}

/// Hears what is worth telling.
pub(super) struct Listener {
    news: Option<Receiver<News>>,
    /// Until it was compared with the containers that run.
    filter: Option<ContainerFilter>,
    /// What of it needs an engine, until it was said that none answers.
    by_name: Vec<String>,
    /// With a command, standard error is not only ours.
    quiet: bool,
    foreign_pids: bool,
    settled: bool,
}

impl Listener {
    /// Says who answers, and what is wrong with the surroundings. Waits a moment for it.
    pub(super) fn settle(&mut self) {
        let until = Instant::now() + PATIENCE;
        let mut early = None;
        while early.is_none()
            && let Some(news) = &self.news
        {
            match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(news @ News::Settled { .. }) => early = Some(news),
                // What it refuses is in the summary too.
                Ok(_) => {}
                Err(_) => break,
            }
        }
        match early {
            Some(news) => self.hear(news),
            None if self.news.is_none() => {
                self.first(&[], read(&[], self.foreign_pids, true));
                self.say_unnamed();
            }
            // Nothing was refused, something is slow: the rest is said when it is known.
            None => {}
        }
    }

    /// Says what came since. Never waits.
    pub(super) fn look(&mut self) {
        while let Some(Ok(news)) = self.news.as_ref().map(Receiver::try_recv) {
            self.hear(news);
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Settled { engines, silent, containers, daemons } => {
                if !self.settled {
                    let inits: Vec<_> = containers.iter().filter_map(|(_, init)| *init).collect();
                    let mut around = read(&inits, self.foreign_pids, false);
                    around.engines.clone_from(&engines);
                    around.silent = silent;
                    around.daemons |= daemons;
                    self.first(&engines, around);
                }
                if engines.is_empty() {
                    self.say_unnamed();
                } else if let Some(filter) = self.filter.take() {
                    let infos = || containers.iter().map(|(info, _)| &**info);
                    let options = filter.unmatched(infos());
                    if !options.is_empty() {
                        let names = infos().map(|info| match &info.name {
                            Some(name) => name.to_string(),
                            None => info.id.short().to_owned(),
                        });
                        let names = some_of(names.collect());
                        warn(&Mistake::FilterMatchesNothing { options, names });
                    }
                }
            }
            News::Refused { endpoint, refused } => {
                warn(&Mistake::Refused { endpoint: endpoint.to_string(), refused });
            }
            News::Stale { endpoint } => warn(&Mistake::StaleSocket(endpoint.to_string())),
        }
    }

    /// Without an engine no container has a name: says once what can match nothing.
    fn say_unnamed(&mut self) {
        let options = std::mem::take(&mut self.by_name);
        if !options.is_empty() {
            warn(&Mistake::FilterWithoutEngine(options));
        }
    }

    fn first(&mut self, engines: &[EngineSummary], mut around: Surroundings) {
        self.settled = true;
        if self.quiet {
            return;
        }
        around.disabled = self.news.is_none();
        say(&containers_line(engines, around.disabled));
        for mistake in judge(&around) {
            match mistake {
                Mistake::Rootless(_) => tracing::info!("{mistake}"),
                _ => warn(&mistake),
            }
        }
    }
}

fn warn(mistake: &Mistake) {
    tracing::warn!("{mistake}");
}

/// How containers are named in this run.
pub(super) fn containers_line(engines: &[EngineSummary], disabled: bool) -> String {
    if engines.is_empty() {
        let why = if disabled { "no engine is asked" } else { "no engine answers" };
        return format!("containers: {why}; known by the ids of their control groups");
    }
    let engines: Vec<_> = engines.iter().map(EngineSummary::describe).collect();
    format!("containers: {}; named by the engine", engines.join("; "))
}

/// Names in order; of very many the first ones.
fn some_of(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    let more = names.len().saturating_sub(NAMES);
    names.truncate(NAMES);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}

/// Reads the surroundings; `inits` are first processes of containers.
pub(super) fn read(inits: &[u32], foreign_pids: bool, disabled: bool) -> Surroundings {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let inits: &[u32] = if foreign_pids { &[] } else { inits };
    let groups = inits.iter().filter_map(|pid| text(&format!("/proc/{pid}/cgroup")));
    Surroundings {
        foreign_pids,
        contained: foreign_pids || is_contained(),
        disabled,
        capabilities: text("/proc/self/status").as_deref().and_then(effective),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        daemons: daemon_runs(),
        cgroups: groups.collect(),
        ..Surroundings::default()
    }
}

/// Engines leave a file in each container.
fn is_contained() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists())
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What standard output is: a log of an engine is a pipe, and shows no colours.
pub(super) fn standard_output() -> &'static str {
    use std::io::IsTerminal;
    if std::io::stdout().is_terminal() {
        return "a terminal";
    }
    // Follows the link to what is open.
    let Ok(meta) = std::fs::metadata("/proc/self/fd/1") else { return "closed" };
    let kind = meta.file_type();
    match () {
        () if kind.is_fifo() && is_contained() => "a pipe: in a container that is its log",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_file() => "a file",
        () if kind.is_socket() => "a socket: the journal, or a supervisor",
        () => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_at_the_start_says_how_containers_are_named() {
        let engine = |runtime: &str, version: &str, containers| EngineSummary {
            endpoint: "unix:///x".into(),
            runtime: runtime.into(),
            version: version.to_owned(),
            host: None,
            system: String::new(),
            rootless: false,
            refused: Vec::new(),
            containers,
        };
        assert_eq!(
            containers_line(&[engine("docker", "27.0", 1), engine("podman", "", 0)], false),
            "containers: Docker 27.0 at unix:///x, 1 container; Podman at unix:///x, 0 containers; \
             named by the engine"
        );
        let none = "containers: no engine answers; known by the ids of their control groups";
        assert_eq!(containers_line(&[], false), none);
        assert!(containers_line(&[], true).contains("no engine is asked"));
    }

    #[test]
    fn many_names_are_shortened() {
        let names = some_of((10..99).map(|number| number.to_string()).collect());
        assert_eq!((names.len(), &*names[0], &*names[20]), (21, "10", "and 69 more"));
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000200000\n"), Some(1 << 21));
        assert_eq!(effective(""), None);
    }
}
