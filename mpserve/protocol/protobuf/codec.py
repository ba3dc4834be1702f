"""The codec of V2 over gRPC: ModelInferRequest and ModelInferResponse as bytes. Knows no server and no call.

Source: Open Inference Protocol, open_inference_grpc.proto; for answers in parts Triton's decoupled models
(docs/user_guide/decoupled_models.md; src/grpc/stream_infer_handler.cc).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mpserve.errors import InferenceError, NotSupported
from mpserve.protocol.codec import Codec, Encoded, Inputs, Outputs, Parts
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.generate import text_response
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.protocol.protobuf import fields, plain, wire
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.fields import encode_response

FINAL = "triton_final_response"
STREAMED: int = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class ProtobufCodec(Codec):
    """The messages of ModelInfer. The state of its inputs is whether their tensors came as typed contents."""

    is_json = False

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        inputs = plain.read(body) if speaks_arrays else None
        if inputs is None:
            inputs = Inputs.of(*decode_request(body))
        return inputs

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        return Encoded(self._message(inputs, outputs, {}))

    def refusal(self, model_name: str) -> NotSupported:
        return NotSupported(
            f"ModelInfer doesn't support models with decoupled transaction policy: model {model_name} answers in parts,"
            " call ModelStreamInfer"
        )

    def _message(self, inputs: Inputs, outputs: Outputs, parameters: Mapping[str, Any]) -> bytes:
        """The ModelInferResponse, with these parameters added."""
        typed, result = bool(inputs.state), outputs.result
        if outputs.tensors is not None:
            if not (parameters or outputs.model_version):
                message = plain.write_response(outputs.model_name, inputs.id, outputs.tensors, typed)
                if message is not None:
                    return message
            result = outputs.response(inputs)
        elif isinstance(result, str):
            result = text_response(outputs.model_name, result)
            result.id, result.model_version = inputs.id, outputs.model_version
        elif not isinstance(result, InferResponse):
            if getattr(getattr(result, "DESCRIPTOR", None), "full_name", "") == "inference.ModelInferResponse":
                return bytes(result.SerializeToString())  # of the kserve SDK, whose models may answer with its message
            result = response_from_dict(result)
        if parameters:
            result = copy.copy(result)  # the model's own object, perhaps
            result.parameters = {**(result.parameters or {}), **parameters}
        return b"".join(encode_response(result, typed))


class ProtobufStreamCodec(ProtobufCodec):
    """The messages of ModelStreamInfer. A whole answer is final; of parts none is, since none is known to be the last."""

    parts = Parts.MANY

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        return Encoded(streamed(self._message(inputs, outputs, {FINAL: True})))

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        return streamed(self._message(inputs, outputs, {FINAL: False}))


def streamed(message: bytes) -> bytes:
    """A ModelStreamInferResponse around a ModelInferResponse."""
    return wire.prefix(STREAMED, len(message)) + message


def empty_final(inputs: Inputs, model_name: str, model_version: str | None) -> bytes:
    """The ModelStreamInferResponse that ends an answer in parts, where the client has asked for it."""
    response = InferResponse(inputs.id, model_name, [], model_version=model_version, parameters={FINAL: True})
    return streamed(b"".join(encode_response(response, False)))


def decode_request(data: bytes) -> tuple[InferRequest, bool]:
    """The request in a serialised ModelInferRequest, and whether its tensors came as typed contents.
    Raises InvalidInput: anything that the protocol does not allow; the message says where, what was got and expected.
    """
    arguments, typed = fields.read_request(data)
    return InferRequest(**arguments), typed


def decode_response(data: bytes) -> InferResponse:
    """The response in a serialised ModelInferResponse.
    Raises InferenceError: it is none, or not as the protocol has it: it is the fault of the server that answered.
    """
    return InferResponse(**fields.read_response(data))


def response_from_dict(document: Mapping[str, Any]) -> InferResponse:
    """The response in the dict of an SDK model: outputs with ``data``, or ``contents`` as the gRPC message has them.
    Raises InferenceError if the dict has another form.
    """
    try:
        outputs = []
        for entry in document["outputs"]:
            data = next(iter(entry["contents"].values()), []) if "contents" in entry else entry["data"]
            tensor = InferOutput(entry["name"], entry["shape"], entry["datatype"], data, entry.get("parameters"))
            outputs.append(tensor)
        return InferResponse(
            document.get("id"),
            document["model_name"],
            outputs,
            model_version=document.get("model_version"),
            parameters=document.get("parameters"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InferenceError(
            "the model's answer cannot be sent over gRPC: expected an InferResponse, or a dict with model_name and"
            f" outputs, each with name, datatype, shape and data ({type(error).__name__}: {error})"
        ) from error
