"""A client with the Python SDK, either line. `client.py SCENARIO [COMMAND ARGS...]`"""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import tee

tee.install_client()

from mcp import ClientSession, StdioServerParameters, types  # noqa: E402
from mcp.client.stdio import stdio_client  # noqa: E402

HERE = Path(__file__).parent
COMMAND = sys.argv[2:] or [sys.executable, str(HERE / "server.py")]
KEEP = ("MCPSPY_TRUTH", "MCPSPY_NOISE", "PATH", "HOME")


@asynccontextmanager
async def connect(number=0):
    """An initialised session with a new server; `{n}` in its command becomes a number."""
    env = {name: os.environ[name] for name in KEEP if name in os.environ}
    args = [word.replace("{n}", str(number)) for word in COMMAND[1:]]
    transport = stdio_client(StdioServerParameters(command=COMMAND[0], args=args, env=env))
    if os.environ.get("MCPSPY_ERA") == "modern":
        from mcp import Client

        async with Client(transport, mode="auto", sampling_callback=sample, list_roots_callback=roots) as client:
            yield client
        return
    async with transport as (read, write):
        async with ClientSession(read, write, sampling_callback=sample, list_roots_callback=roots) as session:
            await session.initialize()
            yield session


async def sample(context, params):
    content = types.TextContent(type="text", text="four")
    return types.CreateMessageResult(role="assistant", content=content, model="none")


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///srv", name="srv")])


async def nothing(*_):
    pass


async def basic():
    legacy = os.environ.get("MCPSPY_ERA") != "modern"
    async with connect() as session:
        await session.list_tools()
        await session.call_tool("echo", {"text": 'plain, "quotes", é, 👋, \u2028, \x7f'})
        await session.call_tool("progress", {"steps": 3}, progress_callback=nothing)
        await session.call_tool("fail", {})
        await session.list_resources()
        await session.read_resource("memo://one")
        await expect_error(session.read_resource("memo://missing"))
        await session.list_prompts()
        await session.get_prompt("greet", {"name": "Ada"})
        await expect_error(session.get_prompt("missing"))
        if legacy:
            await session.send_ping()
            await session.call_tool("ask", {})


async def expect_error(request):
    try:
        await request
    except Exception as error:
        print("as expected:", error, file=sys.stderr)
    else:
        raise AssertionError("no error")


async def burst():
    async with connect() as session:
        await asyncio.gather(*(session.call_tool("echo", {"text": f"call {n}"}) for n in range(2000)))


async def many():
    async def one(number):
        async with connect(number) as session:
            await session.list_tools()
            for call in range(3):
                await session.call_tool("echo", {"text": f"session {number} call {call}"})

    await asyncio.gather(*(one(number) for number in range(int(os.environ.get("MCPSPY_SESSIONS", "50")))))


async def big():
    async with connect() as session:
        for size in (1, 4096, 65536, 1 << 20, (16 << 20) - 2048, (16 << 20) - 2048):
            await session.call_tool("text", {"size": size})
        for size in (1, 4096, 65536, 1 << 20, (16 << 20) - 2048, (16 << 20) - 2048):
            await session.call_tool("length", {"text": "y" * size})


async def image():
    async with connect() as session:
        await session.call_tool("image", {"size": 5_000_000 * 3 // 4})
        await session.call_tool("echo", {"text": "after"})


async def slow():
    seconds = float(os.environ.get("MCPSPY_SECONDS", "6"))
    async with connect() as session:
        await session.call_tool("slow", {"seconds": seconds})


async def die():
    async with connect() as session:
        await session.call_tool("echo", {"text": "last words"})
        await expect_error(asyncio.wait_for(session.call_tool("die", {"code": 3}), 5))


async def killed():
    async with connect() as session:
        await session.call_tool("echo", {"text": "last words"})
        await expect_error(asyncio.wait_for(session.call_tool("killed", {"signal": 9}), 5))


async def holder():
    """Mid-session, a forked child holds every pipe end open and does nothing."""
    async with connect() as session:
        await session.call_tool("echo", {"text": "before the fork"})
        child = os.fork()
        if child == 0:
            hold()
        await session.call_tool("echo", {"text": "after the fork"})
        os.kill(child, 9)
        os.waitpid(child, 0)


def hold():
    import time

    time.sleep(1000)
    os._exit(0)


async def wait():
    """A session that goes on when a line comes on standard input: for monitors that start late."""
    async with connect() as session:
        await session.call_tool("echo", {"text": "before"})
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await session.call_tool("echo", {"text": "after"})
        await session.call_tool("progress", {"steps": 2}, progress_callback=nothing)


async def until():
    """Calls until a file is there."""
    async with connect() as session:
        number = 0
        while not os.path.exists(os.environ["MCPSPY_UNTIL"]):
            number += 1
            await session.call_tool("echo", {"text": f"until {number}"})
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    scenario = sys.argv[1]
    if scenario == "fork":
        # The process that speaks is a child of the one that was started.
        child = os.fork()
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        scenario = "holder"
    asyncio.run(globals()[scenario]())
