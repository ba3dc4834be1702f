"""V2's JSON objects and the bytes after them, to and from the parts of a message.

Strict: a model receives exactly the values that the client wrote, or the client gets an error. Knows tensors, but neither the
messages, which import this module, nor HTTP.

Source: Open Inference Protocol, "Inference Request/Response JSON Object" (inference_rest.md); for the bytes Triton's
docs/protocol/extension_binary_data.md.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson

from mpserve.errors import InferenceError, InvalidInput, MPServeError
from mpserve.protocol.binary import HEADER, Buffer, Rest, decode_buffer, decode_tensor, encode_tensor
from mpserve.protocol.datatypes import NonFinite, json_values
from mpserve.protocol.declaration import Tensor as Declared
from mpserve.protocol.declaration import nullable
from mpserve.protocol.json.documents import MAX_SHOWN, describe, named_objects, parameters_of
from mpserve.protocol.json.elements import check_shape, decode_data
from mpserve.protocol.tensors import REGION, InferInput, InferOutput, Parameters, RequestedOutput

_SIZE = "binary_data_size"
KNOWN = 1024  # outputs whose heads are remembered: the outputs of a model differ at most in shape
SHORT = 5000  # bytes of JSON up to which a search for "null" costs less than numpy's look at the arrays
Tensor = InferInput | InferOutput
AnyTensor = TypeVar("AnyTensor", InferInput, InferOutput)


class Encoded(NamedTuple):
    """A message in pieces that share memory with the tensors: the JSON, then the bytes of each binary tensor.
    `json_length` is the header Inference-Header-Content-Length; None without binary tensors. The pieces must be written before
    the model may change its arrays again.
    """

    chunks: list[Buffer]
    json_length: int | None

    def join(self) -> bytes:
        """The whole body; the one copy."""
        return b"".join(self.chunks)


def read_request(document: dict[str, Any], rest: Rest | None, declared: Sequence[Declared] = ()) -> dict[str, Any]:
    """The arguments of ``InferRequest`` that an inference request object holds; `rest` are the bytes after it, if any.
    `declared` are the inputs of the model, of which some may have missing values.
    Raises InvalidInput: what the protocol does not allow; the message says where, what was got and what expected.
    """
    request_id = _text(document, "id")
    inputs = [_read_tensor(InferInput, entry, rest, declared) for entry in named_objects(document, "inputs")]
    if not inputs:
        remedy = "; POST a body with `instances` to /v1/models/NAME:predict" if "instances" in document else ""
        raise InvalidInput(f"the request has no inputs, expected `inputs` to be a non-empty list of objects{remedy}")
    if rest is not None:
        rest.finish()
    return {
        "infer_inputs": inputs,
        "request_id": request_id,
        "parameters": parameters_of(document, "binary_data_output") if "parameters" in document else None,
        "request_outputs": [_read_requested(entry) for entry in named_objects(document, "outputs")],
    }


def read_response(document: dict[str, Any], rest: Rest | None) -> dict[str, Any]:
    """The arguments of ``InferResponse`` that an inference response object holds; `rest` are the bytes after it.
    Raises InferenceError: what the protocol does not allow: it is the fault of the server that answered.
    """
    try:
        outputs = [_read_tensor(InferOutput, entry, rest) for entry in named_objects(document, "outputs")]
        if rest is not None:
            rest.finish()
        return {
            "response_id": _text(document, "id"),
            "model_name": _text(document, "model_name") or "",
            "model_version": _text(document, "model_version"),
            "infer_outputs": outputs,
            "parameters": parameters_of(document),
        }
    except InvalidInput as error:
        raise InferenceError(f"the response is not one of V2: {error}") from None


def fill(kind: type[Tensor], tensors: Sequence[Tensor], buffers: Sequence[Buffer]) -> None:
    """Make each buffer the data of its tensor; a tensor in shared memory keeps no data.
    Raises InvalidInput (of inputs) or InferenceError (of outputs): another number of them, or bytes that do not fit.
    """
    if len(buffers) != len(tensors):
        raise kind.fault(f"got raw contents of {len(buffers)} {kind.role}s, expected those of {len(tensors)}")
    for tensor, buffer in zip(tensors, buffers, strict=True):
        if tensor.in_shared_memory:
            continue
        what = f"{kind.role} '{tensor.name[:MAX_SHOWN]}'"
        try:
            array = decode_tensor(buffer, tensor.datatype, tensor.shape, what)
        except InvalidInput as error:
            raise kind.fault(str(error)) from None
        tensor.set_data_from_numpy(array)


def write(
    head: dict[str, Any], field: str, tensors: Sequence[tuple[Tensor, bool]], nonfinite: NonFinite = "error"
) -> Encoded:
    """The object of the fields in `head`, without None, and of the tensors under `field`.
    Each tensor comes with whether it goes binary; one in shared memory goes without data. JSON data is flat and row-major,
    FP16 and BF16 are exact numbers.
    Raises InferenceError (of outputs and the whole) or InvalidInput (of inputs): a tensor does not fit its declaration, or
    holds what JSON cannot carry: bytes that are not UTF-8, and NaN or infinity unless `nonfinite` is "null".
    """
    buffers: list[Buffer] = []
    head[field] = [
        _entry(tensor, binary, buffers, nonfinite if tensor.datatype == "BYTES" else "null")
        for tensor, binary in tensors
    ]
    json = dump(_present(head))
    # In a short text, a search for null costs less than a look at each array. A string may hold "null" too.
    if nonfinite == "error" and (len(json) > SHORT or b"null" in json):
        for tensor, binary in tensors:
            if not binary and tensor.datatype != "BYTES":
                _entry(tensor, binary, [], "error")
    # An empty tensor has no bytes, but its client looks for it after the JSON. (Triton omits the header if all are empty.)
    return Encoded([json, *buffers], len(json) if buffers else None)


def to_rest(
    head: dict[str, Any], field: str, tensors: Iterable[tuple[Tensor, bool]]
) -> tuple[dict[str, Any] | bytes, int | None]:
    """``write`` as the SDK has it: (body, length of its JSON) if a tensor goes binary, else (dict of plain values, None).
    Raises InferenceError, InvalidInput as ``write``.
    """
    buffers: list[Buffer] = []
    head[field] = [_entry(tensor, binary, buffers, "error") for tensor, binary in tensors]
    if buffers:
        json = dump(_present(head))
        return b"".join([json, *buffers]), len(json)
    for entry in head[field]:
        entry["shape"] = list(entry["shape"])
        if isinstance(entry.get("data"), np.ndarray):
            entry["data"] = entry["data"].tolist()
    return _present(head), None


def sendable(parameters: Parameters | None, fault: type[MPServeError] = InferenceError) -> Parameters | None:
    """The parameters, or None if there are none to send. Raises `fault` if one is NaN or infinity."""
    if not parameters:
        return None
    for name, value in parameters.items():
        if isinstance(value, float) and not isfinite(value):
            raise fault(f"parameter '{name}' is {value}, which JSON cannot carry")
    return parameters


def _text(document: dict[str, Any], field: str) -> str | None:
    value = document.get(field)
    if value is not None and type(value) is not str:
        raise InvalidInput(f"{field} is {describe(value)}, expected a string")
    return value


def _read_tensor(
    kind: type[AnyTensor], entry: dict[str, Any], rest: Rest | None, declared: Sequence[Declared] = ()
) -> AnyTensor:
    try:
        parameters = parameters_of(entry) if "parameters" in entry else None
        datatype, shape = entry.get("datatype"), entry.get("shape")
        if not isinstance(shape, list):
            raise InvalidInput(f"shape is {describe(shape)}, expected a list of integers")
        check_shape(shape)
        if not isinstance(datatype, str):
            raise InvalidInput(f"datatype is {describe(datatype)}, expected a string")
        if parameters and REGION in parameters:
            if entry.get("data") is not None or _SIZE in parameters:
                raise InvalidInput(f"got both {REGION} and data, expected one of them")
            return kind(entry["name"], shape, datatype, None, parameters)
        if parameters and _SIZE in parameters:
            return _read_binary(kind, entry, parameters, rest)
        takes_null = nullable(declared, entry["name"])
        array = decode_data(entry.get("data"), datatype.upper(), shape, takes_null)
    except InvalidInput as error:
        raise InvalidInput(f"{kind.role} '{entry['name'][:MAX_SHOWN]}': {error}") from None
    tensor = kind(entry["name"], shape, datatype, array, parameters)
    if takes_null:
        tensor.keep_missing()
    return tensor


def _read_binary(kind: type[AnyTensor], entry: dict[str, Any], parameters: Parameters, rest: Rest | None) -> AnyTensor:
    if rest is None:
        raise InvalidInput(f"got {_SIZE} without the header {HEADER}, which says where the binary data begins")
    if entry.get("data") is not None:
        raise InvalidInput(f"got both {_SIZE} and data, expected one of them")
    buffer = rest.take(parameters[_SIZE])
    array = decode_buffer(buffer, entry["datatype"].upper(), entry["shape"])
    tensor = kind(entry["name"], entry["shape"], entry["datatype"], None, _without_size(parameters))
    tensor.set_data_from_numpy(array)
    return tensor


def _read_requested(entry: dict[str, Any]) -> RequestedOutput:
    try:
        return RequestedOutput(entry["name"], parameters_of(entry, "binary_data"))
    except InvalidInput as error:
        raise InvalidInput(f"output '{entry['name'][:MAX_SHOWN]}': {error}") from None


def _entry(tensor: Tensor, binary: bool, buffers: list[Buffer], nonfinite: NonFinite) -> dict[str, Any]:
    if tensor.in_shared_memory:
        parameters = sendable(tensor.parameters, tensor.fault)
        return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "parameters": parameters}
    array = tensor.as_numpy()
    entry: dict[str, Any] = {"name": tensor.name, "shape": array.shape, "datatype": tensor.datatype}
    parameters = sendable(_without_size(tensor.parameters), tensor.fault) if tensor.parameters else None
    if binary:
        try:
            buffers.append(encode_tensor(array, tensor.datatype))
        except TypeError:
            raise tensor.missing_text() from None
        parameters = (parameters or {}) | {_SIZE: len(buffers[-1])}
    if parameters is not None:
        entry["parameters"] = parameters
    if binary:
        return entry
    try:
        entry["data"] = json_values(array.ravel(), nonfinite)
    except ValueError as error:
        raise tensor.fault(f"{tensor.role} '{tensor.name}' {error}") from None
    return entry


def _without_size(parameters: Parameters | None) -> Parameters | None:
    """The parameters without the size, which belongs to one body: the next body gets another size."""
    if not parameters or _SIZE not in parameters:
        return parameters
    return {name: value for name, value in parameters.items() if name != _SIZE} or None


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def dump(value: object) -> bytes:
    """The value, which may be or hold arrays, as JSON. Raises InferenceError: it holds something that JSON does not have."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InferenceError(f"the message cannot be written as JSON: {error}") from error


@lru_cache(KNOWN)
def begin_response(model_name: str | None, model_version: str | None) -> bytes:
    """The JSON of a response up to its id."""
    fields = {"model_name": model_name, "model_version": model_version}
    json = dump({name: value for name, value in fields.items() if value is not None}).removesuffix(b"}")
    return json if json == b"{" else json + b","


def identify(response_id: str | None) -> bytes:
    """The id in the JSON of a response."""
    return b"" if response_id is None else b'"id":%b,' % dump(response_id)
