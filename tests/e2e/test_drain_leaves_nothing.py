"""After every kind of request, and whatever became of its connection, a server that is told to stop stops at once."""

import itertools
import json
import signal
from contextlib import ExitStack, nullcontext
from pathlib import Path

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

class Transformer(Plain):
    async def preprocess(self, payload, headers=None):
        await asyncio.sleep(0)
        return payload

    async def postprocess(self, result, headers=None, response_headers=None):
        return result

class Rows(TensorModel):
    max_batch_size = 8

    def predict(self, x):
        return x

class Away(Plain):
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

V1 = {"instances": [1]}
V2 = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
NOT_READY = "/v1/models/away:predict"
KINDS = {
    "plain": (200, "/v1/models/plain:predict", V1),
    "async": (200, "/v1/models/waits:predict", V1),
    "transformer": (200, "/v1/models/transformer:predict", V1),
    "large": (200, "/v1/models/plain:predict", {"instances": [0.123] * 60_000}),
    "timeout": (200, "/v2/models/plain/infer", {**V2, "parameters": {"timeout": 900_000}}),
    "batched, compressed": (200, "/v2/models/rows/infer", V2),
    "parts": (200, "/v1/models/parts:predict", V1),
    "no such model": (404, "/v1/models/other:predict", V1),
    "no such path": (404, "/other", V1),
    "malformed": (400, "/v1/models/plain:predict", []),
    "not ready": (503, NOT_READY, V1),
}


def raw(path: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", "accept-encoding: gzip", "", ""]
    return "\r\n".join(lines).encode() + body


def status_of_answer(connection: Wire, request: bytes) -> int:
    connection.send(request)
    response = connection.response()
    if response.headers.get("transfer-encoding") == "chunked":
        while (line := connection.reader.readline()) != b"0\r\n":
            connection.reader.read(int(line, 16) + 2)
        connection.reader.readline()
    return response.status


def test_sigterm_stops_at_once_and_nothing_is_abandoned(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--graceful_timeout=20", target="model.py:models") as server, ExitStack() as stack:
        server.wait_ready()
        server.client.close()
        with wire(server) as first:
            assert status_of_answer(first, raw(NOT_READY, V1)) == 200  # which makes the model unready
        for kind, end in itertools.product(KINDS, ("kept", "closed", "reset", "reset before the answer")):
            status, *request = KINDS[kind]
            with wire(server) if end != "kept" else nullcontext(stack.enter_context(wire(server))) as connection:
                assert [status_of_answer(connection, raw(*request)) for _ in range(3)] == [status] * 3, kind
                if end == "reset before the answer":
                    connection.send(raw(*request))
                if end.startswith("reset"):
                    connection.reset_at_close()
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=2) == 0
        assert "abandoned" not in server.log
        assert "Traceback" not in server.log
