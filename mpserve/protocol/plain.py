"""Requests and answers in JSON as nearly all of them are, read and written in one go: numbers, and nothing but numbers.

simdjson reads a body straight into arrays: of 128 numbers that takes a quarter of the time that a list of Python objects does.
Whatever is not plainly such is left to ``wire``, which reads and writes everything, and says what is wrong. So nothing here
refuses anything, and what is taken here means what it means there.
"""

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
import orjson

from mpserve.protocol.datatypes import FIXED, MAX_RANK, Array
from mpserve.protocol.tensors import InferOutput

try:
    import simdjson
except ImportError:  # there are no wheels for Python 3.14
    simdjson = None

SHORT = 512
"""Bytes of a body up to which Python objects cost less than what simdjson takes for each value that it is asked for."""

_INTEGERS = frozenset({int})
_NUMBERS = frozenset({int, float})

_KINDS = {
    datatype: ("d" if dtype.kind == "f" else "u" if datatype == "UINT64" else "i", dtype)
    for datatype, dtype in FIXED.items()
    if dtype.kind in "iuf" and datatype != "FP16"
}
"""By datatype: as what its numbers are read, and its dtype."""
_FP32 = FIXED["FP32"]
FP32_END = 3.4028234e38
"""A little less than the largest FP32, from which on a number may become infinite."""

_LIMITS: dict[str, tuple[frozenset[type], float, float]] = {
    datatype: (_NUMBERS, -FP32_END, FP32_END)
    if datatype == "FP32"
    else (_NUMBERS, -inf, inf)
    if kind == "d"
    else (_INTEGERS, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for datatype, (kind, dtype) in _KINDS.items()
}
"""By datatype: the types of its elements in Python, and between which of them all are taken as they are."""
_READ = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}

FEW = 4096
"""Elements whose squares are added up, which costs less than to look at each, as long as it is not left to several threads."""
FP32_SQUARE = 1.1e77
"""What no sum of squares reaches of numbers that an FP32 holds; a little less than the square of the largest of them."""

_NOT_PLAIN = (KeyError, TypeError, ValueError, AttributeError, RuntimeError)
"""What is raised for text that is no JSON, for what is not there, and for values of another type than was asked for."""


class Read(NamedTuple):
    """An input of a request."""

    name: str
    datatype: str
    array: Array


class Request(NamedTuple):
    """A request that asks for nothing but an answer."""

    id: str | None
    inputs: list[Read]


def read_request(body: bytes) -> Request | None:
    """The V2 request in a body of nothing but JSON; None if it is not plain."""
    is_short = len(body) < SHORT or simdjson is None
    # simdjson takes a byte order mark, of which JSON has none; and it flattens lists, whose brackets would be more than these.
    if not (is_short or body.startswith(b"{")):
        return None
    try:
        document = orjson.loads(body) if is_short else simdjson.Parser().parse(body)
        request_id = document["id"] if len(document) > 1 else None
        inputs = [_read(entry, is_short) for entry in document["inputs"]]
    except _NOT_PLAIN:
        return None
    if len(document) > 2 or type(request_id) is not (str if len(document) > 1 else type(None)):
        return None
    if not (is_short or body.count(b"[") == 1 + 2 * len(inputs)):
        return None
    if not inputs or (len(inputs) > 1 and len({read.name for read in inputs}) < len(inputs)):
        return None
    return Request(request_id, inputs)


def _read(entry: Any, is_short: bool) -> Read:
    """An input; one of ``_NOT_PLAIN`` if it is not plain."""
    name, datatype, shape, data = entry["name"], entry["datatype"], entry["shape"], entry["data"]
    if len(entry) != 4 or type(name) is not str:
        raise ValueError
    kind, dtype = _KINDS[datatype]
    if is_short:
        return Read(name, datatype, _of_objects(data, datatype, dtype, _checked(shape, len(data))))
    flat = np.frombuffer(data.as_buffer(of_type=kind), _READ[kind])
    return Read(name, datatype, narrowed(flat, dtype).reshape(_checked(shape.as_list(), flat.size)))


def _of_objects(data: list[Any], datatype: str, dtype: np.dtype[Any], shape: list[int]) -> Array:
    types, low, high = _LIMITS[datatype]
    if not types.issuperset(map(type, data)) or min(data) < low or max(data) > high:
        raise ValueError
    return np.array(data, dtype).reshape(shape)


def _checked(shape: list[Any], size: int) -> list[int]:
    if len(shape) > MAX_RANK:  # before its sizes are multiplied
        raise ValueError
    elements = 1
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError
        elements *= length
    if elements != size:
        raise ValueError
    return shape


def narrowed(flat: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers that were read as the widest of their kind, as a narrower dtype; ValueError if it cannot hold one of them."""
    if dtype is _FP32:
        return _fp32(flat)
    # A copy of its own, since what was read is the parser's, and a model may write into it.
    array: Array = flat.astype(dtype)
    if dtype is not flat.dtype:
        limits = np.iinfo(dtype)
        if flat.min() < limits.min or flat.max() > limits.max:
            raise ValueError
    return array


def _fp32(flat: Array) -> Array:
    if flat.size <= FEW and flat.dot(flat) < FP32_SQUARE:
        array: Array = flat.astype(_FP32)
        return array
    with np.errstate(all="ignore"):
        array = flat.astype(_FP32)
    if not np.isfinite(array).all():
        raise ValueError
    return array


def is_writable(value: Any, datatype: str) -> bool:
    """Whether it is an array of this datatype, which the JSON writer takes as it is."""
    return type(value) is np.ndarray and value.dtype is FIXED.get(datatype) and datatype != "FP16"


def entry(name: str, datatype: str, written: Array) -> dict[str, Any]:
    """An output of a response, as the JSON writer takes it."""
    # Also one of one dimension, which may be a column of a table: the writer takes no strides.
    return {"name": name, "shape": written.shape, "datatype": datatype, "data": written.ravel()}


def entries_of(outputs: Sequence[InferOutput]) -> list[dict[str, Any]] | None:
    """The outputs as the JSON writer takes them; None if one is not plain."""
    entries = []
    for output in outputs:
        held: Any = output._data
        if output.parameters or not is_writable(held, output.datatype) or list(held.shape) != output.shape:
            return None
        entries.append(entry(output.name, output.datatype, held))
    return entries
