"""After every kind of request, and whatever became of its connection, a server that is told to stop stops at once."""

import itertools
import json
import signal
import socket
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

from tests.e2e.wire import Wire, wire
from tests.running import eventually, serving

SOURCE = """
import asyncio
from mpserve import Model, TensorModel

class Plain(Model):
    def predict(self, payload, headers=None):
        return {"predictions": [1]} if isinstance(payload, dict) else {"outputs": []}

class Waits(Model):
    async def predict(self, payload, headers=None):
        await asyncio.sleep(0)
        return {"predictions": [1]}

class Transformer(Model):
    async def preprocess(self, payload, headers=None):
        await asyncio.sleep(0)
        return payload

    def predict(self, payload, headers=None):
        return {"predictions": [1]}

    async def postprocess(self, result, headers=None, response_headers=None):
        return result

class Rows(TensorModel):
    max_batch_size = 8

    def predict(self, x):
        return x

class Away(Model):
    def load(self):
        self.ready = True
        return True

    def predict(self, payload, headers=None):
        self.ready = False
        return {"predictions": [1]}

class Parts(Model):
    def predict(self, payload, headers=None):
        yield "a"
        yield "b"

models = [Plain("plain"), Waits("waits"), Transformer("transformer"), Rows("rows"), Away("away"), Parts("parts")]
"""

V2 = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}


class Kind(NamedTuple):
    path: str
    body: object
    status: int
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)


KINDS = {
    "plain": Kind("/v1/models/plain:predict", {"instances": [1]}, 200),
    "async": Kind("/v1/models/waits:predict", {"instances": [1]}, 200),
    "transformer": Kind("/v1/models/transformer:predict", {"instances": [1]}, 200),
    "large": Kind("/v1/models/plain:predict", {"instances": [0.123] * 60_000}, 200),
    "timeout": Kind("/v2/models/plain/infer", {**V2, "parameters": {"timeout": 900_000}}, 200),
    "batched": Kind("/v2/models/rows/infer", V2, 200, {"Accept-Encoding": "gzip"}),
    "parts": Kind("/v1/models/parts:predict", {"instances": []}, 200),
    "no such model": Kind("/v1/models/other:predict", {"instances": [1]}, 404),
    "no such path": Kind("/other", {}, 404), "malformed": Kind("/v1/models/plain:predict", [], 400),
    "not ready": Kind("/v1/models/away:predict", {"instances": [1]}, 503),
}  # fmt: skip


def raw(kind: Kind) -> bytes:
    body = json.dumps(kind.body).encode()
    fields = {"Host": "x", "Content-Length": len(body), **kind.headers}
    lines = [f"POST {kind.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def reset(connection: Wire) -> None:
    """Have the kernel send RST at the close."""
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def ask(connection: Wire, kind: Kind) -> None:
    connection.send(raw(kind))
    response = connection.response()
    assert response.status == kind.status, kind
    if response.headers.get("transfer-encoding") == "chunked":
        while (line := connection.reader.readline()) != b"0\r\n":
            connection.reader.read(int(line, 16) + 2)
        connection.reader.readline()


def test_sigterm_stops_at_once_and_nothing_is_abandoned(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--graceful_timeout=20", target="model.py:models") as server, ExitStack() as stack:
        server.wait_ready()
        server.client.close()
        with wire(server) as first:
            ask(first, KINDS["not ready"]._replace(status=200))  # which makes the model unready
        for kind, end in itertools.product(KINDS.values(), ("kept", "closed", "reset", "reset before the answer")):
            with wire(server) if end != "kept" else nullcontext(stack.enter_context(wire(server))) as connection:
                for _ in range(3):
                    ask(connection, kind)
                if end == "reset before the answer":
                    connection.send(raw(kind))
                if end.startswith("reset"):
                    reset(connection)
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=2) == 0
        assert "abandoned" not in server.log
        assert "Traceback" not in server.log
