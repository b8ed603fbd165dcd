//! A tiny MCP server over standard input and output.
//!
//! `weather-server --idle` serves nobody and only keeps a container running, in which clients start
//! their own servers by `docker exec -i`.

use anyhow::Result;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt};
use serde_json::json;

struct Server;

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("weather", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tool = |name, about, argument: &str| {
            let schema = json!({
                "type": "object",
                "properties": { argument: { "type": "string" } },
                "required": [argument],
            });
            Tool::new(name, about, schema.as_object().cloned().unwrap_or_default())
        };
        Ok(ListToolsResult::with_all_items(vec![
            tool("get_weather", "The weather of a city", "city"),
            tool("get_stock", "The price of a share", "symbol"),
        ]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let argument = |name: &str| arguments.get(name).and_then(|value| value.as_str());
        let answer = match &*request.name {
            "get_weather" => weather(argument("city").unwrap_or_default()),
            "get_stock" => price(argument("symbol").unwrap_or_default()),
            other => return Err(ErrorData::invalid_params(format!("no tool {other}"), None)),
        };
        Ok(match answer {
            Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]).into(),
            Err(text) => CallToolResult::error(vec![ContentBlock::text(text)]).into(),
        })
    }
}

fn weather(city: &str) -> Result<String, String> {
    match city {
        "Paris" => Ok("Paris: 18 °C, light rain".to_owned()),
        "Tokyo" => Ok("Tokyo: 24 °C, clear".to_owned()),
        other => Err(format!("nobody knows the weather in {other}")),
    }
}

fn price(symbol: &str) -> Result<String, String> {
    match symbol {
        "ACME" => Ok("ACME: 42.00".to_owned()),
        other => Err(format!("no share {other}")),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--idle") {
        std::future::pending::<()>().await;
    }
    let streams = (tokio::io::stdin(), tokio::io::stdout());
    Server.serve(streams).await?.waiting().await?;
    Ok(())
}
