"""Who is let in to a model, and for how long."""

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpserve.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidInput,
    ModelNotReady,
    MPServeError,
    Overloaded,
    ServerNotReady,
)
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.serving.execution.admission import KNOWN, Admission, Deadline, InFlight, Policy
from mpserve.serving.models.model import Model
from mpserve.serving.models.spans import INFER
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each, until
from tests.running import PATIENCE
from tests.serving import held
from tests.serving.held import MANY, Held, InBatch, in_flight, request

SOON = 0.05
"""Seconds of a deadline that a test waits for."""
NEVER = 30_000.0


class InThread(Held, Model):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        return self.held(payload)


class OnLoop(Held, Model):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return await self.held_async(payload)


async def queued(core: ServerCore, payload: Any, **more: Any) -> asyncio.Task[Any]:
    """The request, once it is counted among those within."""
    before = core.find("m").in_flight.count
    task = ask(core, "m", payload, **more)
    await until(lambda: core.find("m").in_flight.count > before)
    return task


@each("concurrency, queue, within", [(None, 1, 2), (3, 1, 4), (1, 5, 6)])
async def test_more_requests_than_may_wait_are_refused_at_once_and_the_model_never_sees_them(
    concurrency: int | None, queue: int, within: int
) -> None:
    model = InThread()
    model.concurrency, model.max_queue_size = concurrency, queue
    async with in_flight(model) as core:
        tasks = [await queued(core, number) for number in range(within)]
        assert core.find("m").admission.waiting == queue
        with pytest.raises(Overloaded, match=rf"^Model m is overloaded: {queue} requests wait already\.$") as caught:
            await ask(core, "m", "one too many")
        assert caught.value.retry_after == 1
        model.go.release(MANY)
        assert await asyncio.gather(*tasks) == list(range(within))
        assert await ask(core, "m", "again") == "again"
        assert "one too many" not in model.asked


async def test_a_whole_batch_is_what_a_batched_model_answers_at_once() -> None:
    model = InBatch()
    async with in_flight(model, max_queue_size=3) as core:
        tasks = [await queued(core, {"instances": [[1.0]]})]
        await model.has_begun()
        tasks += [await queued(core, {"instances": [[1.0]]}) for _ in range(4)]
        with pytest.raises(Overloaded, match="3 requests wait already"):
            await ask(core, "m", {"instances": [[1.0]]})
        model.go.release(MANY)
        await asyncio.gather(*tasks)
        assert model.calls == [1, 2, 2]


async def test_an_asynchronous_model_without_concurrency_has_no_queue() -> None:
    model = OnLoop()
    async with in_flight(model, max_queue_size=1) as core:
        tasks = [await queued(core, number) for number in range(20)]
        assert core.find("m").admission.waiting == 0
        model.go.release(MANY)
        assert await asyncio.gather(*tasks) == list(range(20))


@each("option, declared, asked, within", [
    (SOON, None, None, math.inf), (NEVER, SOON, None, math.inf), (0, None, 50_000, math.inf),
    (NEVER, None, 50_000, NEVER), (NEVER, NEVER, None, SOON),
])  # fmt: skip
async def test_the_shortest_time_counts_whoever_gives_it_and_then_an_asynchronous_predict_is_cancelled(
    option: float, declared: float | None, asked: int | None, within: float
) -> None:
    model = OnLoop()
    model.request_timeout = declared
    async with in_flight(model, request_timeout=option) as core:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            await ask(core, "m", request(1, parameters=asked and {"timeout": asked}), within=within)
        await until(lambda: model.ended)  # the client is told first
        assert len(model.ended) == 1


async def test_a_model_may_have_no_deadline_where_others_have_one() -> None:
    model = OnLoop()
    model.request_timeout = model.max_queue_size = 0
    async with in_flight(model, request_timeout=SOON, max_queue_size=1) as core:
        admission = core.find("m").admission
        assert admission.admit(math.inf, 0) == math.inf
        model.go.release(MANY)
        await ask(core, "m", request(1, parameters={"timeout": 0}))
        assert admission.policy == Policy(math.inf, math.inf)


