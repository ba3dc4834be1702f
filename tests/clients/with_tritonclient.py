"""Talks to a server of the model `echo` as a user of tritonclient does.

It runs in an environment of its own, since tritonclient wants another version of protobuf than grpcio's tools.

python with_tritonclient.py HTTP_ADDRESS GRPC_ADDRESS
"""

import asyncio
import sys
from functools import partial
from queue import Queue
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as memory
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]


def arrays() -> list[tuple[str, Any]]:
    random = np.random.default_rng(0)
    numbers = [(name, random.integers(0, 2, (3, 4)).astype(triton_to_np_dtype(name))) for name in DATATYPES]
    return [*numbers, ("BYTES", np.array([b"a", "ü".encode(), b"\xff\x00"], dtype=object))]


def inputs_of(library: ModuleType, name: str, array: Any, **how: Any) -> list[Any]:
    tensor = library.InferInput("x", list(array.shape), name)
    tensor.set_data_from_numpy(array, **how)
    return [tensor]


def check(result: Any, array: Any) -> None:
    assert np.array_equal(result.as_numpy("x"), array), (result.as_numpy("x"), array)


def classify(library: ModuleType, client: Any) -> None:
    array = np.array([[0.1, 0.7, 0.2], [3, 1, 2]], np.float32)
    wanted = [library.InferRequestedOutput("x", class_count=2)]
    result = client.infer("echo", inputs_of(library, "FP32", array), outputs=wanted)
    assert result.as_numpy("x").tolist() == [[b"0.7:1", b"0.2:2"], [b"3.0:0", b"2.0:2"]]


