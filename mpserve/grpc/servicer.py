"""``inference.GRPCInferenceService``: the table of its methods, and those about the server and its models.

Requests and answers are bytes, since our codec reads and writes tensors without protobuf.

Source: Open Inference Protocol, open_inference_grpc.proto; Triton's grpc_service.proto.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any

import grpc
from google.protobuf.message import Message

from mpserve.errors import ModelNotFound, ServerNotReady
from mpserve.grpc.calls import Answer, Calls, Context, Headers, Work, address_of, caller_of, time_left
from mpserve.grpc.extensions import ExtensionCalls
from mpserve.grpc.inference import InferenceCalls
from mpserve.grpc.stream import Stream
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.fields import parse
from mpserve.serving.extensions.access import check_access
from mpserve.serving.extensions.names import extensions
from mpserve.serving.models.model import Spec
from mpserve.serving.repository.core import ServerCore
from mpserve.version import VERSION

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class Servicer:
    """Answers calls with the models behind a core."""

    def __init__(self, core: ServerCore, calls: Calls) -> None:
        self.inference = InferenceCalls(core)
        self.core = core
        self.calls = calls
        self._caller_of = caller_of if core.authenticator is not None else nobody
        self._streams: set[Stream] = set()
        self._ending = False

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers of all methods."""
        extension_calls = ExtensionCalls(self.core)
        answers: dict[str, Answer] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            **extension_calls.answers(),
        }
        managing = extension_calls.managing()
        methods = {
            **{name: self._unary(name, _answering(name, answer)) for name, answer in answers.items()},
            **{name: self._unary(name, self._guarded(_answering(name, answer))) for name, answer in managing.items()},
            "ModelInfer": self._unary("ModelInfer", self._model_infer, reports=False),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                self.calls.answering("ModelStreamInfer", self._model_stream_infer)
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    def end_streams(self) -> None:
        """Let every stream answer the requests that it has read, and end. New streams end at once."""
        self._ending = True
        for stream in self._streams:
            stream.stop_reading()

    async def server_live(self, request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.core.is_ready())

    async def server_metadata(self, request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="mpserve", version=VERSION, extensions=extensions(self.core.settings))

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Whether the model can answer. A missing model cannot, which is no error (as in Triton)."""
        try:
            ready = self.core.is_model_ready(self.core.find(request.name, request.version or None))
        except (ModelNotFound, ServerNotReady):
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Raises ModelNotFound."""
        instance = self.core.find(request.name, request.version or None)
        versions = self.core.versions(instance.model.name)
        inputs, outputs = await self.core.describe(instance)
        return pb.ModelMetadataResponse(
            name=instance.model.name,
            versions=versions,
            platform=instance.model.platform,
            inputs=map(_tensor_metadata, inputs),
            outputs=map(_tensor_metadata, outputs),
        )

    def _model_infer(
        self, data: bytes, context: Context, headers: Headers, response_headers: Headers
    ) -> Awaitable[bytes]:
        return self.inference.infer(data, headers, response_headers, time_left(context), self._caller_of(context))

    async def _model_stream_infer(
        self, requests: AsyncIterator[bytes], context: Context, headers: Headers, response_headers: Headers
    ) -> None:
        def answer(data: bytes) -> AsyncGenerator[bytes, None]:
            self.calls.total_requests += 1
            return self.inference.stream(data, headers, time_left(context), self._caller_of(context))

        stream = Stream(requests, answer)
        self._streams.add(stream)
        try:
            if self._ending:
                stream.stop_reading()
            await stream.run(context.write)
        finally:
            self._streams.discard(stream)
        if stream.cut_short:
            raise ServerNotReady("the server is ending; open the stream again for further requests")

    def _guarded(self, work: Work[bytes, bytes]) -> Work[bytes, bytes]:
        """The work, for calls that may manage the server. It raises AccessDenied for all others."""

        async def guarded(data: bytes, context: Context, headers: Headers, response_headers: Headers) -> bytes:
            check_access(self.core.settings, address_of(context.peer()), headers, caller_of(context))
            return await work(data, context, headers, response_headers)

        return guarded

    def _unary(self, name: str, work: Work[bytes, bytes], reports: bool = True) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.calls.answering(name, work, reports))


def nobody(context: Context) -> None:
    """Who makes a call, if callers are not known."""


def _answering(method: str, answer: Answer) -> Work[bytes, bytes]:
    kind: type[Message] = getattr(pb, SERVICE.methods_by_name[method].input_type.name)

    async def work(data: bytes, context: Context, headers: Headers, response_headers: Headers) -> bytes:
        response = await answer(parse(kind, data))
        return response.SerializeToString()

    return work


def _tensor_metadata(spec: Spec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.get("name"), datatype=spec.get("datatype"), shape=spec.get("shape")
    )
