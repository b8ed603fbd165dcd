"""Ground truth: every byte that the SDK hands to or takes from its streams, as files.

For each end of a session two files below $MCPSPY_TRUTH: `client-PID-N.sent` and `.received` (and
`.child`, the pid that was spawned), `server-PID-0.sent` and `.received`. The tee sits where the bytes
enter and leave the process; nothing is serialised again.
"""

import io
import itertools
import os

import anyio

TRUTH = os.environ["MCPSPY_TRUTH"]
numbers = itertools.count()


class Log:
    """Appends to one file without a buffer, so that a killed process leaves a whole log."""

    def __init__(self, end: str, kind: str):
        self.file = open(f"{TRUTH}/{end}.{kind}", "ab", buffering=0)

    def __call__(self, data) -> None:
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]


class TeeFile(io.FileIO):
    """The raw file below the SDK's text layer: logs what read(2) and write(2) moved."""

    def __init__(self, fd: int, mode: str, log: Log):
        super().__init__(fd, mode, closefd=False)
        self.log = log

    def readinto(self, buffer):
        count = super().readinto(buffer)
        if count:
            self.log(memoryview(buffer)[:count])
        return count

    def write(self, data):
        count = super().write(data)
        if count:
            self.log(memoryview(data)[:count])
        return count


def install_server() -> None:
    """The SDK wraps its standard streams with anyio.wrap_file: put the tee below them."""
    end = f"server-{os.getpid()}-0"
    wrap_file = anyio.wrap_file

    def wrap(text):
        fd = text.buffer.fileno()
        if text.readable():
            raw = io.BufferedReader(TeeFile(fd, "rb", Log(end, "received")))
        else:
            raw = io.BufferedWriter(TeeFile(fd, "wb", Log(end, "sent")))
        text.detach()
        return wrap_file(io.TextIOWrapper(raw, encoding="utf-8"))

    anyio.wrap_file = wrap


def install_client() -> None:
    """The SDK starts servers with anyio.open_process: wrap the streams of the process."""
    open_process = anyio.open_process

    async def open_and_tee(*args, **kwargs):
        process = await open_process(*args, **kwargs)
        end = f"client-{os.getpid()}-{next(numbers)}"
        with open(f"{TRUTH}/{end}.child", "w") as file:
            file.write(str(process.pid))
        sent, received = Log(end, "sent"), Log(end, "received")
        send, receive = process.stdin.send, process.stdout.receive

        async def tee_send(data):
            sent(data)
            await send(data)

        async def tee_receive(*args):
            data = await receive(*args)
            received(data)
            return data

        process.stdin.send = tee_send
        process.stdout.receive = tee_receive
        return process

    anyio.open_process = open_and_tee
