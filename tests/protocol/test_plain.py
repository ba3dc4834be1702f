"""Plain answers go a shorter way, and so do plain instances of V1, and nobody can tell. For V2's requests: test_beginnings."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpserve.errors import MPServeError
from mpserve.protocol import plain, v2, wire
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse, RequestedOutput
from tests.arrays import arrays, bits, same
from tests.cases import each

untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

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


INSTANCES = [
    b'{"instances":[[1,2.5],[3,4]]}', b'{"instances": [1] }', b'{"instances":[]}', b'{"instances":null}',
    b'{"instances":"a"}', b'{"instances":{"a":[1]}}', b'{"instances":[{"a":1}]}',
    b'{"instances":[1],"instances":[2]}', b'{"instances":[1],"a":2}', b'{"instances":[1]}}', b'{"instances":[1]',
    b'{"instances":[1]]}', b'{"instances":}', b'{"instances":', b'{"instances":}"}', b'{"instances":[1]}x',
    b'{"instances":[NaN]}', b'{"instances":["\xff"]}', b'{"instances":[1]},"b":{}}', b'{"instances":1,"a":{}}',
    b'{"instances":[1,true]}', b'{"instances":[[1,2],[3]]}', b'{"instances":[[[1,2]],[[3,4]]]}', b'{"instances":[[],[]]}',
    b'{"instances":[-1,18446744073709551615]}', b'{"instances":[9223372036854775808]}', b'{"instances":[1e300]}',
    b'{"instances":[9007199254740993,1.5]}', b'{"instances":[1,-2]}', b'{"instances":[1,"2"]}', b'{"inst\\u0061nces":[1]}',
]  # fmt: skip


@each("text", INSTANCES)
def test_short_instances_are_those_of_the_whole_document_or_left_alone(text: bytes) -> None:
    read = plain.read_few_instances(text)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        assert read is None
    else:
        assert read == (document["instances"] if len(document) == 1 and text.count(b"instances") == 1 else None)


def by_numpy(text: bytes, kind: str) -> Any:
    """The array that numpy makes of instances that are nothing but numbers; None where there is none."""
    try:
        document = orjson.loads(text)
        array = np.array(document["instances"], {"d": np.float64, "i": np.int64, "u": np.uint64}.get(kind))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    leaves = set(map(type, np.array(document["instances"], object).ravel().tolist()))
    alone = len(document) == 1 and text.count(b'"') == 2
    return array if alone and leaves <= ({int, float} if kind in ("d", "any") else {int}) else None


def read_alike(text: bytes) -> None:
    for kind in ("d", "i", "u", "any"):
        array = plain.read_instances(text, kind)  # type: ignore[arg-type]
        assert array is None or same(array, by_numpy(text, kind))


@each("text", INSTANCES)
def test_long_instances_are_those_that_numpy_makes_or_left_alone(text: bytes) -> None:
    read_alike(text)


def test_plain_instances_are_taken_by_the_fast_reader() -> None:
    pytest.importorskip("simdjson")
    array = plain.read_instances(b'{"instances":[[1,2.5],[3,4]]}', "d")
    assert array is not None
    assert array.tolist() == [[1, 2.5], [3, 4]]


LEAVES = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-3, 3)
    | st.booleans()
)
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner).map(list), max_leaves=12
)


@untimed
@given(st.lists(NESTED, max_size=4))
def test_any_long_instances_are_those_that_numpy_makes_or_left_alone(instances: Any) -> None:
    read_alike(orjson.dumps({"instances": instances}))


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
