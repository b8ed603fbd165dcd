//! The program: reads the command line, starts the job, returns its exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use mcpspy::cli::{self, Surroundings};
use mcpspy::config::{Action, Log, LogLevel};
use mcpspy::{agent, config::Config};

fn main() -> ExitCode {
    let Config { action, log } = match cli::parse(std::env::args_os(), Surroundings::look()) {
        Ok(config) => config,
        Err(stop) => return stop.show().into(),
    };
    start_logging(log);
    let ended = match action {
        Action::Monitor(monitor) => agent::monitor(*monitor),
        Action::Replay(replay) => agent::replay(*replay),
        Action::Check(docker) => agent::check(&docker),
        Action::Health => agent::health(),
        Action::Become(order) => Ok(agent::become_command(&order)),
        Action::Print(text) => {
            // Whoever closed the pipe has what they wanted.
            drop(io::stdout().write_all(text.as_bytes()));
            Ok(0)
        }
    };
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            agent::say(&format!("mcpspy: {}", describe(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes. Some errors name their cause in their own text: it is not said twice.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn start_logging(log: Log) {
    let level = match log.level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(log.color)
        .with_target(false)
        .without_time()
        .init();
}
