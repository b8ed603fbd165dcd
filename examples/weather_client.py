"""A small MCP client: `python3 weather_client.py` starts the server beside it and asks it things."""

import asyncio
import os
import pathlib

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

SERVER = pathlib.Path(__file__).with_name("weather_server.py")


async def main() -> None:
    # Without this the server would get almost no environment, and so not a virtual one.
    env = dict(os.environ)
    server = StdioServerParameters(command="python3", args=[SERVER.name], cwd=SERVER.parent, env=env)
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        await session.list_tools()
        await session.call_tool("get_weather", {"city": "Oslo"})
        await session.call_tool("get_weather", {"city": "Atlantis"})
        await session.read_resource("weather://stations")


asyncio.run(main())
