"""The routes of the shared memory extension, and tensors that pass through it over HTTP."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np

from tests.asgi import ask, serving
from tests.cases import each
from tests.memory import memory
from tests.models import faulty

SYSTEM, CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
X = np.float32([1, 2]).tobytes()
REGISTER, INFER = f"POST {SYSTEM}/region/r/register", "POST /v2/models/echo/infer"


def exchange(*requests: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    """The answers to these requests, in whose JSON ``KEY`` stands for the key of an object of 16 bytes."""

    async def main() -> list[httpx.Response]:
        with memory(X + bytes(8)) as path:
            async with serving(faulty.Echo(), allow_client_shm=True) as client:
                return [
                    await client.request(*line.split(), content=json.dumps(body).replace("KEY", path.name))
                    for line, body in requests
                ]

    return asyncio.run(main())


def test_a_region_is_registered_told_and_unregistered() -> None:
    register, status = (REGISTER, {"key": "KEY", "offset": 8, "byte_size": 8}), (f"GET {SYSTEM}/region/r/status", {})
    registered, everything, one, unregistered, nothing, _, all_unregistered, unknown = exchange(
        register, (f"GET {SYSTEM}/status", {}), status, (f"POST {SYSTEM}/region/r/unregister", {}),
        (f"GET {SYSTEM}/status", {}), register, (f"POST {SYSTEM}/unregister", {}), status,
    )  # fmt: skip
    assert registered.json() == unregistered.json() == all_unregistered.json() == {}
    (told,) = everything.json()
    assert told == {"name": "r", "key": told["key"], "offset": 8, "byte_size": 8}
    assert (one.json(), nothing.json()) == ([told], [])
    assert (unknown.status_code, unknown.json()) == (404, {"error": "shared memory region 'r' is not registered"})


@each("body, words", [
    ({"key": "KEY", "offset": 16, "byte_size": 1}, "has 16 bytes, expected 17 or more"),
    ({"key": "KEY"}, "byte_size is null, expected a number of bytes"),
    ({"byte_size": 8}, "key is null, expected the name of a shared memory object"),
])  # fmt: skip
def test_what_cannot_be_registered_is_refused_in_words(body: dict[str, Any], words: str) -> None:
    (answer,) = exchange((REGISTER, body))
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


def tensor(size: int, offset: int = 0) -> dict[str, Any]:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": size}
    return {"name": "x", "parameters": parameters | ({"shared_memory_offset": offset} if offset else {})}


def test_an_input_is_read_there_and_an_output_written_there() -> None:
    infer = {"inputs": [{"shape": [2], "datatype": "FP32", **tensor(8)}], "outputs": [tensor(8, 8)]}
    back = {"inputs": [{"shape": [2], "datatype": "FP32", **tensor(8, 8)}]}
    _, written, read = exchange((REGISTER, {"key": "KEY", "byte_size": 16}), (INFER, infer), (INFER, back))
    assert written.json()["outputs"] == [{"shape": [2], "datatype": "FP32", **tensor(8, 8)}]
    assert read.json()["outputs"][0]["data"] == [1, 2]


@each("allowed", [True, False])
@each("path, status, words", [
    ("POST unregister", 200, "{}"), ("POST region/r/unregister", 200, "{}"), ("GET status", 200, "[]"),
    ("GET region/r/status", 200, "[]"), ("POST region/r/register", 501, "CUDA shared memory is not supported; r"),
])  # fmt: skip
def test_of_cuda_there_is_none_and_many_clients_begin_by_unregistering_all(
    path: str, status: int, words: str, allowed: bool
) -> None:
    method, place = path.split()
    answer = ask(faulty.Echo(), method, f"{CUDA}/{place}", options={"allow_client_shm": allowed})
    assert (answer.status_code, words in answer.text) == (status, True)


@each("path", [
    "GET status", "GET region/r/status", "POST region/r/register", "POST region/r/unregister", "POST unregister",
])  # fmt: skip
def test_without_the_option_it_is_refused_in_words(path: str) -> None:
    method, place = path.split()
    answer = ask(faulty.Echo(), method, f"{SYSTEM}/{place}")
    assert (answer.status_code, "--allow_client_shm" in answer.json()["error"]) == (501, True)


@each("allowed", [True, False])
def test_the_servers_metadata_says_whether_it_is_offered(allowed: bool) -> None:
    spoken = ask(faulty.Echo(), "GET", "/v2", options={"allow_client_shm": allowed}).json()["extensions"]
    assert ("system_shared_memory" in spoken) == allowed
