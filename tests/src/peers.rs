//! Where the peers and the monitor are, and the commands that start them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The workspace's build directory: tests and their binaries are built below it.
pub fn target_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return PathBuf::from(dir);
    }
    source_dir().parent().unwrap_or(Path::new(".")).join("target")
}

/// Directory of this crate.
pub fn source_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `install-peers` put them.
pub fn peers_dir() -> PathBuf {
    std::env::var_os("MCPSPY_PEERS").map_or_else(|| target_dir().join("peers"), PathBuf::from)
}

/// The monitor under test.
pub fn monitor_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MCPSPY_BIN") {
        let path = PathBuf::from(path);
        if path.exists() {
            return Ok(path);
        }
        bail!("MCPSPY_BIN names {}, which does not exist", path.display());
    }
    let built = ["release", "debug"].map(|profile| target_dir().join(profile).join("mcpspy"));
    match built.into_iter().find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => bail!("no mcpspy binary: build it, or set MCPSPY_BIN"),
    }
}

/// The peer for what no SDK does.
pub fn raw_peer() -> PathBuf {
    std::env::var_os("MCPSPY_RAW_PEER")
        .or_else(|| option_env!("CARGO_BIN_EXE_raw-peer").map(Into::into))
        .map_or_else(|| target_dir().join("debug/raw-peer"), PathBuf::from)
}

/// Python of the virtual environment with this major version of the SDK.
pub fn python_binary(major: u8) -> PathBuf {
    peers_dir().join(format!("python-v{major}/bin/python"))
}

/// Where the TypeScript peers and their modules are.
pub fn typescript_dir() -> PathBuf {
    peers_dir().join("typescript")
}

/// The peer with rmcp.
pub fn rmcp_binary() -> PathBuf {
    peers_dir().join("rmcp/release/rmcp-peer")
}

/// A client with the Python SDK that starts its own server.
pub fn python(major: u8, scenario: &str) -> Command {
    let mut command = Command::new(python_binary(major));
    command.arg(source_dir().join("peers/python/client.py")).arg(scenario);
    command
}

/// Words of the command that starts the server with the Python SDK.
pub fn python_server(major: u8) -> [PathBuf; 2] {
    [python_binary(major), source_dir().join("peers/python/server.py")]
}

/// A client with the TypeScript SDK; the server's command is added by the caller.
pub fn typescript(scenario: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(typescript_dir().join("client.mjs")).arg(scenario);
    command
        .env("NODE_OPTIONS", format!("--require {}", typescript_dir().join("tee.cjs").display()));
    command
}

/// The server with the TypeScript SDK.
pub fn typescript_server() -> PathBuf {
    typescript_dir().join("server.mjs")
}

/// A public server from npm.
pub fn npm_server(name: &str) -> PathBuf {
    typescript_dir().join("node_modules/.bin").join(name)
}

/// A client with rmcp that starts its own server.
pub fn rmcp(scenario: &str) -> Command {
    let mut command = Command::new(rmcp_binary());
    command.arg(scenario);
    command
}
