"""What is answered without messages, what is left to the ordinary way, and what is counted of it."""

import asyncio
from typing import Any

import numpy as np
import orjson
import pytest

from mpserve.errors import InferenceError
from mpserve.logging import model as model_in_log
from mpserve.protocol import plain
from mpserve.serving import express
from mpserve.serving.dataplane import Dataplane, InParts
from mpserve.serving.express import Reader
from mpserve.serving.tally import INFER, INPUT, OUTPUT
from mpserve.serving.tensors import Tensor, TensorModel
from mpserve.serving.visit import Visit
from tests.asgi import loaded

X = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}
N = {"name": "n", "shape": [1], "datatype": "INT8", "data": [3]}


class Scales(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)), Tensor("n", "INT8", (1,)))
    outputs = (Tensor("y", "FP32", (-1,)),)
    asked = 0
    logged_as = ""

    def predict(self, x: Any, n: Any) -> Any:
        self.asked += 1
        self.logged_as = model_in_log.get()
        return x * np.float32(n[0])


def expressed(model: TensorModel, read: Reader, document: Any, nonfinite: Any = "error") -> tuple[Any, Visit]:
    """What is answered without messages, on the model's way, and the visit; None: it is left to the ordinary way."""

    async def main() -> tuple[Any, Visit]:
        async with loaded(model) as core:
            served = core.find("m")
            visit = Dataplane(core).visit(served)
            try:
                given = read(model, orjson.dumps(document))
                if given is None:
                    return None, visit
                if served.pipeline.waits("predict"):
                    return await express.answer_async(visit, given, nonfinite), visit
                return served.context.copy().run(express.answer, visit, given, nonfinite), visit
            except InferenceError as error:
                return error, visit
            finally:
                visit.end()

    return asyncio.run(main())


def test_a_plain_request_is_answered_at_once() -> None:
    model = Scales()
    json, visit = expressed(model, express.read_v2, {"inputs": [X, N], "id": "7"})
    output = {"name": "y", "shape": [2], "datatype": "FP32", "data": [3.0, 7.5]}
    assert orjson.loads(json) == {"model_name": "m", "id": "7", "outputs": [output]}
    assert (model.asked, model.logged_as, visit.is_answered, visit.rows) == (1, "m", True, 1)
    assert min(visit.spent[part] for part in (INPUT, INFER, OUTPUT)) > 0


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"inputs": None},
        {"inputs": {}},
        {"inputs": [X]},
        {"inputs": [N, X]},
        {"inputs": [X, N, X]},
        {"inputs": [X, 5]},
        {"inputs": [X, {**N, "name": "m"}]},
        {"inputs": [X, {**N, "datatype": "INT16"}]},
        {"inputs": [X, {**N, "datatype": "int8"}]},
        {"inputs": [X, {**N, "datatype": None}]},
        {"inputs": [X, {**N, "shape": [2]}]},
        {"inputs": [X, {**N, "shape": [1, 1]}]},
        {"inputs": [X, {**N, "data": [300]}]},
        {"inputs": [X, {**N, "data": [True]}]},
        {"inputs": [X, {**N, "data": [1.0]}]},
        {"inputs": [X, {**N, "parameters": {"a": 1}}]},
        {"inputs": [X, N], "id": 7},
        {"inputs": [X, N], "outputs": [{"name": "y"}]},
        {"inputs": [X, N], "parameters": {"binary_data_output": True}},
        {"inputs": [X, N], "other": 1},
    ],
)
def test_whatever_is_not_plainly_as_declared_is_left_alone(document: Any) -> None:
    model = Scales()
    json, visit = expressed(model, express.read_v2, document)
    assert (json, model.asked, visit.is_read) == (None, 0, False)


class Rows(Scales):
    inputs = (Tensor("x", "FP32", (-1,)),)

    def predict(self, x: Any) -> Any:  # type: ignore[override]
        self.asked += 1
        return x * 2


def test_v1_is_answered_at_once_and_its_rows_are_counted() -> None:
    json, visit = expressed(Rows(), express.read_v1, {"instances": [1, 2, 3]})
    assert (json, visit.rows, visit.is_answered) == (b'{"predictions":[2.0,4.0,6.0]}', 3, True)


@pytest.mark.parametrize("count", [3, plain.FEW_BYTES], ids=["short", "long"])
@pytest.mark.parametrize("others", [{}, {"signature_name": "s"}], ids=["alone", "beside another key"])
def test_v1_of_any_length_is_answered_at_once(count: int, others: dict[str, str]) -> None:
    model = Rows()
    json, visit = expressed(model, express.read_v1, {"instances": [1.5] * count, **others})
    assert orjson.loads(json) == {"predictions": [3.0] * count}
    assert (model.asked, visit.rows, visit.is_answered, visit.is_read) == (1, count, True, True)


