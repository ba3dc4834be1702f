"""A call that does not come back is found, and nothing else is."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from mpserve.serving.execution.executor import Executor, Watchdog

PATIENCE = 30.0


class Calls:
    """Calls in an executor's threads that wait until they are let go."""

    def __init__(self, threads: int) -> None:
        self.executor = Executor("m", threads)
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def never_back(self) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)

    async def begin(self, number: int) -> "list[asyncio.Task[None]]":
        tasks = [asyncio.create_task(self.executor.run(self.never_back)) for _ in range(number)]
        for _ in tasks:
            await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE)
        return tasks

    async def end(self, tasks: "list[asyncio.Task[None]]") -> None:
        """Let all calls go, until each thread has counted its own as ended, which it does after it has told the result."""
        self.go.release(len(tasks))
        await asyncio.gather(*tasks)
        while any(steps % 2 for steps in self.executor.steps):
            await asyncio.sleep(0)


@pytest.fixture(params=[1, 3])
def calls(request: pytest.FixtureRequest) -> Iterator[Calls]:
    calls = Calls(request.param)
    yield calls
    calls.executor.close()


async def test_a_call_is_stuck_when_it_has_run_for_longer_than_the_patience(calls: Calls) -> None:
    watchdog = Watchdog(calls.executor, 10)
    assert watchdog.look(0) == []
    tasks = await calls.begin(1)
    assert [watchdog.look(now) for now in (100, 105, 110)] == [[], [], []]
    [thread] = watchdog.look(111)
    assert "in never_back\n" in watchdog.stacks([thread])
    await calls.end(tasks)


async def test_each_thread_is_watched_by_itself() -> None:
    calls = Calls(3)
    watchdog = Watchdog(calls.executor, 10)
    tasks = await calls.begin(2)
    watchdog.look(0)
    later = await calls.begin(1)
    assert watchdog.look(5) == []
    assert len(watchdog.look(11)) == 2
    assert len(watchdog.look(16)) == 3
    await calls.end([*tasks, *later])
    calls.executor.close()


async def test_an_idle_thread_is_not_stuck_nor_one_that_has_gone_on_to_another_call(calls: Calls) -> None:
    watchdog = Watchdog(calls.executor, 10)
    await calls.end(await calls.begin(1))
    assert [watchdog.look(now) for now in (0, 100, 200)] == [[], [], []]
    for now in (300, 311, 322):
        tasks = await calls.begin(calls.executor.threads)
        assert watchdog.look(now) == []
        await calls.end(tasks)
