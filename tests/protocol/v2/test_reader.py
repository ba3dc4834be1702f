"""V2 requests in JSON: whatever is remembered, and whichever reader takes a body, it is what the strict reader makes of it."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.json import plain
from mpserve.protocol.json.documents import parse_object
from mpserve.protocol.messages import InferRequest
from mpserve.protocol.v2 import codec as v2
from mpserve.protocol.v2 import reader as beginnings
from mpserve.protocol.v2 import wire
from tests.arrays import outcome
from tests.bodies import ELEMENTS, ODD, PAD, PLAIN, body, like, requests
from tests.cases import each

pytestmark = pytest.mark.usefixtures("parser")
SPACES = b" " * plain.FEW_BYTES
"""Behind a body, they make it too long to be read into Python objects."""


rarely_plain = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def strictly(text: bytes) -> Inputs:
    return Inputs.of(InferRequest("", **wire.read_request(parse_object(text), None)))


def with_long_lists(text: bytes) -> Inputs:
    return Inputs.of(v2.decode_request(text, "", None))


def agree(text: bytes) -> Any:
    """What the strict reader makes of a body, after every other reader made the same of it."""
    for variant in (text + SPACES, text.replace(b'"data":[', b'"data":[' + PAD, 1), text):
        strict, long = outcome(strictly, variant), outcome(with_long_lists, variant)
        cold, warm = outcome(beginnings.read, variant), outcome(beginnings.read, variant)
        for found in (long, cold, warm):
            # Of two faults in one input, a long list may have the other one told.
            assert found == strict or (found == long and "unknown datatype" in long[1] and strict[0] is InvalidInput)
    return strict


def numbers_of(count: int, first: int) -> str:
    return f"[{','.join(map(str, range(first, first + count)))}]"


LISTS = [
    "[]", "[7.5]", "[-1]", "[true]", "[null]", "[[1]]", "[1,2]", '["]"]', '["1"]', " [3]", "[3] ", "[1e400]", "[4", "5]", "6",
]  # fmt: skip
KEYS = ['"data":', '"data" :', '"data": ', '"d\\u0061ta":', '"data\\u0020":']
TOP_LEVEL = [
    '"id":"a"', '"id":"]"', '"id":"\\"data\\":[1]"', '"id":{"data":~}', '"id":null', '"id":7', '"x":{"data":~}', '"data":~',
    '"outputs":[{"name":"y"}]', '"outputs":[{"name":"y","parameters":{"binary_data":true}},{"name":"data"}]',
    '"outputs":[{"data":~}]', '"outputs":[{"name":"y","data":~}]', '"outputs":[{"name":"y"},{"name":"y"}]', '"outputs":[]',
    '"outputs":{}', '"outputs":""', '"outputs":null', '"outputs":[{"name":"y","parameters":{"binary_data":1}}]',
    '"outputs":[{"name":"y","parameters":{"data":~}}]', '"parameters":{"a":1}', '"parameters":{"data":~}', '"inputs":[]',
    '"inputs":[{"data":~}]', '"inputs":~', '"parameters":null',
]  # fmt: skip
"""Fields of a request, in which lists of numbers stand for ``~``."""
OF_INPUT = [
    '"name":{"data":~}', '"shape":~', '"datatype":{"data":~}', '"name":"data"', '"name":"y"', '"data":null', '"x":[{"data":~}]',
    '"parameters":{}', '"parameters":{"data":~}', '"shape":[1]',
]  # fmt: skip


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Requests that differ in their numbers alone, of fields in any order, some of which are there twice."""
    count = draw(st.sampled_from([1, 1, 2, beginnings.SHORT + 1]))
    keyed = [f"{key}~" for key in KEYS]
    own = ['"name":"x"', '"datatype":"FP32"', f'"shape":[{count}]', draw(st.sampled_from(['"data":~', *keyed]))]
    own += draw(st.lists(st.sampled_from(OF_INPUT + keyed), max_size=2))
    inputs = f'"inputs":[{{{",".join(draw(st.permutations(own)))}}}]'
    top = [inputs, *draw(st.lists(st.sampled_from(TOP_LEVEL), max_size=2))]
    skeleton = f"{{{','.join(draw(st.permutations(top)))}}}{draw(st.sampled_from(['', ' ', 'x', ']']))}"
    head, *rest = skeleton.split("~")
    one = [numbers_of(count, 10 * index) for index, _ in enumerate(rest)]
    texts = [one, [numbers_of(count, 1000 + index) for index, _ in enumerate(rest)], one]
    texts += [[*one[:index], draw(st.sampled_from(LISTS)), *one[index + 1 :]] for index, _ in enumerate(rest)]
    return [(head + "".join(map(str.__add__, text, rest))).encode() for text in texts]


@rarely_plain
@given(alike())
def test_of_requests_that_begin_and_end_alike_each_is_read_by_itself(texts: list[bytes]) -> None:
    for text in texts:
        agree(text)


@each("text", [
    '{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data" :[5]}],"outputs":[{"data":[~]}],"outputs":[{"name":"y"}]}',
    '{"inputs":[{"shape":[1],"datatype":"FP32","data" :[5],"name":{"data":[~]},"name":"x"}]}',
    '{"inputs":[{"shape":[1],"datatype":"FP32","data"\n:[5],"name":"x"}],"id":{"data":[~]},"id":"1"}',
    '{"inputs":[{"shape":[1],"datatype":"FP32","d\\u0061ta":[5],"name":"x"}],"id":{"data":[~]},"id":"1"}',
    '{"inputs":[{"data":[~]}],"inputs":[{"shape":[1],"datatype":"FP32","d\\u0061ta":[5],"name":"x"}]}',
])  # fmt: skip
def test_the_numbers_are_those_of_the_field_that_counts(text: str) -> None:
    for number in ("1", "1", "2"):
        *_, [(*_, (_, _, contents, _))] = agree(text.replace("~", number).encode())
        assert contents == np.float32(5).tobytes()


