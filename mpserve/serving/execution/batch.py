"""One batch of requests: their arrays joined, predicted, and the answer split among them again.

Each request encodes its own part of the answer at once, in the model's thread: a model may use its arrays again in its next
predict. It knows neither the queue that the requests came from nor the event loop.
"""

import asyncio
import contextvars
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np

from mpserve.errors import InferenceError
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.executor import as_failure
from mpserve.serving.models.fit import STREAMS, WHOLE, fit_outputs
from mpserve.serving.models.tensors import TensorModel


class Batched(Protocol):
    """A request that waits for its part of a batch's answer."""

    value: Any
    """The arrays that the model is given of it."""
    rows: int
    """The first dimension of its arrays."""
    kind: object
    """Alike for requests that can be joined."""
    begun: bool
    """Whether the model has begun with it."""
    context: contextvars.Context
    """Its own: what is logged in it names the request."""

    @property
    def mark(self) -> int:
        """The moment of the last lap."""

    def lap(self, span: int) -> int:
        """Account the time since the last lap to a span. Gives this moment."""

    def follow(self, batch: "Batch", executions: int) -> None:
        """Account the time since the last lap as the batch has spent it, and stand for so many executions of the model."""

    def complete(self, tensors: list[NamedArray]) -> Any:
        """What the request makes of its part of the answer, in memory of its own."""

    def done(self) -> bool:
        """Whether nobody waits for it any more."""

    def set_result(self, result: Any, /) -> None:
        """Take what ``complete`` gave."""

    def set_exception(self, error: BaseException, /) -> None:
        """There will be no answer."""


class Batch:
    """Members that are predicted together, and again in halves if that fails, until who is to blame is alone.

    Asked in turns: ``next`` gives the arrays of an attempt, ``answered`` or ``failed`` takes what came of it.
    """

    def __init__(
        self, model: TensorModel, members: list[Batched], pad_value: float | None, declared: Sequence[Tensor]
    ) -> None:
        self.model = model
        self.members = members
        self.pad_value = pad_value
        self.declared = declared
        self.outcomes: list[tuple[list[Batched], Sequence[Any]]] = []
        """Of each attempt that was the last of its members, and what came of each of these."""
        self.begun = self.mark = perf_counter_ns()
        self.input_ns = self.infer_ns = self.output_ns = 0
        self._todo = [members]
        self._attempt = members

    def next(self) -> list[Array] | None:
        """The joined arrays of the next attempt; None if all members have their outcome."""
        if not self._todo:
            return None
        self._attempt = members = self._todo.pop()
        if len(members) == 1:
            arrays: list[Array] = members[0].value
        else:
            columns = zip(*(member.value for member in members), strict=True)
            arrays = [joined(column, self.pad_value) for column in columns]
        now = perf_counter_ns()
        self.input_ns += now - self.mark
        self.mark = now
        return arrays

    def failed(self, error: BaseException) -> None:
        """The model raised: halve the attempt, or blame its only member."""
        self._lap_infer()
        members = self._attempt
        if len(members) == 1:
            self.outcomes.append((members, [as_failure(error)]))
        else:
            half = len(members) // 2
            self._todo += filter(awaited, (members[half:], members[:half]))

    def _lap_infer(self) -> None:
        now = perf_counter_ns()
        self.infer_ns += now - self.mark
        self.mark = now

    def answered(self, result: Any) -> None:
        """The model returned: split it. What is not as many rows as were given fails the whole attempt."""
        self._lap_infer()
        members = self._attempt
        try:
            parts = split(self.declared, members, result)
        except Exception as error:
            self.outcomes.append((members, [error, *(_alike(error) for _ in members[1:])]))
        else:
            outcomes: list[Any] = []
            for member, tensors in zip(members, parts, strict=True):
                try:
                    outcomes.append(member.complete(tensors))
                except Exception as error:  # this member's alone: the format cannot carry its part
                    outcomes.append(error)
            self.outcomes.append((members, outcomes))
        now = perf_counter_ns()
        self.output_ns += now - self.mark
        self.mark = now

    def run(self) -> "Batch":
        """All attempts, in the model's thread."""
        while (arrays := self.next()) is not None:
            try:
                result = self.model.invoke(arrays)
            except BaseException as error:
                self.failed(error)
            else:
                self.answered(result)
        return self

    async def run_async(self) -> "Batch":
        """As ``run``, of a model whose predict is ``async def``."""
        while (arrays := self.next()) is not None:
            try:
                result = await self.model.invoke(arrays)
            except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
                self.failed(error)
            else:
                self.answered(result)
        return self


def awaited(members: Sequence[Batched]) -> bool:
    """Whether anybody waits for one of the members."""
    return not all(member.done() for member in members)


def joined(arrays: Sequence[Array], pad_value: float | None) -> Array:
    """The rows of all arrays, one after the other; ragged ones are padded at their ends to the largest."""
    if pad_value is None or len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    shape = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    whole = np.full([sum(array.shape[0] for array in arrays), *shape], pad_value, arrays[0].dtype)
    start = 0
    for array in arrays:
        end = start + array.shape[0]
        whole[tuple([slice(start, end), *map(slice, array.shape[1:])])] = array
        start = end
    return whole


def split(declared: Sequence[Tensor], members: Sequence[Batched], result: Any) -> list[list[NamedArray]]:
    """Each member's outputs, which are views of its rows.

    Raises:
        InferenceError: the model returned another number of rows than it was given, or what it does not declare.
    """
    if not isinstance(result, WHOLE) and isinstance(result, STREAMS):
        raise InferenceError("the model answered in parts, which it cannot with max_batch_size; expected arrays")
    rows = 0
    for member in members:
        rows += member.rows
    arrays = fit_outputs(declared, result)
    for name, _, array in arrays:
        if array.shape[:1] != (rows,):
            raise InferenceError(
                f"output {name!r}: the model was given a batch of {rows} rows and returned shape {list(array.shape)};"
                f" expected {rows} as its first dimension"
            )
    if len(members) == 1:
        return [arrays]
    parts = []
    start = 0
    for member in members:
        end = start + member.rows
        part = []
        for name, datatype, array in arrays:
            part.append((name, datatype, array[start:end]))
        parts.append(part)
        start = end
    return parts


def _alike(error: Exception) -> Exception:
    """One of its own for each caller: each that raises it writes its traceback into it."""
    alike = InferenceError(str(error))
    alike.__cause__ = error
    return alike
