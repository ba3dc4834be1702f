"""Reads and writes the usual JSON requests and answers in one go: numbers, and nothing but numbers.

simdjson reads a long body straight into arrays: 1024 numbers in three quarters of the time of Python objects, 4096 in little
more than half. A short body is read into Python objects, which struct writes into arrays. ``wire`` reads and writes every other
message, and names its faults. This module refuses nothing, and agrees with ``wire``.
"""

import re
from collections.abc import Callable
from itertools import chain
from math import prod
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import orjson

from mpserve.protocol.datatypes import FIXED, MAX_RANK, Array
from mpserve.protocol.json.elements import FP32_END
from mpserve.protocol.json.numbers import Kind, flattened, has_more, nesting
from mpserve.protocol.tensors import NamedArray, RequestedOutput

try:
    import simdjson
except ImportError:  # an extra
    simdjson = None

FEW_BYTES = 1536
"""Bytes of a body up to which Python objects cost less than simdjson.

V2: FP32 up to 350 elements (4 kB), integers up to 128 (0.8 kB). V1: floats up to 128 (1.4 kB), as FP32 up to 192 (2.1 kB).
"""

FEW = 16  # elements up to which a look at each type costs less than a search for booleans in the body
BRIEF = 500  # numbers up to which a search for the largest costs less than numpy's overflow check
KNOWN = 1024  # lengths of data, by datatype, whose packers are kept
_NUMBERS = frozenset({int, float})


class Packers(dict[int, Callable[..., None]]):
    """By length: a function that writes so many numbers into an array of one datatype, and raises if a number does not fit.
    A fraction does not fit an integer datatype. ``code`` is struct's name of the datatype.
    """

    def __init__(self, code: str) -> None:
        self.code = code

    def __missing__(self, size: int) -> Callable[..., None]:
        if len(self) >= KNOWN:
            self.clear()
        # "=" means standard sizes; without it, large floats would become infinite.
        self[size] = write = Struct(f"={size}{self.code}").pack_into
        return write


READ = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}
_FP32 = FIXED["FP32"]
_CODES = {"FP32": "f", "FP64": "d", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"}
_CODES |= {f"U{datatype}": code.upper() for datatype, code in _CODES.items() if datatype.startswith("I")}
KINDS = {
    datatype: ("d" if code in "fd" else "u" if datatype == "UINT64" else "i", FIXED[datatype], Packers(code))
    for datatype, code in _CODES.items()
}
"""By datatype: the kind that simdjson reads, the dtype, and the packers."""
_LIMITS = {
    dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for _, dtype, _ in KINDS.values() if dtype.kind in "iu"
}
NULL = ord("n")  # a letter that an encoded array holds only in null. To search for bytes costs nine times as much
WRITABLE = {datatype: dtype for datatype, dtype in FIXED.items() if datatype != "FP16"}
"""By datatype: the dtype that the JSON writer takes."""

NOT_PLAIN = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, StructError)
"""The errors of texts that are no JSON, of missing fields, and of values of a wrong type."""

INSTANCES = b'{"instances":'
AROUND = len(INSTANCES) + 1
POINT = ord(".")
_INSTANCES = re.compile(rb'[ \t\n\r]*\{[ \t\n\r]*"instances"[ \t\n\r]*:[ \t\n\r]*\[')
BINARY_DATA = "binary_data"
Plain = tuple[list[NamedArray], str | None, list[RequestedOutput]]
"""The inputs of a request, its id, and the outputs that it asks for."""


def in_document(document: Any, body: bytes) -> Plain | None:
    """The V2 request in a document that orjson has read from ``body``; None if the request is not plain."""
    try:
        inputs = [_of_objects(entry, body) for entry in document["inputs"]]
        return _whole(document, inputs)
    except NOT_PLAIN:
        return None


def in_text(body: bytes) -> Plain | None:
    """The V2 request in a long body of nothing but JSON; None if the request is not plain."""
    try:
        document = simdjson.Parser().parse(body)
        inputs = [_of_text(entry) for entry in document["inputs"]]
        # simdjson takes a byte order mark, of which JSON has none; and it flattens lists, whose brackets would be more.
        brackets = 1 + 2 * len(inputs)
        if len(document) > 1 and "outputs" in document.keys():  # noqa: SIM118 (a miss costs simdjson an exception of C++)
            brackets += 1
        if not body.startswith(b"{") or has_more(body, b"[", brackets):
            return None
        return _whole(document, inputs)
    except NOT_PLAIN:
        return None


def _whole(document: Any, inputs: list[NamedArray]) -> Plain | None:
    """The request with these inputs; None if it has further fields."""
    fields = len(document)
    request_id: str | None = None
    requested: list[RequestedOutput] = []
    if fields > 1:
        names = document.keys()
        if "id" in names:
            fields -= 1
            request_id = document["id"]
            if type(request_id) is not str:
                return None
        if "outputs" in names:
            fields -= 1
            requested = named_outputs(document["outputs"])
        if fields != 1:
            return None
    if len(inputs) != 1 and (not inputs or len({name for name, _, _ in inputs}) < len(inputs)):
        return None
    return inputs, request_id, requested


def named_outputs(entries: Any) -> list[RequestedOutput]:
    """The outputs that a request asks for. Raises one of ``NOT_PLAIN`` if there are none, or an output is not plain."""
    requested = [_named_output(entry) for entry in entries]
    if not requested or (len(requested) > 1 and len({output.name for output in requested}) < len(requested)):
        raise ValueError
    return requested


