//! `cargo xtask image`: the static binary, built on the host, in an image of its own.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::command::{cargo, must, output, target};
use crate::{docker, setup};

/// Names of the image.
pub(crate) const LATEST: &str = "mcpspy:latest";

/// What the image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64", aliases = ["amd64", "x86-64"])]
    X86_64,
    #[value(name = "aarch64", aliases = ["arm64"])]
    Aarch64,
}

impl Arch {
    /// The machine's own, where an image can be made for it.
    pub(crate) fn here() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            other => anyhow::bail!("no image can be made for {other}: only for x86_64 and aarch64"),
        }
    }

    /// What cargo builds for: the C library is inside the binary.
    fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// What Docker calls it.
    fn platform(self) -> &'static str {
        match self {
            Self::X86_64 => "linux/amd64",
            Self::Aarch64 => "linux/arm64",
        }
    }
}

/// Builds the binary and its image, and says how big it is.
pub(crate) fn run(arch: Option<Arch>, tag: &str) -> Result<()> {
    docker::engine()?;
    setup::run()?;
    let here = Arch::here()?;
    let arch = arch.unwrap_or(here);
    build(&Plan {
        package: "mcpspy",
        binaries: &["mcpspy"],
        dockerfile: "docker/Dockerfile.prebuilt",
        tag,
        arch,
    })?;
    sizes(tag)?;
    if arch != here {
        println!("built for {}, which this machine is not: it has not been run", arch.platform());
    }
    Ok(())
}

/// An image made of static binaries.
pub(crate) struct Plan<'a> {
    pub(crate) package: &'a str,
    pub(crate) binaries: &'a [&'a str],
    pub(crate) dockerfile: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) arch: Arch,
}

/// Builds the static binaries of a package on the host. Returns where they are.
pub(crate) fn binaries(package: &str, arch: Arch) -> Result<PathBuf> {
    let triple = arch.triple();
    standard_library(triple)?;
    let mut command = cargo();
    command.args(["build", "--release", "--package", package, "--target", triple]);
    if arch != Arch::here()? || !cfg!(target_os = "linux") {
        // Rust's own linker needs no compiler for the other machine. cargo's name for this setting.
        let name = triple.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{name}_LINKER"), "rust-lld");
    }
    must(&mut command)?;
    Ok(target().join(triple).join("release"))
}

/// Builds the binaries on the host and puts them into an image. Returns where the binaries are.
pub(crate) fn build(plan: &Plan) -> Result<PathBuf> {
    let built = binaries(plan.package, plan.arch)?;
    // The context holds the binaries and nothing else, so it is sent in no time.
    let context = target().join("image").join(plan.arch.triple()).join(plan.package);
    fs::create_dir_all(&context)?;
    for binary in plan.binaries {
        let from = built.join(binary);
        fs::copy(&from, context.join(binary)).with_context(|| from.display().to_string())?;
    }
    // The old builder takes what is made from `scratch` for an image of its own machine, whatever it
    // is told, and then refuses it.
    ensure!(
        plan.arch == Arch::here()? || output("docker", &["buildx", "version"]).is_some(),
        "the binary is built: {}. An image for another machine needs the plugin `docker buildx`",
        context.display()
    );
    must(docker_build(plan).arg(&context))?;
    Ok(context)
}

fn docker_build(plan: &Plan) -> Command {
    let revision = output("git", &["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let mut command = Command::new("docker");
    command.args(["build", "--quiet", "--file", plan.dockerfile, "--tag", plan.tag]);
    command.args(["--build-arg", concat!("VERSION=", env!("CARGO_PKG_VERSION"))]);
    command.args(["--build-arg", &format!("REVISION={revision}")]);
    command.args(["--platform", plan.arch.platform()]);
    command
}

/// Brings the standard library for a target. Not through `setup`: only images need it.
fn standard_library(triple: &str) -> Result<()> {
    let installed = output("rustup", &["target", "list", "--installed"]).unwrap_or_default();
    if installed.lines().any(|line| line.trim() == triple) {
        return Ok(());
    }
    must(Command::new("rustup").args(["target", "add", triple]))
        .context("the standard library for static binaries comes from rustup")
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn sizes(tag: &str) -> Result<()> {
    let size = output("docker", &["image", "inspect", "--format", "{{.Size}}", tag]);
    let size: u64 = size.and_then(|size| size.parse().ok()).context("the image is not there")?;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let packed = packed(tag)?;
    println!("{tag}: {:.1} MB, compressed {:.1} MB", megabytes(size), megabytes(packed));
    Ok(())
}

/// How much of the image goes over a network.
fn packed(tag: &str) -> Result<u64> {
    let mut save =
        Command::new("docker").args(["image", "save", tag]).stdout(Stdio::piped()).spawn()?;
    let saved = save.stdout.take().context("docker has no standard output")?;
    let mut gzip = Command::new("gzip")
        .arg("-c")
        .stdin(saved)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting gzip")?;
    let mut packed = gzip.stdout.take().context("gzip has no standard output")?;
    let bytes = io::copy(&mut packed.by_ref(), &mut io::sink())?;
    ensure!(save.wait()?.success() && gzip.wait()?.success(), "the image cannot be saved");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    /// From the labels on, whatever way the binary came.
    fn end(dockerfile: &str) -> Vec<&str> {
        let lines = dockerfile.lines().skip_while(|line| !line.starts_with("LABEL"));
        lines.filter(|line| !line.starts_with("COPY")).collect()
    }

    #[test]
    fn both_ways_make_the_same_image() {
        let prebuilt = end(include_str!("../../docker/Dockerfile.prebuilt"));
        assert_eq!(prebuilt, end(include_str!("../../docker/Dockerfile")));
        assert!(prebuilt.iter().any(|line| line.starts_with("HEALTHCHECK")));
    }
}
