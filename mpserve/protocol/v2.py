"""The V2 protocol in JSON: request bodies to ``InferRequest`` and ``InferResponse`` to bodies. Strict, and no I/O.

What a model receives is what the client wrote, or the client is told why not: no value is wrapped, cut or guessed.
Whole lists are checked at C speed; Python looks at single elements only to name the one at fault.

Source: Open Inference Protocol, "Inference Request/Response JSON Object" (inference_rest.md).
"""

from itertools import chain
from math import isfinite, prod
from typing import Any

import numpy as np
import orjson

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.datatypes import Array, json_values, narrow, numpy_dtype, out_of_range
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, Parameters, RequestedOutput
from mpserve.protocol.v1 import describe, parse_object

# More than any body can hold, and few enough for numpy to index; numpy before 2.0 stops at 32 dimensions.
MAX_ELEMENTS = 2**40
MAX_RANK = 32
# Characters of the client's own words that a message repeats.
MAX_SHOWN = 60

_PARAMETER_TYPES = frozenset({str, int, float, bool})

# By numpy's kind of the datatype: the JSON values taken, as Python types and in words.
_ELEMENT_TYPES: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int}), "an integer"),
    "u": (frozenset({int}), "an integer"),
    "f": (frozenset({int, float}), "a number"),
    "O": (frozenset({str}), "a string"),
}


def decode_request(body: bytes, model_name: str, model_version: str | None) -> InferRequest:
    """The inference request in `body`; `model_name` and `model_version` are those of the address.

    Tensors are row-major, nested as their shape says or flat. A field that is null counts as absent; unknown fields are
    ignored.

    Raises:
        InvalidInput: anything else that the protocol does not allow; the message says where, what was got and expected.
    """
    document = parse_object(body)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidInput(f"id is {describe(request_id)}, expected a string")
    inputs = [_input(entry) for entry in _named_objects(document, "inputs")]
    if not inputs:
        raise InvalidInput("the request has no inputs, expected `inputs` to be a non-empty list of objects")
    outputs = [
        RequestedOutput(entry["name"], _parameters(entry, f"output '{entry['name'][:MAX_SHOWN]}': "))
        for entry in _named_objects(document, "outputs")
    ]
    return InferRequest(
        model_name,
        inputs,
        request_id,
        parameters=_parameters(document),
        request_outputs=outputs,
        model_version=model_version,
    )


