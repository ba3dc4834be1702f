"""Who is let in to a model, and for how long."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from mpserve.errors import ConfigurationError, DeadlineExceeded, InvalidInput, MPServeError, Overloaded, ServerNotReady
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.serving.execution.admission import KNOWN, Admission, InFlight, Policy
from mpserve.serving.models.model import Model
from mpserve.serving.models.spans import INFER
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.asking import Asker
from tests.cases import each

PATIENCE = 30.0
SOON = 0.05
"""Seconds of a deadline that a test waits for."""
NEVER = 1000 * PATIENCE

Ask = Callable[..., Awaitable[Any]]


class Held(Model):
    """Gives its payload back; notes each and waits until it is let go."""

    name = "m"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.begun, self.go = threading.Event(), threading.Semaphore(0)

    def predict(self, payload: Any, headers: Any = None) -> Any:
        self.asked.append(payload)
        self.begun.set()
        assert self.go.acquire(timeout=PATIENCE)
        return payload


class Batched(TensorModel):
    """As ``Held``, in batches of up to four rows."""

    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)
    max_batch_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.begun, self.go = threading.Event(), threading.Semaphore(0)

    def predict(self, x: Any) -> Any:
        self.asked.append(x.tolist())
        self.begun.set()
        assert self.go.acquire(timeout=PATIENCE)
        return x


class Waiting(Model):
    """Waits on the event loop, for ever unless it is let go."""

    name = "m"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.ended: list[Any] = []
        self.go = asyncio.Event()

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        self.asked.append(payload)
        try:
            await self.go.wait()
        finally:
            self.ended.append(payload)
        return payload


def request(value: float, **parameters: Any) -> InferRequest:
    tensor = InferInput("x", [1], "FP32", np.array([value], np.float32))
    return InferRequest("m", [tensor], parameters=parameters or None)


@asynccontextmanager
async def serving(model: Model, **options: Any) -> AsyncIterator[tuple[ServerCore, Ask]]:
    """The core of the model and how to ask it; in the end the model is let go, and nothing may be in flight."""
    async with loaded(model, **options) as core:

        async def ask(payload: Any, **more: Any) -> Any:
            return (await Asker(core).run("predict", "m", None, payload, {}, **more))[0]

        try:
            yield core, ask
        finally:
            if isinstance(model, (Held, Batched)):
                model.go.release(100)
        assert core.row.in_flight == core.find("m").in_flight.count == 0


async def begun(model: Any, work: Awaitable[Any]) -> asyncio.Task[Any]:
    """The request, once the model's thread is at it."""
    task = asyncio.ensure_future(work)
    await asyncio.to_thread(model.begun.wait, PATIENCE)
    return task


async def queued(core: ServerCore, work: Awaitable[Any]) -> asyncio.Task[Any]:
    """The request, once it is counted among those within."""
    before = core.find("m").in_flight.count
    task = asyncio.ensure_future(work)
    while core.find("m").in_flight.count == before:
        await asyncio.sleep(0)
    return task


async def test_more_requests_than_may_wait_are_refused_at_once_and_the_model_never_sees_them() -> None:
    model = Held()
    async with serving(model, max_queue_size=2) as (core, ask):
        first = await begun(model, ask("first"))
        rest = [await queued(core, ask(number)) for number in range(2)]
        assert core.find("m").admission.waiting == 2
        with pytest.raises(Overloaded, match=r"^Model m is overloaded: 2 requests wait already\.$") as caught:
            await ask("one too many")
        assert caught.value.retry_after == 1
        model.go.release(4)
        assert await first == "first"
        assert [await task for task in rest] == [0, 1]
        assert await ask("again") == "again"
        assert model.asked == ["first", 0, 1, "again"]


@each("concurrency, queue, within", [(None, 1, 2), (3, 1, 4), (1, 5, 6)])
async def test_the_queue_begins_behind_what_a_model_answers_at_once(
    concurrency: int | None, queue: int, within: int
) -> None:
    model = Held()
    model.concurrency, model.max_queue_size = concurrency, queue
    async with serving(model) as (core, ask):
        tasks = [await queued(core, ask(number)) for number in range(within)]
        with pytest.raises(Overloaded):
            await ask("one too many")
        model.go.release(within)
        assert await asyncio.gather(*tasks) == list(range(within))


async def test_a_whole_batch_is_what_a_batched_model_answers_at_once() -> None:
    model = Batched()
    async with serving(model, max_queue_size=2) as (core, ask):
        first = await begun(model, ask(request(0)))
        rest = [await queued(core, ask(request(number))) for number in range(1, 6)]
        with pytest.raises(Overloaded, match="2 requests wait already"):
            await ask(request(6))
        model.go.release(3)
        await asyncio.gather(first, *rest)
        assert model.asked == [[0], [1, 2, 3, 4], [5]]


async def test_an_asynchronous_model_without_concurrency_has_no_queue() -> None:
    model = Waiting()
    async with serving(model, max_queue_size=1) as (core, ask):
        tasks = [await queued(core, ask(number)) for number in range(20)]
        assert core.find("m").admission.waiting == 0
        model.go.set()
        assert await asyncio.gather(*tasks) == list(range(20))


async def test_an_asynchronous_predict_is_cancelled_when_the_time_is_up() -> None:
    model = Waiting()
    async with serving(model, request_timeout=SOON) as (_, ask):
        with pytest.raises(DeadlineExceeded):
            await ask("late")
        await asyncio.sleep(0)  # the client is told first
        assert model.ended == ["late"]


