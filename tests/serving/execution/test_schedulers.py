"""A request through each scheduler: how far it has come, and how it ends when it is cancelled or late at any moment."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mpserve.errors import DeadlineExceeded, MPServeError, ServerNotReady
from mpserve.protocol.codec import Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.inference.request import InferenceRequest, begin
from mpserve.serving.inference.request_head import RequestHead
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.asking import Untouched
from tests.cases import each
from tests.running import PATIENCE

ROW = {"instances": [1.0]}


class Held:
    """Notes the moment at which its predict has begun, and waits there until it is let go."""

    def __init__(self) -> None:
        super().__init__("m")
        self.begun, self.go = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        assert self.go.wait(PATIENCE)

    async def wait_async(self) -> None:
        self.begun.set()
        while not self.go.is_set():
            await asyncio.sleep(0.001)


class InThread(Held, TensorModel):
    def predict(self, x: Any) -> Any:
        self.wait()
        return x


class InBatch(InThread):
    max_batch_size = 1


class OnLoop(Held, TensorModel):
    concurrency = 1

    async def predict(self, x: Any) -> Any:
        await self.wait_async()
        return x


class Mixed(InThread):
    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result


class InAsyncBatch(OnLoop):
    max_batch_size = 1
    concurrency = None


class Streamed(Held, Model):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        yield "a"
        self.wait()
        yield "b"


class AsyncStreamed(Held, Model):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        yield "a"
        await self.wait_async()
        yield "b"


class Kept:
    """A reply that keeps how it was called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.called = asyncio.Event()

    def _keep(self, outcome: Any) -> None:
        self.calls.append(outcome)
        self.called.set()

    def finish(self, request: InferenceRequest, encoded: Encoded) -> None:
        self._keep(encoded)

    def stream(self, request: InferenceRequest, parts: ModelStream) -> None:
        self._keep(parts)

    def fail(self, request: InferenceRequest, fault: MPServeError) -> None:
        self._keep(fault)


def ask(core: ServerCore, within: float = math.inf) -> tuple[InferenceRequest, Kept]:
    reply = Kept()
    return begin(core, RequestHead("m", None, "predict", Untouched(ROW), {}), b"", reply, within), reply


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@asynccontextmanager
async def in_flight(model: Any) -> AsyncIterator[ServerCore]:
    """The core of the model, which is let go in the end, when nothing may be held or in flight."""
    async with loaded(model) as core:
        try:
            yield core
        finally:
            model.go.set()
        await core.find("m").in_flight.until_idle()
        assert core.row.in_flight == 0
        assert not core.find("m").streams


def counts(core: ServerCore) -> tuple[int, int]:
    [told] = Statistics(core).told("m")
    return told["inference_stats"]["success"]["count"], told["inference_stats"]["fail"]["count"]


WHOLE = [InThread, InBatch, OnLoop, Mixed, InAsyncBatch]


@each("kind", WHOLE)
async def test_a_request_is_queued_then_runs_and_is_done(kind: type[Any]) -> None:
    async with in_flight(kind()) as core:
        (first, reply), (second, _) = ask(core), ask(core)
        assert (first.begun, first.over) == (False, False)
        await until(core.find("m").model.begun.is_set)
        assert (first.begun, first.over, second.begun, second.over) == (True, False, False, False)
        core.find("m").model.go.set()
        await reply.called.wait()
        assert first.over
        await core.find("m").in_flight.until_idle()
        assert (second.over and second.parts is None, counts(core)) == (True, (2, 0))


@each("kind", [Streamed, AsyncStreamed])
async def test_a_request_that_is_answered_in_parts_streams_until_the_last(kind: type[Any]) -> None:
    async with in_flight(kind()) as core:
        request, reply = ask(core)
        await reply.called.wait()
        [parts] = reply.calls
        assert (request.parts is None, counts(core)) == (False, (0, 0))
        core.find("m").model.go.set()
        assert len([part async for part in parts]) == 2
        assert (request.over and request.parts is None, counts(core)) == (True, (1, 0))


def cancel(request: InferenceRequest) -> None:
    request.cancel()


def expire(request: InferenceRequest) -> None:
    request.expire(DeadlineExceeded("late"))


@each("kind", WHOLE)
@each("end", [cancel, expire])
async def test_a_request_that_is_ended_in_the_queue_never_runs(kind: type[Any], end: Any) -> None:
    async with in_flight(kind()) as core:
        (_, reply), (second, ended), (_, last) = ask(core), ask(core), ask(core)
        await until(core.find("m").model.begun.is_set)
        end(second)
        end(second)
        assert (second.over and second.parts is None, core.find("m").in_flight.count) == (True, 2)
        assert [str(fault) for fault in ended.calls] == ([] if end is cancel else ["late"])
        core.find("m").model.go.set()
        await asyncio.gather(reply.called.wait(), last.called.wait())
        assert counts(core) == (2, 1)
        assert not second.begun


@each("kind", WHOLE)
@each("end", [cancel, expire])
async def test_a_request_that_is_ended_while_it_runs_is_counted_once(kind: type[Any], end: Any) -> None:
    async with in_flight(kind()) as core:
        first, reply = ask(core)
        await until(core.find("m").model.begun.is_set)
        end(first)
        end(first)
        core.find("m").model.go.set()
        await core.find("m").in_flight.until_idle()
        _, following = ask(core)
        await following.called.wait()
        assert sum(counts(core)) == 2
        assert len(reply.calls) <= 1
        assert (end is cancel) or str(reply.calls[0]) == "late"


@each("kind", [Streamed, AsyncStreamed])
@each("reads", [False, True])
async def test_a_request_that_is_cancelled_while_it_streams_is_closed(kind: type[Any], reads: bool) -> None:
    async with in_flight(kind()) as core:
        request, reply = ask(core)
        await reply.called.wait()
        [parts] = reply.calls
        assert await anext(parts)
        reading = asyncio.ensure_future(anext(parts)) if reads else None
        if reading is not None:
            await until(core.find("m").model.begun.is_set)
        request.cancel()
        request.cancel()
        core.find("m").model.go.set()
        await core.find("m").in_flight.until_idle()
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)
        assert (request.over and request.parts is None, counts(core), len(reply.calls)) == (True, (0, 1), 1)


async def test_a_request_that_is_cancelled_while_its_first_part_is_made_gives_none() -> None:
    class Parting(AsyncStreamed):
        request: InferenceRequest

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            self.request.cancel()
            yield "a"

    model = Parting()
    async with in_flight(model) as core:
        model.request, reply = ask(core)
        await reply.called.wait()
        assert [type(call) for call in reply.calls] == [ServerNotReady]


@each("kind", WHOLE)
async def test_a_late_answer_of_the_model_is_dropped(kind: type[Any]) -> None:
    async with in_flight(kind()) as core:
        _, reply = ask(core, within=0.02)
        await until(core.find("m").model.begun.is_set)
        await reply.called.wait()
        assert isinstance(reply.calls[0], DeadlineExceeded)
        core.find("m").model.go.set()
        await core.find("m").in_flight.until_idle()
        _, following = ask(core)
        await following.called.wait()
        assert (len(reply.calls), counts(core)) == (1, (1, 1))
        assert isinstance(following.calls[0], Encoded)