def _named_output(entry: Any) -> RequestedOutput:
    """A requested output, with at most the parameter ``binary_data``. Raises one of ``NOT_PLAIN`` for any other output."""
    name = entry["name"]
    if type(name) is not str:
        raise ValueError
    if len(entry) == 1:
        return RequestedOutput(name)
    binary = entry["parameters"][BINARY_DATA]
    if len(entry) > 2 or len(entry["parameters"]) > 1 or type(binary) is not bool:
        raise ValueError
    return RequestedOutput(name, {BINARY_DATA: binary})


def _of_text(entry: Any) -> NamedArray:
    """An input that simdjson has read. Raises one of ``NOT_PLAIN`` if the input is not plain."""
    name, datatype, shape, data = entry["name"], entry["datatype"], entry["shape"], entry["data"]
    kind, dtype, _ = KINDS[datatype]
    if len(entry) != 4 or type(name) is not str:
        raise ValueError
    flat = np.frombuffer(data.as_buffer(of_type=kind), READ[kind])
    return name, datatype, narrowed(flat, dtype).reshape(checked(shape.as_list(), flat.size))


def _of_objects(entry: Any, body: bytes) -> NamedArray:
    """As ``_of_text``, for an input that orjson has read."""
    name, datatype, shape, data = entry["name"], entry["datatype"], entry["shape"], entry["data"]
    _, dtype, packers = KINDS[datatype]
    size = len(data)
    if not size or len(entry) != 4 or type(name) is not str:
        raise ValueError
    if (size <= FEW or _may_hold_booleans(body)) and not _NUMBERS.issuperset(map(type, data)):
        raise ValueError
    array: Array = np.empty(checked(shape, size), dtype)
    packers[size](array, 0, *data)
    return name, datatype, array


def _may_hold_booleans(body: bytes) -> bool:
    """Whether the data may hold true or false: one of their letters follows the key, or an escape may hide the key."""
    at = body.find(b'"data"')
    return body.find(b"u", at) >= 0 or body.find(b"l", at) >= 0 or b"\\" in body


def checked(shape: list[Any], size: int) -> list[int]:
    """The shape, if it has ``size`` elements. Raises ValueError for any other shape."""
    if type(shape) is not list or len(shape) > MAX_RANK:  # before its sizes are multiplied
        raise ValueError
    elements = 1
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError
        elements *= length
    if elements != size:
        raise ValueError
    return shape


def read_instances(body: bytes, kind: Kind) -> Array | None:
    """The numbers in a V1 body with only ``instances``, in their own shape; None if the body is not plain."""
    begin = None if simdjson is None else _INSTANCES.match(body)
    # Without one more quote there is no other key, and no text.
    if begin is None or body.find(b'"', begin.end()) >= 0:
        return None
    try:
        rows = simdjson.Parser().parse(body)["instances"]
    except NOT_PLAIN:
        return None
    flat = flattened(rows, body, kind)
    if flat is None or not flat.size:
        return None
    if not has_more(body, b"[", 1):
        return flat
    shape = nesting(rows, body)
    return None if shape is None or flat.size != prod(shape) else flat.reshape(shape)


def read_few_instances(body: bytes) -> Any:
    """The ``instances`` of a short V1 body with no other field; None if the body is not plain."""
    text = body.removeprefix(INSTANCES).removesuffix(b"}")
    if len(text) != len(body) - AROUND:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def floats(rows: Any, points: int, datatype: str) -> Array | None:
    """Floats in a list, or in lists of one length, as FP32 or FP64; None if they are anything else or out of range.
    ``points`` is the number of points in their text: a float has at most one, integers and booleans have none, which struct
    would take for floats. numpy takes longer to look into a few lists.
    """
    if not points:
        return None
    try:
        _, dtype, packers = KINDS[datatype]
        first = rows[0]
        if type(first) is float:
            shape: tuple[int, ...] = (points,)
        elif len(rows) == 1:
            rows = first
            shape = (1, points)
        else:
            [columns] = {*map(len, rows)}
            shape = (len(rows), columns)
            rows = [*chain.from_iterable(rows)]
        array: Array = np.empty(shape, dtype)
        packers[points](array, 0, *rows)  # which takes just as many
    except NOT_PLAIN:
        return None
    return array


def narrowed(flat: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers of the widest dtype as a narrower dtype. Raises ValueError if a number does not fit."""
    if dtype is _FP32:
        brief = flat.size <= BRIEF and flat.item(flat.argmin()) > -FP32_END and flat.item(flat.argmax()) < FP32_END
        return flat.astype(_FP32) if brief else _fp32(flat)
    array: Array = flat.astype(dtype, copy=False)
    if dtype is not flat.dtype:
        low, high = _LIMITS[dtype]
        if flat.min() < low or flat.max() > high:
            raise ValueError
    return array


def _fp32(flat: Array) -> Array:
    # A later look at the numbers would let go of the GIL once more. If the event loop waits for the GIL, that costs two switches
    # between threads, and splits a batch of hand-overs.
    try:
        with np.errstate(over="raise"):
            array: Array = flat.astype(_FP32)
    except FloatingPointError:
        raise ValueError from None
    return array
