"""Coroutines that wait for nothing share a task, and none can tell that it is not alone."""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from mpserve.serving.execution.coroutine_runner import CoroutineRunner
from tests.cases import each
from tests.running import PATIENCE

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="-")

Predict = Callable[[], Coroutine[Any, Any, Any]]


class Job:
    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.context = contextvars.copy_context()
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.outcome: Any = None
        self.ended = asyncio.Event()

    def set_result(self, result: Any) -> None:
        self.outcome = result
        self.ended.set()

    set_exception = set_result


def start(*jobs: Job) -> CoroutineRunner:
    """The runner of jobs that are begun in one turn of the loop."""
    runner = CoroutineRunner(lambda job: job.predict())
    for job in jobs:
        runner.start(job)
    return runner


async def outcomes(*predicts: Predict) -> list[Any]:
    jobs = [Job(predict) for predict in predicts]
    start(*jobs)
    for job in jobs:
        await job.ended.wait()
    return [job.outcome for job in jobs]


async def wait_if(waits: bool) -> None:
    if waits:
        await asyncio.sleep(0)


async def which() -> Any:
    return asyncio.current_task()


async def seven() -> int:
    return 7


async def test_those_that_wait_for_nothing_share_a_task() -> None:
    async def waits() -> Any:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        return before, asyncio.current_task()

    one, two, (before, after), three, four = await outcomes(which, which, waits, which, which)
    assert one is two is before is after
    assert three is four
    assert three is not one


async def test_what_waits_holds_up_no_other_and_gets_what_it_waits_for() -> None:
    order = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def predict(name: str, waits: bool) -> str:
        if waits:
            assert await asyncio.sleep(0.01, name) == name
            with pytest.raises(ZeroDivisionError):
                await asyncio.gather(fails())
        order.append(name)
        return name

    assert await outcomes(*(partial(predict, name, name in "ac") for name in "abcd")) == list("abcd")
    assert order[:2] == ["b", "d"]


async def test_each_has_a_context_of_its_own_from_beginning_to_end() -> None:
    async def sets(name: str, waits: bool) -> tuple[str, str]:
        before = var.get()
        token = var.set(name)
        await wait_if(waits)
        assert var.get() == name
        var.reset(token)
        return before, var.get()

    jobs = [partial(sets, name, waits) for name in "ab" for waits in (False, True)]
    assert await outcomes(*jobs) == [("-", "-")] * 4


@each("waits", [False, True])
@each("error", [ValueError("why"), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3)])
async def test_what_is_raised_is_told_to_the_one_whose_it_is(error: BaseException, waits: bool) -> None:
    async def fails() -> None:
        await wait_if(waits)
        raise error

    assert await outcomes(seven, fails, seven) == [7, error, 7]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
async def test_a_timeout_ends_the_one_that_has_set_it() -> None:
    async def late() -> Any:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(PATIENCE)

    async def in_time() -> int:
        async with asyncio.timeout(PATIENCE):
            return 7

    first, error, last = await outcomes(in_time, late, in_time)
    assert (first, last) == (7, 7)
    assert isinstance(error, TimeoutError)


async def test_one_that_cancels_its_own_task_without_waiting_cancels_no_other() -> None:
    async def cancels() -> int:
        (await which()).cancel()
        return 5

    async def waits() -> int:
        return await asyncio.sleep(0, 7)

    assert await outcomes(cancels, waits, waits) == [5, 7, 7]


@each("fails", [False, True])
async def test_one_that_fails_at_being_told_keeps_no_other_from_running(fails: bool) -> None:
    class Deaf(Job):
        def set_result(self, result: Any) -> None:
            raise ValueError("not now")

        set_exception = set_result

    async def end() -> int:
        if fails:
            raise KeyError
        return 1

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    job, later = Job(seven), Job(seven)
    runner = start(Deaf(end), job, Deaf(end))
    await job.ended.wait()
    await asyncio.sleep(0)
    runner.start(later)
    await later.ended.wait()
    assert (job.outcome, later.outcome) == (7, 7)


async def test_one_that_is_over_before_it_has_begun_is_not_begun() -> None:
    over, last = Job(which), Job(which)
    start(over, last)
    over.over = True
    await last.ended.wait()
    assert over.outcome is None


def test_one_that_its_loop_leaves_behind_is_closed_and_has_no_outcome() -> None:
    """As at the end of a worker: the loop is gone, and with it what the request waits for."""
    notes = []

    async def waits() -> None:
        try:
            notes.append("began")
            await asyncio.Event().wait()
        finally:
            notes.append("closed")

    async def begin() -> Job:
        job = Job(waits)
        start(job)
        while job.task is None:
            await asyncio.sleep(0)
        return job

    loop = asyncio.new_event_loop()
    job = loop.run_until_complete(begin())
    assert job.task is not None
    coroutine: Any = job.task.get_coro()
    coroutine.close()
    assert notes == ["began", "closed"]
    assert not job.ended.is_set()
    job.task.cancel()  # of which nothing is left but a task
    loop.run_until_complete(asyncio.wait({job.task}))
    loop.close()


@each("waits", [False, True])
async def test_nothing_of_one_that_has_ended_is_kept(waits: bool) -> None:
    class Large:
        pass

    async def predict() -> Large:
        await wait_if(waits)
        return Large()

    async def ended() -> list[Any]:
        job = Job(predict)
        runner = start(job)
        await job.ended.wait()
        return [runner, weakref.ref(job), weakref.ref(job.outcome)]

    gc.disable()  # which would hide a circle
    try:
        _runner, *kept = await ended()
        await asyncio.sleep(0)  # for the task to end
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_one_that_still_waits_when_the_loop_ends_is_closed_and_told_nothing() -> None:
    closed = []

    async def waits() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append(True)

    async def begun() -> Job:
        job = Job(waits)
        start(job)
        await asyncio.sleep(0)
        return job

    loop = asyncio.new_event_loop()
    job: Any = loop.run_until_complete(begun())
    loop.close()
    job.task._log_destroy_pending = False
    job.task.get_coro().close()
    assert (closed, job.outcome) == ([True], None)
