"""A plain binary request is read as the strict reader reads it. Of responses, test_v2 shows the same."""

from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
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


@each(
    "document, rest, is_plain",
    [
        (document(), 8, True),
        (document(id="7"), 8, True),
        (document(entry(shape=[2, 1])), 8, True),
        (document(entry(), entry("y", [1], "INT64"), entry("z", [3], "UINT8", 3)), 19, True),
        (document(entry("a", [3], "UINT8", 3), entry()), 11, True),  # of which the second is at an odd address
        (document(), 7, False),
        (document(), 9, False),
        (document(entry(size=4)), 4, False),
        (document(entry(size=9)), 9, False),
        (document(entry(size=True)), 1, False),
        (document(entry(size="8")), 8, False),
        (document(entry(shape=[0], size=0)), 0, False),
        (document(entry(shape=[-2])), 8, False),
        (document(entry(shape=[2**62, 4], size=0)), 0, False),
        (document(entry(datatype="BOOL", size=2)), 2, False),
        (document(entry(datatype="BYTES")), 8, False),
        (document(entry(datatype="BF16", size=4)), 4, False),
        (document(entry(datatype="fp32")), 8, False),
        (document(entry(), entry()), 16, False),
        (document(entry(name=5)), 8, False),
        (document(entry(data=[1, 2])), 8, False),
        (document(entry(parameters={"binary_data_size": 8, "a": 1})), 8, False),
        (document(id=7), 8, False),
        (document(id=None), 8, True),
        (document(outputs=[{"name": "y"}]), 8, True),
        (document(outputs=[{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}], id="7"), 8, True),
        (document(outputs=[{"name": "y"}, {"name": "y"}]), 8, False),
        (document(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), 8, False),
        (document(outputs=[{"name": "y", "parameters": {"classification": 1}}]), 8, False),
        (document(outputs=[]), 8, False),
        (document(outputs={}), 8, False),
        (document(outputs=""), 8, False),
        (document(outputs=None), 8, False),
        (document(entry(size=-4, shape=[])), 8, False),
        (
            b'{"inputs":[{"name":"x","shape":[2],"shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}',
            4,
            True,
        ),
        (document(other=1), 8, False),
        (document(parameters={"binary_data_output": 1}), 8, False),
        (document(parameters={"binary_data_output": False}), 8, False),
        (document(parameters={**WANTED, "timeout": 5}), 8, False),
        ({"inputs": [entry()]}, 8, True),
        ({"inputs": [entry()], "parameters": None}, 8, True),
        ({"inputs": [entry()], "parameters": {}}, 8, False),
        ({"inputs": [], "parameters": WANTED}, 0, False),
        ([], 0, False),
        (b"{", 8, False),
        (b"", 8, False),
    ],
)
def test_a_plain_request_is_read_as_any_other(document: Any, rest: int, is_plain: bool) -> None:
    assert agree(document, bytes(range(rest))) == is_plain


@each("datatype", [datatype for datatype in FIXED if datatype != "BOOL"])
def test_tensors_of_numbers_of_any_kind_are_plain(datatype: str) -> None:
    size = 3 * FIXED[datatype].itemsize
    assert agree(document(entry("x", [3], datatype, size)), bytes(range(size)))


@settings(deadline=None)
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
