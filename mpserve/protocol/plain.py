"""Tensors in JSON as nearly all of them are, read and written in one go: no parameters, few numbers, nothing to correct.

Whatever is not plainly such is left to ``wire``, which reads and writes everything, and says what is wrong. So nothing here
refuses anything, and what is taken here means what it means there. For a small request to go by ``wire`` costs twice as much.
"""

from math import inf
from typing import Any

import numpy as np

from mpserve.protocol.datatypes import FIXED, Array
from mpserve.protocol.tensors import InferInput, InferOutput

FEW = 256
"""Elements of a tensor that are looked at one by one; more are checked faster as an array."""
MAX_RANK = 32

_INTEGERS = frozenset({int})
_NUMBERS = frozenset({int, float})
FP32_END = 3.4028234e38
"""A little less than the largest FP32, from which on a number may become infinite."""

_LIMITS: dict[str, tuple[np.dtype[Any], frozenset[type], float, float]] = {
    "FP32": (FIXED["FP32"], _NUMBERS, -FP32_END, FP32_END),
    "FP64": (FIXED["FP64"], _NUMBERS, -inf, inf),
    **{
        datatype: (dtype, _INTEGERS, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        for datatype, dtype in FIXED.items()
        if dtype.kind in "iu"
    },
}
"""By datatype: its dtype, the types of its elements in Python, and between which of them all are taken as they are."""


def read_inputs(document: dict[str, Any]) -> list[InferInput] | None:
    """The inputs of a request; None if one of them, or their list, is not plain."""
    entries = document.get("inputs")
    if type(entries) is not list or not entries:
        return None
    inputs = []
    for entry in entries:
        if type(entry) is not dict or len(entry) != 4:
            return None
        name, shape, datatype = entry.get("name"), entry.get("shape"), entry.get("datatype")
        if type(name) is not str or type(datatype) is not str:
            return None
        read = array(entry.get("data"), datatype, shape)
        if read is None:
            return None
        inputs.append(InferInput(name, read.shape, datatype, read))
    if len(inputs) > 1 and len({tensor.name for tensor in inputs}) < len(inputs):
        return None
    return inputs


def array(data: Any, datatype: str, shape: Any) -> Array | None:
    """The tensor of a JSON ``data`` and ``shape``; None if it is not plain."""
    limits = _LIMITS.get(datatype)
    if limits is None or type(data) is not list or type(shape) is not list or not 0 < len(data) <= FEW:
        return None
    elements = 1
    for size in shape:
        if type(size) is not int or size < 0:
            return None
        elements *= size
    dtype, types, low, high = limits
    if elements != len(data) or len(shape) > MAX_RANK or not types.issuperset(map(type, data)):
        return None
    return np.array(data, dtype).reshape(shape) if low <= min(data) and max(data) <= high else None


def is_writable(value: Any, datatype: str) -> bool:
    """Whether it is an array of this datatype, which the JSON writer takes as it is."""
    return type(value) is np.ndarray and value.dtype is FIXED.get(datatype) and datatype != "FP16"


def entry(name: str, datatype: str, written: Array) -> dict[str, Any]:
    """An output of a response, as the JSON writer takes it."""
    data = written if written.ndim == 1 else written.ravel()
    return {"name": name, "shape": written.shape, "datatype": datatype, "data": data}


def entries_of(outputs: list[InferOutput]) -> list[dict[str, Any]] | None:
    """The outputs as the JSON writer takes them; None if one is not plain."""
    entries = []
    for output in outputs:
        held: Any = output._data
        if output.parameters or not is_writable(held, output.datatype) or list(held.shape) != output.shape:
            return None
        entries.append(entry(output.name, output.datatype, held))
    return entries
