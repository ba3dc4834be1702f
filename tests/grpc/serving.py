"""A gRPC server in this process, over loopback, and a client of it that is made from the same messages."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc

from mpserve.grpc.server import GrpcServer
from mpserve.grpc.servicer import SERVICE
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.models.model import Model
from tests.asgi import loaded
from tests.grpc.models import Held

HOST = "127.0.0.1"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def serialised(given: Any) -> bytes:
    return given if isinstance(given, bytes) else given.SerializeToString()


class Client:
    """Calls by method name: ``await client("ServerLive")``, with the fields of the request."""

    def __init__(self, channel: grpc.aio.Channel, server: GrpcServer) -> None:
        self.channel = channel
        self.server = server

    def __call__(
        self, method: str, request: Any = None, metadata: Any = None, timeout: float = 30, **fields: Any
    ) -> Any:
        described = SERVICE.methods_by_name[method]
        message = request if request is not None else getattr(pb, described.input_type.name)(**fields)
        answer = getattr(pb, described.output_type.name).FromString
        call = self.channel.unary_unary(f"/{SERVICE.full_name}/{method}", serialised, answer)
        return call(message, metadata=metadata, timeout=timeout)

    def stream(self, *requests: Any) -> Any:
        """A stream with these requests; without any, the caller writes them."""

        async def sending() -> AsyncIterator[Any]:
            for request in requests:
                yield request

        answer = pb.ModelStreamInferResponse.FromString
        call = self.channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer", serialised, answer)
        return call(sending() if requests else None)


@asynccontextmanager
async def serving(*models: Model, server: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client of a server of these models; ``server`` are arguments of ``GrpcServer``, ``options`` of ``Settings``."""
    async with loaded(*models, **options) as core:
        grpc_server = GrpcServer(core, **{"host": HOST, "port": 0} | (server or {}))
        await grpc_server.start()
        async with grpc.aio.insecure_channel(f"{HOST}:{grpc_server.port}", options=UNLIMITED) as channel:
            try:
                yield Client(channel, grpc_server)
            finally:
                await grpc_server.stop()


@asynccontextmanager
async def with_a_call_in_hand() -> AsyncIterator[tuple[Client, Held, Any]]:
    """A client, a model that holds the client's call, and the call."""
    model = Held()
    async with serving(model) as client:
        call = client("ModelInfer", infer("held"))
        waiting = asyncio.ensure_future(call.code())
        await model.begun.acquire()
        yield client, model, call
        await waiting


def run(test: Coroutine[Any, Any, Any], within: float = 60) -> Any:
    return asyncio.run(asyncio.wait_for(test, within))


async def once(model: Model, method: str = "ModelInfer", request: Any = None, **fields: Any) -> Any:
    """The response to one call to a server of this one model."""
    async with serving(model) as client:
        return await client(method, request, **fields)


def ask(model: Model, *call: Any, **fields: Any) -> Any:
    return run(once(model, *call, **fields))


def refused(model: Model, *call: Any, **fields: Any) -> tuple[grpc.StatusCode, str]:
    """The status and words of one such call that must fail."""
    return run(refusal(once(model, *call, **fields)))


def streamed(model: Model, *requests: Any) -> list[pb.ModelStreamInferResponse]:
    """The responses to a stream of these requests."""

    async def test() -> list[pb.ModelStreamInferResponse]:
        async with serving(model) as client:
            return [response async for response in client.stream(*requests)]

    return run(test())


def infer(model: str, **fields: Any) -> pb.ModelInferRequest:
    """A request with one FP32 input of two elements, typed, unless ``fields`` say otherwise."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1.0, 2.0]}}
    return pb.ModelInferRequest(**{"model_name": model, "inputs": [tensor]} | fields)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status and words of a call that must fail."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call did not fail")
