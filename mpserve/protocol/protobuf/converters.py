"""The gRPC messages of an inference as bytes, and ``InferRequest`` and ``InferResponse``: decoded and encoded, both ways.

Strict as the JSON decoder is, with the same words where the fault is the same. Raw contents are neither copied on the
way in (a tensor is a view on the message, so that must not be changed) nor on the way out (a message is given as parts,
of which a tensor's own buffer is one). Knows no server and no call.

Source: Open Inference Protocol, "GRPC" (inference_rest.md, open_inference_grpc.proto); kserve's protocol/grpc.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from mpserve.errors import InferenceError, InvalidInput, NotSupported
from mpserve.protocol.binary import encode_tensor
from mpserve.protocol.datatypes import Array
from mpserve.protocol.documents import MAX_SHOWN
from mpserve.protocol.elements import check_shape, show_shape
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.protobuf import contents, wire
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.parameters import read_parameters, write_parameters

Parts = list[bytes | memoryview]
"""A message that is sent as ``b"".join(parts)``."""

_Message = TypeVar("_Message", bound=Message)
_Tensor = TypeVar("_Tensor", InferInput, InferOutput)

RAW_INPUT: int = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
RAW_OUTPUT: int = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
SHARED_MEMORY = "shared_memory_region"


def parse(kind: type[_Message], data: bytes) -> _Message:
    """The message of that kind in ``data``.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"expected a {kind.DESCRIPTOR.full_name}: {error}") from None


def decode_request(data: bytes) -> tuple[InferRequest, bool]:
    """The request in a serialised ModelInferRequest, and whether its tensors came as typed contents.

    Raises:
        InvalidInput: anything that the protocol does not allow; the message says where, what was got and expected.
        NotSupported: it refers to shared memory.
    """
    rest, raw = wire.split(data, RAW_INPUT)
    message = parse(pb.ModelInferRequest, rest)
    if not message.inputs:
        raise InvalidInput("the request has no inputs, expected one or more")
    _refuse_doubles("input", message.inputs)
    _refuse_doubles("output", message.outputs)
    _refuse_shared_memory(message.inputs)
    _refuse_shared_memory(message.outputs)
    _refuse_both(message.inputs, raw)
    request = InferRequest(
        message.model_name,
        [_tensor(InferInput, entry, typed=not raw) for entry in message.inputs],
        message.id or None,
        raw_inputs=raw,
        from_grpc=True,
        parameters=read_parameters(message.parameters),
        request_outputs=[RequestedOutput(entry.name, read_parameters(entry.parameters)) for entry in message.outputs],
        model_version=message.model_version or None,
    )
    return request, any(entry.HasField("contents") for entry in message.inputs)


def encode_request(request: InferRequest) -> Parts:
    """The request as a ModelInferRequest with raw contents, which carry every datatype.

    Raises:
        InvalidInput: an input does not fit its declaration.
        InferenceError: a parameter that gRPC cannot carry.
    """
    message = pb.ModelInferRequest(
        model_name=request.model_name, model_version=request.model_version or "", id=request.id or ""
    )
    write_parameters(message.parameters, request.parameters)
    for wanted in request.request_outputs:
        write_parameters(message.outputs.add(name=wanted.name).parameters, wanted.parameters)
    raw = []
    for given in request.inputs:
        array = given.as_numpy()
        write_parameters(message.inputs.add(**_head(given, array)).parameters, given.parameters)
        raw.append(encode_tensor(array, given.datatype))
    return _with_raw(message, RAW_INPUT, raw)


def decode_response(data: bytes) -> InferResponse:
    """The response in a serialised ModelInferResponse.

    Raises:
        InferenceError: it is none, or not as the protocol has it: it is the fault of the server that answered.
    """
    try:
        rest, raw = wire.split(data, RAW_OUTPUT)
        message = parse(pb.ModelInferResponse, rest)
        _refuse_both(message.outputs, raw)
        return InferResponse(
            message.id or None,
            message.model_name,
            [_tensor(InferOutput, entry, typed=not raw) for entry in message.outputs],
            model_version=message.model_version or None,
            raw_outputs=raw,
            from_grpc=True,
            parameters=read_parameters(message.parameters),
        )
    except InvalidInput as error:
        raise InferenceError(f"the response is not one of V2: {error}") from None


def encode_response(response: InferResponse, typed: bool) -> Parts:
    """The response as a ModelInferResponse: with typed contents if `typed` and if every output has such, else raw.

    Whoever sends typed contents can read them. Others need not: tritonclient reads raw ones only.

    Raises:
        InferenceError: an output does not fit its declaration, or a parameter that gRPC cannot carry.
    """
    message = pb.ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version or "",
        id="" if response.id is None else str(response.id),
    )
    write_parameters(message.parameters, response.parameters)
    typed = typed and all(output.datatype in contents.FIELDS for output in response.outputs)
    raw = []
    for output in response.outputs:
        array = output.as_numpy()
        entry = message.outputs.add(**_head(output, array))
        write_parameters(entry.parameters, output.parameters)
        if typed:
            entry.contents.CopyFrom(contents.from_array(array, output.datatype))
        else:
            raw.append(encode_tensor(array, output.datatype))
    return _with_raw(message, RAW_OUTPUT, raw)


def response_from_dict(document: Mapping[str, Any]) -> InferResponse:
    """The response that an SDK model gave as a dict: outputs with ``data``, or ``contents`` as the gRPC message has them.

    Raises:
        InferenceError: it is no such dict.
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


def _refuse_doubles(role: str, entries: Iterable[Any]) -> None:
    names = set()
    for entry in entries:
        if entry.name in names:
            raise InvalidInput(f"{role} '{entry.name[:MAX_SHOWN]}' is there twice, expected unique names")
        names.add(entry.name)


def _refuse_shared_memory(entries: Iterable[Any]) -> None:
    for entry in entries:
        if SHARED_MEMORY in entry.parameters:
            raise NotSupported(f"'{entry.name[:MAX_SHOWN]}' is said to be in shared memory, which is not supported")


def _refuse_both(entries: Iterable[Any], raw: Sequence[memoryview]) -> None:
    if raw and any(entry.contents.ListFields() for entry in entries):
        raise InvalidInput("got typed and raw contents, expected one or the other")


def _tensor(kind: type[_Tensor], entry: Any, typed: bool) -> _Tensor:
    """The tensor of that kind, with the data in its typed contents if `typed`, else with none yet."""
    datatype, shape = entry.datatype.upper(), list(entry.shape)
    try:
        array = _typed(entry.contents, datatype, shape) if typed else None
        return kind(entry.name, shape, datatype, array, read_parameters(entry.parameters))
    except InvalidInput as error:
        raise InvalidInput(f"{kind.role} '{entry.name[:MAX_SHOWN]}': {error}") from None


def _typed(given: pb.InferTensorContents, datatype: str, shape: list[int]) -> Array:
    check_shape(shape)
    array = contents.to_array(given, datatype)
    if len(array) != prod(shape):
        raise InvalidInput(f"expected {prod(shape)} elements for shape {show_shape(shape)}, got {len(array)}")
    return array.reshape(shape)


def _head(tensor: InferInput | InferOutput, array: Array) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": array.shape}


def _with_raw(message: Message, number: int, raw: Sequence[bytes | memoryview]) -> Parts:
    parts: Parts = [message.SerializeToString()]
    for buffer in raw:
        parts += [wire.prefix(number, len(buffer)), buffer]
    return parts
