"""ModelInferRequest and ModelInferResponse as nearly all of them are, read and written in one go: numbers and nothing else.

protobuf reads a small message at once, and its copies of a small tensor cost less than to keep it out of its hands. Whatever
is not plain is left to ``fields``, which reads and writes everything, and says what is wrong. So nothing here refuses
anything, and what is taken here means what it means there.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import FIXED, LITTLE
from mpserve.protocol.elements import check_shape
from mpserve.protocol.plain import Read
from mpserve.protocol.protobuf import contents, wire
from mpserve.protocol.protobuf import inference_pb2 as pb

LARGE = 262144
"""Bytes of a message that is not read here: its tensors are not to be copied."""

KNOWN = 1024
"""Outputs of which the declaration is remembered. Their shapes may be as many as clients like."""

_RAW = {datatype: dtype for datatype, dtype in LITTLE.items() if datatype != "BOOL"}
"""Of a raw BOOL each byte would have to be looked at."""
_MODEL_NAME: int = pb.ModelInferResponse.MODEL_NAME_FIELD_NUMBER
_ID: int = pb.ModelInferResponse.ID_FIELD_NUMBER
_OUTPUT: int = pb.ModelInferResponse.OUTPUTS_FIELD_NUMBER
_RAW_OUTPUT: int = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_CONTENTS: int = pb.ModelInferResponse.InferOutputTensor.CONTENTS_FIELD_NUMBER

_NOT_PLAIN = (DecodeError, InvalidInput, KeyError, ValueError)


Request = tuple[str, str | None, list[Read], list[str], bool]
"""The model, the id, the inputs, the names of the outputs that are asked for (none means all), and whether the tensors are typed
contents. A tuple, as ``protocol.plain`` has it."""


def read_request(data: bytes) -> Request | None:
    """The request in a serialised ModelInferRequest; None if it is not plain.

    Fields that are not known are passed over, also those of a wire type that ``fields`` refuses.
    """
    if len(data) >= LARGE:
        return None
    try:
        message = pb.ModelInferRequest.FromString(data)
        # As slices: protobuf's containers have no iterator of their own, so that each ends with an IndexError, for a microsecond.
        raw = message.raw_input_contents[:]
        if raw:
            inputs = [_raw(*pair) for pair in zip(message.inputs[:], raw, strict=True)]
        else:
            inputs = [_typed(entry) for entry in message.inputs[:]]
        outputs = [_requested(entry) for entry in message.outputs[:]]
    except _NOT_PLAIN:
        return None
    if message.model_version or message.parameters:
        return None
    if len(inputs) != 1 and (not inputs or len({name for name, _, _ in inputs}) < len(inputs)):
        return None
    return message.model_name, message.id or None, inputs, outputs, not raw


def write_response(model_name: str, request_id: str | None, outputs: Sequence[Read], typed: bool) -> bytes | None:
    """The ModelInferResponse with these outputs and nothing else, as ``fields`` writes it; None if one is not plain."""
    typed = typed and all(datatype in contents.FIELDS for _, datatype, _ in outputs)
    parts: list[bytes | memoryview] = [_text(_MODEL_NAME, model_name)]
    if request_id:
        parts.append(_text(_ID, request_id))
    raw: list[bytes | memoryview] = []
    for name, datatype, array in outputs:
        if array.dtype is not FIXED.get(datatype):
            return None
        output = _declared(name, datatype, array.shape)
        if typed:
            output += _field(_CONTENTS, contents.serialised(array, datatype))
        else:
            elements = np.ascontiguousarray(array, LITTLE[datatype])
            raw += (wire.prefix(_RAW_OUTPUT, elements.nbytes), elements.data)
        parts += (wire.prefix(_OUTPUT, len(output)), output)
    return b"".join(parts + raw)


def _raw(entry: Any, data: bytes) -> Read:
    """An input whose elements are ``data``; one of ``_NOT_PLAIN`` if it is not plain."""
    datatype, shape = entry.datatype, entry.shape[:]
    if entry.parameters or entry.HasField("contents"):
        raise ValueError
    check_shape(shape)
    return entry.name, datatype, np.frombuffer(data, _RAW[datatype]).reshape(shape)


def _typed(entry: Any) -> Read:
    """As ``_raw``, of one whose elements are its contents."""
    datatype, shape = entry.datatype, entry.shape[:]
    if entry.parameters or datatype not in FIXED or not entry.HasField("contents"):
        raise ValueError
    check_shape(shape)
    return entry.name, datatype, contents.to_array(entry.contents, datatype).reshape(shape)


def _requested(entry: Any) -> str:
    if entry.parameters:
        raise ValueError
    name: str = entry.name
    return name


@lru_cache(KNOWN)
def _declared(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    output = pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    return output.SerializeToString()


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return wire.prefix(number, len(content)) + content
