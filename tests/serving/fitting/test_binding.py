"""What ``predict`` gets: by name, as text or bytes, as a table, with missing values; the same from every front end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.binary import encode_tensor
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.inference.answered import answered
from mpserve.serving.models.tensor_model import FunctionModel, TensorModel
from mpserve.serving.repository.loader import from_target
from tests.asgi import loaded
from tests.cases import each
from tests.formats import BINARY, JSON, PLAIN, Format

FORMATS = {format.name: format for format in PLAIN}
EVENT = {
    "content-type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-source": "here", "ce-type": "ask",
}  # fmt: skip
Values = Mapping[str, list[Any]]
Sent = tuple[Format, dict[str, str], bytes]
FIELDS = {"BYTES": "bytes_contents", "FP64": "fp64_contents", "INT64": "int64_contents", "BOOL": "bool_contents"}


def datatype(values: list[Any]) -> str:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds & {str, bytes}:
        return "BYTES"
    return "BOOL" if kinds == {bool} else "INT64" if kinds == {int} else "FP64"


def array(values: list[Any]) -> Any:
    if datatype(values) == "BYTES":
        return np.array([value.encode() if isinstance(value, str) else value for value in values], object)
    return np.array([np.nan if value is None else value for value in values])


def v1(columns: Values) -> Sent:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return FORMATS["V1"], JSON, json.dumps({"instances": rows}).encode()


def event(columns: Values) -> Sent:
    return FORMATS["V1"], EVENT, v1(columns)[2]


def v2(columns: Values) -> Sent:
    return FORMATS["V2"], JSON, json.dumps({"inputs": [
        {"name": name, "datatype": datatype(values), "shape": [len(values)], "data": values} for name, values in columns.items()
    ]}).encode()  # fmt: skip


def pd_codec(columns: Values) -> Sent:
    """As MLServer's PandasCodec sends a table: each column [n, 1], and content types that say what they are."""
    inputs = [
        {"name": name, "datatype": datatype(values), "shape": [len(values), 1], "data": values}
        | ({"parameters": {"content_type": "str"}} if datatype(values) == "BYTES" else {})
        for name, values in columns.items()
    ]
    return FORMATS["V2"], JSON, json.dumps({"parameters": {"content_type": "pd"}, "inputs": inputs}).encode()


def binary(columns: Values) -> Sent:
    parts = [bytes(encode_tensor(array(values), datatype(values))) for values in columns.values()]
    head = json.dumps({"inputs": [
        {"name": name, "datatype": datatype(values), "shape": [len(values)],
         "parameters": {"binary_data_size": len(part)}}
        for (name, values), part in zip(columns.items(), parts, strict=True)
    ]}).encode()  # fmt: skip
    return FORMATS["binary"], {BINARY: str(len(head))}, head + b"".join(parts)


def generate(columns: Values) -> Sent:
    return FORMATS["generate"], JSON, json.dumps(columns).encode()


def grpc(raw: bool) -> Callable[[Values], Sent]:
    def write(columns: Values) -> Sent:
        message = pb.ModelInferRequest(model_name="m")
        for name, values in columns.items():
            tensor = message.inputs.add(name=name, datatype=datatype(values), shape=[len(values)])
            if raw:
                message.raw_input_contents.append(bytes(encode_tensor(array(values), datatype(values))))
            else:
                getattr(tensor.contents, FIELDS[datatype(values)]).extend(array(values).tolist())
        return FORMATS["gRPC raw"], {}, message.SerializeToString()

    return write


JSON_WAYS: dict[str, Callable[[Values], Sent]] = {
    "V1": v1, "CloudEvent": event, "V2": v2, "V2 pd": pd_codec, "generate": generate
}  # fmt: skip
WAYS = {**JSON_WAYS, "binary": binary, "gRPC raw": grpc(True), "gRPC typed": grpc(False)}


class Sentinel:
    """What a function pair has loaded: a library that takes NaN, and knows its columns, or not."""

    def __init__(self, allow_nan: bool = False, names: tuple[str, ...] = ()) -> None:
        self.input_tags, self.allow_nan = self, allow_nan
        if names:
            self.feature_names_in_ = np.array(names, object)

    def __sklearn_tags__(self) -> Sentinel:
        return self


