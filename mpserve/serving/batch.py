"""One batch of requests: their arrays joined, predicted, and the answer split among them again.

It knows neither the queue that they came from nor the event loop.
"""

import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpserve.errors import InferenceError
from mpserve.protocol.datatypes import Array
from mpserve.serving.conversion import STREAMS, to_outputs
from mpserve.serving.executor import Outcome as Settled
from mpserve.serving.executor import as_failure
from mpserve.serving.tally import INFER, INPUT, OUTPUT, Stopwatch
from mpserve.serving.tensors import TensorModel

Parts = list[tuple[str, str, Array]]
"""Name, datatype and rows of each output."""

Outcome = Parts | Exception


class Member:
    """A request that waits for its answer. ``kind`` is alike for those that can be joined, ``context`` makes its own."""

    __slots__ = ("arrays", "context", "future", "kind", "rows", "watch")

    def __init__(
        self,
        arrays: list[Array],
        kind: object,
        watch: Stopwatch,
        future: Settled[Parts],
        context: Callable[[], contextvars.Context],
    ) -> None:
        self.arrays = arrays
        self.rows: int = arrays[0].shape[0]
        self.kind = kind
        self.watch = watch
        self.future = future
        self.context = context


class Batch:
    """Members that are predicted together, and again in halves if that fails, until who is to blame is alone.

    Asked in turns: ``next`` gives the arrays of an attempt, ``answered`` or ``failed`` takes what came of it.
    """

    def __init__(self, model: TensorModel, members: list[Member], pad_value: float | None) -> None:
        self.model = model
        self.members = members
        self.pad_value = pad_value
        self.outcomes: list[tuple[list[Member], Sequence[Outcome]]] = []
        """Of each attempt that was the last of its members."""
        self.watch = Stopwatch()
        self._todo = [members]
        self._attempt = members

    def next(self) -> list[Array] | None:
        """The joined arrays of the next attempt; None if all members have their outcome."""
        if not self._todo:
            return None
        self._attempt = members = self._todo.pop()
        if len(members) == 1:
            arrays = members[0].arrays
        else:
            columns = zip(*(member.arrays for member in members), strict=True)
            arrays = [joined(column, self.pad_value) for column in columns]
        self.watch.lap(INPUT)
        return arrays

    def failed(self, error: BaseException) -> None:
        """The model raised: halve the attempt, or blame its only member."""
        self.watch.lap(INFER)
        members = self._attempt
        if len(members) == 1:
            self.outcomes.append((members, [as_failure(error)]))
        else:
            half = len(members) // 2
            self._todo += [members[half:], members[:half]]

    def answered(self, result: Any) -> None:
        """The model returned: split it. What is not as many rows as were given fails the whole attempt."""
        self.watch.lap(INFER)
        members = self._attempt
        try:
            outcomes: Sequence[Outcome] = split(self.model, members, result)
        except Exception as error:
            outcomes = [error, *(_alike(error) for _ in members[1:])]
        self.outcomes.append((members, outcomes))
        self.watch.lap(OUTPUT)

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
            except (Exception, SystemExit) as error:
                self.failed(error)
            else:
                self.answered(result)
        return self


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


def split(model: TensorModel, members: Sequence[Member], result: Any) -> list[Parts]:
    """Each member's outputs, which are views of its rows.

    Raises:
        InferenceError: the model returned another number of rows than it was given, or what it does not declare.
    """
    if isinstance(result, STREAMS):
        raise InferenceError("the model answered in parts, which it cannot with max_batch_size; expected arrays")
    rows = sum(member.rows for member in members)
    outputs = to_outputs(model, result)
    for output in outputs:
        if output.shape[:1] != [rows]:
            raise InferenceError(
                f"output {output.name!r}: the model was given a batch of {rows} rows and returned shape {output.shape};"
                f" expected {rows} as its first dimension"
            )
    arrays = [(output.name, output.datatype, output.as_numpy()) for output in outputs]
    parts = []
    start = 0
    for member in members:
        end = start + member.rows
        parts.append([(name, datatype, array[start:end]) for name, datatype, array in arrays])
        start = end
    return parts


def _alike(error: Exception) -> Exception:
    """One of its own for each caller: each that raises it writes its traceback into it."""
    alike = InferenceError(str(error))
    alike.__cause__ = error
    return alike
