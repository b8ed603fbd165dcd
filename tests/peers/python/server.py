"""A server with the Python SDK, either line: one tool per situation that the tests need."""

import os
import sys

import anyio
import tee

tee.install_server()

try:
    from mcp.server.mcpserver import Context, MCPServer as Server
    from mcp.server.mcpserver import Image
except ImportError:
    from mcp.server.fastmcp import Context, FastMCP as Server
    from mcp.server.fastmcp import Image
from mcp import types

server = Server("python-peer", instructions="Grüße 👋")


@server.tool()
def echo(text: str) -> str:
    return text


@server.tool(structured_output=False)
def text(size: int) -> str:
    """`size` bytes of text, with characters of one to four bytes."""
    pattern = "abcdefghé€👋"
    whole, rest = divmod(size, len(pattern.encode()))
    return pattern * whole + "x" * rest


@server.tool(structured_output=False)
def length(text: str) -> str:
    return str(len(text.encode()))


@server.tool(structured_output=False)
def image(size: int) -> Image:
    return Image(data=os.urandom(size), format="png")


@server.tool()
async def slow(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "done"


@server.tool()
def fail() -> str:
    raise ValueError("broken\x1b[31m tool")


@server.tool()
async def progress(steps: int, ctx: Context) -> str:
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    return "done"


@server.tool()
async def ask(ctx: Context) -> str:
    """Requests in the other direction; their ids meet those of the client."""
    roots = await ctx.session.list_roots()
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text="hello?"))
    answer = await ctx.session.create_message([message], max_tokens=10)
    return f"{len(roots.roots)} {answer.content.text}"


@server.tool()
def die(code: int) -> str:
    os._exit(code)


@server.tool()
def killed(signal: int) -> str:
    os.kill(os.getpid(), signal)
    return "unreachable"


@server.resource("memo://one")
def memo() -> str:
    return "a memo with <angle> & \u2028 brackets"


@server.prompt()
def greet(name: str) -> str:
    return f"Say hello to {name}"


if __name__ == "__main__":
    for line in range(int(os.environ.get("MCPSPY_NOISE", 0))):
        # Goes to the wire: the SDK has not taken the stream over yet.
        print(f"{line}: starting, not JSON {{", flush=line % 100 == 0)
    sys.stdout.flush()
    server.run("stdio")
