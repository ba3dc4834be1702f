"""A plain request that a task waits for; that it is answered as any other is shown in tests/grpc/test_express.py."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InferenceError, ModelNotReady
from mpserve.serving.awaited import answered
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.express import read_v1
from mpserve.serving.served import Served
from mpserve.serving.stream import ModelStream
from mpserve.serving.tally import FAILURES, INFER_NS, SUCCESSES
from mpserve.serving.tensors import TensorModel
from tests.asgi import loaded


class Does(TensorModel):
    name = "m"

    def __init__(self, function: Callable[[Any], Any], **declared: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in declared.items():
            setattr(self, name, value)

    def predict(self, x: Any) -> Any:
        return self.function(x)


class Awaits(Does):
    async def predict(self, x: Any) -> Any:
        await asyncio.sleep(0)
        return self.function(x)


async def asked(dataplane: Dataplane, served: Served) -> Any:
    assert served.express is not None
    given = read_v1(served.express, b'{"instances":[1,2]}')
    assert given is not None
    return await answered(dataplane, served, given)


def within(test: Callable[[Dataplane, Served], Any], model: Does) -> None:
    """Run a test with the dataplane over a model."""

    async def main() -> None:
        async with loaded(model) as core:
            await test(Dataplane(core), core.find("m"))

    asyncio.run(main())


@pytest.mark.parametrize(
    "model", [Does(lambda x: x * 2), Awaits(lambda x: x * 2), Does(lambda x: x * 2, max_batch_size=2)]
)
def test_it_is_answered_and_counted(model: Does) -> None:
    async def test(dataplane: Dataplane, served: Served) -> None:
        assert await asked(dataplane, served) == b'{"predictions":[2,4]}'
        await asyncio.sleep(0)  # in the next turn of the loop it is written down
        assert served.tally is not None
        cells = served.tally._cells
        assert (cells[SUCCESSES], cells[FAILURES], served.held.count) == (1, 0, 0)
        assert cells[INFER_NS] > 0

    within(test, model)


def fail(x: Any) -> Any:
    raise ValueError("as asked")


@pytest.mark.parametrize("model", [Does(fail), Awaits(fail), Does(fail, max_batch_size=2)])
def test_a_failure_is_blamed_on_the_model_and_counted(model: Does) -> None:
    async def test(dataplane: Dataplane, served: Served) -> None:
        with pytest.raises(InferenceError, match=r"^ValueError : as asked$") as raised:
            await asked(dataplane, served)
        assert isinstance(raised.value.__cause__, ValueError)
        assert served.tally is not None
        cells = served.tally._cells
        assert (cells[SUCCESSES], cells[FAILURES], served.held.count) == (0, 1, 0)

    within(test, model)


@pytest.mark.parametrize("kind", [Does, Awaits])
def test_an_answer_in_parts_holds_the_model_until_it_is_closed(kind: type[Does]) -> None:
    async def test(dataplane: Dataplane, served: Served) -> None:
        answer = await asked(dataplane, served)
        assert isinstance(answer, ModelStream)
        assert served.held.count == 1
        assert [part.outputs[0].as_numpy().tolist() async for part in answer] == [[1], [2]]
        assert served.held.count == 0

    within(test, kind(lambda x: (np.array([value]) for value in x)))


def test_a_model_that_has_left_service_is_not_asked() -> None:
    async def test(dataplane: Dataplane, served: Served) -> None:
        served.model.ready = False
        with pytest.raises(ModelNotReady):
            await asked(dataplane, served)
        assert served.held.count == 0

    within(test, Does(fail))
