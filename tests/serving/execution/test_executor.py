"""The threads that models run in."""

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

from mpserve.serving.execution.executor import Executor
from tests.cases import each
from tests.running import eventually

PATIENCE = 30.0


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor("m")
    yield executor
    executor.close()


def test_a_call_runs_in_a_daemon_thread_named_after_the_model(executor: Executor) -> None:
    thread = asyncio.run(executor.run(threading.current_thread))
    assert (thread.name, thread.daemon) == ("mpserve-m-0", True)


def test_no_thread_exists_before_the_first_call() -> None:
    """Threads would not survive the fork that comes between construction and use."""
    before = set(threading.enumerate())
    Executor("new")
    assert set(threading.enumerate()) <= before


async def test_a_call_sees_the_context_of_its_caller(executor: Executor) -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def ask(value: str) -> str:
        variable.set(value)
        return await executor.run(variable.get)

    assert await asyncio.gather(ask("a"), ask("b")) == ["a", "b"]


async def test_calls_run_one_at_a_time_in_the_order_of_asking(executor: Executor) -> None:
    events: list[tuple[str, int]] = []

    def call(number: int) -> int:
        events.append(("begin", number))
        events.append(("end", number))
        return number

    assert await asyncio.gather(*(executor.run(call, number) for number in range(20))) == list(range(20))
    assert events == [(what, number) for number in range(20) for what in ("begin", "end")]


async def test_a_queued_call_whose_caller_is_cancelled_does_not_run(executor: Executor) -> None:
    begun, released, ran = threading.Event(), threading.Event(), []

    def hold() -> None:
        begun.set()
        released.wait(PATIENCE)

    running = asyncio.ensure_future(executor.run(hold))
    queued = asyncio.ensure_future(executor.run(ran.append, 1))
    await asyncio.to_thread(begun.wait, PATIENCE)
    queued.cancel()
    await asyncio.wait({queued})
    released.set()
    await running
    await executor.run(ran.append, 2)
    assert ran == [2]


@each("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, asyncio.CancelledError])
async def test_what_would_end_the_loop_or_the_task_ends_only_the_call(
    executor: Executor, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("why")

    with pytest.raises(RuntimeError, match=rf"^{kind.__name__}: why$") as caught:
        await executor.run(fail)
    assert isinstance(caught.value.__cause__, kind)
    assert await executor.run(lambda: "still here") == "still here"


async def test_each_thread_is_prepared_once_and_in_itself() -> None:
    prepared: list[str] = []
    executor = Executor("m", threads=2, on_start=lambda: prepared.append(threading.current_thread().name))
    together = threading.Barrier(2)
    for _ in range(3):
        await asyncio.gather(*(executor.run(together.wait, PATIENCE) for _ in range(2)))
    executor.close()
    assert sorted(prepared) == ["mpserve-m-0", "mpserve-m-1"]


def test_a_thread_that_cannot_be_prepared_works_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor("m", on_start=lambda: 1 / 0)
    with caplog.at_level(logging.ERROR):
        assert asyncio.run(executor.run(lambda: 5)) == 5
    executor.close()
    assert "thread mpserve-m-0 could not be prepared" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_call_that_outlives_its_loop_does_not_cost_the_thread(executor: Executor) -> None:
    begun, released = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        released.wait(PATIENCE)

    async def abandon() -> None:
        running = asyncio.ensure_future(executor.run(hold))
        await asyncio.to_thread(begun.wait, PATIENCE)
        running.cancel()

    asyncio.run(abandon())
    released.set()
    assert asyncio.run(asyncio.wait_for(executor.run(lambda: 5), PATIENCE)) == 5


async def test_it_says_at_which_line_a_call_is(executor: Executor) -> None:
    begun, released = threading.Event(), threading.Event()

    def here() -> None:
        begun.set()
        released.wait(PATIENCE)

    running = asyncio.ensure_future(executor.run(here))
    await asyncio.to_thread(begun.wait, PATIENCE)
    place = executor.where()
    released.set()
    await running
    assert re.search(rf"{re.escape(__file__)}:\d+ in here", place)


async def test_closing_ends_the_threads_after_what_is_queued() -> None:
    executor = Executor("m", threads=2)
    done: list[int] = []
    threads = [await executor.run(threading.current_thread)]
    calls = [asyncio.ensure_future(executor.run(done.append, number)) for number in range(5)]
    await asyncio.sleep(0)
    executor.close()
    await asyncio.gather(*calls)
    [thread] = threads
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

    def set_exception(self, error: Exception) -> None:
        raise ValueError("not now")


async def test_an_outcome_that_fails_at_being_told_keeps_no_other_from_being_told(executor: Executor) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    executor.submit(contextvars.copy_context(), int, Deaf())
    assert await asyncio.wait_for(asyncio.gather(*(executor.run(int) for _ in range(3))), PATIENCE) == [0, 0, 0]
