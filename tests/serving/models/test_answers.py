"""What a model may return, and what its client gets, in every format."""

import asyncio
import datetime
import json
from collections import namedtuple
from decimal import Decimal
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from scipy import sparse

from mpserve.errors import InferenceError
from mpserve.protocol.codec import Codec, Inputs, Outputs
from mpserve.protocol.datatypes import NonFinite
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import ProtobufCodec
from mpserve.protocol.v1.body import encode_response
from mpserve.protocol.v1.codec import V1Codec
from mpserve.protocol.v2.codec import V2Codec
from mpserve.serving.fitting.fit import fit_outputs
from mpserve.serving.models.tensor_model import FunctionModel
from tests.asgi import serving
from tests.cases import each

NAN = float("nan")
BIG = 2**53 + 1
Named = namedtuple("Named", "label score")
StringDType = getattr(np.dtypes, "StringDType", lambda: object)  # new in numpy 2
UTC = datetime.timezone.utc


def masked(values: Any) -> Any:
    return np.ma.array(values, mask=[False, True])


def one(values: Any, datatype: str) -> dict[str, Any]:
    return {"output-0": (datatype, values)}


TABLE = {"a": ("INT64", [1, 2]), "b": ("BYTES", ["x", "y"])}
GAPS = {"a": ("FP64", [1.0, None]), "b": ("BYTES", ["x", None])}
DAY = "2020-01-02"

ANSWERS: list[tuple[Any, dict[str, Any]]] = [
    (pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}), TABLE), (polars.DataFrame({"a": [1, 2], "b": ["x", "y"]}), TABLE),
    (polars.LazyFrame({"a": [1, 2], "b": ["x", "y"]}), TABLE), ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], TABLE),
    (pandas.DataFrame({"a": pandas.array([1, None], "Int64"), "b": ["x", None]}), GAPS),
    (polars.DataFrame({"a": [1, None], "b": ["x", None]}), GAPS), (Named(["x", "y"], [0.5, 1.0]), {
        "label": ("BYTES", ["x", "y"]), "score": ("FP64", [0.5, 1.0])}),
    ({0: [1.5, 2], np.int64(1): [3, 4]}, {"0": ("FP64", [1.5, 2.0]), "1": ("INT64", [3, 4])}),
    (pandas.Series([BIG, 1]), one([BIG, 1], "INT64")), (pandas.array([BIG, 1], "Int64"), one([BIG, 1], "INT64")),
    (polars.Series([BIG, 1]), one([BIG, 1], "INT64")), ([BIG, 1], one([BIG, 1], "INT64")),
    ([2**63, 1], one([2**63, 1], "UINT64")), ([1, 2.5], one([1.0, 2.5], "FP64")),
    ([[1, 2], [3, 4]], one([[1, 2], [3, 4]], "INT64")),
    ([1.5, None], one([1.5, None], "FP64")), (masked([1.5, 9]), one([1.5, None], "FP64")),
    (masked([1, 999999]), one([1.0, None], "FP64")), ([masked([1, 9]), [2, 3]], one([[1.0, None], [2.0, 3.0]], "FP64")),
    (masked(["a", "N/A"]), one(["a", None], "BYTES")), (np.ma.array([1, 2]), one([1, 2], "INT64")),
    (pandas.Series(["a", "b"], dtype="category"), one(["a", "b"], "BYTES")),
    (pandas.Categorical([3, None]), one([3.0, None], "FP64")),
    (pandas.Series(["a", NAN], dtype=object), one(["a", None], "BYTES")),
    (polars.Series(["a", "b"], dtype=polars.Categorical), one(["a", "b"], "BYTES")),
    (polars.Series([[1, 2], [3, 4]]), one([[1, 2], [3, 4]], "INT64")), (np.array(["a", "b"]), one(["a", "b"], "BYTES")),
    (np.array(["a", "b"], object), one(["a", "b"], "BYTES")), (np.array(["a", "b"], StringDType()), one(["a", "b"], "BYTES")),
    (["a\0", "b"], one(["a\0", "b"], "BYTES")), ([b"a\0", b"b"], one(["a\0", "b"], "BYTES")),
    (np.array([DAY, "NaT"], "M8[D]"), one([DAY, None], "BYTES")), ([datetime.date(2020, 1, 2)], one([DAY], "BYTES")),
    (pandas.Series(pandas.to_datetime([DAY], utc=True)), one([f"{DAY}T00:00:00+00:00"], "BYTES")),
    (polars.Series([datetime.datetime(2020, 1, 2, tzinfo=UTC), None]), one([f"{DAY}T00:00:00+00:00", None], "BYTES")),
    (sparse.csr_matrix([[1, 0], [0, 2]]), one([[1, 0], [0, 2]], "INT64")), (np.array([1, None]), one([1.0, None], "FP64")),
    (3.5, one(3.5, "FP64")), (np.float32(2), one(2.0, "FP32")), ("ab\0", one("ab\0", "BYTES")), ([], one([], "FP64")),
]  # fmt: skip


