"""Plain requests and responses go a shorter way, and nobody can tell: neither by what is taken nor by what is written."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpserve.errors import InvalidInput, MPServeError
from mpserve.protocol import beginnings, plain, v2, wire
from mpserve.protocol.datatypes import DATATYPES, Array
from mpserve.protocol.documents import parse_object
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse, RequestedOutput
from tests.arrays import arrays
from tests.cases import each

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

NUMBERS = [
    0, 1, -1, True, False, None, "1", [1], {}, 1.5, -0.0, 1e-50, 3.4028234e38, 3.4028235e38, 3.4028236e38, 1e39, -1e39, 1e308,
    127, 128, -128, -129, 255, 256, 2**24 + 1, 2**31, 2**53 + 1, 2**60 + 2**36 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1,
]  # fmt: skip
SIZES = [0, 1, 2, 3, 4, -1, True, False, None, "1", 1.0, [1], 2**31, 2**62]
ANYTHING = st.sampled_from([None, True, 5, 1.5, "", "x", [], [1], {}, {"a": 1}])


def bits(array: Array) -> Any:
    contents = array.tolist() if array.dtype.kind == "O" else array.tobytes()
    return array.dtype, array.shape, contents, array.flags.writeable


def told(request: InferRequest) -> Any:
    inputs = [(t.name, t.shape, t.datatype, t.parameters, t.binary_data, bits(t.as_numpy())) for t in request.inputs]
    fields = request.id, request.model_name, request.model_version, request.parameters, request.request_outputs
    return fields, inputs


def outcome(read: Any, document: Any) -> Any:
    try:
        return told(read(document))
    except InvalidInput as error:
        return str(error)


def read_shorter(text: bytes) -> InferRequest:
    """As the front end reads a body of nothing but JSON that begins like no other."""
    request = plain.read_request(text)
    return v2.decode_request(text, "m", "3") if request is None else v2.request_of(request, "m", "3")


def read_as_before(text: bytes) -> InferRequest:
    """As the front end reads it, which remembers what requests begin with."""
    request = beginnings.read_request(text)
    return v2.decode_request(text, "m", "3") if request is None else v2.request_of(request, "m", "3")


def text_ways(text: bytes) -> Any:
    """What becomes of a text either way, and of one that is too long to be read into Python objects."""
    padded = text + b" " * plain.FEW_BYTES
    assert outcome(read_shorter, padded) == outcome(read_strictly, padded)
    shorter = outcome(read_shorter, text)
    assert shorter == outcome(read_strictly, text)
    for _ in range(2):  # of which the second knows the beginning
        assert shorter == outcome(read_as_before, text)
    return shorter


def read_strictly(text: bytes) -> InferRequest:
    return InferRequest("m", **wire.read_request(parse_object(text), None), model_version="3")


def both_ways(document: dict[str, Any]) -> Any:
    return text_ways(orjson.dumps(document))


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    datatype = draw(st.sampled_from(DATATYPES))
    array = draw(arrays(datatype, json=True))
    flat = draw(st.booleans()) or not array.ndim
    values = array.astype(np.float64) if datatype in ("FP16", "BF16") else array
    data = (values.ravel() if flat else values).tolist()
    if datatype == "BYTES":
        data = _text(data)
    return {"name": draw(st.sampled_from("xyz")), "shape": list(array.shape), "datatype": datatype, "data": data}


def _text(value: Any) -> Any:
    return [_text(item) for item in value] if isinstance(value, list) else value.decode()


def documents() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"inputs": st.lists(entries(), min_size=1, max_size=3)}, optional={"id": st.text(max_size=3)}
    )


def spoil(draw: st.DrawFn, document: dict[str, Any]) -> None:
    """Change something in it."""
    inputs = document.get("inputs")
    entry = draw(st.sampled_from(inputs)) if isinstance(inputs, list) and inputs else document
    what = draw(st.sampled_from(["element", "size", "rank", "field", "top", "gone", "extra", "datatype"]))
    if not isinstance(entry, dict):
        return
    if what == "element" and isinstance(entry.get("data"), list) and entry["data"]:
        entry["data"][draw(st.integers(0, len(entry["data"]) - 1))] = draw(st.sampled_from(NUMBERS))
    elif what == "size" and isinstance(entry.get("shape"), list):
        entry["shape"].insert(0, draw(st.sampled_from(SIZES)))
    elif what == "rank" and isinstance(entry.get("shape"), list):
        entry["shape"] += [1] * draw(st.sampled_from([1, 31, 32, 33]))
    elif what == "field":
        entry[draw(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]))] = draw(ANYTHING)
    elif what == "top":
        document[draw(st.sampled_from(["id", "inputs", "outputs", "parameters", "other"]))] = draw(ANYTHING)
    elif what == "gone" and entry:
        del entry[draw(st.sampled_from(sorted(entry)))]
    elif what == "extra":
        entry["extra"] = draw(ANYTHING)
    else:
        entry["datatype"] = draw(st.sampled_from([*DATATYPES, "fp32", "Int8", "FLOAT", ""]))


@untimed
@given(st.data())
def test_any_request_is_taken_or_refused_as_by_the_strict_way(data: st.DataObject) -> None:
    document = data.draw(documents())
    for _ in range(data.draw(st.integers(0, 3))):
        spoil(data.draw, document)
    both_ways(document)


@each("datatype", [*DATATYPES, "fp32", "FLOAT"])
@each("element", NUMBERS)
def test_an_element_is_taken_or_refused_as_by_the_strict_way(datatype: str, element: Any) -> None:
    # With Python objects, few and more, without, and with more threads than one.
    for count in (1, 2 * plain.FEW, plain.FEW_BYTES, 5000):
        data = [element, *[1] * count]
        both_ways({"inputs": [{"name": "x", "shape": [len(data)], "datatype": datatype, "data": data}]})


@each(
    "shape, data, words",
    [
        ([], [1], None),
        ([], [], "expected 1 elements"),
        ([1] * 32, [1], None),
        ([1] * 33, [1], "33 dimensions"),
        ([0], [], None),
        ([0, 2**62], [], "too large"),
        ([True], [1], "shape holds true"),
        ([-1], [1], "shape holds -1"),
        ([-1, -1], [1], "shape holds -1"),
        ([2, 2], [[1, 2], [3]], "not nested as shape"),
        ([2, 2], [[1, 2], [3, 4]], None),
        (1, [1], "shape is a number"),
        ([1], 1, "data is a number"),
    ],
)
def test_a_shape_is_taken_or_refused_as_by_the_strict_way(shape: Any, data: Any, words: str | None) -> None:
    got = both_ways({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]})
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
        got = text_ways(f'{{"inputs":[{{{"},{".join(entries)}}}]}}'.encode())
        assert isinstance(got, str) == (value != "1")


def test_very_many_sizes_are_refused_before_they_are_multiplied() -> None:
    """Which would take longer than this test suite has patience for."""
    entry = {"name": "x", "shape": [2**62] * 1_000_000, "datatype": "FP32", "data": [1]}
    assert "1000000 dimensions" in outcome(read_shorter, orjson.dumps({"inputs": [entry]}))


def test_names_are_unique() -> None:
    entry = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    assert "the name 'x' is there twice" in both_ways({"inputs": [entry, entry]})


PLAIN = b'{"id":"1","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2.5]}]}'


def test_a_plain_request_does_go_the_shorter_way() -> None:
    pytest.importorskip("simdjson")
    for text in (PLAIN, PLAIN + b" " * plain.FEW_BYTES):
        request_id, [(name, datatype, array)] = plain.read_request(text) or (None, [])
        assert (request_id, name, datatype, array.tolist()) == ("1", "x", "FP32", [[1, 2.5]])
        assert plain.read_request(text.replace(b'"id"', b'"outputs"')) is None


ODD = [
    PLAIN + b" \n",
    PLAIN + b"\x00",
    PLAIN + b"x",
    PLAIN + PLAIN,
    b" " + PLAIN,
    b"\xef\xbb\xbf" + PLAIN,
    PLAIN[:-1],
    b"",
    b"{",
    b"{}",
    b"[]",
    PLAIN.replace(b'"1"', b'"2","id":"1"'),
    PLAIN.replace(b'"1"', b"null"),
    PLAIN.replace(b'"1"', b"1"),
    PLAIN.replace(b'"1"', b'"\xff"'),
    PLAIN.replace(b'"1"', b'"\\ud800"'),
    PLAIN.replace(b'"1"', b'"\\udc00"'),
    PLAIN.replace(b'"1"', b'"\\ud83d\\ude00"'),
    PLAIN.replace(b'"1"', b'"\\u0000"'),
    PLAIN.replace(b'"1"', b'"\x01"'),
    PLAIN.replace(b'"1"', b'"["'),
    PLAIN.replace(b'"x"', b'"]["'),
    PLAIN.replace(b'"id"', b'"inputs"'),
    PLAIN.replace(b'"id":"1",', b""),
    PLAIN.replace(b"inputs", b"\\u0069nputs"),
    PLAIN.replace(b'"name":"x"', b'"name":"x","name":"y"'),
    PLAIN.replace(b'"data":', b'"data":[3,4],"data":'),
    PLAIN.replace(b'"name":"x"', b'"data":[1,2]'),
    PLAIN.replace(b'"FP32"', b'["FP32"]'),
    PLAIN.replace(b'"FP32"', b'{"a":1}'),
    PLAIN.replace(b"[1,2]", b"[[1,2]]"),
    PLAIN.replace(b"[1,2]", b"[[1],2]"),
    PLAIN.replace(b"[1,2]", b"2"),
    PLAIN.replace(b"[1,2]", b"{}"),
    PLAIN.replace(b"[1,2]", b"[2.0]"),
    PLAIN.replace(b"[1,2]", b"[2e0]"),
    PLAIN.replace(b"[1,2]", b"[-0,2]"),
    PLAIN.replace(b"[1,2]", b"[02]"),
    PLAIN.replace(b"[1,2.5]", b"[[1,2.5]]"),
    PLAIN.replace(b"[1,2.5]", b"[[1],[2.5]]"),
    PLAIN.replace(b"[1,2.5]", b"[1,{}]"),
    PLAIN.replace(b"[1,2.5]", b"[1,2.5,]"),
    PLAIN.replace(b"[1,2.5]", b"{}"),
    PLAIN.replace(b"[1,2.5]", b"[" * 2000 + b"]" * 2000),
    PLAIN.replace(b"x", b"\xff"),
    PLAIN.replace(b"x", b"\\ud800"),
]


@each("text", ODD)
def test_odd_text_is_taken_or_refused_as_by_the_strict_way(text: bytes) -> None:
    text_ways(text)


@each("datatype", DATATYPES)
@each(
    "number",
    [
        "-0",
        "-0.0",
        "1e5",
        "1E+5",
        "1e400",
        "1e-400",
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "NaN",
        "Infinity",
        "0x1",
        "1_0",
        "1 2",
        "",
        "18446744073709551616",
        "-9223372036854775809",
        "9007199254740993",
        "0.1e1",
        "123456789012345678901234567890",
        "1e22",
        "5e-324",
        "2.2250738585072011e-308",
        "3.4028235677973366e38",
        "3.4028235677973365e38",
        "1.401298464324817e-45",
        "7e-46",
    ],
)
def test_a_number_is_taken_or_refused_as_by_the_strict_way(datatype: str, number: str) -> None:
    text_ways(PLAIN.replace(b"2.5", number.encode()).replace(b"FP32", datatype.encode()))


@untimed
@given(st.data())
def test_any_changed_text_is_taken_or_refused_as_by_the_strict_way(data: st.DataObject) -> None:
    text = bytearray(data.draw(st.sampled_from([PLAIN, orjson.dumps(data.draw(documents()))])))
    pieces = st.sampled_from(
        [b"[", b"]", b"{", b"}", b",", b'"', b"1", b"-", b".", b"e", b"0", b" ", b"\\", b"\x00", b"\xff", b"null"]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        text[start : start + data.draw(st.integers(0, 2))] = data.draw(pieces)
    text_ways(bytes(text))


LAYOUTS = {
    "as it is": lambda array: array,
    "column-major": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "reversed": lambda array: array[::-1] if array.ndim else array,
    "transposed": lambda array: array.T,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")) if array.dtype.kind in "iuf" else array,
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "nested": lambda array: array.tolist() if array.ndim and array.dtype.kind in "biu" else array,
}
PARAMETERS = st.sampled_from([None, {}, {"a": 1}, {"b": float("nan")}])


@st.composite
def outputs(draw: st.DrawFn, name: str) -> InferOutput:
    datatype = draw(st.sampled_from(DATATYPES))
    array = draw(arrays(datatype, json=draw(st.booleans())))
    shape = array.T.shape if (layout := draw(st.sampled_from(sorted(LAYOUTS)))) == "transposed" else array.shape
    wrong = draw(st.booleans()) and draw(st.booleans()) and draw(st.booleans())
    return InferOutput(name, [*shape, 7] if wrong else shape, datatype, LAYOUTS[layout](array), draw(PARAMETERS))


REQUESTS = [
    InferRequest("m", []),
    InferRequest("m", [], parameters={"binary_data_output": True}),
    InferRequest("m", [], request_outputs=[RequestedOutput("a", {"binary_data": True}), RequestedOutput("b")]),
]


def written(encode: Any) -> Any:
    try:
        answer = encode()
    except MPServeError as error:
        return type(error), str(error)
    return answer.join(), answer.json_length


@untimed
@given(st.data())
def test_any_response_is_written_or_refused_as_by_the_strict_way(data: st.DataObject) -> None:
    given_outputs = [data.draw(outputs(name)) for name in data.draw(st.sampled_from(["", "a", "a", "ab"]))]
    texts = st.sampled_from([None, "1", "null", "é"])
    response = InferResponse(
        data.draw(texts), data.draw(texts), given_outputs, data.draw(texts), parameters=data.draw(PARAMETERS)
    )  # type: ignore[arg-type]
    request, nonfinite = data.draw(st.sampled_from(REQUESTS)), data.draw(st.sampled_from(["error", "null"]))
    tensors = [(output, request.wants_binary(output.name)) for output in given_outputs]
    strict = written(lambda: wire.write(response.head(), "outputs", tensors, nonfinite))  # type: ignore[arg-type]
    assert written(lambda: v2.encode_answer(response, request, nonfinite)) == strict  # type: ignore[arg-type]


@each("count", [3, 3000])
@each("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_what_is_not_finite_is_refused_or_null(count: int, datatype: str) -> None:
    array = np.ones(count, np.float32)
    array[1], array[2] = np.nan, -np.inf
    made = InferOutput("y", [count], "FP32", array)
    made.datatype = datatype
    response = InferResponse(None, "m", [made])
    assert "holds NaN or infinity" in written(lambda: v2.encode_answer(response, REQUESTS[0]))[1]
    answer = orjson.loads(v2.encode_answer(response, REQUESTS[0], "null").join())
    assert answer["outputs"][0]["data"][:3] == [1.0, None, None]


def test_a_column_of_a_table_is_written() -> None:
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    response = InferResponse(None, "m", [InferOutput("y", [3], "FP32", table[:, 1])])
    assert orjson.loads(v2.encode_answer(response, REQUESTS[0]).join())["outputs"][0]["data"] == [1, 3, 5]


NAMES = ["y", "n", "null", '"data":[', '"data":[n', "data\\", "é"]


@each("at", [0, 2500, 4999])
@each("model_name", NAMES)
@each("name", NAMES)
def test_in_a_long_answer_no_name_hides_what_is_not_finite_nor_is_taken_for_it(
    name: str, model_name: str, at: int
) -> None:
    finite, spoilt = np.ones(5000), np.ones(5000)
    spoilt[at] = np.nan
    good, bad, other = (
        InferOutput(f"{name}{suffix}", [5000], "FP64", array)
        for suffix, array in (("", finite), ("", spoilt), ("2", finite))
    )
    for outputs in ([bad], [bad, other], [other, bad]):
        response = InferResponse(None, model_name, outputs)
        assert "holds NaN or infinity" in written(lambda response=response: v2.encode_answer(response, REQUESTS[0]))[1]
    for outputs in ([good], [good, other]):
        response = InferResponse("null", model_name, outputs)
        answer = orjson.loads(v2.encode_answer(response, REQUESTS[0]).join())
        assert [output["data"] for output in answer["outputs"]] == [finite.tolist()] * len(outputs)


@each(
    "text",
    [
        b'{"instances":[[1,2.5],[3,4]]}',
        b'{"instances": [1] }',
        b'{"instances":[]}',
        b'{"instances":null}',
        b'{"instances":"a"}',
        b'{"instances":{"a":[1]}}',
        b'{"instances":[{"a":1}]}',
        b'{"instances":[1],"instances":[2]}',
        b'{"instances":[1],"a":2}',
        b'{"instances":[1]}}',
        b'{"instances":[1]',
        b'{"instances":[1]]}',
        b'{"instances":}',
        b'{"instances":',
        b'{"instances":}"}',
        b'{"instances":[1]}x',
        b'{"instances":[NaN]}',
        b'{"instances":["\xff"]}',
        b'{"instances":[1]},"b":{}}',
        b'{"instances":1,"a":{}}',
    ],
)
def test_short_instances_are_those_of_the_whole_document_or_left_alone(text: bytes) -> None:
    read = plain.read_few_instances(text)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        assert read is None
    else:
        assert read == (document["instances"] if len(document) == 1 and text.count(b"instances") == 1 else None)


@each(
    "rows",
    [
        "[1.5,-0.5]", "[[1.5,-0.5]]", "[[1.5],[-0.5]]", "[[0.1,1.5e300],[-0.0,2.5]]", "[1.5]", "[[1.5]]", "[1.0,2.0,3.25]",
    ],
)  # fmt: skip
@each("datatype", ["FP64", "FP32"])
def test_floats_in_rows_become_the_array_that_numpy_makes_of_them_or_are_left_alone(rows: str, datatype: str) -> None:
    wanted = np.array(orjson.loads(rows))
    array = plain.floats(orjson.loads(rows), rows.count("."), datatype)
    if datatype == "FP32" and "e300" in rows:
        assert array is None
    else:
        assert array is not None
        assert bits(array) == bits(wanted.astype(plain.KINDS[datatype][1]))


@each(
    "rows",
    [
        "[]", "[[]]", "[[],[1.5]]", "[1,2]", "[1.5,2]", "[[1.5,2]]", "[[1.5,true]]", "[[1.5,null]]", "[[1.5],[1.5,2.5]]",
        "[[1.5,2.5],[1.5]]", "[[[1.5,2.5]]]", "[[[1.5]]]", "[1.5,[2.5]]", "[[1.5],2.5]", "[[1.5],[2]]", "[[1.5,2.5],[3,true]]",
        '["1.5"]', '[["1.5"]]', '["."]',
        '".."', '"."', '[[1.5,"."]]', '[{"x":1.5}]', '{"x":1.5}', "1.5", "null", "[1e5]", "[[1.5,1e5]]", '["a.b",1]',
    ],
)  # fmt: skip
def test_what_is_not_floats_in_rows_of_one_length_is_left_alone(rows: str) -> None:
    assert plain.floats(orjson.loads(rows), rows.count("."), "FP64") is None
    assert plain.floats([[1.5, 2.5]], 2, "INT32") is None
