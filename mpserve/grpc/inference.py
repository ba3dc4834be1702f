"""ModelInfer and the answers of ModelStreamInfer: serialised requests to the dataplane, and what it gives to messages.

Source: Open Inference Protocol, open_inference_grpc.proto; for answers in parts Triton's decoupled models
(docs/user_guide/decoupled_models.md; src/grpc/stream_infer_handler.cc).
"""

import copy
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

from mpserve.grpc.calls import Headers, explained
from mpserve.grpc.express import read
from mpserve.protocol.generate import text_response
from mpserve.protocol.messages import InferRequest, InferResponse
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf import wire
from mpserve.protocol.protobuf.converters import decode_request, response_from_dict
from mpserve.protocol.protobuf.fields import Parts, encode_response, parse
from mpserve.serving.awaited import answered
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.stream import ModelStream

FINAL = "triton_final_response"
ENABLE_EMPTY_FINAL = "triton_enable_empty_final_response"

_STREAMED: int = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class InferenceCalls:
    """Answers inference requests with the models behind a ``Dataplane``."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane = dataplane

    async def infer(self, data: bytes, headers: Headers, response_headers: Headers, within: float) -> bytes:
        """The ModelInferResponse to a ModelInferRequest, for which the client waits ``within`` so many seconds.

        Raises:
            MPServeError: as ``Dataplane.run``; NotSupported also if the model answers in parts.
        """
        plain = read(self.dataplane.core, data)
        if plain is not None:
            answer = await answered(self.dataplane, *plain, within)
            return answer if isinstance(answer, bytes) else await _refuse(answer)
        request, typed = decode_request(data)
        result, given = await self._run(request, headers, within)
        if isinstance(result, ModelStream):
            await _refuse(result)
        response_headers.update(given)
        return b"".join(_encoded(request, result, typed, {}))

    async def stream(self, data: bytes, headers: Headers, within: float) -> AsyncGenerator[bytes, None]:
        """Each ModelStreamInferResponse to a ModelInferRequest; an error is told in the last one.

        A whole answer is the one that is final. Of parts none is, since which is the last is not known: a client that
        has to know asks for an empty one after it.
        """
        try:
            request, typed = decode_request(data)
            result, _ = await self._run(request, headers, within)
            if not isinstance(result, ModelStream):
                yield _streamed(_encoded(request, result, typed, {FINAL: True}))
                return
            async with aclosing(result):
                async for part in result:
                    yield _streamed(_encoded(request, part, typed, {FINAL: False}))
            if (request.parameters or {}).get(ENABLE_EMPTY_FINAL) is True:
                yield _streamed(_encoded(request, _empty(request), typed, {FINAL: True}))
        except Exception as error:
            response = pb.ModelStreamInferResponse(error_message=explained(error) or type(error).__name__)
            response.infer_response.id = _id_of(data)
            response.infer_response.parameters[FINAL].bool_param = True
            yield response.SerializeToString()

    async def _run(self, request: InferRequest, headers: Headers, within: float) -> tuple[Any, Headers]:
        return await self.dataplane.run("predict", request.model_name, request.model_version, request, headers, within)


async def _refuse(parts: ModelStream) -> NoReturn:
    """Refuse an answer in parts.

    Raises:
        NotSupported: always.
    """
    await parts.refuse(
        "ModelInfer doesn't support models with decoupled transaction policy: model"
        f" {parts.served.model.name} answers in parts, call ModelStreamInfer"
    )


def _encoded(request: InferRequest, result: Any, typed: bool, parameters: Mapping[str, Any]) -> Parts:
    """What a model gave as a ModelInferResponse, with these parameters added."""
    if isinstance(result, str):
        result = text_response(request.model_name, result)
        result.id, result.model_version = request.id, request.model_version
    elif not isinstance(result, InferResponse):
        if getattr(getattr(result, "DESCRIPTOR", None), "full_name", "") == "inference.ModelInferResponse":
            return [result.SerializeToString()]  # of the kserve SDK, whose models may answer with its message
        result = response_from_dict(result)
    if parameters:
        result = copy.copy(result)  # the model's own object, perhaps
        result.parameters = {**(result.parameters or {}), **parameters}
    return encode_response(result, typed)


def _empty(request: InferRequest) -> InferResponse:
    return InferResponse(request.id, request.model_name, [], model_version=request.model_version)


def _streamed(parts: Parts) -> bytes:
    return b"".join([wire.prefix(_STREAMED, sum(map(len, parts))), *parts])


def _id_of(data: bytes) -> str:
    """The id of a request that could not be answered, if that much can be read."""
    try:
        return parse(pb.ModelInferRequest, data).id
    except Exception:
        return ""
