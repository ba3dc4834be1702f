"""The routes of the shared memory extension, and tensors that pass through it over HTTP."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.asgi import ask, serving
from tests.cases import each
from tests.memory import memory
from tests.models import faulty

SYSTEM, CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
X = np.array([1, 2], np.float32).tobytes()


def exchange(*requests: tuple[str, str, Any], size: int = 16) -> list[httpx.Response]:
    """The answers to these requests (method, path, JSON), in which KEY stands for the key of an object."""

    async def main() -> list[httpx.Response]:
        with memory(X + bytes(size - len(X))) as path:
            async with serving(faulty.Echo(), allow_client_shm=True) as client:
                return [await client.request(method, to, **_body(body, path)) for method, to, body in requests]

    return asyncio.run(main())


def _body(body: Any, path: Path) -> dict[str, Any]:
    if body is None:
        return {}
    return {"json": {**body, "key": path.name} if body.get("key") == "KEY" else body}


REGISTER = ("POST", f"{SYSTEM}/region/r/register", {"key": "KEY", "offset": 8, "byte_size": 8})


def test_a_region_is_registered_told_and_unregistered() -> None:
    answers = exchange(
        REGISTER,
        ("GET", f"{SYSTEM}/status", None),
        ("GET", f"{SYSTEM}/region/r/status", None),
        ("POST", f"{SYSTEM}/region/r/unregister", None),
        ("GET", f"{SYSTEM}/status", None),
        REGISTER,
        ("POST", f"{SYSTEM}/unregister", None),
        ("GET", f"{SYSTEM}/region/r/status", None),
    )
    assert [answer.status_code for answer in answers] == [200] * 7 + [404]
    (told,) = answers[1].json()
    assert told == {"name": "r", "key": told["key"], "offset": 8, "byte_size": 8}
    assert (answers[2].json(), answers[4].json()) == ([told], [])
    assert answers[7].json() == {"error": "shared memory region 'r' is not registered"}


@each("body, words", [
    ({"key": "nowhere", "offset": 0, "byte_size": 8}, "shared memory object 'nowhere' cannot be opened"),
    ({"key": "KEY", "offset": 16, "byte_size": 1}, "has 16 bytes, expected 17 or more"),
    ({"key": "KEY", "offset": -1, "byte_size": 1}, "offset is -1, expected a number of bytes"),
    ({"key": "KEY"}, "byte_size is null, expected a number of bytes"),
    ({"byte_size": 8}, "key is null, expected the name of a shared memory object"),
    ({"key": "../etc", "byte_size": 8}, "expected the name of a shared memory object, without a path"),
])  # fmt: skip
def test_what_cannot_be_registered_is_refused_in_words(body: Any, words: str) -> None:
    (answer,) = exchange(("POST", f"{SYSTEM}/region/r/register", body))
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


def tensor(size: int, offset: int = 0) -> dict[str, Any]:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": size}
    return {"name": "x", "parameters": parameters | ({"shared_memory_offset": offset} if offset else {})}


def test_an_input_is_read_there_and_an_output_written_there() -> None:
    infer = {"inputs": [{"shape": [2], "datatype": "FP32", **tensor(8)}], "outputs": [tensor(8, 8)]}
    back = {"inputs": [{"shape": [2], "datatype": "FP32", **tensor(8, 8)}]}
    whole = ("POST", f"{SYSTEM}/region/r/register", {"key": "KEY", "offset": 0, "byte_size": 16})
    _, written, read = exchange(
        whole, ("POST", "/v2/models/echo/infer", infer), ("POST", "/v2/models/echo/infer", back)
    )
    assert written.json()["outputs"] == [{"shape": [2], "datatype": "FP32", **tensor(8, 8)}]
    assert read.json()["outputs"][0]["data"] == [1, 2]


@each("allowed", [True, False])
def test_of_cuda_there_is_none_and_many_clients_begin_by_unregistering_all(allowed: bool) -> None:
    for method, path, status, body in (
        ("POST", f"{CUDA}/unregister", 200, {}),
        ("POST", f"{CUDA}/region/r/unregister", 200, {}),
        ("GET", f"{CUDA}/status", 200, []),
        ("GET", f"{CUDA}/region/r/status", 200, []),
    ):
        answer = ask(faulty.Echo(), method, path, options={"allow_client_shm": allowed})
        assert (answer.status_code, answer.json()) == (status, body)
    answer = ask(faulty.Echo(), "POST", f"{CUDA}/region/r/register", options={"allow_client_shm": allowed}, json={})
    assert (answer.status_code, answer.json()["error"][:38]) == (501, "CUDA shared memory is not supported; r")


@each("method, path", [
    ("GET", f"{SYSTEM}/status"), ("GET", f"{SYSTEM}/region/r/status"), ("POST", f"{SYSTEM}/region/r/register"),
    ("POST", f"{SYSTEM}/region/r/unregister"), ("POST", f"{SYSTEM}/unregister"),
])  # fmt: skip
def test_without_the_option_it_is_refused_in_words(method: str, path: str) -> None:
    answer = ask(faulty.Echo(), method, path)
    assert (answer.status_code, "--allow_client_shm" in answer.json()["error"]) == (501, True)


@each("allowed", [True, False])
def test_the_servers_metadata_says_whether_it_is_offered(allowed: bool) -> None:
    spoken = ask(faulty.Echo(), "GET", "/v2", options={"allow_client_shm": allowed}).json()["extensions"]
    assert ("system_shared_memory" in spoken) == allowed