def got(predict: Callable[..., Any], *sent: Sent, load: Any = None, **attributes: Any) -> list[Any]:
    """The outcome of each request to a model with this function, one after the other: True, or the refusal."""
    model = FunctionModel("m", predict, load)
    for name, value in attributes.items():
        setattr(model, name, value)

    async def ask() -> list[Any]:
        outcomes: list[Any] = []
        async with loaded(model) as core:
            for format, headers, body in sent:
                try:
                    await asyncio.wait_for(answered(core, format.head(headers, "m"), body), 60)
                    outcomes.append(True)
                except InvalidInput as error:
                    outcomes.append(str(error))
        return outcomes

    return asyncio.run(ask())


def noting(arguments: list[Any]) -> Callable[..., Any]:
    """For the functions below: notes the arguments, and answers."""

    def note(**given: Any) -> Any:
        arguments.append(given)
        return np.zeros(1)

    return note


def plain(value: Any) -> Any:
    """Values that compare, with NaN as None."""
    listed = value.tolist() if hasattr(value, "tolist") else value
    return [None if each != each else each for each in (np.ravel(np.array(listed, object)).tolist())]


# Text


def test_text_is_str_and_bytes_are_what_the_model_declares() -> None:
    seen: list[Any] = []
    note = noting(seen)
    text = {"x": ["Zürich", "a\0"]}
    wants_bytes: Callable[..., Any] = lambda x: note(x=x)  # noqa: E731
    wants_bytes.__annotations__ = {"x": "bytes"}
    models: list[tuple[Callable[..., Any], dict[str, Any], Any]] = [
        (lambda x: note(x=x), {}, text["x"]),
        (lambda *arrays: note(x=arrays[0]), {}, text["x"]),
        (lambda x: note(x=x), {"inputs": (Tensor("x", "BYTES", (-1,), content_type="str"),)}, text["x"]),
        (lambda x: note(x=x), {"inputs": (Tensor("x", "BYTES", (-1,)),)}, ["Zürich".encode(), b"a\0"]),
        (wants_bytes, {}, ["Zürich".encode(), b"a\0"]),
    ]
    ways = {name: way for name, way in WAYS.items() if name != "V2 pd"}
    for predict, attributes, expected in models:
        seen.clear()
        assert got(predict, *(way(text) for way in ways.values()), **attributes) == [True] * len(ways)
        for name, given in zip(ways, seen, strict=True):
            assert given["x"].dtype == object, name
            assert given["x"].tolist() == expected, name


def test_bytes_that_are_not_text_are_refused_unless_the_model_wants_bytes() -> None:
    def text(x: Any) -> Any:
        return np.zeros(1)

    def image(x: bytes) -> Any:
        assert x.tolist() == [b"\xff\xd8"]  # type: ignore[attr-defined]
        return np.zeros(1)

    base64: Sent = (FORMATS["V1"], JSON, b'{"instances":[{"b64":"/9g="}]}')
    sent = [way({"x": [b"\xff\xd8"]}) for way in (binary, grpc(True), grpc(False))] + [base64]
    assert got(image, *sent) == [True] * 4
    for refusal in got(text, *sent):
        assert "not UTF-8" in refusal
        assert "bytes" in refusal


# Names


def width_height(width: Any, height: Any) -> Any:
    assert (width[0], height[0]) == (10, 1)
    return width - 2 * height


def defaults(width: Any, height: Any = None, depth: Any = None) -> Any:
    assert width[0] == 10
    assert height is None or height[0] == 1
    assert depth is None or depth[0] == 3
    return width


def by_keyword(*, height: Any, width: Any) -> Any:
    return width_height(width, height)


def others(width: Any, **columns: Any) -> Any:
    assert {name: column[0] for name, column in columns.items()} in ({}, {"height": 1}, {"height": 1, "depth": 3})
    return width


def everything(**columns: Any) -> Any:
    assert columns
    return np.zeros(1)


def rest(width: Any, *arrays: Any) -> Any:
    assert [width[0], *(each[0] for each in arrays)] in ([10], [10, 1], [10, 1, 3])
    return width


