"""Models that wait in predict until a test lets them go, one for each way to a model, and requests to them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.running import PATIENCE

MANY = 10_000


class Held:
    """Notes what its predict is given, and waits there until it is let go."""

    def __init__(self) -> None:
        super().__init__("m")
        self.asked: list[Any] = []
        self.ended: list[Any] = []
        self.begun, self.go = threading.Event(), threading.Semaphore(0)

    def answer(self, given: Any) -> Any:
        return given

    def held(self, given: Any) -> Any:
        self.asked.append(given)
        self.begun.set()
        assert self.go.acquire(timeout=PATIENCE)
        return self.answer(given)

    async def held_async(self, given: Any) -> Any:
        self.asked.append(given)
        self.begun.set()
        try:
            while not self.go.acquire(blocking=False):
                await asyncio.sleep(0.001)
        finally:
            self.ended.append(given)
        return self.answer(given)

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.begun.wait, PATIENCE)

    @property
    def calls(self) -> list[int]:
        """The rows of each call."""
        return [len(given) for given in self.asked]


class InThread(Held, TensorModel):
    inputs = (Tensor("x", "FP64", (-1, -1)),)
    outputs = (Tensor("y", "FP64", (-1, -1)),)

    def predict(self, x: Any) -> Any:
        return self.held(x)


class InBatch(InThread):
    max_batch_size = 2


class OnLoop(InThread):
    concurrency = 1

    async def predict(self, x: Any) -> Any:
        return await self.held_async(x)


class InAsyncBatch(OnLoop):
    concurrency = None
    max_batch_size = 2


class AsyncBefore(InThread):
    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        await asyncio.sleep(0)
        return payload


class AsyncBehind(InThread):
    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        for _ in range(3):  # while the thread begins with others
            await asyncio.sleep(0)
        return result


WAYS: list[type[InThread]] = [InThread, InBatch, OnLoop, InAsyncBatch, AsyncBefore, AsyncBehind]


def request(*arrays: Any, **fields: Any) -> InferRequest:
    """A V2 request whose inputs, named x, y and z, are these arrays in FP32."""
    given = [(name, np.asarray(array, np.float32)) for name, array in zip("xyz", arrays, strict=False)]
    return InferRequest("m", [InferInput(name, list(x.shape), "FP32", x) for name, x in given], **fields)


@asynccontextmanager
async def in_flight(model: Any, **options: Any) -> AsyncIterator[ServerCore]:
    """The core of the model, which is let go in the end, when nothing may be held or in flight."""
    async with loaded(model, **options) as core:
        try:
            yield core
        finally:
            if isinstance(model, Held):
                model.go.release(MANY)
        await core.find("m").in_flight.until_idle()
        assert core.row.in_flight == core.find("m").in_flight.count == 0
        assert not core.find("m").streams


def counts(core: ServerCore) -> tuple[int, int]:
    """How many requests have succeeded, and how many have failed."""
    [told] = Statistics(core).told("m")
    return told["inference_stats"]["success"]["count"], told["inference_stats"]["fail"]["count"]
