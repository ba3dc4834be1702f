"""A predictor that is asked over gRPC: an ``InferRequest`` to ModelInfer, and its answer, or its status, to what it means.

One channel, on the event loop of the worker that made it. When to give up and whether to try again is decided by
``serving/models/predictor.py``.
"""

import copy
from pathlib import Path
from typing import Any

import grpc

from mpserve.errors import Code, ConfigurationError, InferenceError, InvalidInput, PredictorError
from mpserve.grpc.calls import STATUS, sendable
from mpserve.grpc.servicer import SERVICE
from mpserve.protocol.messages import InferRequest, InferResponse
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import decode_response
from mpserve.protocol.protobuf.fields import encode_request
from mpserve.serving.models.predictor import Headers, PredictorConfig

Method = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Else a channel whose predictor was away for long comes back up to two minutes after it.
    ("grpc.max_reconnect_backoff_ms", 1000),
)

MEANING: dict[grpc.StatusCode, Code] = {
    status: code for code, status in reversed(STATUS.items()) if status is not grpc.StatusCode.INTERNAL
}
"""What a status of the predictor means here: STATUS, read backwards, the first of several. Any other is a failure."""


class GrpcPredictor:
    """The predictor of ``config``. Make it on the event loop that uses it.

    Raises:
        ConfigurationError: the file of authorities cannot be read.
    """

    def __init__(self, config: PredictorConfig) -> None:
        self._channel = _channel(config)
        self._infer: Method = self._channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        self._ready: Method = self._channel.unary_unary(f"/{SERVICE.full_name}/ModelReady")

    async def predict(self, model: str, payload: Any, headers: Headers) -> tuple[InferResponse, Headers]:
        """The answer to a request, whose ``model_name`` it goes to (SDK), whatever the model here is called.

        Raises:
            PredictorError: no answer, or a status that is not OK.
            InferenceError: the payload is no ``InferRequest`` or cannot be sent, or the answer is none of the protocol.
        """
        answer = await self._call(self._infer, _encoded(payload), headers)
        return decode_response(answer), {}

    async def is_ready(self, model: str) -> bool:
        """What ModelReady says. Raises PredictorError."""
        answer = await self._call(self._ready, pb.ModelReadyRequest(name=model).SerializeToString(), {})
        return pb.ModelReadyResponse.FromString(answer).ready

    async def close(self) -> None:
        """End the connections."""
        await self._channel.close()

    async def _call(self, method: Method, request: bytes, headers: Headers) -> bytes:
        try:
            return await method(request, metadata=sendable(headers))
        except grpc.aio.AioRpcError as error:
            code = MEANING.get(error.code(), Code.MODEL_FAILED)
            details = error.details() or ""
            if code is Code.NOT_READY:
                raise PredictorError(code, "The predictor cannot be reached, or is not ready.", details) from error
            raise PredictorError(code, f"The predictor answered {error.code().name}: {details}") from error


def _channel(config: PredictorConfig) -> grpc.aio.Channel:
    address = str(config.predictor_host)
    if ":" not in address:
        address += ":443" if config.predictor_use_ssl else ":80"
    if not config.predictor_use_ssl:
        return grpc.aio.insecure_channel(address, OPTIONS)
    try:
        authorities = Path(config.predictor_ca_file).read_bytes() if config.predictor_ca_file else None
    except OSError as error:
        raise ConfigurationError(f"predictor_ca_file: {config.predictor_ca_file} cannot be used: {error}") from error
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authorities), OPTIONS)


def _encoded(payload: Any) -> bytes:
    if getattr(getattr(payload, "DESCRIPTOR", None), "full_name", "") == "inference.ModelInferRequest":
        return bytes(payload.SerializeToString())  # of the kserve SDK, whose models may hand over its message
    if not isinstance(payload, InferRequest):
        raise InferenceError(
            f"a predictor over gRPC is asked with an InferRequest, got {type(payload).__name__}: make one in preprocess"
        )
    request = copy.copy(payload)
    request.model_version = None  # that of the model here, which the client has named
    try:
        return b"".join(encode_request(request))
    except InvalidInput as error:  # what the client sent has been checked
        raise InferenceError(f"the request to the predictor cannot be written: {error}") from error
