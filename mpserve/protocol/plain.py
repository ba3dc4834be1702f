"""Requests and answers in JSON as nearly all of them are, read and written in one go: numbers, and nothing but numbers.

simdjson reads a body straight into arrays: of 128 numbers that takes a quarter of the time that a list of Python objects does.
Whatever is not plainly such is left to ``wire``, which reads and writes everything, and says what is wrong. So nothing here
refuses anything, and what is taken here means what it means there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpserve.protocol.datatypes import FIXED, Array
from mpserve.protocol.tensors import InferOutput

try:
    import simdjson
except ImportError:  # there are no wheels for Python 3.14
    simdjson = None

MAX_RANK = 32

_KINDS = {
    datatype: ("d" if dtype.kind == "f" else "u" if datatype == "UINT64" else "i", dtype)
    for datatype, dtype in FIXED.items()
    if dtype.kind in "iuf" and datatype != "FP16"
}
"""By datatype: as what its numbers are read, and its dtype."""
_FP32 = FIXED["FP32"]
_READ = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}

FEW = 4096
"""Elements whose squares are added up, which costs less than to look at each, as long as it is not left to several threads."""
FP32_SQUARE = 1.1e77
"""What no sum of squares reaches of numbers that an FP32 holds; a little less than the square of the largest of them."""

_NOT_PLAIN = (KeyError, TypeError, ValueError, AttributeError, RuntimeError)
"""What simdjson raises for text that it does not take and for values of another type than was asked for."""


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
    if simdjson is None or not body.startswith(b"{"):  # it takes a byte order mark, which JSON has none of
        return None
    try:
        document = simdjson.Parser().parse(body)
        request_id = document["id"] if len(document) > 1 else None
        inputs = [_read(entry) for entry in document["inputs"]]
    except _NOT_PLAIN:
        return None
    if len(document) > 2 or type(request_id) is not (str if len(document) > 1 else type(None)):
        return None
    # A list in a shape or in data would be one bracket more. simdjson flattens whatever it is given.
    if not inputs or body.count(b"[") != 1 + 2 * len(inputs):
        return None
    if len(inputs) > 1 and len({read.name for read in inputs}) < len(inputs):
        return None
    return Request(request_id, inputs)


def _read(entry: Any) -> Read:
    """An input; one of ``_NOT_PLAIN`` if it is not plain."""
    name, datatype = entry["name"], entry["datatype"]
    if len(entry) != 4 or type(name) is not str:
        raise ValueError
    kind, dtype = _KINDS[datatype]
    shape = entry["shape"].as_list()
    flat = np.frombuffer(entry["data"].as_buffer(of_type=kind), _READ[kind])
    _check_shape(shape, flat.size)
    return Read(name, datatype, narrowed(flat, dtype).reshape(shape))


def _check_shape(shape: list[Any], size: int) -> None:
    elements = 1
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError
        elements *= length
    if elements != size or len(shape) > MAX_RANK:
        raise ValueError


def narrowed(flat: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers that were read as the widest of their kind, as a narrower dtype; ValueError if it cannot hold one of them."""
    if dtype is _FP32:
        return _fp32(flat)
    array: Array = flat.astype(
        dtype
    )  # a copy of its own, since what was read is the parser's, and a model may write into it
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
    data = written if written.ndim == 1 else written.ravel()
    return {"name": name, "shape": written.shape, "datatype": datatype, "data": data}


def entries_of(outputs: Sequence[InferOutput]) -> list[dict[str, Any]] | None:
    """The outputs as the JSON writer takes them; None if one is not plain."""
    entries = []
    for output in outputs:
        held: Any = output._data
        if output.parameters or not is_writable(held, output.datatype) or list(held.shape) != output.shape:
            return None
        entries.append(entry(output.name, output.datatype, held))
    return entries
