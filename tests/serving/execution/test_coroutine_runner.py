"""Coroutines that wait for nothing share a task, and none can tell that it is not alone."""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mpserve.serving.execution.coroutine_runner import CoroutineRunner
from tests.cases import each

PATIENCE = 20
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

    def set_exception(self, error: BaseException) -> None:
        self.outcome = error
        self.ended.set()


def runner_of_jobs() -> CoroutineRunner:
    return CoroutineRunner(lambda job: job.predict())


def outcomes(*predicts: Predict) -> list[Any]:
    """What becomes of jobs that are begun in one turn of the loop."""

    async def main() -> list[Any]:
        runner, jobs = runner_of_jobs(), [Job(predict) for predict in predicts]
        for job in jobs:
            runner.start(job)
        for job in jobs:
            await job.ended.wait()
        return [job.outcome for job in jobs]

    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


async def which() -> Any:
    return asyncio.current_task()


def test_those_that_wait_for_nothing_share_a_task() -> None:
    async def waits() -> Any:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        return before, asyncio.current_task()

    one, two, (before, after), three, four = outcomes(which, which, waits, which, which)
    assert one is two is before is after
    assert three is four
    assert three is not one


def test_what_waits_holds_up_no_other_and_gets_what_it_waits_for() -> None:
    order = []

    def predict(name: str, waits: bool) -> Predict:
        async def run() -> str:
            if waits:
                future = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(0.01, future.set_result, name)
                assert await future == name
                with pytest.raises(ZeroDivisionError):
                    await asyncio.gather(fails())
            order.append(name)
            return name

        return run

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    assert outcomes(predict("a", True), predict("b", False), predict("c", True), predict("d", False)) == list("abcd")
    assert order[:2] == ["b", "d"]


def test_each_has_a_context_of_its_own_from_beginning_to_end() -> None:
    def sets(name: str, waits: bool) -> Predict:
        async def run() -> tuple[str, str]:
            before = var.get()
            token = var.set(name)
            if waits:
                await asyncio.sleep(0)
            assert var.get() == name
            var.reset(token)
            return before, var.get()

        return run

    jobs = [sets(name, waits) for name in "ab" for waits in (False, True)]
    assert outcomes(*jobs) == [("-", "-")] * 4


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("error", [ValueError("why"), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_raised_is_told_to_the_one_whose_it_is(error: BaseException, waits: bool) -> None:
    async def fails() -> None:
        if waits:
            await asyncio.sleep(0)
        raise error

    async def works() -> int:
        return 7

    assert outcomes(works, fails, works) == [7, error, 7]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
def test_a_timeout_ends_the_one_that_has_set_it() -> None:
    async def late() -> Any:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(PATIENCE)

    async def in_time() -> int:
        async with asyncio.timeout(PATIENCE):
            return 7

    first, error, last = outcomes(in_time, late, in_time)
    assert (first, last) == (7, 7)
    assert isinstance(error, TimeoutError)


def test_one_that_cancels_its_own_task_without_waiting_cancels_no_other() -> None:
    async def cancels() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return 5

    async def waits() -> int:
        await asyncio.sleep(0)
        return 7

    assert outcomes(cancels, waits, waits) == [5, 7, 7]


@each("fails", [False, True])
def test_one_that_fails_at_being_told_keeps_no_other_from_running(fails: bool) -> None:
    class Deaf(Job):
        def set_result(self, result: Any) -> None:
            raise ValueError("not now")

        set_exception = set_result

    async def end() -> int:
        if fails:
            raise KeyError
        return 1

    async def one() -> int:
        return 1

    async def main() -> list[Any]:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        runner, jobs = runner_of_jobs(), [Job(one), Job(one)]
        for job in (Deaf(end), jobs[0], Deaf(end)):
            runner.start(job)
        await jobs[0].ended.wait()
        await asyncio.sleep(0)
        runner.start(jobs[1])
        await jobs[1].ended.wait()
        return [job.outcome for job in jobs]

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == [1, 1]


def test_one_that_is_over_before_it_has_begun_is_not_begun() -> None:
    async def main() -> None:
        runner, over, last = runner_of_jobs(), Job(which), Job(which)
        runner.start(over)
        runner.start(last)
        over.over = True
        await last.ended.wait()
        assert over.outcome is None

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("waits", [False, True])
def test_nothing_of_one_that_has_ended_is_kept(waits: bool) -> None:
    class Large:
        pass

    async def predict() -> Large:
        if waits:
            await asyncio.sleep(0)
        return Large()

    async def ended(runner: CoroutineRunner) -> list[weakref.ref[Any]]:
        job = Job(predict)
        runner.start(job)
        await job.ended.wait()
        return [weakref.ref(job), weakref.ref(job.outcome)]

    async def main() -> None:
        runner = runner_of_jobs()
        gc.disable()  # which would hide a circle
        try:
            kept = await ended(runner)
            await asyncio.sleep(0)  # for the task to end
            assert [reference() for reference in kept] == [None, None]
        finally:
            gc.enable()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_one_that_still_waits_when_the_loop_ends_is_closed_and_told_nothing() -> None:
    closed, kept = [], []

    async def waits() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append(True)

    async def main() -> None:
        job = Job(waits)
        kept.append(job)
        runner_of_jobs().start(job)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    task = kept[0].task
    task._log_destroy_pending = False
    task.get_coro().close()
    assert (closed, kept[0].outcome) == ([True], None)
