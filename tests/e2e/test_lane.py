"""The fast lane and the way through ASGI: whatever is sent, the same comes back on both."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from tests.e2e.wire import wire
from tests.running import Server, eventually, serving

SOURCE = """
import asyncio
import gc
import os
from pathlib import Path
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
        if "wait" in payload:
            Path(payload["wait"]).touch()
            while not Path("go").exists():
                pass
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
        if x[0] == 5:
            Path("begun").touch()
            try:
                await asyncio.Event().wait()
            finally:
                Path("ended").touch()
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
    """One with the fast lane, one without."""
    with ExitStack() as stack:
        running = []
        for way in ("yes", "no"):
            folder = tmp_path_factory.mktemp(way)
            (folder / "go").touch()
            flags = ("--max_body_size=300000", f"--fast_lane={way}", "--access_log")
            running.append(stack.enter_context(serving(folder, SOURCE, *flags, target="model.py:MODELS")).wait_ready())
        yield running


def request(
    body: object, *fields: str, path: str = "/v1/models/m:predict", version: str = "1.1", length: bool = True
) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: x", *fields, *([f"content-length: {len(raw)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + raw


V2 = {"id": "7", "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}


def rows(*numbers: int) -> bytes:
    entry = {"name": "x", "shape": [len(numbers)], "datatype": "FP32", "data": numbers}
    return request({"id": "7", "inputs": [entry]}, path="/v2/models/rows/infer")


def awaits(*numbers: int, fields: tuple[str, ...] = ()) -> bytes:
    return request({"instances": numbers}, *fields, path="/v1/models/awaits:predict")


def awaits_v2(*numbers: int, fields: tuple[str, ...] = ()) -> bytes:
    entry = {"name": "z", "shape": [len(numbers)], "datatype": "INT64", "data": numbers}
    return request({"id": "7", "inputs": [entry]}, *fields, path="/v2/models/awaits/infer")


def binary(model: str, name: str, datatype: str, numbers: Any, *fields: str, **others: Any) -> bytes:
    tensor = numbers.tobytes()
    entry = {"name": name, "shape": numbers.shape, "datatype": datatype}
    told = {"inputs": [entry | {"parameters": {"binary_data_size": len(tensor)}}], **others}
    part = json.dumps(told | {"parameters": {"binary_data_output": True}}).encode()
    length = f"Inference-Header-Content-Length: {len(part)}"
    return request(part + tensor, length, *fields, path=f"/v2/models/{model}/infer")


JSON_PART = json.dumps(
    {
        "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
).encode()
CHUNKED = b"f\r\n" + b'{"instances":[1' + b"\r\n2\r\n]}\r\n0\r\n\r\n"

SENT: dict[str, bytes] = {
    "V1": request({"instances": [1, "é"]}),
    "V1, a large answer": request({"instances": [], "size": 200_000}),
    "V1, a large request": request({"instances": ["x" * 200_000]}),
    "V1, async": request({"instances": [1]}, path="/v1/models/later:predict"),
    "V1, raw bytes": request(b"\x00\x01", "content-type: application/x-thing"),
    "V1, an empty body": request(b""),
    "V1, no length": request(b"", length=False),
    "V1, a header": request({"instances": []}, "X-Mine: 1", "x-mine: 2"),
    "V1, headers of the model's": request({"headers": {"x-theirs": "1", "content-type": "text/x"}}),
    "V1, the model closes": request({"headers": {"connection": "close"}}),
    "V1, a header that ends the head": request({"headers": {"x-bad": "1\r\n\r\n"}}),
    "V1, an id": request({"instances": []}, "x-request-id: mine"),
    "V1, an id of the model's": request({"headers": {"x-request-id": "its"}}),
    "V1, explain": request({"instances": []}, path="/v1/models/m:explain"),
    "V1, no JSON": request(b"{"),
    "V1, the client's fault": request({"fail": "client"}),
    "V1, the model's fault": request({"fail": "model"}),
    "V1, no such model": request({"instances": []}, path="/v1/models/other:predict"),
    "V1, an address with a query": request({"instances": []}, path="/v1/models/m:predict?a=b"),
    "V1, an encoded address": request({"instances": []}, path="/v1/models/m%3Apredict"),
    "V1, an address with a slash": request({"instances": []}, path="/v1/models/m:predict/"),
    "V1, gzip asked for": request({"instances": ["x" * 5000]}, "accept-encoding: gzip"),
    "V1, too large": request(b"x" * 300_001),
    "V1, chunked": request(CHUNKED, "transfer-encoding: chunked", length=False),
    "V1, 100-continue": request({"instances": [1]}, "expect: 100-continue"),
    "V1, HTTP/1.0": request({"instances": [1]}, version="1.0"),
    "V1, close": request({"instances": [1]}, "connection: close"),
    "V1, line ends before it": b"\r\n\r\n" + request({"instances": [1]}),
    "V1, bare line ends": request({"instances": [1]}).replace(b"\r\n", b"\n"),
    "V1, two lengths": request({"instances": [1]}, "content-length: 3"),
    "V1, a length of capitals": request(b"{}", "Content-LENGTH: 2", "X-HOST: y", length=False),
    "V1, columns": request({"inputs": {"x": [1]}}, path="/v1/models/sum:predict"),
    "V1, arrays": request({"instances": [1, 2.5]}, path="/v1/models/sum:predict"),
    "V1, an upgrade": request({"instances": [1]}, "connection: upgrade", "upgrade: h2c"),
    "V1, a CloudEvent": request(
        {"instances": [1]},
        "ce-id: 1",
        "ce-source: s",
        "ce-type: t",
        "ce-specversion: 1.0",
        "ce-time: 2020-01-01T00:00:00Z",
    ),
    "V2": request(V2, path="/v2/models/sum/infer"),
    "V2, a version": request(V2, path="/v2/models/sum/versions/1/infer"),
    "V2, no such version": request(V2, path="/v2/models/sum/versions/2/infer"),
    "V2, binary": request(
        JSON_PART + bytes(8), f"Inference-Header-Content-Length: {len(JSON_PART)}", path="/v2/models/sum/infer"
    ),
    "V2, raw": request(bytes(8), "Inference-Header-Content-Length: 0", path="/v2/models/sum/infer"),
    "V2, bytes left over": request(
        JSON_PART + bytes(9), f"Inference-Header-Content-Length: {len(JSON_PART)}", path="/v2/models/sum/infer"
    ),
    "V2, binary, an id": binary("sum", "x", "FP32", np.float32([1, 2]), id="7"),
    "V2, binary, a wrong shape": binary("sum", "x", "FP32", np.float32([[[1]]])),
    "V2, binary, another input": binary("sum", "q", "FP32", np.float32([1, 2])),
    "V2, binary, an output by name": binary("sum", "x", "FP32", np.float32([1]), outputs=[{"name": "y"}]),
    "V2, binary, gzip asked for": binary("rows", "x", "FP32", np.zeros(4, np.float32), "accept-encoding: gzip"),
    "V2, binary, large": binary("sum", "x", "FP32", np.arange(70_000, dtype=np.float32)),
    "V2, binary, a batch": binary("rows", "x", "FP32", np.float32([1, 2])),
    "V2, binary, a batch that is too large": binary("rows", "x", "FP32", np.float32([1, 2, 3, 4, 5])),
    "V2, binary, a batch that fails": binary("rows", "x", "FP32", np.float32([-1])),
    "V2, binary, async": binary("awaits", "z", "INT64", np.int64([0])),
    "V2, binary, async, gzip asked for": binary("awaits", "z", "INT64", np.int64([0, 30000]), "accept-encoding: gzip"),
    "V2, binary, an async failure": binary("awaits", "z", "INT64", np.int64([1])),
    "V2, binary, an async answer in parts": binary("awaits", "z", "INT64", np.int64([4])),
    "V2, a wrong shape": request({**V2, "inputs": [{**V2["inputs"][0], "shape": [3]}]}, path="/v2/models/sum/infer"),  # type: ignore[dict-item, index]
    "V2, a batch": rows(1, 2),
    "V2, a batch that is too large": rows(1, 2, 3, 4, 5),
    "V2, a batch that fails": rows(-1),
    "V2, batches, pipelined": rows(1) + rows(1, 2, 3, 4, 5) + rows(2),
    "V1, a batch": request({"instances": [1, 2]}, path="/v1/models/rows:predict"),
    "V1, a batch that is too large": request({"instances": [1, 2, 3, 4, 5]}, path="/v1/models/rows:predict"),
    "V1, a batch that fails": request({"instances": [-1]}, path="/v1/models/rows:predict"),
    **{
        f"{name}, {what}": ask(*numbers, fields=fields)
        for name, ask in (("V1", awaits), ("V2", awaits_v2))
        for what, numbers, fields in (
            ("an async function of arrays", (0,), ()),
            ("an async failure", (1,), ()),
            ("an async end of the process", (2,), ()),
            ("an async answer in parts", (4,), ()),
            ("an async answer, long", (0, 30000), ()),
            ("an async answer, gzip", (0, 30000), ("accept-encoding: gzip",)),
            ("an async answer, too little for gzip", (0,), ("accept-encoding: gzip",)),
            ("an async answer, an id", (0,), ("x-request-id: mine",)),
            ("an async answer, close", (0,), ("connection: close",)),
        )
    },
    "async ones, pipelined": awaits(0) + awaits(1) + awaits_v2(0),
    "two, pipelined": request({"instances": [1]}) + request({"instances": [2]}),
    "three, pipelined, of several ways": request({"instances": [1]})
    + b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    + request(CHUNKED, "transfer-encoding: chunked", length=False),
    "pipelined behind one that waits for 100": request({"instances": [1]})
    + request({"instances": [2]}, "expect: 100-continue"),
    "one and then rubbish": request({"instances": [1]}) + b"rubbish\r\n\r\n",
    "a malformed length": request(b"", "content-length: 1x", length=False),
}


def conversation(server: Server, sent: bytes) -> bytes:
    """All that the server writes until it closes, made comparable."""
    with wire(server) as connection:
        # In one piece: what comes after a server has closed resets the connection, and takes the answer with it.
        connection.send(sent + b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = connection.reader.read()
    received = re.sub(rb"(date: )[^\r]+", rb"\1-", received)
    received = re.sub(rb"(x-request-id: )[0-9a-f]+-[0-9a-f]+-[0-9a-f]+", rb"\1-", received)
    received = re.sub(rb"(ce-time: )[^\r]+", rb"\1-", received)
    return re.sub(rb"(ce-id: )[^\r]+", rb"\1-", received)


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_both_ways_answer_with_the_same_bytes(servers: list[Server], sent: bytes) -> None:
    fast, ordinary = (conversation(server, sent) for server in servers)
    assert fast.startswith(b"HTTP/1.1 ")
    assert fast == ordinary


@pytest.mark.parametrize("sent", [SENT["V1"], SENT["V2, binary"]], ids=["V1", "binary"])
def test_a_request_may_come_byte_by_byte(servers: list[Server], sent: bytes) -> None:
    for server in servers:
        whole = conversation(server, sent)
        with wire(server) as connection:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for position in range(len(sent)):
                connection.send(sent[position : position + 1])
            answer = connection.response()
        assert answer.body in whole
        assert answer.status == 200


GARBAGE = request({"instances": []}, path="/v1/models/garbage:predict")


@pytest.mark.parametrize(
    "name", ["V1", "V2", "V1, async", "V2, a batch", "V2, an async function of arrays", "V1, an async answer, gzip"]
)
def test_what_a_request_is_made_of_goes_with_its_answer_and_leaves_nothing_to_the_garbage_collector(
    servers: list[Server], name: str
) -> None:
    with wire(servers[0]) as connection:
        for each in (GARBAGE, *[SENT[name]] * 20):
            connection.send(each)
            assert connection.response().status == 200
        connection.send(GARBAGE)
        assert json.loads(connection.response().body)["predictions"][0] < 20


ONE, TWO, THREE = (request({"instances": [n]}) for n in ("é", "é2", "é3"))
HEAD_OF_TWO, _, BODY_OF_TWO = TWO.partition(b"\r\n\r\n")
HEAD_OF_TWO += b"\r\n\r\n"
FAILING = request({"fail": "model"})
MINE = request({"instances": [1]}, "X-Mine: 1")
V2_JSON = request(V2, path="/v2/models/sum/infer")

AGAIN: dict[str, list[tuple[bytes, int]]] = {
    "the same": [(ONE, 1)] * 3,
    "the same of V2": [(V2_JSON, 1)] * 3,
    "the same of a batch": [(rows(1), 1)] * 3,
    "the same of a batch that is too large": [(rows(1, 2, 3, 4, 5), 1)] * 3,
    "another body": [(TWO, 1), (THREE, 1), (TWO, 1)],
    "another length": [(ONE, 1), (TWO, 1), (ONE, 1)],
    "a body that fails": [(FAILING, 1)] * 2 + [(HEAD_OF_TWO.replace(b"%d" % len(BODY_OF_TWO), b"1") + b"{", 1)] * 2,
    "pipelined": [(TWO, 1), (TWO + THREE, 2), (TWO + THREE + ONE, 3), (TWO, 1)],
    "pipelined behind another": [(TWO, 1), (ONE + TWO, 2), (TWO, 1)],
    "half a body": [(TWO, 1), (TWO[:-5], 0), (TWO[-5:], 1), (THREE, 1)],
    "no body yet": [(TWO, 1), (HEAD_OF_TWO, 0), (BODY_OF_TWO, 1), (THREE, 1)],
    "half a head": [(TWO, 1), (TWO[:20], 0), (TWO[20:], 1), (THREE, 1)],
    "the next one in the rest of a body": [(TWO, 1), (TWO[:-3], 0), (TWO[-3:] + THREE, 2), (TWO, 1)],
    "the next head in the rest of a body": [(TWO, 1), (TWO[:-3], 0), (TWO[-3:] + HEAD_OF_TWO, 1), (BODY_OF_TWO, 1)],
    "rubbish behind a known one": [(TWO, 1), (TWO + b"rubbish\r\n\r\n", 2)],
    "close": [(request({"instances": [1]}, "connection: close"), 1)],
    "a length of 0": [(request(b""), 1)] * 2,
    "no length": [(request(b"", length=False), 1)] * 2,
    "no length, and another": [(request(b"", length=False), 1), (request(b"", length=False) + ONE, 2)],
    "100-continue": [(request({"instances": [1]}, "expect: 100-continue"), 1), (TWO, 1)],
    "100-continue, and then a known one": [
        (TWO, 1),
        (request({"instances": [1]}, "expect: 100-continue"), 1),
        (TWO, 1),
    ],
    "line ends before it": [(b"\r\n" + TWO, 1), (TWO, 1), (b"\r\n" + TWO, 1), (b"\r\n\r\n" + TWO, 1)],
    "names in capitals": [(MINE, 1), (MINE.lower().replace(b"http", b"HTTP").replace(b"post", b"POST"), 1), (MINE, 1)],
    "an id": [(request({"instances": [1]}, "x-request-id: mine"), 1)] * 2,
    "gzip": [(request({"instances": ["x" * 5000]}, "accept-encoding: gzip"), 1)] * 2,
    "HTTP/1.0": [(request({"instances": [1]}, version="1.0"), 1)],
    "a long head": [(request({"instances": [1]}, f"x-long: {'x' * 5000}"), 1)] * 2,
    "an ordinary one between": [(TWO, 1), (b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n", 1), (TWO, 1)],
    "an async one between": [(TWO, 1), (request({"instances": [1]}, path="/v1/models/later:predict"), 1), (TWO, 1)],
}
"""What is sent in one piece, and how many answers are awaited before the next."""


def told(server: Server, pieces: list[tuple[bytes, int]]) -> list[Any]:
    """The answers on one connection, but for what differs each time."""
    answers = []
    with wire(server) as connection:
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece, awaited in pieces:
            connection.send(piece)
            answers += [connection.response() for _ in range(awaited)]
            if not awaited:
                time.sleep(0.05)  # so that it is read before the next piece comes
    for answer in answers:
        answer.headers.pop("date", None)
        if answer.headers.get("x-request-id") != "mine":
            answer.headers.pop("x-request-id", None)
    return answers


@pytest.mark.parametrize("pieces", AGAIN.values(), ids=AGAIN)
def test_a_head_that_has_come_before_is_answered_as_the_first_time(
    servers: list[Server], pieces: list[tuple[bytes, int]]
) -> None:
    """Of a worker's connections, each by itself: what is known of a head outlives them."""
    fast, ordinary = ([told(server, pieces) for _ in range(3)] for server in servers)
    assert fast == ordinary
    assert fast[0] == fast[1] == fast[2]


def test_each_body_under_a_known_head_gets_its_own_answer(servers: list[Server]) -> None:
    for server in servers:
        bodies = [json.loads(answer.body)["predictions"][0] for answer in told(server, AGAIN["pipelined"])]
        assert bodies == [["é2"], ["é2"], ["é3"], ["é2"], ["é3"], ["é"], ["é2"]]


def test_many_requests_go_over_one_connection(servers: list[Server]) -> None:
    for server in servers:
        with wire(server) as connection:
            for number in range(50):
                connection.send(request({"instances": [number]}))
                assert json.loads(connection.response().body)["predictions"][0] == [number]


def test_a_client_that_does_not_read_holds_up_nobody_and_loses_nothing(servers: list[Server]) -> None:
    """Write back-pressure: what it has asked for waits until it reads."""
    sent = request({"instances": [], "size": 200_000})
    for server in servers:
        with wire(server) as slow, wire(server) as other:
            for _ in range(30):
                slow.send(sent)
            other.send(request({"instances": [1]}))
            assert other.response().status == 200
            assert {slow.response().status for _ in range(30)} == {200}


@pytest.mark.parametrize("abort", [True, False], ids=["reset", "closed"])
def test_a_client_that_goes_away_while_it_is_answered_harms_nobody(servers: list[Server], abort: bool) -> None:
    for server in servers:
        before = server.workers()
        (server.log_file.parent / "go").unlink()
        reached = server.log_file.parent / "reached"
        reached.unlink(missing_ok=True)
        with wire(server) as connection:
            connection.send(request({"wait": str(reached)}))
            eventually(reached.exists)
            if abort:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        (server.log_file.parent / "go").touch()
        with wire(server) as connection:
            connection.send(request({"instances": [1]}))
            assert connection.response().status == 200
        assert server.workers() == before
        assert "Traceback" not in server.log.rpartition("as asked")[2]


def test_both_ways_count_and_log_alike(servers: list[Server]) -> None:
    def counted(server: Server) -> float:
        of = 'mpserve_requests_total{route="/v2/models/{model}/infer",status="200"} '
        lines = server.client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(of)) for line in lines if line.startswith(of))

    for server in servers:
        before = counted(server)
        conversation(server, request(V2, "x-request-id: counted", path="/v2/models/sum/infer"))
        eventually(lambda server=server: "req counted]" in server.log)  # type: ignore[misc]
        line = next(line for line in server.log.splitlines() if "req counted]" in line)
        assert re.search(r'127\.0\.0\.1:\d+ "POST /v2/models/sum/infer" 200 [\d.]+ ms', line)
        assert counted(server) == before + 1


def test_an_async_model_that_cancels_its_own_task_fails_that_request_and_the_connection_goes_on(
    servers: list[Server],
) -> None:
    with wire(servers[0]) as connection:
        for ask in (awaits, awaits_v2):
            connection.send(ask(3))
            assert connection.response().status == 500
            connection.send(ask(0))
            assert connection.response().status == 200


def test_a_client_that_goes_away_cancels_an_async_predict_and_nothing_is_logged_of_it(servers: list[Server]) -> None:
    server = servers[0]
    folder = server.log_file.parent
    logged = len(server.log)
    with wire(server) as connection:
        connection.send(awaits(5))
        eventually((folder / "begun").exists)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    eventually((folder / "ended").exists)
    with wire(server) as connection:
        connection.send(awaits(0))
        assert connection.response().status == 200
    assert "failed" not in server.log[logged:]
