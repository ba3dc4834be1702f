"""The direct way to the models and the way through ASGI: whatever is sent, the same comes back on both."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from tests.cases import each
from tests.e2e.wire import LIVE, wire
from tests.running import Server, serving

SOURCE = """
import asyncio
import gc
import numpy as np
from mpserve import InvalidInput, Model, Tensor, TensorModel

class Many(Model):
    name = "m"
    required_response_headers = True

    def predict(self, payload, headers=None, response_headers=None):
        if not isinstance(payload, dict):
            return payload
        if "fail" in payload:
            raise {"model": RuntimeError, "client": InvalidInput}[payload["fail"]]("as asked")
        response_headers.update(payload.get("headers", {}))
        return {"predictions": [payload.get("instances"), headers.get("x-mine")] + ["x" * payload.get("size", 0)]}

class Sum(TensorModel):
    name = "sum"
    inputs = [Tensor("x", "FP32", [-1])]
    outputs = [Tensor("y", "FP32", [])]

    def predict(self, x):
        return x.sum()

class Later(Model):
    name = "later"

    async def predict(self, payload, headers=None):
        return payload

class Rows(TensorModel):
    name = "rows"
    max_batch_size = 4
    inputs = [Tensor("x", "FP32", [-1])]
    outputs = [Tensor("y", "FP32", [-1])]

    def predict(self, x):
        if (x < 0).any():
            raise ValueError("as asked")
        return x * 2

class Awaits(TensorModel):
    name = "awaits"

    async def predict(self, x):
        await asyncio.sleep(0)
        if x[0] == 1:
            raise ValueError("as asked")
        if x[0] == 2:
            raise SystemExit(3)
        if x[0] == 3:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        if x[0] == 4:
            return (each for each in [x])
        return np.zeros(int(x[1])) if len(x) > 1 else x

class Garbage(Model):
    name = "garbage"

    def predict(self, payload, headers=None):
        gc.disable()
        return {"predictions": [gc.collect()]}

MODELS = [Many(), Sum(), Later(), Rows(), Awaits(), Garbage()]
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """One with the direct way, one without."""
    with ExitStack() as stack:
        running = []
        for way in ("yes", "no"):
            flags = ("--max_body_size=300000", f"--fast_lane={way}", "--access_log")
            server = serving(tmp_path_factory.mktemp(way), SOURCE, *flags, target="model.py:MODELS")
            running.append(stack.enter_context(server).wait_ready())
        yield running


