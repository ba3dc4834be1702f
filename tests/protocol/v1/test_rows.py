"""V1 instances as tensors: plain rows are read in one go, and are what is made of them where each is looked at."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import DATATYPES, numpy_dtype
from mpserve.protocol.json import plain
from mpserve.protocol.v1.codec import V1Codec
from mpserve.serving.models.tensor_model import Tensor
from tests.arrays import outcome, same
from tests.bodies import ELEMENTS
from tests.cases import each

pytestmark = pytest.mark.usefixtures("parser")
CODEC = V1Codec("error")
SPACES = b" " * plain.FEW_BYTES
"""Behind a body, they make it too long to be read into Python objects."""


def declared(datatype: str | None) -> tuple[Tensor, ...]:
    return () if datatype is None else (Tensor("x", datatype, (-1, -1)),)


def read(body: bytes, datatype: str | None) -> Inputs:
    inputs = CODEC.read(body, declared(datatype), True)
    return Inputs(inputs.arrays(declared(datatype)), rows=inputs.rows)


def one_by_one(rows: str, datatype: str | None) -> Any:
    """What is made of the rows where each is an object, and so looked at; without the name, which the rows do not have."""
    body = f'{{"instances":[{",".join(f"""{{"x":{row}}}""" for row in rows.split(";"))}]}}'
    return outcome(read, body.encode(), datatype)


def agree(rows: str, datatype: str | None) -> Any:
    """What is made of rows, which are separated by semicolons, after every reader made the same of them."""
    strict = one_by_one(rows, datatype)
    lists = rows.replace(";", ",")
    for text in (f'{{"instances":[{lists}]}}', f'{{ "instances" : [{lists}] }}', f'{{"inputs":[{lists}]}}'):
        for body in (text.encode(), text.encode() + SPACES):
            found = outcome(read, body, datatype)
            if strict[0] is InvalidInput or found[0] is InvalidInput:
                assert found[0] is strict[0], (body, found, strict)
            else:
                *_, [(_, *found_tensor)] = found
                *_, [(_, *strict_tensor)] = strict
                assert found_tensor == strict_tensor, body
    return strict


OTHER_ROWS = ("", "1,1", "1]", "[1", "{}", '{"data":[1]}')
NUMBERS = [element for element in ELEMENTS if element not in OTHER_ROWS]


@each("datatype", [None, *DATATYPES])
@each("element", NUMBERS)
@each("rows", ["{}", "1.5;{}", "1;{}", "[{}]", "[1.5,{}];[2.5,3.5]", "[1,{}];[2,3]", "[[0.5],[{}]]"])
def test_an_element_is_taken_or_refused_alike(datatype: str | None, element: str, rows: str) -> None:
    agree(rows.replace("{}", element), datatype)


@each("datatype", [None, "FP32", "FP64", "INT8", "INT64", "UINT64", "BOOL"])
@each("rows", [
    "[1.5,-0.5]", "[1.5];[-0.5]", "[0.1,1.5e300];[-0.0,2.5]", "1.5", "1.0;2.0;3.25", "[]", "[];[1.5]", "1;2", "1.5;2",
    "[1.5,2]", "[1.5,null]", "[1.5];[1.5,2.5]", "[1.5,2.5];[1.5]", "[[1.5,2.5]]", "[[1.5]]", "1.5;[2.5]", "[1.5];2.5",
    "[1.5];[2]", "[1.5,2.5];[3,true]", '"1.5"', '["1.5"]', '"."', "null", "1e5", "[1.5,1e5]", '"a.b";1',
    "-1;18446744073709551615", "9007199254740993;1.5", "1;-2", '1;"2"', "[1,2];[3,4]", "[[1,2]];[[3,4]]", "[];[]",
    '{"b64":"YQ=="}', '{"b64":"YQ=="};{"b64":1}', "[[[[1.5]]]]", "[[1,2],[]];[3,4.5]", "[];1,2",
    *("[" * depth + "1" + "]" * depth for depth in (31, 32, 33, 64, 900)),
])  # fmt: skip
def test_rows_of_any_kind_are_taken_or_refused_alike(datatype: str | None, rows: str) -> None:
    agree(rows, datatype)


def arrays_of(document: Any, *declared: tuple[str, str]) -> list[Any]:
    names = [Tensor(name, datatype, (-1,)) for name, datatype in declared]
    return [array for *_, array in CODEC.read(orjson.dumps(document), names, True).arrays(names)]


@each(
    "declared, document, arrays",
    [
        ([("x", "FP32")], {"instances": [[1, 2], [3, 4]]}, [np.float32([[1, 2], [3, 4]])]),
        ([("x", "FP32")], {"inputs": [[1, 2]]}, [np.float32([[1, 2]])]),
        ([("x", "FP32")], {"instances": [{"x": [1, 2]}]}, [np.float32([[1, 2]])]),
        ([("x", "FP32"), ("n", "INT8")], {"instances": [{"n": 1, "x": [1]}, {"x": [3], "n": 2}]},
         [np.float32([[1], [3]]), np.int8([1, 2])]),
        ([("n", "INT8")], {"instances": []}, [np.int8([])]),
        ([("n", "INT8")], {"instances": [True, False]}, [np.int8([1, 0])]),
        ([("t", "BYTES")], {"instances": ["é", "a\0"]}, [np.array(["é".encode(), b"a\0"], object)]),
        ([("t", "BYTES")], {"instances": [{"b64": "/wA="}]}, [np.array([b"\xff\0"], object)]),
        ([("x", "BF16")], {"instances": [1.5]}, [np.array([1.5], numpy_dtype("BF16"))]),
        ([], {"instances": [[1, 2]]}, [np.int64([[1, 2]])]),
        ([], {"instances": [{"a": 1.5, "b": True}]}, [np.float64([1.5]), np.bool_([True])]),
        ([], {"instances": [[{"a": 1.5}, {"a": 2.5}], [{"a": 0.5}]]}, [np.float64([1.5, 2.5, 0.5])]),
        # To FP64 first it would become the middle of two of FP32, and be rounded down.
        ([("x", "FP32")], {"instances": [2**60 + 2**36 + 1]}, [np.float32([2**60 + 2**37])]),
        ([("x", "UINT64")], {"instances": [2**64 - 1, 1]}, [np.uint64([2**64 - 1, 1])]),
        ([], {"instances": [2**64 - 1, 1]}, [np.uint64([2**64 - 1, 1])]),
    ],
)  # fmt: skip
def test_instances_become_arrays(declared: Any, document: Any, arrays: Any) -> None:
    for got, wanted in zip(arrays_of(document, *declared), arrays, strict=True):
        assert same(got, wanted)


X, N, T = ("x", "FP32"), ("n", "INT8"), ("t", "BYTES")


@each("declared, document, says", [
    *(([X], document, 'expected a JSON object with a list of "instances"')
      for document in ({}, {"inputs": {"x": [1, 2]}}, {"inputs": "ab"})),
    ([X], {"instances": [[1, 2], [3]]}, "input 'x': expected instances of one shape"),
    ([X], {"instances": [["a", "b"]]}, "input 'x': expected numbers for FP32, got a string"),
    ([X], {"instances": [[1, "b"]]}, "input 'x': expected numbers for FP32, got a string"),
    ([X], {"instances": [[1, None]]}, "input 'x': expected numbers, booleans or strings, got int and null"),
    ([X], {"instances": [[{}, {}]]}, "input 'x': expected numbers, booleans or strings, got an object"),
    ([X], {"instances": [[1e39, 0]]}, "input 'x': a value is out of range for FP32"),
    ([("x", "BF16")], {"instances": [1e39]}, "out of range for BF16"),
    ([N], {"instances": [300]}, r"input 'n': .*300, out of range for INT8 \(-128 to 127\)"),
    ([N], {"instances": [1.5]}, "input 'n': .*float64 cannot be taken as INT8"),
    ([T], {"instances": ["a", 1]}, "input 't': .*int cannot be taken as BYTES"),
    *(([T], {"instances": [{"b64": given}]}, '"b64" holds no valid base64') for given in ("?", 5)),
    ([X, N], {"instances": [[1, 2, 3]]}, r"expected rows of 2 values \('x', 'n'\), got 3"),
    ([X, N], {"instances": [{"x": [1, 2]}]}, "an object with 'x', 'n'"),
    ([X], {"instances": [{"x": [1, 2]}, 5]}, "an object with 'x'"),
    ([], {"instances": [[{"a": 1}], 5]}, "to be a list of objects, as the first one is"),
    ([], {"instances": [[{"a": 1}, {"b": 2}]]}, "expected numbers, booleans or strings, got int and null"),
    ([], {"instances": [{}]}, "an object with one entry per input, got {}"),
])  # fmt: skip
def test_instances_that_are_no_tensors_are_refused_in_words(declared: Any, document: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        arrays_of(document, *declared)


@each("count", [1, 16, 17, 1000])
@each("value", [1e155, -1e308, 1.7976931348623157e308])
def test_numbers_whose_squares_are_no_float_are_taken_or_refused_without_a_warning(value: float, count: int) -> None:
    rows = [*[1.0] * (count - 1), value]
    assert arrays_of({"instances": rows}, ("x", "FP64"))[0].tolist() == rows
    for datatype in ("FP32", "FP16"):
        with pytest.raises(InvalidInput, match=f"out of range for {datatype}"):
            arrays_of({"instances": rows}, ("x", datatype))


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | FLOATS | st.integers(-3, 3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner).map(list),
    max_leaves=12,
)
NUMERIC = st.sampled_from([None, "FP16", "FP32", "FP64", "INT32", "INT64", "UINT64"])


@given(st.lists(NESTED, min_size=1, max_size=4), NUMERIC)
def test_any_rows_are_taken_or_refused_alike(rows: list[Any], datatype: str | None) -> None:
    agree(";".join(orjson.dumps(row).decode() for row in rows), datatype)


@each("body", [
    b'{"instances":null}', b'{"instances":"a"}', b'{"instances":{"a":[1]}}', b'{"instances":[1]}}',
    b'{"instances":[1]', b'{"instances":[1]]}', b'{"instances":}', b'{"instances":', b'{"instances":}"}',
    b'{"instances":[1]}x', b'{"instances":[NaN]}', b'{"instances":["\xff"]}', b'{"instances":[1]},"b":{}}',
    b'{"instances":1,"a":{}}', b'\xef\xbb\xbf{"instances":[1.5]}', b'{"instances":[1.5,]}', b'{"instances":[01.5]}',
    b"[1.5]", b"{}", b"",
])  # fmt: skip
@each("pad", [b"", SPACES])
def test_a_body_without_instances_is_refused(body: bytes, pad: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(body + pad, "FP32")


@each("pad", [b"", SPACES])
def test_plain_rows_are_taken_by_the_fast_reader(parser: str, pad: bytes) -> None:
    given = read(b'{"instances":[[1.5,2.5],[3.5,4.5]]}' + pad, "FP32")
    assert (given.rows, [array.tolist() for *_, array in given.tensors or ()]) == (2, [[[1.5, 2.5], [3.5, 4.5]]])
    assert (plain.read_instances(b'{"instances":[[1,2.5],[3,4]]}', "d") is not None) == (parser == "simdjson")
    assert plain.floats([[1.5, 2.5]], 2, "FP32") is not None
    assert plain.floats([[1.5, 2.5]], 2, "INT32") is None
