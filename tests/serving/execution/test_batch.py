"""A batch from its members' arrays to what each of them gets: joined, predicted, in halves if it must be, and split."""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import Any

import numpy as np

from mpserve.errors import InferenceError
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.batch import Batch
from mpserve.serving.models.spans import INFER
from mpserve.serving.models.tensor_model import TensorModel
from tests.cases import each


class Noting(TensorModel):
    """Answers as it is told; notes the rows of each call."""

    name = "m"

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[list[Any]] = []

    def predict(self, x: Any) -> Any:
        self.calls.append(x.tolist())
        return self.answer(x)


class AsyncNoting(Noting):
    async def predict(self, x: Any) -> Any:
        await asyncio.sleep(0)
        return super().predict(x)


class Part:
    """A request that keeps its rows of the answer."""

    kind: object = None
    begun = True
    mark = 0

    def __init__(self, rows: Any) -> None:
        self.value = [np.asarray(rows, np.float32)]
        self.rows = len(rows)
        self.context = Context()

    def lap(self, span: int) -> int:
        return 0

    def follow(self, batch: Batch, executions: int) -> None: ...

    def complete(self, tensors: list[NamedArray]) -> Any:
        [(_, _, array)] = tensors
        if array.size and array[0] is REFUSED:
            raise InferenceError("the format cannot carry this")
        return array.tolist()

    def done(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, error: BaseException, /) -> None: ...


REFUSED = object()


def outcomes(model: Noting, requests: Iterable[Any], pad_value: float | None = None) -> list[Any]:
    """What each request gets: its one output as a list, or an error."""
    members = [Part(rows) for rows in requests]
    batch = Batch(model, members, pad_value, model.outputs)
    if isinstance(model, AsyncNoting):
        asyncio.run(batch.run_async())
    else:
        batch.run()
    assert batch.durations[INFER] > 0
    given = {member: outcome for some, each in batch.outcomes for member, outcome in zip(some, each, strict=True)}
    assert len(given) == len(members)
    return [given[member] for member in members]


@each("kind", [Noting, AsyncNoting])
@each("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_error_that_would_end_more_than_a_request_ends_that_one(kind: type[Noting], error: BaseException) -> None:
    def fail(x: Any) -> Any:
        raise error

    assert [type(outcome) for outcome in outcomes(kind(fail), [[1], [2]])] == [RuntimeError, RuntimeError]


def test_an_answer_that_one_member_cannot_encode_is_the_error_of_that_member_alone() -> None:
    first, second, third = outcomes(Noting(lambda x: np.array([1, REFUSED, 3], object)), [[1], [2], [3]])
    assert (first, third) == ([1], [3])
    assert isinstance(second, InferenceError)


@each("answer", [np.zeros(1), np.float32(1), iter(())])
def test_an_answer_that_cannot_be_split_is_an_error_of_its_own_for_each(answer: Any) -> None:
    model = Noting(lambda x: answer)
    errors = outcomes(model, [[1], [2]])
    assert all(isinstance(error, InferenceError) and "expected" in str(error) for error in errors)
    assert errors[0] is not errors[1]
    assert len(model.calls) == 1


@each("requests, joined", [
    ([[[1, 2]], [[3]], [[4, 5, 6]]], [[1, 2, 9], [3, 9, 9], [4, 5, 6]]),
    ([[[1], [2]], [[3, 4]]], [[1, 9], [2, 9], [3, 4]]),
    ([[[[1, 2]]], [[[3], [4]]]], [[[1, 2], [9, 9]], [[3, 9], [4, 9]]]), ([[[1, 2]], [[3, 4]]], [[1, 2], [3, 4]]),
])  # fmt: skip
def test_ragged_rows_are_filled_up_to_the_largest(requests: list[Any], joined: list[Any]) -> None:
    model = Noting(lambda x: x)
    outcomes(model, requests, 9)
    assert model.calls == [joined]