def encode_response(response: InferResponse) -> bytes:
    """The JSON body of a response: data flat and row-major, absent fields left out, FP16 and BF16 as exact numbers.

    Raises:
        InferenceError: an output does not fit its declaration, or holds what JSON cannot carry: NaN, infinity, or bytes
            that are not UTF-8. The JSON writer by itself would turn the first two into null.
    """
    document = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "parameters": _sendable(response.parameters),
        "outputs": [_output(output) for output in response.outputs],
    }
    try:
        present = {field: value for field, value in document.items() if value is not None}
        return orjson.dumps(present, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InferenceError(f"the response cannot be written as JSON: {error}") from error


def _named_objects(document: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The list of objects under `field`, each with a name of its own; empty if absent."""
    entries = document.get(field)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidInput(f"`{field}` is {describe(entries)}, expected a list of objects")
    names = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidInput(f"{field}[{index}] is {describe(entry)}, expected an object")
        name = entry.get("name")
        if not isinstance(name, str):
            raise InvalidInput(f"{field}[{index}]: name is {describe(name)}, expected a string")
        if name in names:
            raise InvalidInput(f"{field}[{index}]: the name '{name[:MAX_SHOWN]}' is there twice, expected unique names")
        names.add(name)
    return entries


def _parameters(owner: dict[str, Any], where: str = "") -> Parameters | None:
    parameters = owner.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise InvalidInput(f"{where}parameters is {describe(parameters)}, expected an object")
    for name, value in parameters.items():
        if type(value) not in _PARAMETER_TYPES:
            raise InvalidInput(
                f"{where}parameter '{name[:MAX_SHOWN]}' is {describe(value)}, expected a string, number or boolean"
            )
    return parameters


def _input(entry: dict[str, Any]) -> InferInput:
    try:
        parameters = _parameters(entry)
        if parameters and "binary_data_size" in parameters:
            raise InvalidInput(
                "got binary_data_size, expected data: the binary tensor extension, which needs the"
                " Inference-Header-Content-Length header, is not supported"
            )
        datatype, shape, data = entry.get("datatype"), _shape(entry.get("shape")), entry.get("data")
        if not isinstance(datatype, str):
            raise InvalidInput(f"datatype is {describe(datatype)}, expected a string")
        if not isinstance(data, list):
            got = "missing" if data is None else describe(data)
            raise InvalidInput(f"data is {got}, expected a list of {prod(shape)} elements")
        array = _array(_flatten(data, shape), datatype.upper()).reshape(shape)
    except InvalidInput as error:
        raise InvalidInput(f"input '{entry['name'][:MAX_SHOWN]}': {error}") from None
    return InferInput(entry["name"], shape, datatype, array, parameters)


def _shape(shape: Any) -> list[int]:
    if not isinstance(shape, list):
        raise InvalidInput(f"shape is {describe(shape)}, expected a list of integers")
    for size in shape:
        if type(size) is not int or size < 0:
            raise InvalidInput(f"shape holds {_show(size)}, expected integers of 0 or more")
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"shape has {len(shape)} dimensions, expected at most {MAX_RANK}")
    if prod(size or 1 for size in shape) > MAX_ELEMENTS:
        raise InvalidInput(f"shape {_show_shape(shape)} is too large, expected at most {MAX_ELEMENTS} elements")
    return shape


def _flatten(data: list[Any], shape: list[int]) -> list[Any]:
    """The elements of `data`, which is flat or nested as `shape` says."""
    if not data or not isinstance(data[0], list):
        if len(data) != prod(shape):
            raise InvalidInput(f"expected {prod(shape)} elements for shape {_show_shape(shape)}, got {len(data)}")
        return data
    level = [data]
    for dimension, size in enumerate(shape):
        if set(map(type, level)) - {list} or set(map(len, level)) - {size}:
            misfit = next(item for item in level if not isinstance(item, list) or len(item) != size)
            got = f"a list of {len(misfit)}" if isinstance(misfit, list) else _show(misfit)
            raise InvalidInput(
                f"data is not nested as shape {_show_shape(shape)}:"
                f" expected a list of {size} in dimension {dimension}, got {got}"
            )
        level = list(chain.from_iterable(level))
    return level


def _array(elements: list[Any], datatype: str) -> Array:
    """The 1-D array of a flat list."""
    dtype = numpy_dtype(datatype)
    # numpy files bfloat16, which is not its own, under kind "V".
    kind = "f" if datatype == "BF16" else dtype.kind
    types, wanted = _ELEMENT_TYPES[kind]
    # numpy would take true as 1, "1.5" as 1.5 and null as NaN, so nothing goes to it unchecked.
    if not _types(elements) <= types:
        index, got = next((index, item) for index, item in enumerate(elements) if type(item) not in types)
        raise InvalidInput(f"element {index} of data is {_show(got)}, expected {wanted} for {datatype}")
    if kind == "O":
        return np.array(list(map(str.encode, elements)), dtype=dtype)
    if kind in "iu":
        return _integers(elements, datatype)
    with np.errstate(all="ignore"):
        array = np.fromiter(elements, dtype, len(elements))
    if kind == "f" and not np.isfinite(array).all():
        index = int(np.isfinite(array).argmin())
        raise out_of_range(index, elements[index], datatype)
    return array


def _types(elements: list[Any]) -> set[type]:
    types = list(map(type, elements))
    # Counting one type takes half the time of building a set, and most lists hold one only.
    return {types[0]} if types and types.count(types[0]) == len(types) else set(types)


def _integers(elements: list[int], datatype: str) -> Array:
    try:
        return narrow(np.fromiter(elements, np.int64, len(elements)), datatype)
    except OverflowError:
        if datatype == "UINT64" and min(elements) >= 0:
            return np.array(elements, dtype=np.uint64)
        limits = np.iinfo(numpy_dtype(datatype))
        outside = ((index, item) for index, item in enumerate(elements) if not limits.min <= item <= limits.max)
        raise out_of_range(*next(outside), datatype) from None


def _output(output: InferOutput) -> dict[str, Any]:
    array = output.as_numpy()
    try:
        values = json_values(array.ravel())
    except ValueError as error:
        raise InferenceError(f"output '{output.name}' {error}") from None
    entry: dict[str, Any] = {"name": output.name, "shape": array.shape, "datatype": output.datatype}
    parameters = _sendable(output.parameters)
    if parameters is not None:
        entry["parameters"] = parameters
    return entry | {"data": values}


def _sendable(parameters: Parameters | None) -> Parameters | None:
    for name, value in (parameters or {}).items():
        if isinstance(value, float) and not isfinite(value):
            raise InferenceError(f"parameter '{name}' is {value}, which JSON cannot carry")
    return parameters or None


def _show(value: Any) -> str:
    """A JSON value as the client wrote it, in few characters."""
    return describe(value) if isinstance(value, list | dict) else orjson.dumps(value).decode()[:MAX_SHOWN]


def _show_shape(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
