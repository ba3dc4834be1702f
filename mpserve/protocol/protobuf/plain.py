"""Reads and writes the usual ModelInferRequest and ModelInferResponse in one go: numbers and nothing else.

protobuf parses a small message at once, and its copies of a small tensor cost less than to avoid them. ``fields`` reads and
writes every other message, and names its faults. This module refuses nothing, and agrees with ``fields``.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import FIXED, LITTLE, MAX_RANK, Array
from mpserve.protocol.json.elements import check_shape
from mpserve.protocol.protobuf import contents, wire
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.tensors import NamedArray, RequestedOutput

LARGE = 262144  # bytes of a message that is not read here: its tensors are not to be copied
KNOWN = 1024  # outputs whose encoded heads are remembered; clients may send any number of shapes
_RAW = {datatype: dtype for datatype, dtype in LITTLE.items() if datatype != "BOOL"}
"""Of a raw BOOL each byte would have to be looked at."""
_ID: int = pb.ModelInferResponse.ID_FIELD_NUMBER
_OUTPUT: int = pb.ModelInferResponse.OUTPUTS_FIELD_NUMBER
_RAW_OUTPUT: int = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_CONTENTS: int = pb.ModelInferResponse.InferOutputTensor.CONTENTS_FIELD_NUMBER
_NOT_PLAIN = (DecodeError, InvalidInput, KeyError, ValueError)


def read(data: bytes) -> Inputs | None:
    """The request in a serialised ModelInferRequest; None if it is not plain.
    Unknown fields are skipped, also of a wire type that ``fields`` refuses.
    """
    if len(data) >= LARGE:
        return None
    try:
        message = pb.ModelInferRequest.FromString(data)
        # As slices: protobuf's containers have no iterator of their own, so that each ends with an IndexError, for a microsecond.
        entries, raw = message.inputs[:], message.raw_input_contents[:]
        tensors = list(map(_raw, entries, raw)) if raw else list(map(_typed, entries))
        requested = list(map(_requested, message.outputs[:]))
    except _NOT_PLAIN:
        return None
    if message.parameters or (raw and len(raw) != len(entries)):
        return None
    if len(tensors) != 1 and (not tensors or len({name for name, _, _ in tensors}) < len(tensors)):
        return None
    if len(requested) > 1 and len({output.name for output in requested}) < len(requested):
        return None
    return Inputs(tensors, message.id or None, requested, state=not raw)


def write_response(model_name: str, request_id: str | None, outputs: Sequence[NamedArray], typed: bool) -> bytes | None:
    """The ModelInferResponse with these outputs and nothing else, as ``fields`` writes it; None if one is not plain."""
    typed = typed and all(datatype in contents.FIELDS for _, datatype, _ in outputs)
    parts: list[bytes | memoryview] = [_named(model_name)]
    if request_id:
        parts.append(_field(_ID, request_id.encode()))
    raw: list[bytes | memoryview] = []
    for name, datatype, array in outputs:
        if array.dtype is not FIXED.get(datatype):
            return None
        if typed:
            elements = _field(_CONTENTS, contents.serialised(array, datatype))
            parts.append(_field(_OUTPUT, _declared(name, datatype, array.shape) + elements))
        else:
            parts.append(_without_contents(name, datatype, array.shape))
            in_order = np.ascontiguousarray(array, LITTLE[datatype])
            raw += (wire.prefix(_RAW_OUTPUT, in_order.nbytes), in_order.data)
    return b"".join(parts + raw)


def _raw(entry: Any, data: bytes) -> NamedArray:
    """An input whose elements are ``data``; one of ``_NOT_PLAIN`` if it is not plain."""
    datatype, shape = entry.datatype, entry.shape[:]
    if entry.parameters or entry.HasField("contents"):
        raise ValueError
    return entry.name, datatype, _shaped(np.frombuffer(data, _RAW[datatype]), shape)


def _typed(entry: Any) -> NamedArray:
    """As ``_raw``, of one whose elements are its contents."""
    datatype, shape = entry.datatype, entry.shape[:]
    if entry.parameters or datatype not in FIXED or not entry.HasField("contents"):
        raise ValueError
    return entry.name, datatype, _shaped(contents.to_array(entry.contents, datatype), shape)


def _requested(entry: Any) -> RequestedOutput:
    if entry.parameters:
        raise ValueError
    return RequestedOutput(entry.name)


def _shaped(elements: Array, shape: list[int]) -> Array:
    array = elements.reshape(shape)
    # reshape accepts a size of -1, and any sizes of a tensor without elements.
    if not array.size or len(shape) > MAX_RANK or list(array.shape) != shape:
        check_shape(shape)
    return array


@lru_cache(KNOWN)
def _named(model_name: str) -> bytes:
    return pb.ModelInferResponse(model_name=model_name).SerializeToString()


@lru_cache(KNOWN)
def _declared(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    output = pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    return output.SerializeToString()


@lru_cache(KNOWN)
def _without_contents(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return _field(_OUTPUT, _declared(name, datatype, shape))


def _field(number: int, content: bytes) -> bytes:
    return wire.prefix(number, len(content)) + content
