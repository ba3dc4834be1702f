"""A client of a predictor that speaks gRPC. It has one channel, on the worker's event loop.

``serving/models/predictor.py`` decides about deadlines and retries.
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
    # Otherwise a channel may take two minutes to connect to a predictor that has come back.
    ("grpc.max_reconnect_backoff_ms", 1000),
)

CODES: dict[grpc.StatusCode, Code] = {
    status: code for code, status in reversed(STATUS.items()) if status is not grpc.StatusCode.INTERNAL
}
"""The error code of a predictor's status: the first of STATUS. Other statuses mean MODEL_FAILED."""


class GrpcPredictor:
    """The client of ``config``. Make it on its event loop. Raises ConfigurationError: the CA file cannot be read."""

    def __init__(self, config: PredictorConfig) -> None:
        self._channel = _channel(config)
        self._infer: Method = self._channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        self._ready: Method = self._channel.unary_unary(f"/{SERVICE.full_name}/ModelReady")

    async def predict(self, model: str, payload: Any, headers: Headers) -> tuple[InferResponse, Headers]:
        """Send a request to the model of its ``model_name`` (SDK). Return the response, and no headers.

        Raises:
            PredictorError: no answer, or a status that is not OK.
            InferenceError: the payload is not an ``InferRequest`` or cannot be sent, or the answer is malformed.
        """
        answer = await self._call(self._infer, _encoded(payload), headers)
        return decode_response(answer), {}

    async def is_ready(self, model: str) -> bool:
        """Ask ModelReady. Raises PredictorError."""
        answer = await self._call(self._ready, pb.ModelReadyRequest(name=model).SerializeToString(), {})
        return pb.ModelReadyResponse.FromString(answer).ready

    async def close(self) -> None:
        """End the connections."""
        await self._channel.close()

    async def _call(self, method: Method, request: bytes, headers: Headers) -> bytes:
        try:
            return await method(request, metadata=sendable(headers))
        except grpc.aio.AioRpcError as error:
            code = CODES.get(error.code(), Code.MODEL_FAILED)
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
        return bytes(payload.SerializeToString())  # the kserve SDK's message
    if not isinstance(payload, InferRequest):
        raise InferenceError(
            f"a predictor over gRPC is asked with an InferRequest, got {type(payload).__name__}: make one in preprocess"
        )
    request = copy.copy(payload)
    request.model_version = None  # the version is of the model here
    try:
        return b"".join(encode_request(request))
    except InvalidInput as error:  # what the client sent has been checked
        raise InferenceError(f"the request to the predictor cannot be written: {error}") from error
