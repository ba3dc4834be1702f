"""A plain binary request is read as the strict reader reads it. Of responses, test_codec shows the same."""

from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import DATATYPES, FIXED
from mpserve.protocol.v2 import plain_binary
from mpserve.protocol.v2.codec import V2Codec
from tests.arrays import outcome
from tests.bodies import ANYTHING, SIZES
from tests.cases import each

WANTED = {"binary_data_output": True}


def entry(name: Any = "x", shape: Any = (2,), datatype: Any = "FP32", size: Any = 8, **others: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}, **others}


def document(*inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"inputs": inputs or [entry()], "parameters": WANTED, **fields}


def read(document: Any, rest: bytes, plainly: bool) -> Inputs:
    json = document if isinstance(document, bytes) else orjson.dumps(document)
    return V2Codec("error", str(len(json))).read(json + rest, (), plainly)


def agree(document: Any, rest: bytes) -> bool:
    """Whether the request is plain. Whether or not, it is what the strict reader makes of it."""
    either, strict = (outcome(read, document, rest, way) for way in (True, False))
    assert either == strict
    return strict[0] is not InvalidInput and read(document, rest, True).message is None


Y_ONLY, TWICE = [{"name": "y"}], [{"name": "y"}, {"name": "y"}]
SHAPE_TWICE = b'{"inputs":[{"name":"x","shape":[2],"shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}'


@each("document, rest", [
    (document(), 8), (document(id="7"), 8), (document(id=None), 8), (document(entry(shape=[2, 1])), 8),
    (document(entry(), entry("y", [1], "INT64"), entry("z", [3], "UINT8", 3)), 19),
    (document(entry("a", [3], "UINT8", 3), entry()), 11),  # of which the second is at an odd address
    (document(outputs=Y_ONLY), 8), ({"inputs": [entry()]}, 8), ({"inputs": [entry()], "parameters": None}, 8),
    (document(outputs=[{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}], id="7"), 8), (SHAPE_TWICE, 4),
    *((document(entry("x", [3], datatype, size)), size)
      for datatype, size in ((name, 3 * dtype.itemsize) for name, dtype in FIXED.items()) if datatype != "BOOL"),
])  # fmt: skip
def test_a_plain_request_is_read_as_any_other(document: Any, rest: int) -> None:
    assert agree(document, bytes(range(rest)))


@each("document, rest", [
    (document(), 7), (document(), 9), (document(entry(size=4)), 4), (document(entry(size=9)), 9),
    (document(entry(size=True)), 1), (document(entry(size="8")), 8), (document(entry(shape=[0], size=0)), 0),
    (document(entry(shape=[-2])), 8), (document(entry(size=-4, shape=[])), 8),
    (document(entry(shape=[2**62, 4], size=0)), 0), (document(entry(datatype="BOOL", size=2)), 2),
    (document(entry(datatype="BYTES")), 8), (document(entry(datatype="BF16", size=4)), 4),
    (document(entry(datatype="fp32")), 8), (document(entry(), entry()), 16), (document(entry(name=5)), 8),
    (document(entry(data=[1, 2])), 8), (document(entry(parameters={"binary_data_size": 8, "a": 1})), 8),
    (document(id=7), 8), (document(outputs=TWICE), 8), (document(other=1), 8),
    *((document(outputs=[{"name": "y", "parameters": {name: 1}}]), 8) for name in ("binary_data", "classification")),
    *((document(outputs=outputs), 8) for outputs in ([], {}, "", None)),
    *((document(parameters=parameters), 8)
      for parameters in ({}, {"binary_data_output": 1}, {"binary_data_output": False}, {**WANTED, "timeout": 5})),
    ({"inputs": [], "parameters": WANTED}, 0), ([], 0), (b"{", 8), (b"", 8),
])  # fmt: skip
def test_what_is_not_plain_is_read_or_refused_as_any_other(document: Any, rest: int) -> None:
    assert not agree(document, bytes(range(rest)))


@given(
    st.lists(
        st.builds(
            entry,
            st.sampled_from(["x", "y", 5]),
            st.lists(st.sampled_from(SIZES), max_size=3) | ANYTHING,
            st.sampled_from([*DATATYPES, "fp32", None]),
            st.sampled_from([*SIZES, 8, 16, 8.0]),
        ),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(["id", "parameters", "outputs", "a"]), ANYTHING | st.just(WANTED), max_size=2),
    st.integers(0, 24),
)
def test_any_request_is_read_as_by_the_strict_reader(inputs: list[Any], fields: dict[str, Any], rest: int) -> None:
    agree({"inputs": inputs, "parameters": WANTED, **fields}, bytes(rest))


@each("outputs", [
    [], [("y", "FP32", np.ones(2))], [("y", "FP32", np.ones(0, np.float32))],
    [("y", "FP32", np.ones(4, np.float32)[::2])], [("y", "BYTES", np.array([b"a"], object))],
    [("y", "FP32", np.ones(2, ">f4"))],
])  # fmt: skip
def test_what_is_not_plainly_an_output_is_left_alone(outputs: Any) -> None:
    assert plain_binary.write_response("m", None, None, outputs) is None
    assert (
        plain_binary.write_response("m", "1", "7", [*outputs, ("z", "INT8", np.ones(1, np.int8))] * bool(outputs))
        is None
    )


def test_what_is_taken_is_a_view_on_the_body() -> None:
    given = read(document(), np.float32([1, 2]).tobytes(), True)
    [(_, _, array)] = given.tensors or ()
    assert not array.flags.owndata
    assert array.tolist() == [1, 2]
