"""Requests that are predicted together: joined, split and settled so that nobody notices but by the time it takes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InferenceError, InvalidInput
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.serving.execution.batcher import limits
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.asking import Asker
from tests.cases import each

PATIENCE = 30.0
MANY = 100


class Held(TensorModel):
    """Doubles; notes the rows of each call, and waits in each until it is let go. A row of -1 makes it fail."""

    name = "m"
    max_batch_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Semaphore(0)
        self.calls: list[int] = []

    def predict(self, x: Any) -> Any:
        self.calls.append(len(x))
        self.begun.set()
        assert self.go.acquire(timeout=PATIENCE)
        if (x == -1).any():
            raise ValueError("a row of -1")
        return x * 2


class HeldBetween(Held):
    """There is a stage behind its batch."""

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result


def request(rows: Any) -> InferRequest:
    array = np.asarray(rows, np.float32)
    return InferRequest(model_name="m", infer_inputs=[InferInput("x", list(array.shape), "FP32", array)])


def values(answer: Any) -> Any:
    return answer.outputs[0].as_numpy().tolist()


@asynccontextmanager
async def serving(model: Model) -> AsyncIterator[tuple[ServerCore, Callable[[Any], Awaitable[Any]]]]:
    """The core of the model, and how to ask it."""
    async with loaded(model) as core:
        asker = Asker(core)

        async def ask(payload: Any) -> Any:
            return (await asker.run("predict", "m", None, payload, {}))[0]

        yield core, ask


async def gathered(core: ServerCore, model: Held, ask: Any, payloads: list[Any]) -> tuple[Any, list[asyncio.Task[Any]]]:
    """A first request that the model holds, and others that wait in the queue."""
    first = asyncio.create_task(ask(request([0])))
    await asyncio.to_thread(model.begun.wait, PATIENCE)
    rest = [asyncio.create_task(ask(payload)) for payload in payloads]
    batcher = core.find("m").batcher
    assert batcher is not None
    while len(batcher) < len(rest):
        await asyncio.sleep(0)
    return first, rest


@each("gone", range(4))
@each("running", [False, True])
@each("kind", [Held, HeldBetween])
async def test_a_cancelled_member_takes_nothing_from_its_neighbours(gone: int, running: bool, kind: type[Held]) -> None:
    model = kind()
    async with serving(model) as (core, ask):
        first, rest = await gathered(core, model, ask, [request([n]) for n in range(1, 5)])
        if running:
            model.begun.clear()
            model.go.release()
            await asyncio.to_thread(model.begun.wait, PATIENCE)
        rest[gone].cancel()
        await asyncio.sleep(0)
        model.go.release(MANY)
        await first
        answers = await asyncio.gather(*rest, return_exceptions=True)
        assert isinstance(answers.pop(gone), asyncio.CancelledError)
        assert [values(answer) for answer in answers] == [[2.0 * n] for n in range(1, 5) if n != gone + 1]
        assert model.calls == [1, 4 if running else 3]


@each("payloads, calls", [
    ([[1], [2], [3]], [3]), ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], [6, 3]), ([[[1]], [2], [[3]]], [2, 1]),
    ([[], [1]], [1]), ([[1], [-1], [2], [3]], [4, 2, 1, 1, 2]),
])  # fmt: skip
async def test_what_waits_is_joined_and_split(payloads: list[Any], calls: list[int]) -> None:
    model = Held()
    async with serving(model) as (core, ask):
        first, rest = await gathered(core, model, ask, [request(rows) for rows in payloads])
        model.go.release(MANY)
        await first
        answers = await asyncio.gather(*rest, return_exceptions=True)
        for rows, answer in zip(payloads, answers, strict=True):
            if rows == [-1]:
                assert isinstance(answer, InferenceError)
                assert "a row of -1" in str(answer)
            else:
                assert values(answer) == (np.asarray(rows) * 2).tolist()
        assert model.calls == [1, *calls]
        if [-1] not in payloads:
            [stats] = Statistics(core).told("m")
            assert stats["execution_count"] == len(model.calls)


async def test_a_batch_of_a_preferred_size_is_not_filled_beyond() -> None:
    model = Held()
    model.preferred_batch_sizes = (2,)
    async with serving(model) as (core, ask):
        first, rest = await gathered(core, model, ask, [request([n]) for n in range(3)])
        model.go.release(MANY)
        await asyncio.gather(first, *rest)
        assert model.calls == [1, 2, 1]


@each("declared, number, calls", [
    ({"max_batch_size": 3, "max_batch_delay": 2 * PATIENCE}, 3, [3]),
    ({"max_batch_delay": 2 * PATIENCE, "preferred_batch_sizes": (3,)}, 3, [3]), ({"max_batch_delay": 0.05}, 1, [1]),
])  # fmt: skip
async def test_an_idle_model_waits_for_mates_as_it_declares(
    declared: dict[str, Any], number: int, calls: list[int]
) -> None:
    model = Held()
    vars(model).update(declared)
    model.go.release(MANY)
    async with serving(model) as (_, ask):
        answers = [asyncio.create_task(ask(request([n]))) for n in range(number - 1)]
        for _ in range(5):  # the last comes in a later turn of the loop
            await asyncio.sleep(0)
        answers.append(asyncio.create_task(ask(request([number - 1]))))
        assert [values(answer) for answer in await asyncio.gather(*answers)] == [[2.0 * n] for n in range(number)]
        assert model.calls == calls


@each("declared, size", [(None, 4), (0, None), (8, 8)])
def test_the_option_is_for_models_that_declare_nothing(declared: int | None, size: int | None) -> None:
    model = Held()
    model.max_batch_size = declared
    limited = limits(model, Settings(max_batch_size=4, max_batch_delay=0.5))
    assert (limited and limited.size) == size
    assert limited is None or limited.delay == 0.5
    assert limits(Model("m"), Settings(max_batch_size=4)) is None


async def test_v1_and_v2_requests_join_one_batch() -> None:
    class Declared(Held):
        inputs = (Tensor("x", "FP32", (-1,)),)
        outputs = (Tensor("y", "FP32", (-1,)),)

    model = Declared()
    async with serving(model) as (core, ask):
        first, rest = await gathered(core, model, ask, [request([1]), {"instances": [2.0, 3.0]}])
        model.go.release(MANY)
        assert [values(answer) for answer in await asyncio.gather(first, *rest)] == [[0], [2], [4, 6]]
        assert model.calls == [1, 3]
        [stats] = Statistics(core).told("m")
        assert (stats["inference_count"], stats["execution_count"]) == (4, 2)


async def test_ragged_rows_are_padded_if_the_model_says_so() -> None:
    class Sums(Held):
        pad_value = 0.0

        def predict(self, x: Any) -> Any:
            return super().predict(x).sum(axis=-1)

    model = Sums()
    async with serving(model) as (core, ask):
        first, rest = await gathered(core, model, ask, [request([[1, 2]]), request([[3]]), request([[4, 5, 6]])])
        model.go.release(MANY)
        await asyncio.gather(first, return_exceptions=True)
        assert [values(answer) for answer in await asyncio.gather(*rest)] == [[6], [6], [30]]
        assert model.calls == [1, 3]


@each("payload", [request(np.zeros(9)), request(5.0)])
async def test_a_request_that_is_no_batch_is_refused_in_words(payload: InferRequest) -> None:
    async with serving(Held()) as (_, ask):
        with pytest.raises(InvalidInput, match="expected"):
            await ask(payload)


class Generating(TensorModel):
    name = "m"
    max_batch_size = 2

    def predict(self, x: Any) -> Any:
        yield x


class Fixed(TensorModel):
    name = "m"
    max_batch_size = 2
    inputs = (Tensor("x", "FP32", (4,)),)


class NoTensors(Model):
    name = "m"
    max_batch_size = 2


class Preferring(TensorModel):
    name = "m"
    max_batch_size = 2
    preferred_batch_sizes = (4,)


@each("model", [Generating(), Fixed(), NoTensors(), Preferring()])
async def test_batches_that_cannot_be_are_refused_before_serving(model: Model) -> None:
    with pytest.raises(ConfigurationError, match=r"generator|first dimension|arrays|preferred"):
        await loaded(model).__aenter__()
