"""Requests that are predicted together: joined, split and settled so that nobody notices but by the time it takes."""

import asyncio
from typing import Any

import numpy as np
import pandas
import polars
import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InferenceError, InvalidInput
from mpserve.protocol.messages import InferRequest, RequestedOutput
from mpserve.serving.execution.batch import joined
from mpserve.serving.execution.batcher import limits
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each, until
from tests.serving.held import MANY, InThread, in_flight, request


class Doubling(InThread):
    """Doubles; a row of -1 makes it fail."""

    inputs = outputs = ()
    max_batch_size = 8

    def answer(self, given: Any) -> Any:
        if (given == -1).any():
            raise ValueError("a row of -1")
        return given * 2


class DoublingBetween(Doubling):
    """There is a stage behind its batch."""

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result


def values(answer: Any) -> Any:
    return answer if isinstance(answer, BaseException) else answer.outputs[0].as_numpy().tolist()


async def gathered(core: ServerCore, model: Doubling, payloads: list[Any]) -> tuple[Any, list[asyncio.Task[Any]]]:
    """A first request that the model holds, and others that wait in the queue."""
    first = ask(core, "m", request([0]))
    await model.has_begun()
    rest = [ask(core, "m", payload) for payload in payloads]
    batcher = core.find("m").batcher
    assert batcher is not None
    await until(lambda: len(batcher) == len(rest))
    return first, rest


async def together(model: Doubling, *payloads: Any) -> tuple[list[Any], dict[str, Any]]:
    """What requests get that wait for a model that answers another, and the statistics of them all."""
    async with in_flight(model) as core:
        first, rest = await gathered(core, model, list(payloads))
        model.go.release(MANY)
        _, *outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
        [stats] = Statistics(core).told("m")
        return [values(outcome) for outcome in outcomes], stats


@each("gone", range(4))
@each("running", [False, True])
@each("kind", [Doubling, DoublingBetween])
async def test_a_cancelled_member_takes_nothing_from_its_neighbours(
    gone: int, running: bool, kind: type[Doubling]
) -> None:
    model = kind()
    async with in_flight(model) as core:
        first, rest = await gathered(core, model, [request([n]) for n in range(1, 5)])
        if running:
            model.begun.clear()
            model.go.release()
            await model.has_begun()
        rest[gone].cancel()
        await asyncio.sleep(0)
        model.go.release(MANY)
        await first
        answers = await asyncio.gather(*rest, return_exceptions=True)
        assert isinstance(answers.pop(gone), asyncio.CancelledError)
        assert [values(answer) for answer in answers] == [[2.0 * n] for n in range(1, 5) if n != gone + 1]
        assert model.calls == [1, 4 if running else 3]


@each("preferred, payloads, calls", [
    ((), [[1], [2], [3]], [3]), ((), [[1, 2, 3], [4, 5, 6], [7, 8, 9]], [6, 3]), ((), [[[1]], [2], [[3]]], [2, 1]),
    ((), [[], [1]], [0, 1]), ((2,), [[1], [2], [3]], [2, 1]),
])  # fmt: skip
async def test_what_waits_is_joined_and_split(
    preferred: tuple[int, ...], payloads: list[Any], calls: list[int]
) -> None:
    model = Doubling()
    model.preferred_batch_sizes = preferred
    answers, stats = await together(model, *map(request, payloads))
    assert answers == [(np.asarray(rows) * 2).tolist() for rows in payloads]
    assert model.calls == [1, *calls]
    assert stats["execution_count"] == len(model.calls)


async def test_a_batch_that_fails_is_tried_in_halves_so_that_one_member_alone_has_the_error() -> None:
    model = Doubling()
    (first, error, *rest), _ = await together(model, *(request([row]) for row in (1, -1, 2, 3)))
    assert (first, rest) == ([2], [[4], [6]])
    assert isinstance(error, InferenceError)
    assert "a row of -1" in str(error)
    assert model.calls == [1, 4, 2, 1, 1, 2]


async def test_an_answer_that_one_member_cannot_have_is_the_error_of_that_member_alone() -> None:
    model = Doubling()
    wrong = request([2], request_outputs=[RequestedOutput("z")])
    (first, error, last), _ = await together(model, request([1]), wrong, request([3]))
    assert (first, last, model.calls) == ([2], [6], [1, 3])
    assert isinstance(error, InvalidInput)