def written(codec: Codec, declared: Any, result: Any) -> bytes:
    outputs = Outputs("m", "1", None, fit_outputs(declared, result))
    return codec.write(Inputs([], state=True), outputs).body


def flat(values: Any) -> Any:
    return [each for value in values for each in flat(value)] if isinstance(values, list) else [values]


@each("result, expected", ANSWERS)
def test_an_answer_is_what_one_expects_in_v1_v2_and_grpc(result: Any, expected: dict[str, Any]) -> None:
    v1 = json.loads(written(V1Codec("null"), (), result))["predictions"]
    columns = {name: values for name, (_, values) in expected.items()}
    rows = (
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        if len(columns) > 1
        else None
    )
    assert v1 == (rows or next(iter(columns.values())))
    v2 = json.loads(written(V2Codec("null"), (), result))["outputs"]
    assert {output["name"]: (output["datatype"], output["data"]) for output in v2} == {
        name: (datatype, flat(values)) for name, (datatype, values) in expected.items()
    }
    if any(datatype == "BYTES" and None in flat(values) for datatype, values in expected.values()):
        with pytest.raises(InferenceError, match="holds a missing text"):
            written(ProtobufCodec(), (), result)
        return
    message = pb.ModelInferResponse.FromString(written(ProtobufCodec(), (), result))
    for output, (datatype, values) in zip(message.outputs, expected.values(), strict=True):
        [(_, contents)] = output.contents.ListFields() or [(None, [])]
        got = [each.decode() if datatype == "BYTES" else None if each != each else each for each in contents]
        assert (output.datatype, got) == (datatype, flat(values))


@each("codec", [V1Codec("error"), V2Codec("error")])
@each("result, expected", [case for case in ANSWERS if "None" in str(case[1])])
def test_a_missing_value_is_refused_unless_nonfinite_allows_null(codec: Codec, result: Any, expected: Any) -> None:
    with pytest.raises(InferenceError, match=r"holds NaN|holds a missing text"):
        written(codec, (), result)


Y = (Tensor("y", "INT64", (-1,)),)
AB = (Tensor("b", "BYTES", (-1,)), Tensor("a", "INT64", (-1,)))
SCORES = (Tensor("y", "FP32", (-1, 2)),)


@each("declared, result, expected", [
    (AB, ANSWERS[0][0], {"b": [b"x", b"y"], "a": [1, 2]}), (AB, ANSWERS[1][0], {"b": [b"x", b"y"], "a": [1, 2]}),
    (AB, (["x"], [1]), {"b": [b"x"], "a": [1]}), (AB, Named(["x"], [1]), {"b": [b"x"], "a": [1]}),
    (SCORES, pandas.DataFrame({"no": [0.5, 1], "yes": [0, 1]}), {"y": [[0.5, 0.0], [1.0, 1.0]]}),
    (SCORES, sparse.csr_matrix([[1, 0]]), {"y": [[1.0, 0.0]]}), (Y, pandas.DataFrame({"p": [BIG]}), {"y": [BIG]}),
    (Y, {"y": pandas.array([BIG], "Int64")}, {"y": [BIG]}), (Y, np.ma.array([1, 2]), {"y": [1, 2]}),
])  # fmt: skip
def test_a_declared_answer_is_taken_by_name_or_as_a_matrix(declared: Any, result: Any, expected: Any) -> None:
    assert {name: array.tolist() for name, _, array in fit_outputs(declared, result)} == expected


