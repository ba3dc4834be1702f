"""Long lists are read by simdjson where it is installed, and by orjson; nobody can tell which."""

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol import numbers
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.documents import parse_object
from mpserve.protocol.numbers import LONG, Numbers
from mpserve.protocol.v2 import decode_request
from tests.cases import each

pytest.importorskip("simdjson")

PAD = " " * LONG


def body(data: str, datatype="FP32", shape="[4]", before="", after=""):
    entry = f'"name":"x","shape":{shape},"datatype":"{datatype}"{before},"data":{data}{after}'
    return f'{{"inputs":[{{{entry}}}]}}'.encode()


def outcome(text):
    """What comes of a body: dtype, shape and bits of its array, or the words of the refusal."""
    try:
        array = decode_request(text, "m", None).inputs[0].as_numpy()
    except InvalidInput as error:
        return str(error)
    bits = array.tolist() if array.dtype == object else array.tobytes()
    return str(array.dtype), array.shape, bits, array.flags.writeable


def both_ways(text, monkeypatch):
    fast = outcome(text)
    with monkeypatch.context() as without:
        without.setattr(numbers, "simdjson", None)
        assert fast == outcome(text)
    return fast


ELEMENTS = [
    "1", "-1", "0", "-0", "-0.0", "1.5", "1e5", "127", "128", "255", "256", "65504", "65520", "3.4028235e38", "3.5e38", "1e-400",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
    "-9223372036854775808", "-9223372036854775809", "1e400", "NaN", "Infinity", "01", "1.", ".5", "+1", "0x1", "-",
    "true", "null", '"1"', '"a,b"', "[1]", "[]", "{}", '{"data":[1]}', "", "1]", "[1", "1 2", "\x00", "\x0c",
]  # fmt: skip


@each("datatype", DATATYPES)
@each("element", ELEMENTS)
def test_an_element_is_taken_or_refused_alike_both_ways(datatype, element, monkeypatch):
    both_ways(body(f"[1,{element},3,{PAD}4]", datatype), monkeypatch)


NESTED = [
    ("[[1,2],[3,4]]", "[2,2]"), ("[1,2,3,4]", "[2,2]"), ("[[1,2],[3]]", "[2,2]"), ("[[1,2,3],[4]]", "[2,2]"),
    ("[[1],[2],[3],[4]]", "[2,2]"), ("[[[1,2],[3,4]]]", "[2,2]"), ("[[1,2],[3,4]]", "[4]"), ("[[1,2],3,4]", "[4]"),
    ("[[],1,2,3,4]", "[4]"), ("[1,2,3,[],4]", "[4]"), ("[[],[1,2,3,4]]", "[2,2]"), ("[[1,2],[3,4]]", "[]"), ("[1]", "[]"),
    ("[[1]]", "[]"), ("[[],[]]", "[2,0]"), ("[]", "[0]"), ("[[1,2],[3,4]]", "[1099511627776]"), ("[1,2]", "[-1]"), ("[1,2]", "2"),
]  # fmt: skip


@each("data, shape", NESTED)
def test_nesting_is_taken_or_refused_alike_both_ways(data, shape, monkeypatch):
    both_ways(body(f"[{PAD}{data[1:]}", shape=shape), monkeypatch)


ODD = [
    body(f"[1,2,3,4{PAD}]", after=',"data":[5,6,7,8]'),  # the last of two fields counts
    body("[1,2,3,4]", after=f',"data":[5,6,7,8{PAD}]'),
    body(f"[1,2,3,4{PAD}]", after=',"data":null'),
    body("[1,2,3,4]", before=f',"parameters":{{"data":[1{PAD}]}}'),
    body("[1,2,3,4]", before=f',"x\\"data":[1{PAD}]'),
    body("[1,2,3,4]", before=f',"x":"\\"data\\":[1{PAD}]"'),
    body("[1,2,3,4]", before=f',"x":"\\"data":[1{PAD}]'),
    body(f"[1,2,3,4{PAD}]]"),
    body(f"[1,2,3,4{PAD}],5"),
    body(f"[1,2,3,4{PAD}]")[:-1],
    body(f"[1,2,3,4{PAD}]") + b"\xff",
    body(f"[1,2,3,4{PAD}]", before=',"x":"\\ud800"'),
    f'{{"data":[1{PAD}],"inputs":[]}}'.encode(),
    f'[{{"data":[1{PAD}]}}]'.encode(),
    body("[" * 2000 + PAD + "]" * 2000),
]


@each("text", ODD)
def test_a_list_in_another_place_changes_nothing(text, monkeypatch):
    both_ways(text, monkeypatch)


def test_a_long_list_is_not_made_python_objects():
    parsed = parse_object(body(f"[1,2,3,4{PAD}]"), "data")["inputs"][0]["data"]
    assert isinstance(parsed, Numbers)
    assert parsed.to_list() == [1, 2, 3, 4]
    assert isinstance(parse_object(body("[1,2,3,4]"), "data")["inputs"][0]["data"], list)
    assert isinstance(parse_object(body('["a"]' + PAD), "data")["inputs"][0]["data"], list)


LEAVES = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.booleans() | st.none()


@settings(deadline=None)
@given(
    st.lists(LEAVES | st.lists(LEAVES, max_size=3), max_size=6)
    | st.lists(st.integers(-200, 300), min_size=4, max_size=4)
    | st.lists(st.lists(st.floats(-1e39, 1e39), min_size=2, max_size=2), min_size=2, max_size=2),
    st.sampled_from(DATATYPES),
    st.sampled_from([[4], [2, 2], [1, 4], [6], [3, 2]]),
)
def test_any_list_is_taken_or_refused_alike_both_ways(data, datatype, shape):
    text = body(f"[{PAD}{_json(data)[1:]}", datatype, _json(shape))
    with pytest.MonkeyPatch.context() as monkeypatch:
        both_ways(text, monkeypatch)


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


def test_a_shape_of_any_length_around_no_elements_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    text = body(f"[{PAD}[],[],[]]", shape=f"[{2**39},0]")
    assert "data is not nested as shape" in both_ways(text, monkeypatch)


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


@settings(deadline=None)
@given(NESTINGS | st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_shape_is_that_of_the_nesting_or_none(value):
    assert Numbers(orjson.dumps(value)).shape == shape_of(value)
    spaced = _json(value).replace(",", " , ").replace("[", "[\n").encode()
    assert Numbers(spaced).shape == shape_of(value)


@each("depth", [1, 2, 31, 32])
def test_a_list_may_be_as_deep_as_a_tensor(depth):
    assert Numbers(b"[" * depth + b"1,2" + b"]" * depth).shape == [1] * (depth - 1) + [2]


@each("depth", [33, 64, 65, 900])
def test_a_deeper_list_is_left_to_who_looks_at_each_element(depth):
    deep = Numbers(b"[" * depth + b"1,2" + b"]" * depth)
    assert deep.shape is None
    assert deep.array("d") is None
