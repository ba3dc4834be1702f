"""The V2 protocol over REST: request bodies to ``InferRequest``, and ``InferResponse`` to bodies; JSON and binary.

Knows the one header that divides a body, as text, and nothing else of HTTP.

Source: Open Inference Protocol (inference_rest.md); Triton's docs/protocol/extension_binary_data.md.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from orjson import OPT_SERIALIZE_NUMPY, dumps

from mpserve.protocol.binary import Declared, Rest, decode_raw, split
from mpserve.protocol.datatypes import Array, NonFinite
from mpserve.protocol.documents import parse_object
from mpserve.protocol.messages import InferInput, InferRequest, InferResponse
from mpserve.protocol.plain import NULL, WRITABLE
from mpserve.protocol.wire import Encoded, dump, read_request, write

KNOWN = 1024
"""Outputs, as far as their data, that need not be written again: those of a model differ in shape, if in anything."""


def decode_request(
    body: bytes,
    model_name: str,
    model_version: str | None,
    header_length: str | None = None,
    declared: Sequence[Declared] = (),
) -> InferRequest:
    """The inference request in `body`; `model_name` and `model_version` are those of the address.

    `header_length` is the header Inference-Header-Content-Length. Tensors after the JSON are views on the body; those
    in it are row-major, nested as their shape says or flat. A field that is null counts as absent; unknown fields are
    ignored. A length of 0 makes the whole body the model's one input, whose name, datatype and shape are taken from
    `declared`, and asks for binary outputs.

    Raises:
        InvalidInput: anything else that the protocol does not allow; the message says where, what was got and expected.
    """
    if header_length is None:
        return InferRequest(model_name, **read_request(parse_object(body, "data"), None), model_version=model_version)
    json, rest = split(body, header_length)
    if json:
        return InferRequest(model_name, **read_request(parse_object(json), Rest(rest)), model_version=model_version)
    name, datatype, array = decode_raw(body, declared)
    tensor = InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return InferRequest(model_name, [tensor], parameters={"binary_data_output": True}, model_version=model_version)


def encode_request(request: InferRequest) -> Encoded:
    """The request as a client sends it: each input as bytes or JSON, as its data was set or came.

    Raises:
        InvalidInput: an input does not fit its declaration, or goes as JSON and holds what JSON cannot carry.
    """
    return write(request.head(), "inputs", [(tensor, tensor.binary_data) for tensor in request.inputs])


def encode_answer(response: InferResponse, request: InferRequest, nonfinite: NonFinite = "error") -> Encoded:
    """The response to that request: each output as bytes or JSON, as the request wants it.

    Raises:
        InferenceError: an output does not fit its declaration, or goes as JSON and holds what JSON cannot carry: bytes
            that are not UTF-8, and NaN or infinity, unless `nonfinite` is "null", which is what they become then.
    """
    if not (request.request_outputs or request.use_binary_outputs or response.parameters):
        json = _write_plainly(response, nonfinite)
        if json is not None:
            return Encoded([json], None)
    outputs = [(output, request.wants_binary(output.name)) for output in response.outputs]
    return write(response.head(), "outputs", outputs, nonfinite)


def _write_plainly(response: InferResponse, nonfinite: NonFinite) -> bytes | None:
    outputs = []
    for output in response.outputs:
        held: Any = output._data
        if output.parameters or type(held) is not np.ndarray or list(held.shape) != output.shape:
            return None
        outputs.append((output.name, output.datatype, held))
    return write_plain(response.model_name, response.model_version, response.id, outputs, nonfinite)


def write_plain(
    model_name: str | None,
    model_version: str | None,
    response_id: str | None,
    outputs: Sequence[tuple[str, str, Array]],
    nonfinite: NonFinite,
) -> bytes | None:
    """The JSON of a response with these outputs (name, datatype, array) and nothing else.

    None if one is not plain, or a value is none of JSON's, and that is not to be null.
    """
    identity = b"" if response_id is None else b'"id":%b,' % dump(response_id)
    if len(outputs) == 1:  # as nearly all are
        [(name, datatype, array)] = outputs
        data = _numbers(datatype, array, nonfinite)
        begin, before = _around(model_name, model_version, name, datatype, array.shape)
        return None if data is None else b"".join((begin, identity, before, data, b"}]}"))
    pieces = [_begin(model_name, model_version), identity, b'"outputs":[']
    for name, datatype, array in outputs:
        data = _numbers(datatype, array, nonfinite)
        if data is None:
            return None
        pieces += (_describe(name, datatype, array.shape), data, b"},")
    return b"".join(pieces).removesuffix(b",") + b"]}"


def _numbers(datatype: str, array: Array, nonfinite: NonFinite) -> bytes | None:
    if array.dtype is not WRITABLE.get(datatype):
        return None
    # Also one of one dimension is made flat, which may be a column of a table: the writer takes no strides.
    data = dumps(array.ravel(), None, OPT_SERIALIZE_NUMPY)
    return None if NULL in data and nonfinite != "null" else data


@lru_cache(KNOWN)
def _around(
    model_name: str | None, model_version: str | None, name: str, datatype: str, shape: tuple[int, ...]
) -> tuple[bytes, bytes]:
    """Of a response of one output: all up to its id, and from there to the data."""
    return _begin(model_name, model_version), b'"outputs":[' + _describe(name, datatype, shape)


@lru_cache(KNOWN)
def _begin(model_name: str | None, model_version: str | None) -> bytes:
    """A response up to its id."""
    fields = {"model_name": model_name, "model_version": model_version}
    json = dump({name: value for name, value in fields.items() if value is not None}).removesuffix(b"}")
    return json if json == b"{" else json + b","


@lru_cache(KNOWN)
def _describe(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """An output up to its data."""
    return dump({"name": name, "shape": shape, "datatype": datatype, "data": None}).removesuffix(b"null}")


def encode_response(response: InferResponse, nonfinite: NonFinite = "error") -> bytes:
    """The response as one JSON object, whatever was asked for: what a stream of events is made of.

    Raises:
        InferenceError: as ``encode_answer``.
    """
    return write(response.head(), "outputs", [(output, False) for output in response.outputs], nonfinite).join()