ROWS_OF_ANSWERS: dict[str, Any] = {
    "a list": lambda given: [None if row == 2 else int(row) for row in given.ravel()],
    "an array of objects": lambda given: np.array([None if row == 2 else int(row) for row in given.ravel()], object),
    "a nullable Series": lambda given: pandas.Series([None if row == 2 else int(row) for row in given.ravel()], dtype="Int64"),
    "a table": lambda given: pandas.DataFrame({"y": ROWS_OF_ANSWERS["a nullable Series"](given)}).set_axis(given.ravel()[::-1]),
    "a Series of polars": lambda given: polars.Series([None if row == 2 else int(row) for row in given.ravel()]),
    "a table of polars": lambda given: polars.DataFrame({"y": ROWS_OF_ANSWERS["a Series of polars"](given)}),
    "records": lambda given: [{"y": None if row == 2 else int(row)} for row in given.ravel()],
    "a tuple": lambda given: (ROWS_OF_ANSWERS["a list"](given),),
    "a masked array": lambda given: np.ma.masked_equal(given.ravel().astype(int), 2),
}  # fmt: skip
"""Integers, of which that of the row 2 is missing."""


@each("way", ROWS_OF_ANSWERS)
async def test_a_missing_integer_changes_no_datatype_of_other_members(way: str) -> None:
    model = Doubling()
    model.answer = ROWS_OF_ANSWERS[way]  # type: ignore[method-assign]
    async with in_flight(model) as core:
        first, rest = await gathered(core, model, [request([1, 3]), request([2, 4]), request([5])])
        model.go.release(MANY)
        _, *answers = await asyncio.gather(first, *rest)
    assert model.calls == [1, 5]
    outputs = [answer.outputs[0] for answer in answers]
    assert [output.datatype for output in outputs] == ["INT64", "FP64", "INT64"]
    assert [str(output.as_numpy().tolist()) for output in outputs] == ["[1, 3]", "[nan, 4.0]", "[5]"]


@each("way", ["undeclared", "declared"])
async def test_an_answer_that_is_no_tensor_fails_its_own_member_alone(way: str) -> None:
    model = Doubling()
    if way == "declared":
        model.outputs = (Tensor("y", "INT64", (-1,)),)
    nothing = None if way == "declared" else {1}
    model.answer = lambda given: [nothing if row == 2 else int(row) for row in given.ravel()]  # type: ignore[method-assign]
    (well, ill, also), _ = await together(model, request([1, 3]), request([2, 4]), request([5]))
    assert (well, also) == ([1, 3], [5])
    assert isinstance(ill, InferenceError)


@each("answer", [np.zeros(1), np.float32(1), iter(())])
async def test_an_answer_that_cannot_be_split_is_an_error_of_its_own_for_each(answer: Any) -> None:
    model = Doubling()
    model.answer = lambda given: answer  # type: ignore[method-assign]
    errors, _ = await together(model, request([1]), request([2]))
    assert all(isinstance(error, InferenceError) and "expected" in str(error) for error in errors)
    assert errors[0] is not errors[1]
    assert model.calls == [1, 2]


@each("declared, number, calls", [
    ({"max_batch_size": 3, "max_batch_delay": 100}, 3, [3]),
    ({"max_batch_delay": 100, "preferred_batch_sizes": (3,)}, 3, [3]), ({"max_batch_delay": 0.05}, 1, [1]),
])  # fmt: skip
async def test_an_idle_model_waits_for_mates_as_it_declares(
    declared: dict[str, Any], number: int, calls: list[int]
) -> None:
    model = Doubling()
    vars(model).update(declared)
    model.go.release(MANY)
    async with in_flight(model) as core:
        answers = [ask(core, "m", request([n])) for n in range(number - 1)]
        for _ in range(5):  # the last comes in a later turn of the loop
            await asyncio.sleep(0)
        answers.append(ask(core, "m", request([number - 1])))
        assert [values(answer) for answer in await asyncio.gather(*answers)] == [[2.0 * n] for n in range(number)]
        assert model.calls == calls


@each("declared, size", [(None, 4), (0, None), (8, 8)])
def test_the_option_is_for_models_that_declare_nothing(declared: int | None, size: int | None) -> None:
    model = Doubling()
    model.max_batch_size = declared
    limited = limits(model, Settings(max_batch_size=4, max_batch_delay=0.5))
    assert (limited and limited.size) == size
    assert limited is None or limited.delay == 0.5
    assert limits(Model("m"), Settings(max_batch_size=4)) is None


