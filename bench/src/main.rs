//! The benchmarks of mcpspy: how much it captures, what that costs, and what it costs those who do
//! not speak MCP.
//!
//! Every figure is a comparison within one run: with the monitor and without it, in turns, the load
//! on one CPU and the monitor on another. Figures of different runs or machines say little.
//!
//! `cargo xtask bench` builds mcpspy and starts `mcpspy-bench run`. The same binary is the load:
//! `mcpspy-bench load` is an MCP client, which starts `mcpspy-bench serve`, an MCP server.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "times and counts far below 2^52, never negative"
)]

mod bpf;
mod capture;
mod cases;
mod load;
mod message;
mod monitor;
mod probe;
mod report;
mod stats;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(about = "What mcpspy costs", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure.
    Run(Run),
    /// Be an MCP client that starts a server and calls its tool; prints what was sent as JSON.
    Load(load::LoadArgs),
    /// Be the MCP server of `load`.
    Serve {
        /// Bytes of a message, line end included.
        #[arg(long, default_value_t = 300)]
        size: usize,
    },
    /// Make system calls that have nothing to do with MCP; prints ns per call.
    Probe(probe::ProbeArgs),
}

/// How to measure.
#[derive(Args)]
pub(crate) struct Run {
    /// Only the cases with these names.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// A second or two for each case; fails below generous floors. Writes no file.
    #[arg(long)]
    short: bool,
    /// The monitor to measure.
    #[arg(long, default_value = "target/release/mcpspy")]
    monitor: PathBuf,
    /// Where recorded output and the like may be put.
    #[arg(long, default_value = "target/bench")]
    scratch: PathBuf,
    /// The page that gets the table.
    #[arg(long, default_value = "docs/performance.md")]
    page: PathBuf,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Run(run) => cases::run(&run),
        Verb::Load(args) => load::client(&args).map(|()| ExitCode::SUCCESS),
        Verb::Serve { size } => load::serve(size).map(|()| ExitCode::SUCCESS),
        Verb::Probe(args) => probe::run(&args).map(|()| ExitCode::SUCCESS),
    }
}
