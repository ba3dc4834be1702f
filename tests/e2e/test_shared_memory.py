"""Shared memory that one worker was told of serves requests to every worker, and to those that come after them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, speaking
from tests.e2e.steered import Background
from tests.e2e.workers import kill_and_await_successor, of_each_worker
from tests.memory import memory
from tests.running import PATIENCE, Server, eventually

TWICE = """
import os
import numpy as np
from mpserve import Tensor, TensorModel

class Twice(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)), Tensor("pid", "INT64", (1,)))
    def predict(self, x):
        return x * 2, np.array([os.getpid()])
"""

X = np.array([1, 2], np.float32)
INPUT = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
OUTPUT = INPUT | {"shared_memory_offset": 8}
REQUEST = {
    "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "parameters": INPUT}],
    "outputs": [{"name": "y", "parameters": OUTPUT}, {"name": "pid"}],
}


class Place:
    """A server of two workers, and memory that its clients have."""

    def __init__(self, server: Server, address: str, path: Path) -> None:
        self.server = server
        self.address = address
        self.path = path

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.server.url + path, json=body, timeout=PATIENCE, verify=False)

    def register(self) -> None:
        body = {"key": self.path.name, "offset": 0, "byte_size": 16}
        self.post("/v2/systemsharedmemory/region/r/register", body).raise_for_status()

    def call(self, method: str) -> Any:
        name = f"SystemSharedMemory{method}"
        return call(self.address, name, getattr(pb, f"{name}Request")(), getattr(pb, f"{name}Response"))

    def asked(self, client: httpx.Client) -> tuple[int, bytes]:
        """The worker that answered one request through the memory, and what the memory held then."""
        self.path.write_bytes(X.tobytes() + bytes(8))
        output, pid = client.post("/v2/models/m/infer", json=REQUEST).raise_for_status().json()["outputs"]
        assert output == {"name": "y", "shape": [2], "datatype": "FP32", "parameters": OUTPUT}
        return int(pid["data"][0]), self.path.read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    flags = ("--workers=2", "--allow_client_shm")
    with memory(bytes(16)) as path, speaking(tmp_path, *flags, source=TWICE) as (server, address):
        yield Place(server.wait_ready(workers=2), address, path)


def test_a_region_is_known_to_every_worker_and_to_those_that_follow(place: Place) -> None:
    place.register()
    right = [X.tobytes() + (X * 2).tobytes()] * 2
    first = of_each_worker(place.server, place.asked)
    assert list(first.values()) == right
    for pid in first:
        kill_and_await_successor(place.server, pid)
    later = of_each_worker(place.server, place.asked)
    assert list(later.values()) == right
    assert not set(first) & set(later)

    for _ in range(8):  # whichever worker is asked
        assert [region.key for region in place.call("Status").regions.values()] == [place.path.name]
    place.call("Unregister")
    eventually(lambda: not any(place.path.name in Path(f"/proc/{pid}/maps").read_text() for pid in later))
    for _ in range(16):
        answer = place.post("/v2/models/m/infer", REQUEST)
        told = answer.json()["error"]
        assert (answer.status_code, told) == (404, "input 'x': shared memory region 'r' is not registered")


def test_requests_go_on_while_their_region_comes_and_goes(place: Place) -> None:
    """None takes a worker with it: each is answered in full, or told that the region is not there."""
    before = place.server.workers()
    stop = threading.Event()
    answers = set()

    def each_kind() -> bool:
        answer = place.post("/v2/models/m/infer", REQUEST)
        answers.add((answer.status_code, answer.json().get("error")))
        return {200, 404} <= {status for status, _ in answers}

    def come_and_go() -> None:
        while not stop.is_set():
            place.register()
            place.post("/v2/systemsharedmemory/region/r/unregister", {})

    changing = Background(come_and_go)
    try:
        eventually(each_kind, every=0)
        for _ in range(50):
            each_kind()
    finally:
        stop.set()
    assert changing.result() is None
    gone = "shared memory region 'r' is not registered"
    assert answers <= {(200, None), (404, f"input 'x': {gone}"), (404, f"output 'y': {gone}")}
    assert place.server.workers() == before