async def test_v1_and_v2_requests_join_one_batch() -> None:
    model = Doubling()
    model.inputs, model.outputs = (Tensor("x", "FP32", (-1,)),), (Tensor("y", "FP32", (-1,)),)
    answers, stats = await together(model, request([1]), {"instances": [2.0, 3.0]})
    assert (answers, model.calls) == ([[2], [4, 6]], [1, 3])
    assert (stats["inference_count"], stats["execution_count"]) == (4, 2)


async def test_ragged_rows_are_padded_if_the_model_says_so() -> None:
    model = Doubling()
    model.pad_value = 0.0
    model.answer = lambda given: given.sum(axis=-1)  # type: ignore[method-assign]
    answers, _ = await together(model, request([[1, 2]]), request([[3]]), request([[4, 5, 6]]))
    assert (answers, model.calls) == ([[3], [3], [15]], [1, 3])


@each("arrays, whole", [
    ([[[1, 2]], [[3]], [[4, 5, 6]]], [[1, 2, 9], [3, 9, 9], [4, 5, 6]]),
    ([[[1], [2]], [[3, 4]]], [[1, 9], [2, 9], [3, 4]]),
    ([[[[1, 2]]], [[[3], [4]]]], [[[1, 2], [9, 9]], [[3, 9], [4, 9]]]), ([[[1, 2]], [[3, 4]]], [[1, 2], [3, 4]]),
])  # fmt: skip
def test_ragged_rows_are_filled_up_to_the_largest(arrays: list[Any], whole: list[Any]) -> None:
    assert joined([np.asarray(array, np.float32) for array in arrays], 9).tolist() == whole


@each("payload", [request(np.zeros(9)), request(5.0)])
async def test_a_request_that_is_no_batch_is_refused_in_words(payload: InferRequest) -> None:
    async with in_flight(Doubling()) as core:
        with pytest.raises(InvalidInput, match="expected"):
            await ask(core, "m", payload)


def generate(model: Model, x: Any) -> Any:
    yield x


@each("base, declared, words", [
    (TensorModel, {"predict": generate}, "its predict is a generator"),
    (TensorModel, {"inputs": (Tensor("x", "FP32", (4,)),)}, "first dimension"), (Model, {}, "they speak arrays"),
    (TensorModel, {"preferred_batch_sizes": (4,)}, "preferred_batch_sizes are"),
])  # fmt: skip
async def test_batches_that_cannot_be_are_refused_before_serving(
    base: type[Model], declared: dict[str, Any], words: str
) -> None:
    kind = type("Impossible", (base,), {"max_batch_size": 2, **declared})
    with pytest.raises(ConfigurationError, match=words):
        await loaded(kind("m")).__aenter__()


async def test_by_default_rows_are_joined_if_no_row_can_change_another_and_larger_requests_run_alone() -> None:
    model = Doubling()
    model.max_batch_size, model.rows_joined = None, 4
    many = list(range(10))
    answers, _ = await together(model, *map(request, ([1], [2], many, [3], [4, 5])))
    assert answers == [[2], [4], [2 * n for n in many], [6], [8, 10]]
    assert model.calls == [1, 2, 10, 3]


class RefusingNone(Doubling):
    """Refuses a request without rows, as estimators of scikit-learn do."""

    def answer(self, given: Any) -> Any:
        if not len(given):
            raise InvalidInput("0 rows, expected 1 or more")
        return super().answer(given)


async def test_a_request_without_rows_is_refused_beside_others_as_it_is_alone() -> None:
    none = request(np.zeros(0, np.asarray([1]).dtype))
    [one, refused, two, refused_too], _ = await together(RefusingNone(), request([1]), none, request([2]), none)
    assert (one, two) == ([2], [4])
    assert "0 rows" in str(refused)
    assert "0 rows" in str(refused_too)


@each("option, declared, size", [(None, None, 4), (0, None, None), (9, None, 9), (None, 0, None), (None, 8, 8)])
def test_what_is_said_of_batches_comes_before_the_default(option: Any, declared: Any, size: int | None) -> None:
    model = Doubling()
    model.max_batch_size, model.rows_joined = declared, 4
    limited = limits(model, Settings(max_batch_size=option))
    assert (limited and limited.size) == size
    assert limited is None or limited.refuses == (size != 4)
