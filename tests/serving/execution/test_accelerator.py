"""Requests to models whose accelerator is lost, or has too little memory: what each is told, and when the worker must go."""

import asyncio
from typing import Any

import pytest

from mpserve.errors import AcceleratorFailed, AcceleratorOutOfMemory, MPServeError
from mpserve.serving.execution.model_instance import SHORTAGES
from mpserve.serving.repository.core import ServerCore
from tests.asking import ask
from tests.cases import each, until
from tests.serving.held import MANY, WAYS, InBatch, InThread, in_flight, request

torch = pytest.importorskip("torch")

LOST, LARGE = -1, 9  # rows that make a model fail


class OnGpu:
    """Mixed into a way to a model: it fails as models on a GPU do. Its memory holds a few rows at once, and no large row."""

    inputs = outputs = ()
    memory = 2

    def answer(self, given: Any) -> Any:
        if (given == LOST).any():
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        if len(given) > self.memory or (given == LARGE).any():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return given * 2


async def outcome(core: ServerCore, *rows: int) -> Any:
    try:
        return (await ask(core, "m", request([[row] for row in rows]))).outputs[0].as_numpy().ravel().tolist()
    except MPServeError as fault:
        return type(fault)


@each("way", WAYS)
async def test_a_lost_accelerator_takes_the_model_out_of_service_at_once(way: type[InThread]) -> None:
    model = type("Model", (OnGpu, way), {})()
    model.go.release(MANY)
    async with in_flight(model) as core:
        assert await outcome(core, 1) == [2]
        bit = core.desired.models["m"].bit
        assert core.board.model_ready(bit)
        assert await outcome(core, LOST) is AcceleratorFailed
        assert core.accelerator_lost
        assert not core.board.model_ready(bit)
        calls = len(model.asked)
        assert await outcome(core, 1) is not AcceleratorFailed
        assert len(model.asked) == calls  # refused before the model


@each("way", WAYS)
async def test_the_worker_goes_after_so_many_requests_in_a_row_without_memory(way: type[InThread]) -> None:
    model = type("Model", (OnGpu, way), {})()
    model.go.release(MANY)
    async with in_flight(model) as core:
        for _ in range(2):
            for _ in range(SHORTAGES - 1):
                assert await outcome(core, LARGE) is AcceleratorOutOfMemory
            assert await outcome(core, 1) == [2]  # so the row begins anew
        for number in range(SHORTAGES):
            assert not core.accelerator_lost, number
            assert await outcome(core, LARGE) is AcceleratorOutOfMemory
        assert core.accelerator_lost
        assert not core.find("m").model.ready


@each("bad, calls, fault", [
    (None, [4, 2, 2], None), (LARGE, [4, 2, 1, 1, 2], AcceleratorOutOfMemory), (LOST, [4], AcceleratorFailed),
])  # fmt: skip
async def test_a_batch_without_memory_is_halved_and_one_whose_accelerator_is_lost_is_not(
    bad: int | None, calls: list[int], fault: type | None
) -> None:
    class Batched(OnGpu, InBatch):
        max_batch_size = 4

    model = Batched()
    async with in_flight(model) as core:
        first = asyncio.ensure_future(outcome(core, 1))
        await model.has_begun()
        rows = [1, 2 if bad is None else bad, 3, 4]
        rest = [asyncio.ensure_future(outcome(core, row)) for row in rows]
        batcher = core.find("m").batcher
        assert batcher is not None
        await until(lambda: len(batcher) == len(rest))
        model.go.release(MANY)
        assert await first == [2]
        told = await asyncio.gather(*rest)
        if fault is AcceleratorFailed:
            assert told == [fault] * 4
        else:
            assert told == [[2 * row] if row != bad else fault for row in rows]
        assert model.calls == [1, *calls]
        assert core.accelerator_lost == (fault is AcceleratorFailed)
