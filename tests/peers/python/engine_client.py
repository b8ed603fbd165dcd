"""A client that starts its server through an engine's socket itself, as SDKs of engines do.

`engine_client.py SOCKET CONTAINER PID_SOCKET COMMAND...`: standard library alone. Logs what the tee
of the other peers logs: bytes handed to the server's input, and taken from its output, without the
engine's frames.
"""

import json
import os
import socket
import struct
import sys

SOCKET, CONTAINER, PID_SOCKET, *COMMAND = sys.argv[1:]
END = f"{os.environ['MCPSPY_TRUTH']}/client-{os.getpid()}-0"
SENT, RECEIVED = (open(f"{END}.{kind}", "ab", buffering=0) for kind in ("sent", "received"))


def request(path, body, upgrade=False):
    """A POST. Returns the connection, and what came behind the head of the answer."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(SOCKET)
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: docker", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    head += ["Connection: Upgrade", "Upgrade: tcp"] if upgrade else ["Connection: close"]
    connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + content)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, rest = answer.split(b"\r\n\r\n", 1)
    status = int(head.split()[1])
    assert status in (101, 200, 201), answer
    return connection, rest


class Session:
    def __init__(self):
        env = [f"MCPSPY_TRUTH={os.environ['MCPSPY_TRUTH']}", f"MCPSPY_PID_SOCKET={PID_SOCKET}"]
        connection, answer = request(
            f"/containers/{CONTAINER}/exec",
            {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Env": env, "Cmd": COMMAND},
        )
        while more := connection.recv(65536):
            answer += more
        # With or without chunks, the object is what stands between the braces.
        exec_id = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])["Id"]
        self.connection, self.frames = request(f"/exec/{exec_id}/start", {"Detach": False, "Tty": False}, upgrade=True)
        self.output = b""

    def send(self, message):
        line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        SENT.write(line)
        self.connection.sendall(line)

    def exactly(self, count):
        while len(self.frames) < count:
            more = self.connection.recv(65536)
            if not more:
                raise EOFError
            self.frames += more
        taken, self.frames = self.frames[:count], self.frames[count:]
        return taken

    def frame(self):
        stream, size = struct.unpack(">BxxxI", self.exactly(8))
        payload = self.exactly(size)
        if stream == 1:
            RECEIVED.write(payload)
            self.output += payload
        else:
            sys.stderr.buffer.write(payload)

    def line(self):
        while b"\n" not in self.output:
            self.frame()
        line, self.output = self.output.split(b"\n", 1)
        return json.loads(line)

    def call(self, number, tool, **arguments):
        self.send({"id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
        assert self.line()["id"] == number

    def close(self):
        self.connection.shutdown(socket.SHUT_WR)
        try:
            while True:
                self.frame()
        except EOFError:
            pass


session = Session()
info = {"name": "engine-client", "version": "1"}
session.send({"id": 0, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info}})
session.line()
session.send({"method": "notifications/initialized"})
for number in range(1, 40):
    session.call(number, "echo", text=f"straight to the engine {number}")
session.call(40, "length", text="y" * 300_000)
session.call(41, "text", size=300_000)
session.call(42, "echo", text="after")
session.close()
