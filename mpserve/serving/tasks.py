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
from typing import Any, Protocol


class Job(Protocol):
    """What is to be run. It raises nothing."""

    task: asyncio.Task[None] | None
    """The task that it has to itself, once it waits."""

    def done(self) -> bool:
        """Whether it need not be begun any more."""

    def run(self) -> Coroutine[Any, Any, None]: ...


class Tasks:
    """Those of one event loop."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._is_called = False

    def start(self, job: Job) -> None:
        """Run it soon, in a context of its own."""
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
        while jobs:
            job = jobs.popleft()
            if job.done():
                continue
            context = contextvars.copy_context()
            coroutine = job.run()
            try:
                awaited = context.run(coroutine.send, None)
            except StopIteration:
                if task._must_cancel:  # at its own wish, which must not meet another
                    break
            else:
                job.task = task
                self._go_on()
                await _rest(context, coroutine, awaited)
                return
        self._go_on()

    def _go_on(self) -> None:
        self._is_called = False
        if self._jobs:
            self._call()


@types.coroutine
def _rest(
    context: contextvars.Context, coroutine: Coroutine[Any, Any, None], awaited: Any
) -> Generator[Any, Any, None]:
    """A coroutine from where it first waits to its end."""
    while True:
        try:
            value = yield awaited
        except BaseException as error:
            step: Callable[[], Any] = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, value)
        try:
            awaited = context.run(step)
        except StopIteration:
            return
