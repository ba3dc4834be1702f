"""Reads and writes the usual binary V2 requests and answers: JSON that describes tensors of numbers, and their bytes.

Messages would be half of the instructions of such a request, besides copies. ``wire`` reads and writes every other request, and
names its faults. This module refuses nothing, and agrees with ``wire``.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import orjson

from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import FIXED, LITTLE
from mpserve.protocol.json.plain import NOT_PLAIN, checked, named_outputs
from mpserve.protocol.tensors import NamedArray
from mpserve.protocol.v2.wire import KNOWN, Encoded, begin_response, dump, identify

RAW = {datatype: dtype for datatype, dtype in LITTLE.items() if datatype != "BOOL"}
"""By datatype: the dtype of its bytes. BOOL is missing: each byte must be looked at."""

WANTED = "binary_data_output"
FIELDS = frozenset({"id", "inputs", "outputs", "parameters"})


def read(body: bytes, length: int) -> Inputs | None:
    """The request in a body whose first ``length`` bytes are JSON, with views on the body; None if it is not plain."""
    tensors: list[NamedArray] = []
    at = length
    try:
        document = orjson.loads(memoryview(body)[:length])
        parameters = document.get("parameters")
        if parameters is not None and (len(parameters) != 1 or parameters[WANTED] is not True):
            return None
        for entry in document["inputs"]:
            name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
            size, dtype = entry["parameters"]["binary_data_size"], RAW[datatype]
            if len(entry) != 4 or len(entry["parameters"]) != 1 or type(name) is not str or type(size) is not int:
                return None
            count = size // dtype.itemsize
            array = np.frombuffer(body, dtype, count, at).reshape(checked(shape, count))
            if not count or array.nbytes != size:
                return None
            tensors.append((name, datatype, array))
            at += size
        requested = named_outputs(document["outputs"]) if "outputs" in document else None
        request_id = document.get("id")
    except NOT_PLAIN:
        return None
    if not (request_id is None or type(request_id) is str) or not document.keys() <= FIELDS:
        return None
    if at != len(body) or not tensors:
        return None
    if len(tensors) > 1 and len({name for name, _, _ in tensors}) < len(tensors):
        return None
    return Inputs(tensors, request_id, requested, parameters)


def write_response(
    model_name: str | None, model_version: str | None, response_id: str | None, outputs: Sequence[NamedArray]
) -> Encoded | None:
    """The response with these outputs, all in binary; None if one is not plain."""
    described = []
    buffers: list[memoryview] = []
    for name, datatype, array in outputs:
        if array.dtype is not FIXED.get(datatype) or LITTLE[datatype] is not FIXED[datatype]:
            return None
        if not (array.size and array.flags.c_contiguous):
            return None
        described.append(_describe(name, datatype, array.shape, array.nbytes))
        buffers.append(array.data.cast("B"))
    begin, identity = begin_response(model_name, model_version), identify(response_id)
    json = b'%b%b"outputs":[%b]}' % (begin, identity, b",".join(described))
    return Encoded([json, *buffers], len(json)) if buffers else None


@lru_cache(KNOWN)
def _describe(name: str, datatype: str, shape: tuple[int, ...], size: int) -> bytes:
    return dump({"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}})
