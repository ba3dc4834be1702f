"""Plain binary requests and responses go a shorter way, and nobody can tell: neither by what is taken nor by what is written."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol import plain_binary, v2
from mpserve.protocol.datatypes import DATATYPES, FIXED, Array
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from tests.arrays import bits
from tests.bodies import ANYTHING, SIZES
from tests.cases import each

WANTED = {"binary_data_output": True}


def entry(name: Any = "x", shape: Any = (2,), datatype: Any = "FP32", size: Any = 8, **others: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}, **others}


def document(*inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"inputs": inputs or [entry()], "parameters": WANTED, **fields}


def either_way(document: Any, rest: bytes) -> bool:
    """Whether it is plain, and then it is read as in the ordinary way."""
    json = document if isinstance(document, bytes) else orjson.dumps(document)
    request = plain_binary.read_request(json + rest, len(json))
    if request is None:
        return False
    ordinary = v2.decode_request(json + rest, "m", None, str(len(json)))
    assert (ordinary.id, ordinary.parameters, ordinary.request_outputs) == (request[0], WANTED, [])
    told = [(tensor.name, tensor.datatype, bits(tensor.as_numpy())) for tensor in ordinary.inputs]
    assert told == [(name, datatype, bits(array)) for name, datatype, array in request[1]]
    return True


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
        (document(outputs=[{"name": "y"}]), 8, False),
        (document(id="7", outputs=[{"name": "y"}]), 8, False),
        (document(other=1), 8, False),
        (document(parameters={"binary_data_output": 1}), 8, False),
        (document(parameters={"binary_data_output": False}), 8, False),
        (document(parameters={**WANTED, "timeout": 5}), 8, False),
        ({"inputs": [entry()]}, 8, False),
        ({"inputs": [], "parameters": WANTED}, 0, False),
        ([], 0, False),
        (b"{", 8, False),
        (b"", 8, False),
    ],
)
def test_what_is_plain_is_read_as_in_the_ordinary_way(document: Any, rest: int, is_plain: bool) -> None:
    assert either_way(document, bytes(range(rest))) == is_plain


@each("datatype", [datatype for datatype in FIXED if datatype != "BOOL"])
def test_tensors_of_numbers_of_any_kind_are_plain(datatype: str) -> None:
    size = 3 * FIXED[datatype].itemsize
    assert either_way(document(entry("x", [3], datatype, size)), bytes(range(size)))


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
def test_whatever_else_is_asked_is_read_as_in_the_ordinary_way_or_left_to_it(
    inputs: list[Any], fields: dict[str, Any], rest: int
) -> None:
    either_way({"inputs": inputs, "parameters": WANTED, **fields}, bytes(rest))


@each("datatype", DATATYPES)
@each("response_id", [None, "7", 'é"'])
@each(
    "layout",
    [np.ascontiguousarray, lambda array: array[::2], lambda array: array.reshape(2, 2).T, lambda array: array[:0]],
)
def test_a_response_is_written_as_in_the_ordinary_way(datatype: str, response_id: str | None, layout: Any) -> None:
    if datatype not in FIXED:
        return
    array: Array = layout(np.arange(4).astype(FIXED[datatype]))
    outputs = [("y", datatype, array), ("z", datatype, array)]
    written = plain_binary.write_response("m", response_id, outputs)
    tensors = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in outputs]
    asked = InferRequest("m", [], parameters=WANTED)
    if written is not None:
        ordinary = v2.encode_answer(InferResponse(response_id, "m", tensors), asked)
        assert (written.join(), written.json_length) == (ordinary.join(), ordinary.json_length)
    assert (written is not None) == (layout is np.ascontiguousarray)


@each(
    "outputs",
    [[], [("y", "FP32", np.ones(2))], [("y", "BYTES", np.array([b"a"], object))], [("y", "FP32", np.ones(2, ">f4"))]],
)
def test_what_is_not_plainly_an_output_is_left_to_the_ordinary_way(outputs: Any) -> None:
    assert plain_binary.write_response("m", None, outputs) is None


def test_what_is_taken_is_a_view_on_the_body() -> None:
    json = orjson.dumps(document())
    body = json + np.float32([1, 2]).tobytes()
    request = plain_binary.read_request(body, len(json))
    assert request is not None
    [(_, _, array)] = request[1]
    assert not array.flags.owndata
    assert array.tolist() == [1, 2]


def test_bytes_that_are_no_tensor_are_refused_where_it_can_be_told() -> None:
    json = orjson.dumps(document())
    assert plain_binary.read_request(json + bytes(9), len(json)) is None
    with pytest.raises(InvalidInput, match="1 bytes at the body's end belong to no tensor"):
        v2.decode_request(json + bytes(9), "m", None, str(len(json)))