def request(
    body: object, *fields: str, path: str = "/v1/models/m:predict", version: str = "1.1", length: bool = True
) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: x", *fields, *([f"content-length: {len(raw)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + raw


def v2(model: str, name: str, datatype: str, *numbers: int, fields: tuple[str, ...] = ()) -> bytes:
    entry = {"name": name, "shape": [len(numbers)], "datatype": datatype, "data": numbers}
    return request({"id": "7", "inputs": [entry]}, *fields, path=f"/v2/models/{model}/infer")


def rows(*numbers: int) -> bytes:
    return v2("rows", "x", "FP32", *numbers)


def awaits(*numbers: int, fields: tuple[str, ...] = ()) -> bytes:
    return request({"instances": numbers}, *fields, path="/v1/models/awaits:predict")


def awaits_v2(*numbers: int, fields: tuple[str, ...] = ()) -> bytes:
    return v2("awaits", "z", "INT64", *numbers, fields=fields)


def binary(model: str, name: str, datatype: str, numbers: Any, *fields: str, **others: Any) -> bytes:
    tensor = numbers.tobytes()
    entry = {"name": name, "shape": numbers.shape, "datatype": datatype}
    told = {"inputs": [entry | {"parameters": {"binary_data_size": len(tensor)}}], **others}
    part = json.dumps(told | {"parameters": {"binary_data_output": True}}).encode()
    length = f"Inference-Header-Content-Length: {len(part)}"
    return request(part + tensor, length, *fields, path=f"/v2/models/{model}/infer")


CHUNKS = b"f\r\n" + b'{"instances":[1' + b"\r\n2\r\n]}\r\n0\r\n\r\n"
CHUNKED = request(CHUNKS, "transfer-encoding: chunked", length=False)
EVENT = ("ce-id: 1", "ce-source: s", "ce-type: t", "ce-specversion: 1.0", "ce-time: 2020-01-01T00:00:00Z")
GZIP, SUM = "accept-encoding: gzip", "/v2/models/sum/infer"
ONE = {"instances": [1]}
PLAIN = request(ONE)
V2 = v2("sum", "x", "FP32", 1, 2)

SENT = {
    "plain": request({"instances": [1, "é"]}),
    "a large answer": request({"instances": [], "size": 200_000}),
    "a large request": request({"instances": ["x" * 200_000]}),
    "async": request(ONE, path="/v1/models/later:predict"),
    "raw bytes": request(b"\x00\x01", "content-type: application/x-thing"),
    "an empty body": request(b""),
    "no length": request(b"", length=False),
    "a header twice": request(ONE, "X-Mine: 1", "x-mine: 2"),
    "headers of the model's": request({"headers": {"x-theirs": "1", "content-type": "text/x"}}),
    "the model closes": request({"headers": {"connection": "close"}}),
    "a header that ends the head": request({"headers": {"x-bad": "1\r\n\r\n"}}),
    "an id": request(ONE, "x-request-id: mine"),
    "an id of the model's": request({"headers": {"x-request-id": "its"}}),
    "the client's fault": request({"fail": "client"}),
    "the model's fault": request({"fail": "model"}),
    "no such model": request(ONE, path="/v1/models/other:predict"),
    "an address with a query": request(ONE, path="/v1/models/m:predict?a=b"),
    "an encoded address": request(ONE, path="/v1/models/m%3Apredict"),
    "gzip asked for": request({"instances": ["x" * 5000]}, GZIP),
    "too large": request(b"x" * 300_001),
    "chunked": CHUNKED,
    "100-continue": request(ONE, "expect: 100-continue"),
    "HTTP/1.0": request(ONE, version="1.0"),
    "close": request(ONE, "connection: close"),
    "bare line ends": PLAIN.replace(b"\r\n", b"\n"),
    "two lengths": request(ONE, "content-length: 3"),
    "an upgrade": request(ONE, "connection: upgrade", "upgrade: h2c"),
    "a CloudEvent": request(ONE, *EVENT),
    "columns": request({"inputs": {"x": [1]}}, path="/v1/models/sum:predict"),
    "V2": V2,
    "no such version": V2.replace(b"sum/infer", b"sum/versions/2/infer"),
    "raw": request(bytes(8), "Inference-Header-Content-Length: 0", path=SUM),
    "binary": binary("sum", "x", "FP32", np.float32([1, 2]), id="7"),
    "binary, another input": binary("sum", "q", "FP32", np.float32([1, 2])),
    "binary, gzip asked for": binary("rows", "x", "FP32", np.zeros(4, np.float32), GZIP),
    "binary, large": binary("sum", "x", "FP32", np.arange(70_000, dtype=np.float32)),
    "binary, async, gzip asked for": binary("awaits", "z", "INT64", np.int64([0, 30000]), GZIP),
    "binary, an async answer in parts": binary("awaits", "z", "INT64", np.int64([4])),
    "a batch": rows(1, 2),
    "batches, pipelined": rows(1) + rows(1, 2, 3, 4, 5) + rows(-1) + rows(2),
    **{
        f"{ask.__name__}{numbers}{fields}": ask(*numbers, fields=fields)
        for ask in (awaits, awaits_v2)
        for numbers in ((0,), (1,), (2,), (3,), (4,), (0, 30000))
        for fields in ((), (GZIP,), ("connection: close",))
    },
    "async ones, pipelined": awaits(0) + awaits(1) + awaits_v2(0),
    "pipelined, of several ways": PLAIN + LIVE + CHUNKED + PLAIN,
    "one and then rubbish": PLAIN + b"rubbish\r\n\r\n",
}


def conversation(server: Server, sent: bytes) -> bytes:
    """All that the server writes until it closes, made comparable."""
    with wire(server) as connection:
        # In one piece: what comes after a server has closed resets the connection, and takes the answer with it.
        connection.send(sent + b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = connection.reader.read()
    received = re.sub(rb"(x-request-id: )[0-9a-f]+-[0-9a-f]+-[0-9a-f]+", rb"\1-", received)
    return re.sub(rb"(date: |ce-time: |ce-id: )[^\r]+", rb"\1-", received)


@each("name", SENT)
def test_both_ways_answer_with_the_same_bytes(servers: list[Server], name: str) -> None:
    fast, ordinary = (conversation(server, SENT[name]) for server in servers)
    assert fast.startswith(b"HTTP/1.1 ")
    assert fast == ordinary


@each("name", ["plain", "V2", "async", "a batch", "awaits(0,)()", "awaits_v2(0,)()", f"awaits(0, 30000)('{GZIP}',)"])
def test_what_a_request_is_made_of_goes_with_its_answer_and_leaves_nothing_to_the_garbage_collector(
    servers: list[Server], name: str
) -> None:
    garbage = request(ONE, path="/v1/models/garbage:predict")
    with wire(servers[0]) as connection:
        for sent in (garbage, *[SENT[name]] * 20):
            connection.send(sent)
            assert connection.response().status == 200
        connection.send(garbage)
        assert json.loads(connection.response().body)["predictions"][0] < 20


def test_a_client_that_does_not_read_holds_up_nobody_and_loses_nothing(servers: list[Server]) -> None:
    """Write back-pressure: what it has asked for waits until it reads."""
    for server in servers:
        with wire(server) as slow, wire(server) as other:
            for _ in range(30):
                slow.send(SENT["a large answer"])
            other.send(PLAIN)
            assert other.response().status == 200
            assert {slow.response().status for _ in range(30)} == {200}