@each("declared", [(), Y])
@each("result, says", [
    (None, "the model returned None"), ({"y": None}, "output 'y': the model returned None"),
    ({"y": masked([BIG, 1])}, r"2\*\*53"), ({"y": pandas.array([BIG, None], "Int64")}, r"2\*\*53"),
    ({"y": polars.Series([BIG, None])}, r"2\*\*53"), ({"y": [BIG, 0.5]}, r"2\*\*53"), ({"y": [BIG, None]}, r"2\*\*53"),
    ({"y": [2**63, -1]}, "neither INT64 nor UINT64"), ({"y": [2**64]}, "neither INT64 nor UINT64"),
    ({"y": [1, "a"]}, "'y': elements of type int, str are no tensor"), ({"y": [[1, 2], [3]]}, "uneven lists"),
    ({"y": [[1, 2], np.zeros(3)]}, "shapes"), ({"y": pandas.array([True, None], "boolean")}, "among booleans"),
    ({"y": {1}}, "a set is no array"), ({"y": {"z": 1}}, "a dict is no array"), ({"y": object()}, "elements of type object"),
    ({"y": [Decimal(1)]}, "Decimal"), ({1: [1], "1": [2]}, "two outputs are named '1'"),
    (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "two outputs are named 'a'"), ([{"y": 1}, {"z": 1}], "element 1 .*'z'"),
])  # fmt: skip
def test_an_answer_that_is_no_tensor_is_refused_in_words(declared: Any, result: Any, says: str) -> None:
    with pytest.raises(InferenceError, match=says):
        fit_outputs(declared, result)


def test_a_declared_integer_that_is_missing_is_never_the_filler() -> None:
    with pytest.raises(InferenceError, match=r"'y' is declared INT64: .*a value is missing"):
        fit_outputs(Y, masked([1, 999999]))


@each("nonfinite", ["error", "null"])
@each("result, expected", [
    (pandas.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    (polars.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    (masked([1, 999999]), [1.0, None]), ([pandas.NA, pandas.Timestamp(DAY)], [None, f"{DAY}T00:00:00"]),
    ({np.int64(1): masked([1.5, 9])}, {"1": [1.5, None]}), ({"a": [masked([1.5, 9])]}, {"a": [[1.5, None]]}),
    (pandas.Series(["a", None], dtype="string"), ["a", None]),
])  # fmt: skip
def test_the_dict_of_an_sdk_model_may_hold_them_too(result: Any, expected: Any, nonfinite: NonFinite) -> None:
    if nonfinite == "error":
        with pytest.raises(InferenceError, match=r"NaN|missing"):
            encode_response({"predictions": result}, nonfinite)
    else:
        body, _ = encode_response({"predictions": result}, nonfinite)
        assert json.loads(body) == {"predictions": expected}


def test_a_missing_date_is_never_the_epoch() -> None:
    with pytest.raises(InferenceError, match="NaT"):
        encode_response({"predictions": np.array(["NaT"], "M8[D]")}, "null")
    assert encode_response(np.array(["1970-01-01"], "M8[D]"))[0] == b'["1970-01-01T00:00:00"]'


@each("answer", [
    lambda x: pandas.DataFrame({"y": x[:, 0], "name": [f"row {value:g}" for value in x[:, 0]]}),
    lambda x: polars.DataFrame({"y": x[:, 0], "name": [f"row {value:g}" for value in x[:, 0]]}),
    lambda x: [{"y": value, "name": f"row {value:g}"} for value in x[:, 0].tolist()],
    lambda x: {"y": np.ma.array(x[:, 0]), "name": pandas.Series([f"row {value:g}" for value in x[:, 0]], dtype="category")},
])  # fmt: skip
async def test_each_request_of_a_batch_gets_its_own_rows_of_such_an_answer(answer: Any) -> None:
    sizes = []

    def predict(x: Any) -> Any:
        sizes.append(len(x))
        return answer(x)

    async with serving(FunctionModel("m", predict, None), max_batch_size=64, max_batch_delay=0.05) as client:
        sent = [[[float(2 * index)], [float(2 * index + 1)]] for index in range(16)]
        answers = await asyncio.gather(
            *(client.post("/v1/models/m:predict", json={"instances": rows}) for rows in sent)
        )
    for rows, got in zip(sent, answers, strict=True):
        assert got.json() == {"predictions": [{"y": value, "name": f"row {value:g}"} for [value] in rows]}
    assert max(sizes) > 2