@rarely_plain
@given(requests())
def test_any_request_is_read_alike(text: bytes) -> None:
    agree(text)


ENTRY = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}


@each("text", [*ODD, orjson.dumps({"inputs": [ENTRY, ENTRY]})])
def test_an_odd_request_is_read_alike(text: bytes) -> None:
    agree(text)


@each("datatype", [*DATATYPES, "fp32", "FLOAT"])
@each("count", [2, beginnings.SHORT])
@each("element", ELEMENTS)
def test_an_element_is_taken_or_refused_alike(datatype: str, count: int, element: str) -> None:
    agree(body(f"[{'1,' * count}{element}]", datatype, f"[{count + 1}]"))


@pytest.mark.exhaustive
@each("datatype", DATATYPES)
@each("count", [1, 3, 2 * plain.FEW, beginnings.SHORT, beginnings.SHORT + 1, plain.BRIEF + 1, 5000])
def test_of_requests_that_begin_alike_each_is_taken_or_refused_by_its_own_numbers(datatype: str, count: int) -> None:
    text = like('{"id":"7",', count, datatype)
    agree(text)
    at = text.rindex(b"[") + 1
    last = text[:-4].rstrip(b"0123456789")
    for element in map(str.encode, ELEMENTS):
        agree(text[:at] + element + text[at + 1 :])
        agree(last + element + text[-4:])
        agree(text[:at] + element + text[-4:])
    agree(text[:at] + b"[" + text[at:-4] + b"]" + text[-4:])


@each(
    "shape, data, words",
    [
        ([], [1], None), ([], [], "expected 1 elements"), ([1] * 32, [1], None), ([1] * 33, [1], "33 dimensions"),
        ([0], [], None), ([0, 2**62], [], "too large"), ([True], [1], "shape holds true"), ([-1, -1], [1], "shape holds -1"),
        ([2, 2], [[1, 2], [3]], "not nested as shape"), ([2, 2], [[1, 2], [3, 4]], None),
        (1, [1], "shape is a number"), ([1], 1, "data is a number"), ([2**39, 0], [[], [], []], "not nested as shape"),
        ([2**62] * 50_000, [1], "50000 dimensions"),  # refused before they are multiplied
    ],
)  # fmt: skip
def test_a_shape_is_taken_or_refused_alike(shape: Any, data: Any, words: str | None) -> None:
    got = agree(orjson.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}))
    assert (got[0] is InvalidInput) == (words is not None)
    assert words is None or words in got[1]


@each("name", ["x", "input-1", "labels", "\\"])
@each("key", ['"data"', '"d\\u0061ta"', '"\\u0064ata"'])
@each("value", ["true", "false", "null", '"1"', "1"])
@each("at", [0, 1, 2])
def test_among_many_numbers_nothing_else_is_taken_for_one(name: str, key: str, value: str, at: int) -> None:
    data = f"{key}:[{','.join(['1'] * plain.FEW)},{value}]"
    head, shape = f'"name":{orjson.dumps(name).decode()},"datatype":"FP32"', f'"shape":[{plain.FEW + 1}]'
    for entry in (f"{head},{shape},{data}", f"{head},{data},{shape}"):
        entries = [f'"name":"{other}","shape":[1],"datatype":"INT8","data":[1]' for other in "ab"]
        entries.insert(at, entry)
        got = agree(f'{{"inputs":[{{{"},{".join(entries)}}}]}}'.encode())
        assert (got[0] is InvalidInput) == (value != "1")


def is_plain(text: bytes) -> bool:
    return beginnings.read(text).message is None


def test_a_plain_request_is_taken_by_the_fast_reader() -> None:
    named = PLAIN[:-1] + b',"outputs":[{"name":"y"},{"name":"z","parameters":{"binary_data":true}}]}'
    for text in (PLAIN, PLAIN + SPACES, named, named + SPACES):
        assert is_plain(text)
        assert not is_plain(text.replace(b'"id":"1"', b'"parameters":{"a":1}'))


def test_beginnings_are_not_remembered_for_ever() -> None:
    for number in range(beginnings.KNOWN + 10):
        assert is_plain(like(f'{{"id":"{number}",', 1))
    assert len(beginnings._known) <= beginnings.KNOWN
    long = "x" * beginnings.LONGEST
    for text in (like(f'{{"id":"{long}",', 1), like("{", 1)[:-1] + f',"id":"{long}"}}'.encode()):
        assert is_plain(text)
    assert max(len(begin) + len(end) for begin, end in beginnings._known) < beginnings.LONGEST


@each("count", [1, beginnings.SHORT, beginnings.SHORT + 1])
@each("end", ["]}]}", ']}],"outputs":[{"name":"data","parameters":{"binary_data":false}}]}', ']}],"id":"only"}'])
def test_of_a_request_that_begins_and_ends_like_another_only_the_numbers_are_read(count: int, end: str) -> None:
    text = like("{", count).removesuffix(b"]}]}") + end.encode()
    beginnings._known.clear()
    assert is_plain(text)
    [(*_, read, _)] = beginnings._known.values()
    numbers = numbers_of(count, 5).encode()
    assert read(numbers).tolist() == [*range(5, 5 + count)]
    agree(text.replace(numbers_of(count, 0).encode(), numbers))
