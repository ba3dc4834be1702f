"""The threads that models run in, and the watchdog that finds a call that does not come back."""

import asyncio
import contextvars
import gc
import logging
import re
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from mpserve.serving.execution.executor import Executor, Watchdog
from tests.cases import each, until
from tests.running import PATIENCE, eventually


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor("m")
    yield executor
    executor.close()


class Calls:
    """Calls that wait in an executor's threads until they are let go."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def never_back(self) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)

    async def begin(self, number: int = 1) -> "list[asyncio.Task[None]]":
        tasks = [asyncio.create_task(self.executor.run(self.never_back)) for _ in range(number)]
        for _ in tasks:
            await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE)
        return tasks

    async def end(self, tasks: "list[asyncio.Task[None]]") -> None:
        """Let all calls go, until each thread has counted its own as ended, which it does after it has told the result."""
        self.go.release(len(tasks))
        await asyncio.gather(*tasks)
        await until(lambda: not any(steps % 2 for steps in self.executor.steps))


@pytest.fixture
def calls(executor: Executor) -> Calls:
    return Calls(executor)


async def test_a_call_runs_in_a_daemon_thread_named_after_the_model_that_did_not_exist_before() -> None:
    """Threads would not survive the fork that comes between construction and use."""
    before = set(threading.enumerate())
    executor = Executor("m")
    assert set(threading.enumerate()) <= before
    thread = await executor.run(threading.current_thread)
    assert (thread.name, thread.daemon) == ("mpserve-m-0", True)
    executor.close()


async def test_a_call_sees_the_context_of_its_caller(executor: Executor) -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def ask(value: str) -> str:
        variable.set(value)
        return await executor.run(variable.get)

    assert await asyncio.gather(ask("a"), ask("b")) == ["a", "b"]


@each("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, asyncio.CancelledError])
async def test_what_would_end_the_loop_or_the_task_ends_only_the_call(
    executor: Executor, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("why")

    with pytest.raises(RuntimeError, match=rf"^{kind.__name__}: why$") as caught:
        await executor.run(fail)
    assert isinstance(caught.value.__cause__, kind)
    assert await executor.run(int) == 0


async def test_each_thread_is_prepared_once_and_in_itself() -> None:
    prepared: list[str] = []
    executor = Executor("m", threads=2, on_start=lambda: prepared.append(threading.current_thread().name))
    together = threading.Barrier(2)
    for _ in range(3):
        await asyncio.gather(*(executor.run(together.wait, PATIENCE) for _ in range(2)))
    executor.close()
    assert sorted(prepared) == ["mpserve-m-0", "mpserve-m-1"]


async def test_a_thread_that_cannot_be_prepared_works_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor("m", on_start=lambda: 1 / 0)
    with caplog.at_level(logging.ERROR):
        assert await executor.run(int) == 0
    executor.close()
    assert "thread mpserve-m-0 could not be prepared" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_call_that_outlives_its_loop_does_not_cost_the_thread(calls: Calls) -> None:
    asyncio.run(calls.begin())
    calls.go.release()
    assert asyncio.run(asyncio.wait_for(calls.executor.run(int), PATIENCE)) == 0


async def test_it_says_at_which_line_a_call_is(calls: Calls) -> None:
    running = await calls.begin()
    place = calls.executor.where()
    await calls.end(running)
    assert re.search(rf"{re.escape(__file__)}:\d+ in never_back", place)


async def test_closing_ends_the_threads_after_what_is_queued() -> None:
    def together() -> threading.Thread:
        barrier.wait(PATIENCE)
        return threading.current_thread()

    executor, barrier, done = Executor("m", threads=2), threading.Barrier(2), []
    threads = await asyncio.gather(executor.run(together), executor.run(together))
    calls = [asyncio.ensure_future(executor.run(done.append, number)) for number in range(5)]
    await asyncio.sleep(0)
    executor.close()
    await asyncio.gather(*calls)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_neither_request_nor_answer_stays_in_memory_until_the_next(executor: Executor) -> None:
    class Big:
        pass

    async def main() -> list[weakref.ref[Big]]:
        given = Big()
        answer = await executor.run(lambda _: Big(), given)
        return [weakref.ref(given), weakref.ref(answer)]

    references = asyncio.run(main())
    gc.disable()
    try:
        eventually(lambda: all(reference() is None for reference in references))
    finally:
        gc.enable()


class Deaf:
    """Fails at being told."""

    def done(self) -> bool:
        return False

    cancelled = done

    def set_result(self, result: object) -> None:
        raise ValueError("not now")


async def test_an_outcome_that_fails_at_being_told_keeps_no_other_from_being_told(executor: Executor) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    executor.submit(contextvars.copy_context(), int, Deaf())
    assert await asyncio.wait_for(asyncio.gather(*(executor.run(int) for _ in range(3))), PATIENCE) == [0, 0, 0]


async def test_each_thread_is_stuck_whose_call_has_run_for_longer_than_the_patience() -> None:
    calls = Calls(Executor("m", 3))
    watchdog = Watchdog(calls.executor, 10)
    assert watchdog.look(0) == []
    tasks = await calls.begin()
    assert [watchdog.look(now) for now in (100, 105)] == [[], []]
    tasks += await calls.begin(2)
    assert watchdog.look(110) == []
    [thread] = watchdog.look(111)
    assert "in never_back\n" in watchdog.stacks([thread])
    assert [len(watchdog.look(now)) for now in (120, 121)] == [1, 3]
    await calls.end(tasks)
    calls.executor.close()


@each("threads", [1, 3])
async def test_an_idle_thread_is_not_stuck_nor_one_that_has_gone_on_to_another_call(threads: int) -> None:
    calls = Calls(Executor("m", threads))
    watchdog = Watchdog(calls.executor, 10)
    await calls.end(await calls.begin())
    assert [watchdog.look(now) for now in (0, 100, 200)] == [[], [], []]
    for now in (300, 311, 322):
        tasks = await calls.begin(threads)
        assert watchdog.look(now) == []
        await calls.end(tasks)
    calls.executor.close()