@each("option, declared, asked, within", [
    (SOON, None, None, math.inf), (NEVER, SOON, None, math.inf), (0, None, 50_000, math.inf),
    (NEVER, None, 50_000, NEVER), (NEVER, NEVER, None, SOON),
])  # fmt: skip
async def test_the_shortest_time_counts_whoever_gives_it(
    option: float, declared: float | None, asked: int | None, within: float
) -> None:
    model = Waiting()
    model.request_timeout = declared
    async with serving(model, request_timeout=option) as (_, ask):
        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            await ask(request(1, **({} if asked is None else {"timeout": asked})), within=within)


async def test_a_model_may_have_no_deadline_where_others_have_one() -> None:
    model = Waiting()
    model.request_timeout = model.max_queue_size = 0
    async with serving(model, request_timeout=SOON, max_queue_size=1) as (core, ask):
        admission = core.find("m").admission
        assert admission.admit(math.inf, 0) == math.inf
        model.go.set()
        await ask(request(1, timeout=0))
        assert admission.policy == Policy(math.inf, math.inf)


@each("timeout", [-1, 1.5, "100", True, None])
async def test_a_timeout_that_is_no_time_is_the_clients_fault(timeout: object) -> None:
    async with serving(Held()) as (_, ask):
        with pytest.raises(InvalidInput, match=r"^parameter timeout is .*, expected a whole number of microseconds"):
            await ask(request(1, timeout=timeout))


@each("attribute, value", [
    ("max_queue_size", -1), ("max_queue_size", 1.5), ("request_timeout", -0.1), ("request_timeout", math.inf),
    ("request_timeout", "1"),
])  # fmt: skip
async def test_a_model_that_declares_what_cannot_be_is_not_served(attribute: str, value: Any) -> None:
    model = Held()
    setattr(model, attribute, value)
    with pytest.raises(ConfigurationError, match=f"^model m: {attribute} is {value!r}, expected"):
        await loaded(model).__aenter__()


async def test_the_first_part_of_an_answer_has_the_time_of_a_whole_one_and_later_ones_any() -> None:
    class Parts(Held):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            for part in payload:
                self.begun.set()
                if part == "waits":
                    assert self.go.acquire(timeout=PATIENCE)
                yield part

    model = Parts()
    async with serving(model) as (core, ask):
        stream = await ask(["first", "waits"], within=SOON)
        assert await anext(stream) == "first"
        model.begun.clear()
        following = await begun(model, anext(stream))
        with pytest.raises(DeadlineExceeded):  # so that more than its time has passed
            await ask(["behind it"], within=2 * SOON)
        assert not following.done()
        model.go.release()
        assert await following == "waits"
        await stream.aclose()
        with pytest.raises(DeadlineExceeded):
            await ask(["waits"], within=SOON)
        assert core.find("m").in_flight.count == 1  # until the step that is under way has come back
        model.go.release()
        while core.find("m").in_flight.count:
            await asyncio.sleep(0)


def admission(inside: int, slots: float = 1, queue: float = math.inf, pace: float = 0.0) -> Admission:
    """The door of a model that has so many requests within."""
    hold = InFlight()
    for _ in range(inside):
        hold.count += 1
    door = Admission("m", "m", slots, Policy(queue, math.inf), hold)
    door.service.known = pace * slots
    return door


class Answered:
    """A request that the model took so many seconds for."""

    arrived = mark = 0
    begun = True

    def __init__(self, seconds: float) -> None:
        self.durations = [0, 0, 0, 0]
        self.durations[INFER] = int(seconds * 1e9)

    def expire(self, error: MPServeError) -> None: ...


def noted(seconds: list[float], slots: float) -> Admission:
    door = admission(0, slots)
    for each_of_them in seconds:
        door.note(Answered(each_of_them), 1)
    return door


@each("slots, pace", [(1, 2.0), (4, 0.5)])
def test_the_pace_is_measured_and_shared_by_what_a_model_answers_at_once(slots: int, pace: float) -> None:
    assert noted([2.0] * KNOWN, slots).pace == pytest.approx(pace)
    assert noted([1.0] * 100 + [2.0] * 100, slots).pace == pytest.approx(pace, rel=0.01)


def test_the_first_requests_of_a_model_say_nothing_yet() -> None:
    assert noted([2.0] * (KNOWN - 1), 1).pace == 0


def test_a_request_that_would_be_late_is_refused_at_the_door_and_told_when_to_come_back() -> None:
    door = admission(7, pace=1.0)
    assert door.admit(10.0, 7) == 10.0
    with pytest.raises(Overloaded, match=r"it would take 8 s, and the request has 9\.9 s\.$") as caught:
        door.admit(9.9, 7)
    assert caught.value.retry_after == 7


def test_a_model_that_could_begin_at_once_is_always_asked() -> None:
    """Else one slow request could shut its door for ever."""
    assert admission(0, pace=100.0).admit(1.0, 0) == 1.0
    assert admission(3, slots=4, pace=100.0).admit(1.0, 3) == 1.0


async def test_what_waits_for_a_model_that_will_not_answer_any_more_is_ended() -> None:
    async with serving(Held()) as (core, ask):
        tasks = [await queued(core, ask(number, within=NEVER)) for number in range(3)]
        core.find("m").admission.abandon(ServerNotReady("stuck"))
        for task in tasks:
            with pytest.raises(ServerNotReady, match=r"^stuck$"):
                await task
