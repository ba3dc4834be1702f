"""Talks to a server of the models `echo`, `rows` and `once` as a user of the kserve SDK's clients does.

It runs in an environment of its own, since the SDK wants other versions of cloudevents and protobuf than our tests.

python with_kserve.py HTTP_ADDRESS GRPC_ADDRESS
"""

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

NUMBERS = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"]
NUMPY = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


def array_of(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([b"a", "ü".encode(), b""], dtype=object)
    return np.random.default_rng(0).integers(0, 2, (3, 4)).astype(NUMPY.get(datatype, datatype.lower()))


def tensor(name: str, datatype: str, binary: bool) -> InferInput:
    array = array_of(datatype)
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def request(*tensors: InferInput, model: str = "echo", **fields: Any) -> InferRequest:
    return InferRequest(model, list(tensors), **fields)


def check(response: Any, *datatypes: str) -> None:
    """The outputs are the inputs of these datatypes."""
    assert response.model_name == "echo"
    for output, datatype in zip(response.outputs, datatypes, strict=True):
        got, sent = output.as_numpy(), array_of(datatype)
        assert (output.datatype, got.shape) == (datatype, sent.shape)
        if datatype == "BYTES":  # from JSON the SDK makes text
            got = np.array([item.encode() if isinstance(item, str) else item for item in got], dtype=object)
        assert got.tolist() == sent.tolist(), (datatype, got, sent)


async def refused(call: Awaitable[Any], status: Any, words: str) -> None:
    told: tuple[Any, str] = (None, "no refusal")
    try:
        await call
    except httpx.HTTPStatusError as error:
        told = (error.response.status_code, str(error))
    except grpc.aio.AioRpcError as error:
        told = (error.code(), error.details() or "")
    assert told[0] == status, told
    assert words in told[1], f"expected a refusal with {words!r}, got {told}"


async def v1(url: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=60)) as client:
        assert await client.is_server_live(url)
        assert await client.is_model_ready(url, "rows") is True
        headers: dict[str, str] = {}
        answer = await client.infer(url, {"instances": [[1, 2], [3]]}, model_name="rows", response_headers=headers)
        assert answer == {"predictions": [[1, 2], [3]]}
        assert headers["x-rows"] == "2"
        explained = await client.explain(url, model_name="rows", data={"instances": [[1, 2], [3]]})
        assert explained == {"explanations": [2, 1]}
        await refused(client.infer(url, {"instances": [1]}, model_name="nope"), 404, "nope does not exist")
        await client.infer(url, {"instances": []}, model_name="once")
        for _ in range(1200):  # until each worker has noticed
            if not await client.is_model_ready(url, "once"):
                break
            await asyncio.sleep(0.05)
        await refused(client.infer(url, {"instances": [1]}, model_name="once"), 503, "once is not ready")
        await refused(client.infer(url, {"instances": 1}, model_name="rows"), 400, "instances")
        await refused(client.explain(url, model_name="echo", data={"instances": []}), 501, "explain")
        await refused(client.is_model_ready(url, "nope"), 404, "nope does not exist")


async def v2(url: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=60)) as client:
        assert await client.is_server_live(url) is True
        assert await client.is_model_ready(url, "echo") is True
        assert await client.is_model_ready(url, "once") is False
        assert await client.is_model_ready(url, "nope") is False
        as_bytes = {"binary_data_output": True}
        for datatype in [*NUMBERS, "BYTES"]:
            in_json, binary = tensor("x", datatype, binary=False), tensor("y", datatype, binary=True)
            check(await client.infer(url, request(in_json), model_name="echo"), datatype)
            check(await client.infer(url, request(binary, parameters=as_bytes), model_name="echo"), datatype)
            mixed = request(in_json, binary, request_id="7", parameters=as_bytes)
            answer = await client.infer(url, mixed, model_name="echo")
            assert answer.id == "7"
            check(answer, datatype, datatype)
        half = request(tensor("x", "FP16", binary=True), parameters=as_bytes)  # the SDK sends no FP16 as JSON
        check(await client.infer(url, half, model_name="echo"), "FP16")
        wrong = InferInput("x", [2, 2], "INT32", data=[1, 2, 3])
        await refused(client.infer(url, request(wrong), model_name="echo"), 400, "input 'x'")
        await refused(client.infer(url, request(in_json), model_name="nope"), 404, "nope does not exist")
        await refused(client.infer(url, request(in_json), model_name="once"), 503, "once is not ready")


async def over_grpc(address: str) -> None:
    async with InferenceGRPCClient(url=address, retries=0) as client:
        assert await client.is_server_live() is True
        assert await client.is_model_ready("echo") is True
        assert await client.is_model_ready("once") is False
        for datatype in [*NUMBERS, "BYTES"]:
            for binary in (False, True):  # typed contents, raw contents
                check(await client.infer(request(tensor("x", datatype, binary))), datatype)
        check(await client.infer(request(tensor("x", "FP16", binary=True))), "FP16")
        sent = tensor("x", "FP32", binary=False)
        answer = await client.infer(request(sent, request_id="7"), headers=[("x-request-id", "one")])
        assert answer.id == "7"
        missing = grpc.StatusCode.NOT_FOUND
        await refused(client.infer(request(sent, model="nope")), missing, "nope does not exist")
        wrong = InferInput("x", [2, 2], "INT32", data=[1, 2, 3])
        await refused(client.infer(request(wrong)), grpc.StatusCode.INVALID_ARGUMENT, "input 'x'")
        await refused(client.infer(request(sent, model="once")), grpc.StatusCode.UNAVAILABLE, "once is not ready")


async def ready(url: str, address: str) -> None:
    config = RESTConfig(protocol="v2")
    async with InferenceRESTClient(config) as rest, InferenceGRPCClient(url=address) as over_grpc:
        assert await rest.is_server_ready(url) is True
        assert await rest.is_model_ready(url, "once") is True
        assert await over_grpc.is_server_ready() is True
        assert await over_grpc.is_model_ready("once") is True


async def main(http_address: str, grpc_address: str) -> None:
    await ready(f"http://{http_address}", grpc_address)
    await v1(f"http://{http_address}")
    await v2(f"http://{http_address}")
    await over_grpc(grpc_address)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    print("all answered")
