"""A small MCP server. `pip install mcp`; weather_client.py starts it."""

from mcp.server.fastmcp import FastMCP

server = FastMCP("weather")


@server.tool()
def get_weather(city: str) -> str:
    """Says what the weather is like in a city."""
    known = {"Oslo": "4 °C, snow", "Lisbon": "21 °C, sunny"}
    if city not in known:
        raise ValueError(f"nobody knows the weather in {city}")
    return known[city]


@server.resource("weather://stations")
def stations() -> str:
    """Lists the stations."""
    return "Oslo\nLisbon\n"


server.run()
