"""Serialised gRPC messages to ``InferRequest`` and ``InferResponse``, for servers and clients. Knows no server and no call."""

from collections.abc import Mapping
from typing import Any

from mpserve.errors import InferenceError
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.protocol.protobuf.fields import read_request, read_response


def decode_request(data: bytes) -> tuple[InferRequest, bool]:
    """The request in a serialised ModelInferRequest, and whether its tensors came as typed contents.
    Raises InvalidInput: anything that the protocol does not allow; the message says where, what was got and expected.
    """
    fields, typed = read_request(data)
    return InferRequest(**fields), typed


def decode_response(data: bytes) -> InferResponse:
    """The response in a serialised ModelInferResponse.
    Raises InferenceError: it is none, or not as the protocol has it: it is the fault of the server that answered.
    """
    return InferResponse(**read_response(data))


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
