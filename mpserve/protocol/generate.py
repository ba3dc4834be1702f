"""Triton's generate extension: flat JSON objects to ``InferRequest``, and answers to flat JSON objects. Knows no HTTP.

Where Triton's text leaves the meaning of a field open, its server decides (src/http_server.cc, ConvertGenerateRequest,
ExactMappingInput, ExactMappingOutput).

Source: Triton, docs/protocol/extension_generate.md.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from mpserve.errors import InferenceError, InvalidInput, NotSupported
from mpserve.protocol.codec import JSON, Codec, Encoded, Inputs, Outputs, Parts
from mpserve.protocol.datatypes import NonFinite, json_values
from mpserve.protocol.declaration import Tensor, nullable
from mpserve.protocol.json.documents import MAX_SHOWN, describe, parameters_of, parse_object
from mpserve.protocol.json.elements import decode_data, show_shape
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse
from mpserve.protocol.v1 import body as v1

TEXT_OUTPUT = "text_output"
RESERVED = ("id", "parameters")  # fields that never are inputs
_DATATYPES: dict[type, str] = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}


EVENTS = "text/event-stream; charset=utf-8"


class GenerateCodec(Codec):
    """Requests to ``generate``, whose answer is one JSON object.
    The body is JSON whatever its content type says: `curl -d` in the extension's documentation sends form-urlencoded.
    ``nonfinite``: the treatment of NaN and infinity in an answer.
    """

    parts = Parts.ONE
    part_fields: Mapping[str, str] = {"content-type": JSON}

    def __init__(self, nonfinite: NonFinite) -> None:
        self.nonfinite = nonfinite

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        return Inputs.of(decode_request(body, declared))

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        return Encoded(self.write_part(inputs, outputs), None, self.part_fields)

    def refusal(self, model_name: str) -> NotSupported:
        return NotSupported(
            "generate expects the model to produce exactly 1 response; use generate_stream for a model that produces any"
            " number of them"
        )

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        result = outputs.result if outputs.tensors is None else outputs.response(inputs)
        return encode_response(result, outputs.model_name, outputs.own_version, inputs.id, self.nonfinite)


class GenerateStreamCodec(GenerateCodec):
    """Requests to ``generate_stream``, whose answer is server-sent events, one for each JSON object."""

    parts = Parts.MANY
    part_fields: Mapping[str, str] = {"content-type": EVENTS}

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        return event(super().write_part(inputs, outputs))

    def last_part(self, fault: bytes) -> bytes | None:
        return event(fault)


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def decode_request(body: bytes, declared: Sequence[Tensor]) -> InferRequest:
    """The request in ``body``, to a model that declares these inputs, or none. The request names no model yet.
    A field named as a declared input is that input, also within ``parameters``; any other is a parameter. Without a
    declaration each field is an input, and the fields of ``parameters`` are parameters.
    Raises InvalidInput if the body is no JSON object, or a value does not fit its input.
    """
    document = parse_object(body)
    request_id, nested = document.get("id"), document.get("parameters")
    if not isinstance(request_id, str | None):
        raise InvalidInput(f"id is {describe(request_id)}, expected a string")
    if not isinstance(nested, dict | None):
        raise InvalidInput(f"parameters is {describe(nested)}, expected an object")
    fields = {name: value for name, value in document.items() if name not in RESERVED}
    inputs, parameters = _sorted(fields, nested or {}, declared)
    if not inputs:
        expected = ", ".join(repr(tensor.name) for tensor in declared) or "a field such as 'text_input'"
        raise InvalidInput(f"the request has no inputs, expected {expected}")
    checked = parameters_of({"parameters": parameters}) if parameters else None
    return InferRequest("", inputs, request_id or None, parameters=checked)


def encode_response(
    result: object, model_name: str, model_version: str, request_id: str | None, nonfinite: NonFinite = "error"
) -> bytes:
    """A model's whole answer, or a part of one, as a JSON object: its name, version and id, and each output by name.
    An output of one element is that element, any other the flat list. Text is the output ``text_output``, and the
    entries of a dict are the outputs as they are.
    Raises InferenceError if it is none of these, or holds what JSON cannot carry.
    """
    head = {"model_name": model_name, "model_version": model_version} | ({"id": request_id} if request_id else {})
    if isinstance(result, InferResponse):
        values = {output.name: _value(output, nonfinite) for output in result.outputs}
        outputs = {**(result.parameters or {}), **values}
    elif isinstance(result, str):
        outputs = {TEXT_OUTPUT: result}
    elif isinstance(result, Mapping):
        outputs = dict(result)
    else:
        raise InferenceError(
            f"the model's answer is of type {type(result).__name__}, expected an InferResponse, a dict or a str"
        )
    return v1.encode_response(head | outputs, nonfinite)[0]


def text_response(model_name: str, text: str) -> InferResponse:
    return InferResponse(None, model_name, [InferOutput(TEXT_OUTPUT, [1], "BYTES", [text])])


def _sorted(
    fields: dict[str, Any], nested: dict[str, Any], tensors: Sequence[Tensor]
) -> tuple[list[InferInput], dict[str, Any]]:
    if not tensors:
        return [_guessed(name, value, nullable(tensors, name)) for name, value in fields.items()], nested
    declared = {tensor.name: tensor for tensor in tensors}
    twice = declared.keys() & fields.keys() & nested.keys()
    if twice:
        raise InvalidInput(f"input '{min(twice)}' is there twice, also within `parameters`")
    given = fields | nested
    inputs = [_declared(declared[name], given[name], nullable(tensors, name)) for name in given if name in declared]
    return inputs, {name: value for name, value in given.items() if name not in declared}


def _declared(tensor: Tensor, value: Any, takes_null: bool) -> InferInput:
    name, shape = tensor.name, tensor.shape
    values = value if isinstance(value, list) else [value]
    sizes = fitted(len(values), shape)
    if sizes is None:
        raise InvalidInput(f"input '{name}': {len(values)} elements do not fit shape {show_shape(shape)}")
    return _input(name, values, tensor.datatype, sizes, takes_null)


def fitted(count: int, declared: Sequence[int]) -> list[int] | None:
    """The declared shape for ``count`` elements. The last open dimension takes the rest; other open dimensions are 1."""
    fixed = prod(size for size in declared if size != -1)
    left = count // fixed if fixed else 0
    shape = list(declared)
    for index in reversed(range(len(shape))):
        if shape[index] == -1:
            shape[index], left = left, 1
    return shape if prod(shape) == count else None


def _guessed(name: str, value: Any, takes_null: bool) -> InferInput:
    values = value if isinstance(value, list) else [value]
    types = set(map(type, values))
    if takes_null:
        types = types - {type(None)} or {float}
    if types == {int, float}:
        types = {float}
    datatype = _DATATYPES.get(types.pop()) if len(types) == 1 else None
    if datatype is None:
        raise InvalidInput(
            f"'{name[:MAX_SHOWN]}' is {describe(value)}{' that holds null' * (None in values and values is value)}, expected a"
            " string, number or boolean, or a list of one kind of them"
        )
    return _input(name, values, datatype, [len(values)], takes_null)


def _input(name: str, values: list[Any], datatype: str, shape: list[int], takes_null: bool) -> InferInput:
    try:
        tensor = InferInput(name, shape, datatype, decode_data(values, datatype, shape, takes_null))
    except InvalidInput as error:
        raise InvalidInput(f"input '{name[:MAX_SHOWN]}': {error}") from None
    if takes_null:
        tensor.keep_missing()
    return tensor


def _value(output: InferOutput, nonfinite: NonFinite) -> Any:
    array = output.as_numpy().ravel()
    try:
        values = json_values(array, nonfinite)
    except ValueError as error:
        raise InferenceError(f"output '{output.name}' {error}") from None
    return values[0] if array.size == 1 else values