@each("timeout", [-1, 1.5, "100", True, None])
async def test_a_timeout_that_is_no_time_is_the_clients_fault(timeout: object) -> None:
    async with in_flight(InThread()) as core:
        with pytest.raises(InvalidInput, match=r"^parameter timeout is .*, expected a whole number of microseconds"):
            await ask(core, "m", request(1, parameters={"timeout": timeout}))


@each("attribute, value", [
    ("max_queue_size", -1), ("max_queue_size", 1.5), ("request_timeout", -0.1), ("request_timeout", math.inf),
    ("request_timeout", "1"),
])  # fmt: skip
async def test_a_model_that_declares_what_cannot_be_is_not_served(attribute: str, value: Any) -> None:
    model = InThread()
    setattr(model, attribute, value)
    with pytest.raises(ConfigurationError, match=f"^model m: {attribute} is {value!r}, expected"):
        await loaded(model).__aenter__()


async def test_the_first_part_of_an_answer_has_the_time_of_a_whole_one_and_later_ones_any() -> None:
    class Parts(InThread):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            for part in payload:
                yield self.held(part) if part == "waits" else part

    model = Parts()
    async with in_flight(model) as core:
        stream = await ask(core, "m", ["first", "waits"], within=SOON)
        assert await anext(stream) == "first"
        following = asyncio.ensure_future(anext(stream))
        await model.has_begun()
        with pytest.raises(DeadlineExceeded):  # so that more than its time has passed
            await ask(core, "m", ["behind it"], within=2 * SOON)
        assert not following.done()
        model.go.release()
        assert await following == "waits"
        await stream.aclose()
        with pytest.raises(DeadlineExceeded):
            await ask(core, "m", ["waits"], within=SOON)
        assert core.find("m").in_flight.count == 1  # until the step that is under way has come back


def doubles(number: float) -> InferRequest:
    return InferRequest("m", [InferInput("x", [1, 1], "FP64", np.array([[number]], np.float64))])


@each("kind", [held.InThread, held.InBatch, held.AsyncBefore])
@each("within", [math.inf, NEVER])
async def test_what_waits_for_a_model_that_will_not_answer_any_more_is_ended(kind: type[Held], within: float) -> None:
    model = kind()
    async with in_flight(model) as core:
        tasks = [await queued(core, doubles(number), within=within) for number in range(5)]
        await model.has_begun()
        instance = core.find("m")
        assert [instance.find_stuck(now) for now in (0.0, 2 * NEVER)] == [False, True]
        told = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        begun = len(model.asked[0])
        assert [type(error) for error in told] == [DeadlineExceeded] * begun + [ServerNotReady] * (5 - begun)
        assert instance.in_flight.count == 0
        with pytest.raises(ModelNotReady):
            await ask(core, "m", doubles(6))
    assert len(model.asked) == 1


@each("limits, seconds", [
    ({}, 600), ({"stuck_timeout": 5}, 5), ({"request_timeout": 1, "stuck_timeout": 5}, 31), ({"stuck_timeout": 0}, math.inf),
])  # fmt: skip
async def test_a_call_is_stuck_after_its_deadline_or_else_after_a_time_of_its_own(
    limits: dict[str, float], seconds: float
) -> None:
    model = InThread()
    async with in_flight(model, **limits) as core:
        task = await queued(core, 1)
        await model.has_begun()
        instance = core.find("m")
        assert not instance.find_stuck(0.0)
        assert not instance.find_stuck(min(seconds, 1e9))
        assert instance.find_stuck(seconds + 1) is (seconds < math.inf)
        model.go.release(MANY)
        await asyncio.gather(task, return_exceptions=True)


