"""ModelInferRequest and ModelInferResponse as bytes, and the plain fields of a request or a response: read and written.

Strict like the JSON decoder, with the same words for the same fault. Raw contents are never copied: a decoded tensor is a view
on the message, which must not change, and an encoded message is parts, of which a tensor's own buffer is one. Knows no server
and no call.

Source: Open Inference Protocol, "GRPC" (inference_rest.md, open_inference_grpc.proto); kserve's protocol/grpc.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.binary import encode_tensor
from mpserve.protocol.datatypes import Array
from mpserve.protocol.json.documents import MAX_SHOWN
from mpserve.protocol.json.elements import check_shape, show_shape
from mpserve.protocol.protobuf import contents, wire
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.parameters import read_parameters, write_parameters
from mpserve.protocol.tensors import REGION, InferInput, InferOutput, Parameters, RequestedOutput

Parts = list[bytes | memoryview]  # a message that is sent as ``b"".join(parts)``
_Message = TypeVar("_Message", bound=Message)
_Tensor = TypeVar("_Tensor", InferInput, InferOutput)
LARGE = 262144  # bytes of a message from which on its raw tensors are kept from being copied
RAW_INPUT: int = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
RAW_OUTPUT: int = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER


class Head(Protocol):
    """The common attributes of an ``InferRequest`` and an ``InferResponse``, whose module imports this module."""

    id: str | None
    model_name: str
    model_version: str | None
    parameters: Parameters | None


class Request(Head, Protocol):
    """The written attributes of an ``InferRequest``."""

    inputs: list[InferInput]
    request_outputs: list[RequestedOutput]


class Response(Head, Protocol):
    """The written attributes of an ``InferResponse``."""

    outputs: list[InferOutput]


def parse(kind: type[_Message], data: bytes) -> _Message:
    """The message of that kind in ``data``. Raises InvalidInput if there is none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"expected a {kind.DESCRIPTOR.full_name}: {error}") from None


def addressee(data: bytes) -> tuple[str, str | None]:
    """The model and the version in a serialised ModelInferRequest.
    Raises InvalidInput if there is no ModelInferRequest in ``data``.
    """
    rest, _ = wire.split(data, RAW_INPUT) if len(data) >= LARGE else (data, None)
    try:
        head = pb.ModelReadyRequest.FromString(rest)  # has the same two fields, and passes over all others
    except DecodeError:
        wire.split(data, RAW_INPUT)  # raises if the fault is visible from outside
        raise InvalidInput(f"expected a {pb.ModelInferRequest.DESCRIPTOR.full_name}") from None
    return head.name, head.version or None


def read_request(data: bytes) -> tuple[dict[str, Any], bool]:
    """The arguments of ``InferRequest`` in a serialised ModelInferRequest, and whether its tensors are typed contents.
    Raises InvalidInput: anything that the protocol does not allow; the message says where, what was got and expected.
    """
    rest, raw = wire.split(data, RAW_INPUT)
    message = parse(pb.ModelInferRequest, rest)
    if not message.inputs:
        raise InvalidInput("the request has no inputs, expected one or more")
    _refuse_doubles("input", message.inputs)
    _refuse_doubles("output", message.outputs)
    _refuse_both(message.inputs, raw)
    fields = {
        "model_name": message.model_name,
        "infer_inputs": [_tensor(InferInput, entry, typed=not raw) for entry in message.inputs],
        "request_id": message.id or None,
        "raw_inputs": raw,
        "from_grpc": True,
        "parameters": read_parameters(message.parameters),
        "request_outputs": [
            RequestedOutput(entry.name, read_parameters(entry.parameters)) for entry in message.outputs
        ],
        "model_version": message.model_version or None,
    }
    return fields, any(entry.HasField("contents") for entry in message.inputs)


def encode_request(request: Request, typed: bool = False) -> Parts:
    """The request as a ModelInferRequest: with typed contents if `typed` and if every input has a field for them, else raw.
    Raises InvalidInput if an input does not fit its declaration; InferenceError: a parameter that gRPC cannot carry.
    """
    message = pb.ModelInferRequest(**_head(request))
    write_parameters(message.parameters, request.parameters)
    for wanted in request.request_outputs:
        write_parameters(message.outputs.add(name=wanted.name).parameters, wanted.parameters)
    return _with_tensors(message, message.inputs, request.inputs, RAW_INPUT, typed)