@pytest.mark.parametrize("rows", [[[1.5, 2]], [[1.5, 2]] * plain.FEW_BYTES], ids=["short", "long"])
def test_v1_to_a_model_that_declares_nothing_becomes_what_is_written(rows: Any) -> None:
    json, visit = expressed(Undeclared(), express.read_v1, {"instances": rows})
    assert json == orjson.dumps({"predictions": (np.array(rows) * 2).tolist()})
    assert visit.rows == len(rows)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"instances": 5},
        {"instances": None},
        {"instances": ["a"]},
        {"instances": [[1], [1, 2]]},
        {"instances": [[1]]},
        {"instances": [1e39]},
        {"instances": [{"z": 1}]},
        {"inputs": {"x": [1]}},
    ],
)
def test_v1_that_is_to_be_refused_is_left_to_the_ordinary_way(document: Any) -> None:
    model = Rows()
    json, visit = expressed(model, express.read_v1, document)
    assert (json, model.asked, visit.is_read) == (None, 0, False)


class Undeclared(Rows):
    inputs = outputs = ()  # type: ignore[assignment]


class Square(Rows):
    inputs = (Tensor("x", "FP32", (3,)),)


def test_v1_rows_are_counted_also_of_a_model_that_takes_no_batches() -> None:
    _, visit = expressed(Square(), express.read_v1, {"instances": [1, 2, 3]})
    assert visit.rows == 3


class Wrong(Rows):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def predict(self, x: Any) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.mark.parametrize("read", [express.read_v2, express.read_v1])
@pytest.mark.parametrize(
    ("result", "words"),
    [
        (ValueError("bad"), "ValueError : bad"),
        (SystemExit(3), "RuntimeError : SystemExit: 3"),
        (np.float32([[1]]), r"declared with shape \[-1\], the model gave \[1, 1\]"),
        (np.float32([np.nan]), "NaN or infinity"),
        ({"z": 1}, "the model returned outputs"),
    ],
)
def test_a_models_fault_is_told_as_such(read: Any, result: Any, words: str) -> None:
    error, _ = expressed(Wrong(result), read, {"inputs": [X]} if read is express.read_v2 else {"instances": [1]})
    assert isinstance(error, InferenceError)
    with pytest.raises(InferenceError, match=words):
        raise error


def test_what_is_not_finite_may_be_null() -> None:
    json, _ = expressed(Wrong(np.float32([np.nan, 1])), express.read_v2, {"inputs": [X]}, "null")
    assert orjson.loads(json)["outputs"][0]["data"] == [None, 1.0]
    json, _ = expressed(Wrong(np.float32([np.inf, 1])), express.read_v1, {"instances": [1]}, "null")
    assert json == b'{"predictions":[null,1.0]}'


@pytest.mark.parametrize("read", [express.read_v2, express.read_v1])
def test_an_answer_in_parts_is_handed_to_the_loop(read: Any) -> None:
    with pytest.raises(InParts) as caught:
        expressed(
            Wrong(iter([np.float32([1])])), read, {"inputs": [X]} if read is express.read_v2 else {"instances": [1]}
        )
    [part] = list(caught.value.parts)
    assert part.outputs[0].as_numpy().tolist() == [1.0]


ONE, TWO = np.float32([1]), np.int64([2])


@pytest.mark.parametrize(
    ("declared", "result", "names"),
    [
        ((), (ONE, TWO), ["output-0", "output-1"]),
        ((), {"y": ONE, "n": TWO}, ["y", "n"]),
        ((), {5: ONE}, ["5"]),
        ((), [ONE], ["output-0"]),
        ((Tensor("y", "FP32", (-1,)), Tensor("n", "INT64", (1,))), (ONE, TWO), ["y", "n"]),
        ((Tensor("y", "FP32", (-1,)), Tensor("n", "INT64", (1,))), {"n": TWO, "y": ONE}, ["y", "n"]),
        ((Tensor("y", "FP32", (-1,)), Tensor("n", "INT32", (1,))), (ONE, TWO), ["y", "n"]),
    ],
)
def test_outputs_are_named_as_declared_or_as_the_model_does(declared: Any, result: Any, names: list[str]) -> None:
    model = Wrong(result)
    model.outputs = declared
    json, _ = expressed(model, express.read_v2, {"inputs": [X]})
    assert [output["name"] for output in orjson.loads(json)["outputs"]] == names
