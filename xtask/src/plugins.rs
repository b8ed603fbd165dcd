//! Compose v2 for the tests, where the machine has none: taken out of a Debian package and put below
//! `target/`, so that nothing of the machine changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::output;
use crate::docker::CONFIG;

/// The release of Debian whose package is taken: the first one with Compose v2. It needs nothing but
/// the C library, and runs on the release before.
const RELEASE: &str = "trixie";

/// The keys of Debian's releases, where the package for them is installed.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the plugin is inside its package.
const INSIDE: &str = "usr/libexec/docker/cli-plugins/docker-compose";

/// Whether there is a Compose v2, the machine's own or ours.
pub(crate) fn has_compose() -> bool {
    plugin().exists() || output("docker", &["compose", "version"]).is_some()
}

fn plugin() -> PathBuf {
    Path::new(CONFIG).join("cli-plugins/docker-compose")
}

/// Brings it. Without it the tests of Compose use the version that is there: so a machine whose
/// mirror has no such package only gets a line that says so.
pub(crate) fn bring() {
    if let Err(error) = download() {
        eprintln!("setup: no Compose v2 for the tests: {error:#}");
    }
}

fn download() -> Result<()> {
    let mirror = mirror().context("no Debian mirror is configured here")?;
    let dir = fs::canonicalize(CONFIG).or_else(|_| {
        fs::create_dir_all(CONFIG)?;
        fs::canonicalize(CONFIG)
    })?;
    let apt = dir.join("apt");
    for part in ["lists/partial", "cache/archives/partial", "empty"] {
        fs::create_dir_all(apt.join(part))?;
    }
    let list = apt.join("sources.list");
    let signed =
        if Path::new(KEYS).exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
    fs::write(&list, format!("deb {signed}{mirror} {RELEASE} main\n"))?;
    // A state of its own: the machine's apt does not learn of the other release.
    let settings = [
        ("Dir::Etc::SourceList", list),
        ("Dir::Etc::SourceParts", apt.join("empty")),
        ("Dir::State::Lists", apt.join("lists")),
        ("Dir::Cache", apt.join("cache")),
        // Root's apt reads as another user, who may not enter this directory.
        ("APT::Sandbox::User", "root".into()),
    ];
    let apt_get = |words: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        for (name, value) in &settings {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        command.arg("-qq").args(words).current_dir(&apt);
        let done = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{}", said.lines().next().unwrap_or("apt-get failed"));
        Ok(())
    };
    apt_get(&["update"])?;
    apt_get(&["download", "docker-compose"])?;
    let package = fs::read_dir(&apt)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get brought no package")?;
    let tree = apt.join("tree");
    let status = Command::new("dpkg-deb").arg("-x").args([&package, &tree]).status()?;
    ensure!(status.success(), "{} cannot be unpacked", package.display());
    fs::create_dir_all(dir.join("cli-plugins"))?;
    fs::copy(tree.join(INSIDE), dir.join("cli-plugins/docker-compose"))
        .context("the package has no plugin")?;
    fs::remove_dir_all(&apt)?;
    Ok(())
}

/// The Debian mirror that this machine uses, in either form of its lists.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.into_iter().find_map(|text| mirror_in(&text))
}

fn mirror_in(text: &str) -> Option<String> {
    let words = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace);
    // Not the one for security updates, and not those of other vendors.
    let mut mirrors = words
        .filter(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"));
    mirrors.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_forms_of_the_lists() {
        let one = "# deb http://old.example/debian a main\ndeb [arch=amd64] http://a.example/debian bookworm main\n";
        assert_eq!(mirror_in(one).as_deref(), Some("http://a.example/debian"));
        let new = "Types: deb\nURIs: http://b.example/debian/\nSuites: trixie\n";
        assert_eq!(mirror_in(new).as_deref(), Some("http://b.example/debian/"));
        assert_eq!(mirror_in("deb http://c.example/ubuntu noble main\n"), None);
        assert_eq!(mirror_in("deb http://d.example/debian-security bookworm main\n"), None);
    }
}
