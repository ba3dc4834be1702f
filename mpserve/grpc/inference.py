"""ModelInfer and the answers of ModelStreamInfer: from serialised requests to serialised answers.

Source: Open Inference Protocol, open_inference_grpc.proto; Triton's decoupled models (docs/user_guide/decoupled_models.md;
src/grpc/stream_infer_handler.cc).
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mpserve.errors import MPServeError
from mpserve.grpc.calls import Headers, details
from mpserve.protocol.codec import Encoded
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import FINAL, ProtobufCodec, ProtobufStreamCodec, empty_final
from mpserve.protocol.protobuf.fields import addressee, parse
from mpserve.serving.inference.answered import answered
from mpserve.serving.inference.request_head import RequestHead
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.logging import request_id

logger = logging.getLogger(__name__)

ENABLE_EMPTY_FINAL = "triton_enable_empty_final_response"

UNARY, STREAM = ProtobufCodec(), ProtobufStreamCodec()


class InferenceCalls:
    """Answers inference requests with the models behind a core."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    async def infer(
        self, data: bytes, headers: Headers, response_headers: Headers, within: float, caller: str | None
    ) -> bytes:
        """Answer a ModelInferRequest of this caller, whose deadline is in ``within`` seconds.

        Raises MPServeError: as ``answered``; NotSupported also if the model answers in parts.
        """
        head = RequestHead(*addressee(data), "predict", UNARY, headers, request_id.get(), caller=caller)
        request, outcome = await answered(self.core, head, data, within)
        response_headers.update(request.response_headers or {})
        assert isinstance(outcome, Encoded)  # the codec refuses parts
        return outcome.body

    async def stream(
        self, data: bytes, headers: Headers, within: float, caller: str | None
    ) -> AsyncGenerator[bytes, None]:
        """The ModelStreamInferResponses to a ModelInferRequest. An error is the last of them.

        A whole answer is marked as final. A part is not, since it may not be the last: on request, an empty final part follows.
        """
        try:
            head = RequestHead(*addressee(data), "predict", STREAM, headers, request_id.get(), caller=caller)
            request, outcome = await answered(self.core, head, data, within)
            if isinstance(outcome, Encoded):
                yield outcome.body
                return
            async with aclosing(outcome):
                async for part in outcome:
                    yield part
            inputs = request.inputs
            if inputs is not None and (inputs.parameters or {}).get(ENABLE_EMPTY_FINAL) is True:
                yield empty_final(inputs, request.head.model, request.version)
        except Exception as error:
            if not isinstance(error, MPServeError):
                logger.error("unexpected error while answering a stream", exc_info=error)
            response = pb.ModelStreamInferResponse(error_message=details(error) or type(error).__name__)
            response.infer_response.id = _id_of(data)
            response.infer_response.parameters[FINAL].bool_param = True
            yield response.SerializeToString()


def _id_of(data: bytes) -> str:
    """The id of a request that failed, or an empty string."""
    try:
        return parse(pb.ModelInferRequest, data).id
    except Exception:
        return ""