def admission(inside: int, slots: float = 1, pace: float = 0.0) -> Admission:
    """The door of a model that has so many requests within."""
    hold = InFlight()
    hold.count = inside
    door = Admission("m", "1", "m", slots, Policy(math.inf, math.inf), hold)
    door.service.known = pace * slots
    return door


def noted(seconds: list[float], slots: float) -> Admission:
    """The door of a model that has taken so many seconds for each of its requests."""
    door = admission(0, slots)
    for passed in seconds:
        durations = [0, 0, 0, 0]
        durations[INFER] = int(passed * 1e9)
        door.note(SimpleNamespace(arrived=0, mark=0, durations=durations), 1)
    return door


@each("slots, pace", [(1, 2.0), (4, 0.5)])
def test_the_pace_is_measured_and_shared_by_what_a_model_answers_at_once(slots: int, pace: float) -> None:
    assert noted([2.0] * (KNOWN - 1), slots).pace == 0
    assert noted([2.0] * KNOWN, slots).pace == pytest.approx(pace)
    assert noted([1.0] * 100 + [2.0] * 100, slots).pace == pytest.approx(pace, rel=0.01)


async def test_a_model_that_answers_in_parts_keeps_a_request_waiting_for_parts_and_not_for_whole_answers() -> None:
    """Answers that take turns all last as long as all of them together."""

    class Parts(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            for part in range(10):
                time.sleep(0.002)
                yield part

    async def read(core: ServerCore) -> None:
        async for _ in await ask(core, "m", None):
            pass

    async with in_flight(Parts("m"), request_timeout=NEVER) as core:
        begin = time.perf_counter()
        await asyncio.gather(*(read(core) for _ in range(2 * KNOWN)))
        seconds = time.perf_counter() - begin
        assert 0 < core.find("m").admission.pace < 5 * seconds / (2 * KNOWN * 10)


def test_a_request_that_would_be_late_is_refused_at_the_door_and_told_when_to_come_back() -> None:
    door = admission(7, pace=1.0)
    assert door.admit(10.0, 7) == 10.0
    with pytest.raises(Overloaded, match=r"it would take 8 s, and the request has 9\.9 s\.$") as caught:
        door.admit(9.9, 7)
    assert caught.value.retry_after == 7


@each("inside, slots", [(0, 1), (3, 4)])
def test_a_model_that_could_begin_at_once_is_always_asked(inside: int, slots: int) -> None:
    """Else one slow request could shut its door for ever."""
    assert admission(inside, slots, pace=100.0).admit(1.0, inside) == 1.0


class Limited:
    """A request that has so much time, and the error that ends it."""

    def __init__(self, seconds: float, needed: float = 0.0, begun: bool = False) -> None:
        self.begun = begun
        self.ended: asyncio.Future[MPServeError] = asyncio.get_running_loop().create_future()
        self.deadline = Deadline(seconds, needed, self, lambda late: DeadlineExceeded(f"{late}"))

    def expire(self, error: MPServeError) -> None:
        self.ended.set_result(error)


@each("seconds, needed, begun", [
    (SOON, 0, False), (NEVER, NEVER - SOON, False),  # it has not begun, and too little time is left
    (SOON, 2 * SOON, False),  # it never had the time that is needed, and is tried all the same
    (2 * SOON, SOON, True),
])  # fmt: skip
async def test_a_request_that_is_late_is_ended(seconds: float, needed: float, begun: bool) -> None:
    limited = Limited(seconds, needed, begun)
    await asyncio.sleep(0)
    assert not limited.ended.done()
    assert str(await limited.ended) == f"{seconds}"
    limited.deadline.close()


async def test_a_request_that_is_done_in_time_or_has_begun_in_time_is_not_ended() -> None:
    done, running, last = Limited(SOON), Limited(NEVER, NEVER - SOON, begun=True), Limited(2 * SOON)
    done.deadline.close()
    await last.ended
    assert not done.ended.done()
    assert not running.ended.done()
    running.deadline.close()
