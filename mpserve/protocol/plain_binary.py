"""Binary V2 requests and answers as nearly all of them are: JSON that tells of tensors of numbers, and their bytes behind it.

Copies apart, the messages in between are half of the instructions that such a request takes to a model that does nothing. As
in ``plain``, nothing here refuses anything: what is not plainly such is left to ``wire``, and what is taken means what it means
there.
"""

from collections.abc import Sequence

import numpy as np
import orjson

from mpserve.protocol.datatypes import FIXED, LITTLE, Array
from mpserve.protocol.plain import NOT_PLAIN, Read, Request, checked
from mpserve.protocol.wire import Encoded, dump

RAW = {datatype: dtype for datatype, dtype in LITTLE.items() if datatype != "BOOL"}
"""By datatype: as what its bytes are read. Of BOOL each byte has to be looked at."""

WANTED = "binary_data_output"


def read_request(body: bytes, length: int) -> Request | None:
    """The request in a body whose first ``length`` bytes are JSON, if it wants all outputs in binary and nothing else.

    Its arrays are views on the body. None if it is not plain.
    """
    inputs: list[Read] = []
    at = length
    try:
        document = orjson.loads(memoryview(body)[:length])
        parameters = document["parameters"]
        if len(parameters) != 1 or parameters[WANTED] is not True:
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
            inputs.append((name, datatype, array))
            at += size
        request_id = document["id"] if len(document) > 2 else None
        if len(document) > 3 or not (request_id is None or type(request_id) is str):
            return None
    except NOT_PLAIN:
        return None
    if at != len(body) or not inputs or len({name for name, _, _ in inputs}) < len(inputs):
        return None
    return request_id, inputs


def write_response(
    model_name: str, response_id: str | None, outputs: Sequence[tuple[str, str, Array]]
) -> Encoded | None:
    """The response with these outputs (name, datatype, array), all in binary; None if one is not plain."""
    told = []
    buffers: list[memoryview] = []
    for name, datatype, array in outputs:
        if array.dtype is not FIXED.get(datatype) or LITTLE[datatype] is not FIXED[datatype]:
            return None
        if not (array.size and array.flags.c_contiguous):
            return None
        parameters = {"binary_data_size": array.nbytes}
        told.append({"name": name, "shape": array.shape, "datatype": datatype, "parameters": parameters})
        buffers.append(array.data.cast("B"))
    head = {"model_name": model_name, "id": response_id, "outputs": told}
    if response_id is None:
        del head["id"]
    json = dump(head)
    return Encoded([json, *buffers], len(json)) if buffers else None
