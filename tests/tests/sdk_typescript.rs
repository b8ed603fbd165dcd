//! Real clients and servers with the TypeScript SDK, and its public servers, over socket pairs.

use anyhow::Result;
use mcpspy_e2e::{Need, Stage, live, peers};

/// Plays a scenario between the SDK's client and the SDK's server.
fn plays(stage: &Stage, scenario: &str) -> Result<()> {
    let monitor = stage.monitor(&[])?;
    stage.play(peers::typescript(scenario).arg("node").arg(peers::typescript_server()))?;
    monitor.stop()?.expect_exactly(&stage.truth()?)
}

#[test]
fn typescript_session_with_text_between_messages_is_captured_whole() {
    live(&[Need::TypeScript], |stage| plays(stage, "basic"));
}

#[test]
fn typescript_messages_up_to_16_mib_twice_in_a_row_and_an_image_of_5_mb() {
    live(&[Need::TypeScript], |stage| plays(stage, "big"));
}

#[test]
fn typescript_2000_calls_as_fast_as_the_sdk_goes() {
    live(&[Need::TypeScript], |stage| plays(stage, "burst"));
}

#[test]
fn typescript_client_with_50_sessions_at_once() {
    live(&[Need::TypeScript, Need::Rmcp], |stage| {
        let monitor = stage.monitor(&[])?;
        stage.play(peers::typescript("many").arg(peers::rmcp_binary()).arg("server"))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn server_everything_is_captured_whole() {
    live(&[Need::TypeScript], |stage| {
        let monitor = stage.monitor(&[])?;
        let server = peers::npm_server("mcp-server-everything");
        stage.play(peers::typescript("everything").arg(server))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}

#[test]
fn server_filesystem_is_captured_whole() {
    live(&[Need::TypeScript], |stage| {
        let monitor = stage.monitor(&[])?;
        let server = peers::npm_server("mcp-server-filesystem");
        let directory = stage.dir().join("served");
        std::fs::create_dir(&directory)?;
        stage.play(peers::typescript("filesystem").arg(server).arg(directory))?;
        monitor.stop()?.expect_exactly(&stage.truth()?)
    });
}
