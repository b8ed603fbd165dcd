//! A tiny MCP client: starts a server by a command and calls its tools again and again.
//!
//! `weather-client [--every SECONDS] -- COMMAND…`; when the server ends, it is started again.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rmcp::ServiceExt;
use rmcp::model::{CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::sleep;

/// So many rounds make a session; then the client ends it and starts the server anew.
const ROUNDS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (every, command) = match words.split_first() {
        Some((option, [seconds, dashes, command @ ..]))
            if option == "--every" && dashes == "--" =>
        {
            (seconds.parse().context("--every")?, command)
        }
        Some((dashes, command)) if dashes == "--" => (2, command),
        _ => bail!("usage: weather-client [--every SECONDS] -- COMMAND..."),
    };
    let every = Duration::from_secs(every);
    loop {
        if let Err(error) = session(command, every).await {
            report(&error);
        }
        sleep(every).await;
    }
}

#[expect(clippy::print_stderr, reason = "a program for a terminal")]
fn report(error: &anyhow::Error) {
    eprintln!("weather-client: {error:#}");
}

/// One session, from the start of the server to its end.
async fn session(command: &[String], every: Duration) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.clone())?;
    let output = child.stdout.take().context("no standard output")?;
    let input = child.stdin.take().context("no standard input")?;
    let name = Implementation::new("weather-client", env!("CARGO_PKG_VERSION"));
    let client = ClientConfig::new(ClientCapabilities::default(), name);
    let client = client.serve((output, input)).await?;
    client.list_all_tools().await?;
    for round in 0..ROUNDS {
        let city = ["Paris", "Tokyo", "Atlantis"][round as usize % 3];
        client.call_tool(call("get_weather", &json!({ "city": city }))).await?;
        sleep(every / 2).await;
        client.call_tool(call("get_stock", &json!({ "symbol": "ACME" }))).await?;
        sleep(every / 2).await;
    }
    client.cancel().await?;
    child.wait().await?;
    Ok(())
}

fn call(tool: &'static str, arguments: &Value) -> CallToolRequestParams {
    CallToolRequestParams::new(tool)
        .with_arguments(arguments.as_object().cloned().unwrap_or_default())
}
