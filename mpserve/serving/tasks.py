"""Coroutines on the event loop in fewer tasks than one for each: those that wait for nothing share one.

To make a task, and to come back to the loop for it, costs a tenth of a small request. What is begun in one turn of the loop
runs in one task, one after the other, until one of them waits: from then on the task is its own, and another task goes on with
the rest. So each is in one and the same task from its beginning to its end, as ``asyncio.timeout`` and its like must have it.
"""

import asyncio
import contextvars
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Job(Protocol[T]):
    """A coroutine that is to be run, and where its outcome is wanted: what a future is told, it is told."""

    task: asyncio.Task[None] | None
    """The task that it has to itself, once it waits."""

    def done(self) -> bool:
        """Whether it need not be begun any more."""

    def run(self, context: contextvars.Context) -> Coroutine[Any, Any, T]:
        """The coroutine. It is made, and goes on, in this context, which is its own."""

    def set_result(self, result: T, /) -> None:
        """It has ended. Told, as the other, in no context in particular."""

    def set_exception(self, error: BaseException, /) -> None:
        """It has failed."""


class Tasks:
    """Those of one event loop."""

    def __init__(self) -> None:
        self._jobs: deque[Job[Any]] = deque()
        self._is_called = False

    def start(self, job: Job[Any]) -> None:
        """Run it soon."""
        self._jobs.append(job)
        if not self._is_called:
            self._call()

    def _call(self) -> None:
        self._is_called = True
        # The loop keeps it until it runs, and from then on the job that waits in it.
        asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        jobs = self._jobs
        task: Any = asyncio.current_task()
        # A job may have cancelled its own task, which must not meet another. Python 3.10 has no public way to ask.
        while jobs and not task._must_cancel:
            job = jobs.popleft()
            if job.done():
                continue
            context = contextvars.copy_context()
            coroutine = context.run(job.run, context)
            try:
                awaited = context.run(coroutine.send, None)
            except StopIteration as end:
                job.set_result(end.value)
            except BaseException as error:
                job.set_exception(error)
            else:
                job.task = task
                self._go_on()
                await _rest(job, context, coroutine, awaited)
                return
        self._go_on()

    def _go_on(self) -> None:
        self._is_called = False
        if self._jobs:
            self._call()


@types.coroutine
def _rest(
    job: Job[T], context: contextvars.Context, coroutine: Coroutine[Any, Any, T], awaited: Any
) -> Generator[Any, Any, None]:
    """A coroutine from where it first waits to its end."""
    while True:
        try:
            step: Callable[[], Any] = partial(coroutine.send, (yield awaited))
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step = partial(coroutine.throw, error)
        try:
            awaited = context.run(step)
        except StopIteration as end:
            return job.set_result(end.value)
        except BaseException as error:
            return job.set_exception(error)