W, H, D = {"width": [10]}, {"height": [1]}, {"depth": [3]}
FITS: list[tuple[Callable[..., Any], list[Any]]] = [
    (width_height, [W | H, H | W, {"input-0": [10], "input-1": [1]}]),
    (defaults, [W, W | H, W | D, D | W | H, {"a": [10]}, {"x1": [10], "x2": [1]}]),
    (by_keyword, [W | H, H | W]),
    (others, [W, H | W, D | H | W, {"a": [10]}]),
    (everything, [W, H | D, {"a": [1]}]),
    (rest, [W, W | H, W | H | D, H | W, {"a": [10], "b": [1], "c": [3]}]),
]
MISFITS: list[tuple[Callable[..., Any], Any, str]] = [
    (width_height, W, "missing input 'height'; expected 'width', 'height'"),
    (width_height, W | H | D, "unexpected input 'depth'; expected 'width', 'height'"),
    (width_height, W | {"foo": [1]}, "missing input 'height'"),
    (width_height, {"a": [1], "b": [1]}, "got 2 inputs, 'a', 'b'; expected 'width', 'height'"),
    (width_height, {"x1": [1], "x0": [1]}, "got 2 inputs, 'x1', 'x0'; expected 'width', 'height'"),
    (width_height, {"x0": [1], "y1": [1]}, "got 2 inputs"),
    (width_height, {"a": [1]}, "got 1 input, 'a'; expected 'width', 'height'"),
    (width_height, {"a": [1], "b": [1], "c": [1]}, "got 3 inputs, 'a', 'b', 'c'; expected 'width', 'height'"),
    (defaults, H, "missing input 'width'; expected 'width', 'height' (optional), 'depth' (optional)"),
    (by_keyword, {"a": [1], "b": [1]}, "expected 'height', 'width'"),
    (others, H | {"a": [1]}, "expected 'width', any others"),
]


@each("way", WAYS)
def test_inputs_are_bound_by_name_and_by_position_only_where_no_name_is_known(way: str) -> None:
    for predict, fitting in FITS:
        assert got(predict, *map(WAYS[way], fitting)) == [True] * len(fitting), predict.__name__
    for predict, columns, says in MISFITS:
        [refusal] = got(predict, WAYS[way](columns))
        assert says in str(refusal), (predict.__name__, refusal)


def test_a_class_binds_by_name_and_in_batches() -> None:
    class Named(TensorModel):
        name = "m"
        max_batch_size = 8

        def predict(self, width: Any, *, height: Any) -> Any:  # type: ignore[override]
            return width - 2 * height

    async def ask() -> None:
        async with loaded(Named()) as core:

            async def one(number: int) -> Any:
                format, headers, body = v2({"height": [number], "width": [3 * number]})
                return (await answered(core, format.head(headers, "m"), body))[1].body  # type: ignore[union-attr]

            for number, answer in enumerate(await asyncio.gather(*map(one, range(20)))):
                assert json.loads(answer)["outputs"][0]["data"] == [number]

    asyncio.run(ask())


def test_objects_of_v1_have_the_same_names() -> None:
    sent = [
        rows([{"width": 10, "height": 1}, {"width": 10, "hight": 1}]),
        rows([{"width": 10, "height": 1, "depth": 1}]),
    ]
    missing, unexpected = got(width_height, *sent)
    assert "to be an object with 'width', 'height', 'hight'" in missing
    assert "unexpected input 'depth'; expected 'width', 'height'" in unexpected
    declared = (Tensor("width", "INT64", (-1,)), Tensor("height", "INT64", (-1,)))
    for refusal in got(width_height, *sent, inputs=declared):
        assert "expected" in refusal
        assert "'width', 'height'" in refusal


# Declarations


