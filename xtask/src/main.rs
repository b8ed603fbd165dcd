//! The repository's own commands. Each verb is one function that runs ordinary commands.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for people at a terminal")]

mod bench;
mod command;
mod demo;
mod docker;
mod image;
mod machine;
mod plugins;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The repository's own commands")]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring what is missing to build mcpspy and to test it. The other verbs bring what they need.
    Setup {
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
    /// Build mcpspy and start it; needs root for the second part.
    Run {
        /// Arguments of mcpspy.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build the Docker image mcpspy:latest, without a registry.
    Image {
        /// For another machine than this one.
        #[arg(long)]
        arch: Option<image::Arch>,
        /// Name of the image.
        #[arg(long, default_value = image::LATEST)]
        tag: String,
    },
    /// Start an MCP server, clients and mcpspy in containers, and show what mcpspy sees.
    Demo,
    /// Run all tests that this machine can run.
    Test {
        /// Only tests that need neither root nor peers.
        #[arg(long)]
        no_live: bool,
        /// Only tests with this in their name.
        filter: Option<String>,
    },
    /// Measure what mcpspy costs and write docs/performance.md.
    Bench {
        /// Only the cases with these names.
        names: Vec<String>,
        /// A second or two for each case; fails below generous floors. Writes no file.
        #[arg(long)]
        short: bool,
    },
}

fn main() -> Result<ExitCode> {
    let verb = Cli::parse().verb;
    // All paths below are relative to the root of the repository.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    match verb {
        Verb::Setup { yes } => setup::for_tests(yes).map(|()| ExitCode::SUCCESS),
        Verb::Run { args } => run::run(&args),
        Verb::Image { arch, tag } => image::run(arch, &tag).map(|()| ExitCode::SUCCESS),
        Verb::Demo => demo::run().map(|()| ExitCode::SUCCESS),
        Verb::Test { no_live, filter } => test::run(no_live, filter.as_deref()),
        Verb::Bench { names, short } => bench::run(&names, short),
    }
}
