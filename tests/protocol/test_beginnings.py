"""Requests that begin alike: each is read as if it were the first, whatever is known of its beginning."""

from mpserve.protocol import beginnings, plain
from mpserve.protocol.datatypes import DATATYPES
from tests.cases import each
from tests.protocol.test_plain import text_ways


def like(begin: str, count: int, datatype: str = "FP32") -> bytes:
    """A request that begins like others, with so many numbers."""
    numbers = ",".join(str(number) for number in range(count))
    return f'{begin}"inputs":[{{"name":"x","shape":[{count}],"datatype":"{datatype}","data":[{numbers}]}}]}}'.encode()


@each("datatype", DATATYPES)
@each("count", [1, 3, beginnings.SHORT, beginnings.SHORT + 1, plain.BRIEF + 1])
@each(
    "number", ["7", "-1", "1.5", "300", "1e38", "3.5e38", "1e300", "true", "null", '"1"', "[1]", "", "1,1", "1]", "{}"]
)
def test_of_requests_that_begin_alike_each_is_taken_or_refused_by_its_own_numbers(
    datatype: str, count: int, number: str
) -> None:
    text = like('{"id":"7",', count, datatype)
    text_ways(text)
    at = text.rindex(b"[") + 1
    for changed in (
        text[:at] + number.encode() + text[at + 1 :],
        text[:-4].rstrip(b"0123456789") + number.encode() + text[-4:],
        text[:at] + number.encode() + text[-4:],
        text[:at] + b"[" + text[at:-4] + b"]" + text[-4:],
    ):
        text_ways(changed)


@each(
    "begin", ["{", '{"id":"a\\"b",', '{"id":"\\"data\\":",', '{"data":[7],', '{"id":"1","a\\"data":[7],', ' {"id":"x",']
)
@each(
    "end",
    [
        "]}]}",
        "]}] }",
        '],"data":[7]}]}',
        '],"a\\"data":[7]}]}',
        ']}],"id":"2"}',
        ']}],"data":[7]}',
        "]},{}]}",
        "]}]}]}",
        "]",
        "]}",
        "]}]",
    ],
)
def test_what_is_known_of_a_beginning_does_not_hold_for_another_end(begin: str, end: str) -> None:
    text = like(begin, 3)
    text_ways(text)
    text_ways(text.replace(b"]}]}", end.encode()))
    text_ways(text.replace(b'"data":[', b'"data" :[8],"a\\"data":['))
    text_ways(text.replace(b'"data":[', b'"data" :[8,9,10],"data":['))
    text_ways(text)


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