def read_response(data: bytes) -> dict[str, Any]:
    """The arguments of ``InferResponse`` in a serialised ModelInferResponse.
    Raises InferenceError: it is none, or not as the protocol has it: it is the fault of the server that answered.
    """
    try:
        rest, raw = wire.split(data, RAW_OUTPUT)
        message = parse(pb.ModelInferResponse, rest)
        _refuse_both(message.outputs, raw)
        return {
            "response_id": message.id or None,
            "model_name": message.model_name,
            "infer_outputs": [_tensor(InferOutput, entry, typed=not raw) for entry in message.outputs],
            "model_version": message.model_version or None,
            "raw_outputs": raw,
            "from_grpc": True,
            "parameters": read_parameters(message.parameters),
        }
    except InvalidInput as error:
        raise InferenceError(f"the response is not one of V2: {error}") from None


def encode_response(response: Response, typed: bool) -> Parts:
    """The response as a ModelInferResponse: with typed contents if `typed` and if every output has a field for them, else raw.
    A client that sends typed contents can read them; tritonclient reads raw contents only.
    Raises InferenceError if an output does not fit its declaration, or a parameter that gRPC cannot carry.
    """
    message = pb.ModelInferResponse(**_head(response))
    write_parameters(message.parameters, response.parameters)
    return _with_tensors(message, message.outputs, response.outputs, RAW_OUTPUT, typed)


def _refuse_doubles(role: str, entries: Sequence[Any]) -> None:
    if len(entries) < 2:
        return
    names = set()
    for entry in entries:
        if entry.name in names:
            raise InvalidInput(f"{role} '{entry.name[:MAX_SHOWN]}' is there twice, expected unique names")
        names.add(entry.name)


def _refuse_both(entries: Iterable[Any], raw: Sequence[memoryview]) -> None:
    if raw and any(entry.HasField("contents") and entry.contents.ListFields() for entry in entries):
        raise InvalidInput("got typed and raw contents, expected one or the other")


def _tensor(kind: type[_Tensor], entry: Any, typed: bool) -> _Tensor:
    """The tensor of that kind, with the data of its typed contents if `typed`, else without data.
    A tensor in shared memory has no data here: typed contents are refused, and raw contents skip the tensor.
    """
    datatype, shape = entry.datatype.upper(), list(entry.shape)
    try:
        if REGION in entry.parameters and entry.contents.ListFields():
            raise InvalidInput(f"got both {REGION} and data, expected one of them")
        array = _typed(entry.contents, datatype, shape) if typed and REGION not in entry.parameters else None
        return kind(entry.name, shape, datatype, array, read_parameters(entry.parameters))
    except InvalidInput as error:
        raise InvalidInput(f"{kind.role} '{entry.name[:MAX_SHOWN]}': {error}") from None


def _typed(given: pb.InferTensorContents, datatype: str, shape: list[int]) -> Array:
    check_shape(shape)
    array = contents.to_array(given, datatype)
    if len(array) != prod(shape):
        raise InvalidInput(f"expected {prod(shape)} elements for shape {show_shape(shape)}, got {len(array)}")
    return array.reshape(shape)


def _head(message: Head) -> dict[str, Any]:
    return {
        "model_name": message.model_name,
        "model_version": message.model_version or "",
        "id": "" if message.id is None else str(message.id),
    }


def _with_tensors(
    message: Message, entries: Any, tensors: Sequence[InferInput] | Sequence[InferOutput], number: int, typed: bool
) -> Parts:
    """The message with the tensors in its field ``entries``; raw contents follow it, as fields of that number.
    An input in shared memory has no raw contents, an output has empty contents, as in Triton's clients and servers.
    """
    typed = typed and all(tensor.datatype in contents.FIELDS for tensor in tensors)
    raw: Parts = []
    for tensor in tensors:
        array = None if tensor.in_shared_memory else tensor.as_numpy()
        shape = tensor.shape if array is None else array.shape
        entry = entries.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        write_parameters(entry.parameters, tensor.parameters)
        if array is None:
            raw += [] if typed or isinstance(tensor, InferInput) else [b""]
            continue
        try:
            if typed:
                entry.contents.MergeFromString(contents.serialised(array, tensor.datatype))
            else:
                raw.append(encode_tensor(array, tensor.datatype))
        except TypeError:
            raise tensor.missing_text() from None
    parts: Parts = [message.SerializeToString()]
    for buffer in raw:
        parts += [wire.prefix(number, len(buffer)), buffer]
    return parts