def through_memory(library: ModuleType, client: Any) -> None:
    """As Triton's own examples do it: unregister all, register, infer, read."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    size = array.nbytes
    key = f"tritonclient-{uuid4().hex}"
    handle = memory.create_shared_memory_region("both", key, 2 * size)
    try:
        memory.set_shared_memory_region(handle, [array])
        client.register_system_shared_memory("both", key, 2 * size)
        told = client.get_system_shared_memory_status(**({"as_json": True} if library is triton_grpc else {}))
        assert "both" in str(told), told
        given = library.InferInput("x", list(array.shape), "FP32")
        given.set_shared_memory("both", size)
        wanted = library.InferRequestedOutput("x")
        wanted.set_shared_memory("both", size, offset=size)
        for _ in range(20):  # each of two workers may answer
            result = client.infer("echo", [given], outputs=[wanted])
            check(client.infer("echo", [given]), array)
            output = result.get_output("x")
            shape = output.shape if library is triton_grpc else output["shape"]
            assert np.array_equal(memory.get_contents_as_numpy(handle, np.float32, shape, offset=size), array)
        client.unregister_system_shared_memory("both")
        refused(lambda: client.infer("echo", [given]), "shared memory region 'both' is not registered")
    finally:
        memory.destroy_shared_memory_region(handle)


def http(address: str) -> None:
    with triton_http.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("echo")
        assert client.get_server_metadata()["name"] == "mpserve"
        assert client.get_model_metadata("echo")["name"] == "echo"
        for name, array in arrays():
            check(client.infer("echo", inputs_of(triton_http, name, array)), array)
            if name not in ("FP16", "BYTES"):
                wanted = [triton_http.InferRequestedOutput("x", binary_data=False)]
                as_json = inputs_of(triton_http, name, array, binary_data=False)
                check(client.infer("echo", as_json, outputs=wanted), array)
        large = np.zeros((64, 1024), np.float32)
        for coding in ("gzip", "deflate"):
            given = inputs_of(triton_http, "FP32", large)
            compressed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
            check(client.infer("echo", given, request_id="7", **compressed), large)
        classify(triton_http, client)
        through_memory(triton_http, client)
        pending = [client.async_infer("echo", inputs_of(triton_http, "FP32", large)) for _ in range(4)]
        for each in pending:
            check(each.get_result(), large)
        refused(
            lambda: client.infer("nope", inputs_of(triton_http, "FP32", large)), "Model with name nope does not exist."
        )


async def http_aio(address: str) -> None:
    async with triton_http_aio.InferenceServerClient(address) as client:
        assert await client.is_model_ready("echo")
        for name, array in arrays():
            check(await client.infer("echo", inputs_of(triton_http, name, array)), array)


def grpc(address: str) -> None:
    with triton_grpc.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("echo")
        for name, array in arrays():
            check(client.infer("echo", inputs_of(triton_grpc, name, array)), array)
        classify(triton_grpc, client)
        through_memory(triton_grpc, client)
        array = np.arange(4, dtype=np.float32)
        for coding in ("gzip", "deflate"):
            given = inputs_of(triton_grpc, "FP32", array)
            check(client.infer("echo", given, compression_algorithm=coding), array)
        refused(
            lambda: client.infer("nope", inputs_of(triton_grpc, "FP32", array)), "Model with name nope does not exist."
        )
        stream(client)
        stream_of_parts(client)


def stream(client: Any) -> None:
    answers: list[tuple[Any, Any]] = []
    client.start_stream(callback=partial(lambda result, error: answers.append((result, error))))
    sent = [np.full(3, number, np.int32) for number in range(8)]
    for array in sent:
        client.async_stream_infer("echo", inputs_of(triton_grpc, "INT32", array))
    client.stop_stream()
    assert [error for _, error in answers] == [None] * len(sent)
    for (result, _), array in zip(answers, sent, strict=True):
        check(result, array)


def told(result: Any) -> tuple[str, int | None, bool]:
    """Of a response: its id, its number if it is not an empty one, and whether it is final."""
    response = result.get_response()
    numbers = result.as_numpy("number")
    number = None if numbers is None else int(numbers[0])
    return response.id, number, response.parameters["triton_final_response"].bool_param


def parts_of(request_id: str, count: int) -> list[tuple[str, int | None, bool]]:
    return [*[(request_id, number, False) for number in range(count)], (request_id, None, True)]


def count_to(count: int) -> Any:
    return inputs_of(triton_grpc, "INT32", np.array([count], np.int32))


def stream_of_parts(client: Any) -> None:
    answers: Queue[tuple[Any, Any]] = Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for request_id, count in (("a", 3), ("b", 0)):
        client.async_stream_infer("counting", count_to(count), request_id=request_id, enable_empty_final_response=True)
        given = [answers.get(timeout=60) for _ in range(count + 1)]
        assert [error for _, error in given] == [None] * (count + 1)
        assert [told(result) for result, _ in given] == parts_of(request_id, count)
    client.async_stream_infer("nope", count_to(1))
    _, error = answers.get(timeout=60)
    assert "Model with name nope does not exist." in error.message()
    client.stop_stream()
    refused(lambda: client.infer("counting", count_to(1)), "doesn't support models with decoupled transaction policy")


async def grpc_aio(address: str) -> None:
    async with triton_grpc_aio.InferenceServerClient(address) as client:
        for name, array in arrays():
            check(await client.infer("echo", inputs_of(triton_grpc, name, array)), array)

        async def requests() -> Any:
            yield {"model_name": "counting", "inputs": count_to(3), "request_id": "a"}

        given = [each async for each in client.stream_infer(requests())]
        assert [error for _, error in given] == [None] * 3
        assert [told(result) for result, _ in given] == parts_of("a", 3)[:-1]  # it has no way to ask for the final one


def refused(call: Any, words: str) -> None:
    told = ""
    try:
        call()
    except InferenceServerException as error:
        told = error.message()
    assert words in told, f"expected a refusal with {words!r}, got {told!r}"


if __name__ == "__main__":
    http_address, grpc_address = sys.argv[1:]
    http(http_address)
    asyncio.run(http_aio(http_address))
    grpc(grpc_address)
    asyncio.run(grpc_aio(grpc_address))
    print("all answered")
