"""A request's stay with a model: what it counts, and that nothing is left of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.serving import tally
from mpserve.serving.core import ServerCore
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.tally import INFER
from mpserve.serving.tensors import Tensor, TensorModel
from mpserve.serving.visit import Visit
from tests.asgi import loaded
from tests.lanes import tallied


class Doubles(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1, 2)),)

    def predict(self, x: Any) -> Any:
        return x * 2


def visited(*stays: Callable[[Visit], None]) -> list[int]:
    """Successes, failures and rows that such stays count."""

    async def main() -> list[int]:
        async with loaded(Doubles()) as core:
            served = core.find("m")
            dataplane = Dataplane(core)
            for number, stay in enumerate(stays):
                visit = dataplane.visit(served)
                assert (core.row.in_flight, is_held(core)) == (1, True), number
                stay(visit)
                visit.end(is_counted=visit.is_read)
                assert (core.row.in_flight, is_held(core)) == (0, False), number
            return tallied(served, (tally.SUCCESSES, tally.FAILURES, tally.ROWS))

    return asyncio.run(main())


def is_held(core: ServerCore) -> bool:
    return core.find("m").held.count > 0


def answered(payload: Any = None) -> Callable[[Visit], None]:
    def stay(visit: Visit) -> None:
        visit.carries(payload)
        visit.is_answered = True

    return stay


def test_one_that_is_answered_is_a_success_with_its_rows_and_another_a_failure() -> None:
    rows = {"instances": [[1, 2], [3, 4], [5, 6]]}
    request = InferRequest("m", [InferInput("x", [2, 2], "FP32", [1, 2, 3, 4])])
    assert visited(answered(rows)) == [1, 0, 3]
    assert visited(answered(rows), answered(request), answered()) == [3, 0, 6]
    assert visited(lambda visit: visit.carries(rows), answered(rows)) == [1, 1, 3]


@pytest.mark.parametrize(("shape", "rows"), [((3, 2), 3), ((0, 2), 0), ((), 1)])
def test_the_rows_of_an_array_are_its_first_dimension(shape: tuple[int, ...], rows: int) -> None:
    def stay(visit: Visit) -> None:
        visit.carries_array(np.zeros(shape, np.float32))
        visit.is_answered = True

    assert visited(stay) == [1, 0, rows]


def test_one_that_could_not_be_read_is_not_counted_but_ends() -> None:
    assert visited(lambda visit: None) == [0, 0, 0]


def test_how_long_the_model_took_is_known_of_the_last_one() -> None:
    async def main() -> None:
        async with loaded(Doubles()) as core:
            visit = Dataplane(core).visit(core.find("m"))
            visit.is_answered = True
            visit.lap(INFER)
            visit.end()
            assert core.find("m").last_infer == visit.spent[INFER] > 0

    asyncio.run(main())
