"""One batch of requests: joins their arrays, runs the model, and splits the answer.

Each request encodes its part of the answer at once, in the model's thread: a model may use its arrays again in its next
predict. This module knows neither the queue nor the event loop.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np

from mpserve.errors import AcceleratorOutOfMemory, InferenceError
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.executor import as_failure
from mpserve.serving.execution.scheduled import Batched
from mpserve.serving.fitting.fit import STREAMS, WHOLE, fit_outputs
from mpserve.serving.fitting.shares import has_rows, is_settled, rows_of
from mpserve.serving.fitting.table import Columns
from mpserve.serving.models.accelerator import accelerator_fault, free_memory
from mpserve.serving.models.spans import INFER, INPUT, OUTPUT, Timed
from mpserve.serving.models.tensor_model import TensorModel


class Batch(Timed):
    """Requests that the model answers together. If the model fails, each half is tried again, down to one request.
    ``next`` gives the arrays of an attempt, and ``answered`` or ``failed`` takes the outcome of the attempt.
    ``outcomes`` holds the requests of each final attempt, with one outcome for each request.
    ``span`` is the batch in the trace of a member; None: no member has recorded it.
    """

    span: Any = None

    def __init__(
        self, model: TensorModel, members: list[Batched], pad_value: float | None, declared: Sequence[Tensor]
    ) -> None:
        self.model = model
        self.members = members
        self.pad_value = pad_value
        self.declared = declared
        self.outcomes: list[tuple[list[Batched], Sequence[Any]]] = []
        self.arrived = self.mark = perf_counter_ns()
        self.durations = [0, 0, 0, 0]
        self._invoke = partial(model.invoke_for, asked=members[0].asked()) if model.chooses_outputs else model.invoke
        self._todo = [members]
        self._attempt = members

    def next(self) -> list[Array] | None:
        """The joined arrays of the next attempt; None if every request has its outcome."""
        if not self._todo:
            return None
        self._attempt = members = self._todo.pop()
        if len(members) == 1:
            arrays: list[Array] = members[0].value
        else:
            columns = zip(*(member.value for member in members), strict=True)
            arrays = [joined(column, self.pad_value) for column in columns]
        self.lap(INPUT)
        return arrays

    def failed(self, error: BaseException) -> None:
        """The model raised: halve the attempt, or fail its only request. A lost accelerator fails the whole attempt."""
        self.lap(INFER)
        members = self._attempt
        if len(members) == 1:
            self.outcomes.append((members, [as_failure(error)]))
            return
        fault = accelerator_fault(error, self.model.name)
        if fault is not None and not isinstance(fault, AcceleratorOutOfMemory):
            self.outcomes.append((members, [as_failure(error), *(_alike(as_failure(error)) for _ in members[1:])]))
        else:
            if fault is not None:
                free_memory(error)
            half = len(members) // 2
            self._todo += filter(awaited, (members[half:], members[:half]))

    def answered(self, result: Any) -> None:
        """The model returned: split the result. A wrong number of rows fails the whole attempt."""
        self.lap(INFER)
        members = self._attempt
        try:
            if len(members) > 1 and not is_settled(result) and has_rows(result, sum(member.rows for member in members)):
                self._answer_each(result)
                return
            parts = split(self.declared, members, result)
        except Exception as error:
            self.outcomes.append((members, [error, *(_alike(error) for _ in members[1:])]))
        else:
            outcomes: list[Any] = []
            for member, tensors in zip(members, parts, strict=True):
                try:
                    outcomes.append(member.complete(tensors))
                except Exception as error:  # the format cannot carry the part of this request
                    outcomes.append(error)
            self.outcomes.append((members, outcomes))
        self.lap(OUTPUT)

    def _answer_each(self, result: Any) -> None:
        """As ``answered``, where the rows of one request might change the datatype of the others, or fail them."""
        outcomes: list[Any] = []
        start = 0
        for member in self._attempt:
            end = start + member.rows
            try:
                [tensors] = split(self.declared, [member], rows_of(result, start, end))
                outcomes.append(member.complete(tensors))
            except Exception as error:
                outcomes.append(error)
            start = end
        self.outcomes.append((self._attempt, outcomes))
        self.lap(OUTPUT)

    def run(self) -> "Batch":
        while (arrays := self.next()) is not None:
            try:
                result = self._invoke(arrays)
            except BaseException as error:
                self.failed(error)
            else:
                self.answered(result)
        return self

    async def run_async(self) -> "Batch":
        while (arrays := self.next()) is not None:
            try:
                result = await self._invoke(arrays)
            except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
                self.failed(error)
            else:
                self.answered(result)
        return self


def awaited(members: Sequence[Batched]) -> bool:
    """Whether anybody waits for one of the members."""
    return not all(member.done() for member in members)


def joined(arrays: Sequence[Any], pad_value: float | None) -> Any:
    """The rows of all arrays, or columns, in order. Arrays of different shapes are padded at their ends to the largest."""
    if type(arrays[0]) is Columns:
        return Columns.joined(arrays)
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
    """The outputs of each request, as views of its rows.
    Raises InferenceError if the number of rows is wrong, or an output is not declared.
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
    """An error of its own for each request: each ``raise`` writes a traceback into the error."""
    alike = InferenceError(str(error))
    alike.__cause__ = error
    return alike
