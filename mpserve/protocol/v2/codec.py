"""The V2 protocol over REST: the codec of the server, and the messages of a client; JSON, and bytes behind it.

Knows the one header that divides a body, as text, and nothing else of HTTP.

Source: Open Inference Protocol (inference_rest.md); Triton's docs/protocol/extension_binary_data.md.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from orjson import OPT_SERIALIZE_NUMPY, dumps

from mpserve.errors import NotSupported
from mpserve.protocol.binary import HEADER, Rest, decode_raw, split
from mpserve.protocol.codec import JSON, Codec, Encoded, Inputs, Outputs
from mpserve.protocol.datatypes import Array, NonFinite
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.json.documents import parse_object
from mpserve.protocol.json.plain import NULL, WRITABLE
from mpserve.protocol.messages import InferInput, InferRequest, InferResponse
from mpserve.protocol.tensors import NamedArray
from mpserve.protocol.v1 import body as v1
from mpserve.protocol.v2 import plain_binary
from mpserve.protocol.v2 import reader as beginnings
from mpserve.protocol.v2.wire import KNOWN, begin_response, dump, identify, read_request, write
from mpserve.protocol.v2.wire import Encoded as Chunks

OCTETS = "application/octet-stream"
LENGTH_FIELD = HEADER.lower()
LENGTH = re.compile("[0-9]{1,18}")  # the header where it is plain; whatever else it holds is refused in words


class V2Codec(Codec):
    """V2 requests over REST, and their answers.

    Args:
        nonfinite: what becomes of NaN and infinity in JSON.
        json_length: the header Inference-Header-Content-Length; None: the body is nothing but JSON.
    """

    def __init__(self, nonfinite: NonFinite, json_length: str | None = None) -> None:
        self.nonfinite = nonfinite
        self.json_length = json_length
        self.is_json = json_length is None
        self._length = int(json_length) if json_length and LENGTH.fullmatch(json_length) else 0

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        if self.json_length is None:
            return beginnings.read(body, declared)
        plain = plain_binary.read(body, self._length) if self._length and speaks_arrays else None
        return plain or Inputs.of(decode_request(body, "", None, self.json_length, declared))

    def json_in(self, body: bytes) -> bytes:
        return body if self.is_json else body[: self._length]

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        name, version, request_id = outputs.model_name, outputs.model_version, inputs.id
        tensors, result = outputs.tensors, outputs.result
        if tensors is None and isinstance(result, InferResponse):
            tensors = _plain_tensors(result)
            name, version, request_id = result.model_name, result.model_version, result.id
        if tensors is not None:
            binary = self._binary(inputs, tensors) if inputs.parameters or inputs.requested else 0
            if not binary:
                body = write_plain(name, version, request_id, tensors, self.nonfinite)
                if body is not None:
                    return Encoded(body, JSON)
            elif binary == len(tensors):
                message = plain_binary.write_response(name, version, request_id, tensors)
                if message is not None:
                    return _with_bytes(message)
        if outputs.tensors is not None:
            result = outputs.response(inputs)
        if not isinstance(result, InferResponse):  # a model of the SDK may return the response object as a dict
            return Encoded(*v1.encode_response(result, self.nonfinite))
        request = inputs.given_to(outputs.model_name, outputs.model_version)
        return _with_bytes(encode_answer(result, request, self.nonfinite))

    def refusal(self, model_name: str) -> NotSupported:
        return NotSupported(
            f"Model {model_name} answers in parts, which /infer does not carry: ask for /generate_stream, or call"
            " ModelStreamInfer over gRPC"
        )

    def _binary(self, inputs: Inputs, tensors: list[NamedArray]) -> int:
        """The number of outputs that the client wants as bytes."""
        as_a_whole = bool(inputs.parameters and inputs.parameters.get(plain_binary.WANTED))
        if not inputs.requested:
            return len(tensors) if as_a_whole else 0
        number = 0
        for output in inputs.requested:  # which are the outputs that are there, in their order
            said = None if output.parameters is None else output.parameters.get("binary_data")
            number += as_a_whole if said is None else said
        return number


def _with_bytes(message: Chunks) -> Encoded:
    """The message in memory of its own: a model may use its arrays again in its next predict."""
    if message.json_length is None:
        return Encoded(message.join(), JSON)
    return Encoded(message.join(), None, {"content-type": OCTETS, LENGTH_FIELD: str(message.json_length)})


def decode_request(
    body: bytes,
    model_name: str,
    model_version: str | None,
    header_length: str | None = None,
    declared: Sequence[Tensor] = (),
) -> InferRequest:
    """The inference request in `body`; `model_name` and `model_version` are those of the address.

    `header_length` is the header Inference-Header-Content-Length. Tensors after the JSON are views on the body; those
    in it are row-major, nested as their shape says or flat. A field that is null counts as absent; unknown fields are
    ignored. A length of 0 makes the whole body the model's one input, whose name, datatype and shape are taken from
    `declared`, and asks for binary outputs.
    Raises InvalidInput: anything else that the protocol does not allow; the message says where, what was got and expected.
    """
    if header_length is None:
        return InferRequest(
            model_name, **read_request(parse_object(body, "data"), None, declared), model_version=model_version
        )
    json, rest = split(body, header_length)
    if json:
        return InferRequest(
            model_name, **read_request(parse_object(json), Rest(rest), declared), model_version=model_version
        )
    name, datatype, array = decode_raw(body, declared)
    tensor = InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return InferRequest(model_name, [tensor], parameters={"binary_data_output": True}, model_version=model_version)


def encode_request(request: InferRequest) -> Chunks:
    """The request as a client sends it: each input as bytes or JSON, as its data was set or came.
    Raises InvalidInput if an input does not fit its declaration, or goes as JSON and holds what JSON cannot carry.
    """
    return write(request.head(), "inputs", [(tensor, tensor.binary_data) for tensor in request.inputs])


def encode_answer(response: InferResponse, request: InferRequest, nonfinite: NonFinite = "error") -> Chunks:
    """The response to that request: each output as bytes or JSON, as the request wants it.
    Raises InferenceError if an output does not fit its declaration, or holds values that JSON cannot carry: bytes that are not
    UTF-8, and NaN or infinity unless `nonfinite` is "null".
    """
    outputs = [(output, request.wants_binary(output.name)) for output in response.outputs]
    return write(response.head(), "outputs", outputs, nonfinite)


def _plain_tensors(response: InferResponse) -> list[NamedArray] | None:
    """The outputs of a response, where neither they nor the response have parameters; else None."""
    if response.parameters:
        return None
    tensors = []
    for output in response.outputs:
        held: Any = output._data
        if output.parameters or type(held) is not np.ndarray or list(held.shape) != output.shape:
            return None
        tensors.append((output.name, output.datatype, held))
    return tensors


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
    identity = identify(response_id)
    if len(outputs) == 1:  # as nearly all are
        [(name, datatype, array)] = outputs
        data = _numbers(datatype, array, nonfinite)
        begin, before = _around(model_name, model_version, name, datatype, array.shape)
        return None if data is None else b"".join((begin, identity, before, data, b"}]}"))
    pieces = [begin_response(model_name, model_version), identity, b'"outputs":[']
    for name, datatype, array in outputs:
        data = _numbers(datatype, array, nonfinite)
        if data is None:
            return None
        pieces += (_describe(name, datatype, array.shape), data, b"},")
    return b"".join(pieces).removesuffix(b",") + b"]}"


def _numbers(datatype: str, array: Array, nonfinite: NonFinite) -> bytes | None:
    if array.dtype is not WRITABLE.get(datatype):
        return None
    # An array of one dimension is made flat too: it may be a column of a table, and the writer takes no strides.
    data = dumps(array.ravel(), None, OPT_SERIALIZE_NUMPY)
    return None if NULL in data and nonfinite != "null" else data


@lru_cache(KNOWN)
def _around(
    model_name: str | None, model_version: str | None, name: str, datatype: str, shape: tuple[int, ...]
) -> tuple[bytes, bytes]:
    """Of a response with one output: the text up to the id, and the text from there to the data."""
    return begin_response(model_name, model_version), b'"outputs":[' + _describe(name, datatype, shape)


@lru_cache(KNOWN)
def _describe(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """An output up to its data."""
    return dump({"name": name, "shape": shape, "datatype": datatype, "data": None}).removesuffix(b"null}")


def encode_response(response: InferResponse, nonfinite: NonFinite = "error") -> bytes:
    """The response as one JSON object, whatever was asked for: what a stream of events is made of.
    Raises InferenceError as ``encode_answer``.
    """
    return write(response.head(), "outputs", [(output, False) for output in response.outputs], nonfinite).join()
