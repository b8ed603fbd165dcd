//! Client and server with rmcp: `rmcp-peer server`, `rmcp-peer SCENARIO [COMMAND ARGS...]`.
//!
//! Ground truth as in `python/tee.py`, taken between rmcp and its streams. Vectored writes stay
//! vectored: rmcp's client uses `writev`.

mod tee;

use std::process::Stdio;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RunningService};
use rmcp::{ErrorData, RoleClient, RoleServer, ServerHandler, ServiceExt};
use serde_json::json;
use tokio::process::{Child, Command};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Server;

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = json!({"type": "object"}).as_object().cloned().unwrap_or_default();
        let tool = |name| Tool::new(name, "for tests", schema.clone());
        Ok(ListToolsResult::with_all_items(vec![tool("echo"), tool("text"), tool("fail")]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        match &*request.name {
            "echo" => {
                let text = arguments["text"].as_str().unwrap_or_default();
                Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
            }
            "text" => {
                let size = arguments["size"].as_u64().unwrap_or(0) as usize;
                Ok(CallToolResult::success(vec![ContentBlock::text("é".repeat(size / 2))]).into())
            }
            "fail" => Ok(CallToolResult::error(vec![ContentBlock::text("failed")]).into()),
            other => Err(ErrorData::invalid_params(format!("no tool {other}"), None)),
        }
    }
}

async fn connect(command: &[String]) -> Fallible<(RunningService<RoleClient, ()>, Child)> {
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let end = tee::client(child.id().unwrap_or(0))?;
    let input = child.stdin.take().ok_or("no stdin")?;
    let output = child.stdout.take().ok_or("no stdout")?;
    let client = ().serve(end.wrap(output, input)?).await?;
    Ok((client, child))
}

fn call(tool: &'static str, arguments: serde_json::Value) -> CallToolRequestParams {
    CallToolRequestParams::new(tool)
        .with_arguments(arguments.as_object().cloned().unwrap_or_default())
}

async fn play(scenario: &str, command: &[String]) -> Fallible<()> {
    let (client, mut child) = connect(command).await?;
    match scenario {
        "basic" => {
            client.list_all_tools().await?;
            client.call_tool(call("echo", json!({"text": "é, 👋, \u{2028}"}))).await?;
            client.call_tool(call("fail", json!({}))).await?;
            if client.call_tool(call("missing", json!({}))).await.is_ok() {
                return Err("the missing tool answered".into());
            }
            for size in [2, 4096, 65536, 1 << 20, 15 << 20] {
                client.call_tool(call("text", json!({"size": size}))).await?;
            }
            client.call_tool(call("echo", json!({"text": "y".repeat(1 << 20)}))).await?;
        }
        "burst" => {
            let calls = (0..2000).map(|n| {
                let peer = client.peer().clone();
                tokio::spawn(async move {
                    peer.call_tool(call("echo", json!({"text": format!("call {n}")}))).await
                })
            });
            for call in calls.collect::<Vec<_>>() {
                call.await??;
            }
        }
        other => return Err(format!("no scenario {other}").into()),
    }
    client.cancel().await?;
    child.wait().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("server") => {
            let streams = tee::server()?.wrap(tokio::io::stdin(), tokio::io::stdout())?;
            Server.serve(streams).await?.waiting().await?;
            Ok(())
        }
        Some(scenario) => {
            let own =
                vec![std::env::current_exe()?.to_string_lossy().into_owned(), "server".into()];
            play(scenario, if arguments.len() > 1 { &arguments[1..] } else { &own }).await
        }
        None => Err("usage: rmcp-peer server | SCENARIO [COMMAND ARGS...]".into()),
    }
}
