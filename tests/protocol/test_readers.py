"""A fast reader of requests gives None, or what the strict one gives. Of long lists, every reader gives the same."""

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings

from mpserve.errors import InvalidInput
from mpserve.protocol import beginnings, plain, v2, wire
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.documents import parse_object
from mpserve.protocol.messages import InferRequest
from tests.arrays import bits
from tests.bodies import ELEMENTS, ODD, PAD, PLAIN, body, like, requests
from tests.cases import each

SPACES = b" " * plain.FEW_BYTES
"""Behind a body, they make it too long to be read into Python objects."""


def told(request: InferRequest) -> Any:
    inputs = [(t.name, t.shape, t.datatype, t.parameters, t.binary_data, bits(t.as_numpy())) for t in request.inputs]
    return request.id, request.model_name, request.parameters, request.request_outputs, inputs


def outcome(read: Any, text: bytes) -> Any:
    """All that a request is, or the words of its refusal."""
    try:
        return told(read(text))
    except InvalidInput as error:
        return str(error)


def strictly(text: bytes) -> InferRequest:
    return InferRequest("m", **wire.read_request(parse_object(text), None))


def with_long_lists(text: bytes) -> InferRequest:
    return v2.decode_request(text, "m", None)


def agree(text: bytes) -> Any:
    """What the strict reader makes of a body, after every other reader made the same of it, or left it."""
    for variant in (text + SPACES, text.replace(b'"data":[', b'"data":[' + PAD, 1), text):
        strict = outcome(strictly, variant)
        long = outcome(with_long_lists, variant)
        # Of two faults in one input, a long list may have the other one told.
        assert long == strict or ("unknown datatype" in long and isinstance(strict, str))
        for fast in (plain.read_request, beginnings.read_request, beginnings.read_request):  # the last one remembers it
            request = fast(variant)
            assert request is None or told(v2.request_of(request, "m", None)) == strict
    return strict


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(requests())
def test_any_request_is_read_alike(text: bytes) -> None:
    agree(text)


@each("text", ODD)
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
    "begin", ["{", '{"id":"a\\"b",', '{"id":"\\"data\\":",', '{"data":[7],', '{"id":"1","a\\"data":[7],', ' {"id":"x",']
)
@each(
    "end",
    [
        "]}]}", "]}] }", '],"data":[7]}]}', '],"a\\"data":[7]}]}', ']}],"id":"2"}', ']}],"data":[7]}', "]},{}]}", "]}]}]}",
        "]", "]}", "]}]",
    ],
)  # fmt: skip
def test_what_is_known_of_a_beginning_does_not_hold_for_another_end(begin: str, end: str) -> None:
    text = like(begin, 3)
    agree(text)
    agree(text.replace(b"]}]}", end.encode()))
    agree(text.replace(b'"data":[', b'"data" :[8],"a\\"data":['))
    agree(text.replace(b'"data":[', b'"data" :[8,9,10],"data":['))
    agree(text)


@each(
    "shape, data, words",
    [
        ([], [1], None), ([], [], "expected 1 elements"), ([1] * 32, [1], None), ([1] * 33, [1], "33 dimensions"),
        ([0], [], None), ([0, 2**62], [], "too large"), ([True], [1], "shape holds true"), ([-1], [1], "shape holds -1"),
        ([-1, -1], [1], "shape holds -1"), ([2, 2], [[1, 2], [3]], "not nested as shape"), ([2, 2], [[1, 2], [3, 4]], None),
        (1, [1], "shape is a number"), ([1], 1, "data is a number"), ([2**39, 0], [[], [], []], "not nested as shape"),
        ([2**62] * 50_000, [1], "50000 dimensions"),  # refused before they are multiplied
    ],
)  # fmt: skip
def test_a_shape_is_taken_or_refused_alike(shape: Any, data: Any, words: str | None) -> None:
    got = agree(orjson.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}))
    assert isinstance(got, str) == (words is not None)
    assert words is None or words in got


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
        assert isinstance(got, str) == (value != "1")


def test_names_are_unique() -> None:
    entry = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    assert "the name 'x' is there twice" in agree(orjson.dumps({"inputs": [entry, entry]}))


def test_a_plain_request_is_taken_by_the_fast_reader() -> None:
    pytest.importorskip("simdjson")
    for text in (PLAIN, PLAIN + SPACES):
        request_id, [(name, datatype, array)] = plain.read_request(text) or (None, [])
        assert (request_id, name, datatype, array.tolist()) == ("1", "x", "FP32", [[1, 2.5]])
        assert plain.read_request(text.replace(b'"id"', b'"outputs"')) is None


def test_beginnings_are_not_remembered_for_ever() -> None:
    for number in range(beginnings.KNOWN + 10):
        assert beginnings.read_request(like(f'{{"id":"{number}",', 1)) is not None
    assert len(beginnings._known) <= beginnings.KNOWN
    long = "x" * beginnings.LONGEST
    assert beginnings.read_request(like(f'{{"id":"{long}",', 1)) is not None
    assert max(map(len, beginnings._known)) < beginnings.LONGEST + 10


@each("count", [1, beginnings.SHORT, beginnings.SHORT + 1])
def test_of_a_request_that_begins_like_another_only_the_numbers_are_read(count: int) -> None:
    text = like('{"id":"only",', count)
    assert beginnings.read_request(text) is not None
    begin, _, rest = text.removesuffix(beginnings.END).partition(beginnings.DATA)
    assert beginnings._known[begin][:3] == ("only", "x", "FP32")
    read = beginnings._known[begin][3]
    assert read(rest.replace(b"0", b"5", 1)).tolist() == [5, *range(1, count)]
