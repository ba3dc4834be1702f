"""A gRPC server in this process, over loopback, and a client of it that is made from the same messages."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc

from mpserve.grpc.server import GrpcServer
from mpserve.grpc.servicer import SERVICE
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.models.model import Model
from tests.asgi import loaded

HOST = "127.0.0.1"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


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
        call = self.channel.unary_unary(
            f"/{SERVICE.full_name}/{method}",
            request_serializer=lambda given: given if isinstance(given, bytes) else given.SerializeToString(),
            response_deserializer=getattr(pb, described.output_type.name).FromString,
        )
        return call(message, metadata=metadata, timeout=timeout)

    def stream(self, requests: AsyncIterable[pb.ModelInferRequest] | None = None) -> Any:
        return self.channel.stream_stream(
            f"/{SERVICE.full_name}/ModelStreamInfer",
            request_serializer=lambda given: given if isinstance(given, bytes) else given.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(requests)


@asynccontextmanager
async def serving(*models: Model, server: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client of a server of these models; ``server`` are arguments of ``GrpcServer``, ``options`` of ``Settings``."""
    async with loaded(*models, **options) as core:
        grpc_server = GrpcServer(core, HOST, 0, **(server or {}))
        await grpc_server.start()
        async with grpc.aio.insecure_channel(f"{HOST}:{grpc_server.port}", options=UNLIMITED) as channel:
            try:
                yield Client(channel, grpc_server)
            finally:
                await grpc_server.stop()


def run(test: Coroutine[Any, Any, Any], within: float = 60) -> Any:
    return asyncio.run(asyncio.wait_for(test, within))


def ask(model: Model, method: str = "ModelInfer", request: Any = None, **fields: Any) -> Any:
    """The response to one call to a server of this one model."""

    async def once() -> Any:
        async with serving(model) as client:
            return await client(method, request, **fields)

    return run(once())


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