def test_a_module_with_functions_declares_its_tensors(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(
        "from mpserve import Tensor\n"
        "inputs = [Tensor('b', 'BYTES', (-1,), content_type='str'), Tensor('a', 'FP64', (-1,))]\n"
        "outputs = ['not ours']\n"
        "def predict(a, b): ...\n"
    )
    [source] = from_target(f"{tmp_path}/pair.py", None)
    model = source.obtain()
    assert model.get_input_types() == [
        {"name": "b", "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "str"}},
        {"name": "a", "datatype": "FP64", "shape": [-1]},
    ]
    assert model.get_output_types() == []


@each("tensor, says", [
    (Tensor("x", "FP64", (-1,), content_type="str"), "content_type 'str', expected 'str' for BYTES"),
    (Tensor("x", "BYTES", (-1,), content_type="utf8"), "content_type 'utf8', expected 'str' for BYTES"),
])  # fmt: skip
def test_a_content_type_that_is_not_known_is_refused_at_load(tensor: Tensor, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        got(width_height, inputs=(tensor,))


# Tables

TABLE: dict[str, list[Any]] = {"age": [50, 7], "city": ["Paris", "Rome"], "income": [1.5, -2.0]}
GAPS: dict[str, list[Any]] = {"age": [50, None], "city": [None, "Rome"], "income": [None, -2.0]}
COLUMNS = (
    Tensor("city", "BYTES", (-1,), content_type="str"),
    Tensor("age", "INT64", (-1, 1)),
    Tensor("income", "FP64", (-1,)),
)


@each("way", WAYS)
@each("library", ["pandas", "polars"])
@each("declared", [(), COLUMNS])
def test_a_table_has_the_columns_in_order_from_every_front_end(way: str, library: str, declared: Any) -> None:
    frames: list[Any] = []

    def of_pandas(table: pandas.DataFrame) -> Any:
        frames.append(table)
        return np.zeros(1)

    def of_polars(table: pl.DataFrame) -> Any:  # type: ignore[name-defined]  # noqa: F821 (as with an import for type checkers)
        frames.append(table)
        return np.zeros(1)

    predict = of_pandas if library == "pandas" else of_polars
    if declared and way == "generate":
        return  # a flat list is one row of a declared [-1, 1]
    columns = [TABLE] + ([GAPS] if way in JSON_WAYS else [])
    assert got(predict, *map(WAYS[way], columns), inputs=declared) == [True] * len(columns)
    order = [tensor.name for tensor in declared] or list(TABLE)
    for frame, sent in zip(frames, columns, strict=True):
        assert isinstance(frame, pandas.DataFrame if library == "pandas" else polars.DataFrame)
        assert list(frame.columns) == order
        assert {name: plain(frame[name]) for name in order} == sent
        if sent is TABLE and library == "pandas":
            assert [np.asarray(frame[name]).dtype.kind for name in ("age", "income")] == ["i", "f"]


def rows(instances: Any) -> Sent:
    return FORMATS["V1"], JSON, json.dumps({"instances": instances}).encode()


def matrix(values: Any) -> Sent:
    tensor = {"name": "x", "datatype": "FP64", "shape": list(np.shape(values)), "data": values}
    return FORMATS["V2"], JSON, json.dumps({"inputs": [tensor]}).encode()


def test_rows_without_names_are_the_declared_columns_or_those_that_the_loaded_object_knows() -> None:
    frames: list[Any] = []

    def predict(table: pandas.DataFrame) -> Any:
        frames.append(table)
        return np.zeros(1)

    def of_loaded(model: Any, table: pandas.DataFrame) -> Any:
        return predict(table)

    mixed = rows([["Paris", 50, None], ["Rome", 7, 2.5]])
    numbers = [rows([[1.5, 2.5], [3.5, None]]), matrix([[1.5, 2.5], [3.5, None]])]
    assert got(predict, mixed, inputs=COLUMNS) == [True]
    assert got(predict, mixed, *numbers) == [True] * 3
    assert got(of_loaded, *numbers, load=lambda: Sentinel(names=("a", "b"))) == [True] * 2
    two = (Tensor("a", "FP64", (-1,)), Tensor("b", "FP64", (-1, 1)))
    assert got(predict, *numbers, inputs=two) == [True] * 2
    names = [list(frame.columns) for frame in frames]
    assert names == [["city", "age", "income"], [0, 1, 2], [0, 1], [0, 1], *[["a", "b"]] * 4]
    for frame in frames[:2]:
        assert [plain(frame[name]) for name in frame.columns] == [["Paris", "Rome"], [50, 7], [None, 2.5]]
    for frame in frames[2:]:
        assert [plain(frame[name]) for name in frame.columns] == [[1.5, 3.5], [2.5, None]]


def test_what_is_no_table_is_refused_in_words() -> None:
    def predict(table: pandas.DataFrame, threshold: Any = None) -> Any:
        return np.zeros(1)

    def uneven(a: int, b: int) -> Sent:
        tensors = [{"name": n, "datatype": "FP64", "shape": [k], "data": [1] * k} for n, k in (("a", a), ("b", b))]
        return FORMATS["V2"], JSON, json.dumps({"inputs": tensors}).encode()

    assert got(predict, uneven(2, 3), matrix([[[1]]]), v2({"threshold": [1]})) == [
        "expected columns of one length; 'a' has 2, 'b' has 3",
        "input 'x': expected a column of shape [n] or [n,1], got [1, 1, 1]",
        "there are no columns; expected 'threshold' (optional), the columns of a table",
    ]
    assert got(predict, rows([["Paris", 5]]), matrix([[1, 2]]), v2(TABLE | {"more": [1, 2]}), inputs=COLUMNS) == [
        "expected rows of 3 values ('city', 'age', 'income'), got 2",
        "input 'x': expected 3 columns ('city', 'age', 'income'), got shape [1, 2]",
        "unexpected input 'more'; expected 'city', 'age', 'income'",
    ]


def test_tables_are_joined_in_a_batch_and_a_sample_warms_up() -> None:
    calls: list[int] = []

    class Tables(TensorModel):
        name = "m"
        max_batch_size = 64
        sample = pandas.DataFrame({"city": ["Oslo"], "age": [3]})

        def predict(self, table: pandas.DataFrame) -> Any:  # type: ignore[override]
            calls.append(len(table))
            return (table["city"].str.len() + table["age"]).to_numpy()

    async def ask() -> None:
        async with loaded(Tables()) as core:
            assert calls == [1]

            async def one(number: int) -> Any:
                format, headers, body = v1({"age": [number, 0], "city": ["Paris", "Rome"]})
                return (await answered(core, format.head(headers, "m"), body))[1].body  # type: ignore[union-attr]

            for number, answer in enumerate(await asyncio.gather(*map(one, range(20)))):
                assert json.loads(answer)["predictions"] == [5 + number, 4]
            assert max(calls) > 2

    asyncio.run(ask())


# Missing values


@each("way", JSON_WAYS)
def test_null_is_a_missing_value_where_the_model_takes_it_and_else_refused(way: str) -> None:
    seen: list[Any] = []

    def predict(model: Any, x: Any, n: Any, t: Any) -> Any:
        seen.append([x, n, t])
        return np.zeros(1)

    sent = WAYS[way]({"x": [1.5, None], "n": [7, None], "t": ["a", None]})
    declared = [Tensor("x", "FP32", (-1,)), Tensor("n", "INT64", (-1,)), Tensor("t", "BYTES", (-1,), "str")]
    if way not in ("V2", "V2 pd"):  # which name FP64, and in pd's shape
        taking = [each._replace(nullable=True) for each in declared]
        assert got(predict, sent, load=Sentinel, inputs=taking) == [True]
        assert seen.pop()[0].dtype == np.float32
    assert got(predict, sent, load=lambda: Sentinel(allow_nan=True)) == [True]
    x, n, t = seen.pop()
    assert [x.dtype.kind, n.dtype.kind] == ["f", "f"]
    assert [plain(x), plain(n), plain(t)] == [[1.5, None], [7, None], ["a", None]]
    for attributes in ({}, {"inputs": declared}):
        [refusal] = got(predict, sent, load=Sentinel, **attributes)
        assert "null" in str(refusal), refusal


def test_an_integer_that_fp64_cannot_hold_is_not_rounded_beside_null() -> None:
    def predict(model: Any, n: Any) -> Any:
        return np.zeros(1)

    columns = {"n": [2**53 + 1, None]}
    for refusal in got(predict, *(way(columns) for way in (v1, v2)), load=lambda: Sentinel(allow_nan=True)):
        assert "beyond 9007199254740992" in str(refusal)


@pytest.mark.parametrize("values", [[[1.0, None]], [[None, None]]])
def test_nan_in_a_matrix(values: Any) -> None:
    def predict(model: Any, x: Any) -> Any:
        assert np.isnan(x[0, 1])
        assert x.shape == (1, 2)
        return np.zeros(1)

    assert got(predict, rows(values), matrix(values), load=lambda: Sentinel(allow_nan=True)) == [True, True]
