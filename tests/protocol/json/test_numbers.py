"""Long lists that are read by simdjson. That nobody can tell, test_beginnings shows."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.protocol.json import numbers
from mpserve.protocol.json.documents import parse_object
from mpserve.protocol.json.numbers import Numbers
from mpserve.protocol.v2.codec import decode_request
from tests.bodies import body
from tests.cases import each

pytest.importorskip("simdjson")


def test_a_long_list_is_not_made_python_objects():
    parsed = parse_object(body("[1,2,3,4~]"), "data")["inputs"][0]["data"]
    assert isinstance(parsed, Numbers)
    assert parsed.to_list() == [1, 2, 3, 4]
    assert isinstance(parse_object(body("[1,2,3,4]"), "data")["inputs"][0]["data"], list)
    assert isinstance(parse_object(body('["a"]~'), "data")["inputs"][0]["data"], list)


def _json(value):
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    return str(value) if type(value) is int else orjson.dumps(value).decode()


@each("datatype, dtype, shape", [("FP32", "f4", [2, 3, 50]), ("FP64", "f8", [300]), ("INT64", "i8", [300, 1])])
def test_many_numbers_arrive_bit_by_bit_flat_and_nested(datatype, dtype, shape):
    array = (np.random.default_rng(3).standard_normal(shape) * 1e6).astype(dtype)
    for data in (array.tolist(), array.ravel().tolist()):
        text = orjson.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]})
        assert isinstance(parse_object(text, "data")["inputs"][0]["data"], Numbers)
        got = decode_request(text, "m", None).inputs[0].as_numpy()
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_no_more_lists_are_looked_at_than_a_request_has(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []
    monkeypatch.setattr(numbers, "LONG", 1)
    monkeypatch.setattr(numbers, "Numbers", looked_at.append)
    numbers.parse_with_numbers(b'[{"data":[1]},' * numbers.MOST, "data")
    assert len(looked_at) == numbers.MOST
    looked_at.clear()
    assert numbers.parse_with_numbers(b'[{"data":[1]},' * (numbers.MOST + 1), "data") is None
    assert not looked_at


def shape_of(value):
    """How a list is nested, an empty one as one of one element; None if unevenly."""
    if not isinstance(value, list):
        return []
    shapes = [shape_of(item) for item in value] or [[]]
    return [len(shapes), *shapes[0]] if shapes[0] is not None and shapes.count(shapes[0]) == len(shapes) else None


NESTINGS = st.recursive(
    st.integers(-9, 99), lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner).map(list), max_leaves=12
).filter(lambda value: isinstance(value, list))


@given(NESTINGS | st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_shape_is_that_of_the_nesting_or_none(value):
    assert Numbers(orjson.dumps(value)).shape == shape_of(value)
    spaced = _json(value).replace(",", " , ").replace("[", "[\n").encode()
    assert Numbers(spaced).shape == shape_of(value)


@each("depth", [1, 2, 31, 32, 33, 64, 65, 900])
def test_a_list_that_is_deeper_than_a_tensor_is_left_to_who_looks_at_each_element(depth):
    deep = Numbers(b"[" * depth + b"1,2" + b"]" * depth)
    assert deep.shape == ([1] * (depth - 1) + [2] if depth <= 32 else None)
    assert depth <= 32 or deep.array("d") is None
