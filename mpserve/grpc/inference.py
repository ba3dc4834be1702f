"""ModelInfer and the answers of ModelStreamInfer: serialised requests to the models behind a core, and back.

Source: Open Inference Protocol, open_inference_grpc.proto; for answers in parts Triton's decoupled models
(docs/user_guide/decoupled_models.md; src/grpc/stream_infer_handler.cc).
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

    async def infer(self, data: bytes, headers: Headers, response_headers: Headers, within: float) -> bytes:
        """The ModelInferResponse to a ModelInferRequest, for which the client waits ``within`` so many seconds.

        Raises:
            MPServeError: as ``answered``; NotSupported also if the model answers in parts.
        """
        head = RequestHead(*addressee(data), "predict", UNARY, headers, request_id.get())
        request, outcome = await answered(self.core, head, data, within)
        response_headers.update(request.response_headers or {})
        assert isinstance(outcome, Encoded)  # the codec refuses parts
        return outcome.body

    async def stream(self, data: bytes, headers: Headers, within: float) -> AsyncGenerator[bytes, None]:
        """Each ModelStreamInferResponse to a ModelInferRequest; an error is told in the last one.

        A whole answer is the one that is final. Of parts none is, since which is the last is not known: a client that
        has to know asks for an empty one after it.
        """
        try:
            head = RequestHead(*addressee(data), "predict", STREAM, headers, request_id.get())
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
    """The id of a request that could not be answered, if that much can be read."""
    try:
        return parse(pb.ModelInferRequest, data).id
    except Exception:
        return ""
