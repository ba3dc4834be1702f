"""Random tensors of every datatype come back bit for bit through a served model: as JSON, as bytes, and compressed."""

import asyncio
import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpserve.protocol.datatypes import DATATYPES, Array, numpy_dtype
from tests.arrays import arrays
from tests.asgi import serving
from tests.cases import each
from tests.models.faulty import Echo

pytestmark = pytest.mark.exhaustive

JSON_LENGTH = "inference-header-content-length"
CODINGS = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}
untimed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Post a body to a route of the model ``echo``, in a coding, and take the answer in the same one."""
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    client = loop.run_until_complete(stack.enter_async_context(serving(Echo())))

    def post(path: str, body: bytes, coding: str = "identity", **headers: str) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers |= {"content-encoding": coding, "accept-encoding": coding}
        answer = loop.run_until_complete(client.post(path, content=CODINGS[coding](body), headers=headers))
        assert answer.status_code == 200, answer.text
        return answer

    yield post
    loop.run_until_complete(stack.aclose())
    loop.close()


def values_of(array: Array) -> list[Any]:
    """What a client writes into JSON, flat: floats of any width are numbers of 64 bits, which hold them exactly."""
    if array.dtype.kind == "O":
        return [item.decode() for item in array.ravel()]
    return (array if array.dtype.kind in "biu" else array.astype(np.float64)).ravel().tolist()


def bytes_of(array: Array) -> bytes:
    """What a client writes behind the JSON."""
    if array.dtype.kind == "O":
        return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel())
    return array.tobytes()


@each("datatype", DATATYPES)
@untimed
@given(data=st.data())
def test_tensors_come_back_through_json(ask: Ask, datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, json=True))
    tensor = {"name": "x", "shape": array.shape, "datatype": datatype, "data": values_of(array)}
    answer = ask("/v2/models/echo/infer", orjson.dumps({"inputs": [tensor]}), data.draw(st.sampled_from([*CODINGS])))
    (output,) = answer.json()["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
    if array.dtype.kind in "iub" or datatype == "BYTES":
        assert output["data"] == values_of(array)
    else:  # by bits, which tell 0.0 from -0.0
        received = np.array(output["data"], dtype=np.float64).astype(numpy_dtype(datatype))
        assert received.tobytes() == array.tobytes()


@each("datatype", DATATYPES)
@untimed
@given(data=st.data())
def test_tensors_come_back_as_bytes_also_beside_json(ask: Ask, datatype: str, data: st.DataObject) -> None:
    tensors = data.draw(st.lists(arrays(datatype), min_size=1, max_size=3))
    inputs: list[dict[str, Any]] = [{"name": "flags", "shape": [2], "datatype": "BOOL", "data": [True, False]}]
    for number, array in enumerate(tensors):
        size = {"binary_data_size": len(bytes_of(array))}
        inputs.append({"name": f"x{number}", "shape": array.shape, "datatype": datatype, "parameters": size})
    json = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    sent = b"".join(map(bytes_of, tensors))
    coding = data.draw(st.sampled_from([*CODINGS]))
    answer = ask("/v2/models/echo/infer", json + sent, coding, **{JSON_LENGTH: str(len(json))})
    length = int(answer.headers[JSON_LENGTH])
    outputs = orjson.loads(answer.content[:length])["outputs"]
    assert [output["shape"] for output in outputs] == [[2], *(list(array.shape) for array in tensors)]
    assert answer.content[length:] == b"\x01\x00" + sent


INTEGERS = st.integers(-(2**63), 2**64 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@untimed
@given(instances=st.lists(JSON), coding=st.sampled_from([*CODINGS]))
def test_instances_of_v1_come_back(ask: Ask, instances: list[Any], coding: str) -> None:
    answer = ask("/v1/models/echo:predict", orjson.dumps({"instances": instances}), coding)
    assert orjson.loads(answer.content) == {"predictions": instances}
