"""Shared memory that one worker was told of serves requests to every worker, and to those that come after them."""

import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, speaking
from tests.e2e.workers import kill_and_await_successor, of_each_worker
from tests.memory import memory
from tests.running import PATIENCE, eventually, serving

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


def test_a_region_is_known_to_every_worker_and_to_those_that_follow(tmp_path: Path) -> None:
    flags = ("--workers=2", "--allow_client_shm")
    with memory(bytes(16)) as path, speaking(tmp_path, *flags, source=TWICE) as (server, address):

        def asked(client: httpx.Client) -> tuple[int, bytes]:
            """The worker that answered one request through the memory, and what the memory held then."""
            path.write_bytes(X.tobytes() + bytes(8))
            output, pid = client.post("/v2/models/m/infer", json=REQUEST).raise_for_status().json()["outputs"]
            assert output == {"name": "y", "shape": [2], "datatype": "FP32", "parameters": OUTPUT}
            return int(pid["data"][0]), path.read_bytes()

        def administer(method: str) -> Any:
            name = f"SystemSharedMemory{method}"
            return call(address, name, getattr(pb, f"{name}Request")(), getattr(pb, f"{name}Response"))

        server.wait_ready(workers=2)
        region = {"key": path.name, "offset": 0, "byte_size": 16}
        server.client.post("/v2/systemsharedmemory/region/r/register", json=region).raise_for_status()
        right = [X.tobytes() + (X * 2).tobytes()] * 2
        first = of_each_worker(server, asked)
        server.client.close()
        for pid in first:
            kill_and_await_successor(server, pid)
        later = of_each_worker(server, asked)
        assert list(first.values()) == list(later.values()) == right
        assert not set(first) & set(later)

        for _ in range(8):  # whichever worker is asked
            assert [region.key for region in administer("Status").regions.values()] == [path.name]
        administer("Unregister")
        eventually(
            lambda: not any(Path(file.path) == path for pid in later for file in psutil.Process(pid).open_files())
        )
        for _ in range(16):
            answer = httpx.post(f"{server.url}/v2/models/m/infer", json=REQUEST, timeout=PATIENCE, verify=False)
            told = answer.json()["error"]
            assert (answer.status_code, told) == (404, "input 'x': shared memory region 'r' is not registered")


def test_requests_go_on_while_their_region_comes_and_goes(tmp_path: Path) -> None:
    """None takes a worker with it: each is answered in full, or told that the region is not there."""
    with memory(bytes(16)) as path, serving(tmp_path, TWICE, "--workers=2", "--allow_client_shm") as server:
        server.wait_ready(workers=2)
        before = server.workers()
        region = "/v2/systemsharedmemory/region/r"
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                server.client.post(f"{region}/register", json={"key": path.name, "offset": 0, "byte_size": 16})
                server.client.post(f"{region}/unregister", json={})

        changing = threading.Thread(target=come_and_go)
        changing.start()
        answers = set()

        def each_kind() -> bool:
            answer = httpx.post(f"{server.url}/v2/models/m/infer", json=REQUEST, timeout=PATIENCE, verify=False)
            answers.add((answer.status_code, answer.json().get("error")))
            return {200, 404} <= {status for status, _ in answers}

        try:
            eventually(each_kind, every=0)
            for _ in range(50):
                each_kind()
        finally:
            stop.set()
            changing.join(PATIENCE)
        gone = "shared memory region 'r' is not registered"
        assert answers <= {(200, None), (404, f"input 'x': {gone}"), (404, f"output 'y': {gone}")}
        assert server.workers() == before
