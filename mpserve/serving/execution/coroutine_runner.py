"""Runs coroutines on the event loop in fewer tasks than one for each: coroutines that never wait share a task.

A task, and the way back to the loop, cost a tenth of a small request. The coroutines of one turn of the loop run in one task,
one after the other, until one of them waits. The task then belongs to the waiting coroutine, and another task runs the rest.
So each coroutine stays in one task from its beginning to its end, as ``asyncio.timeout`` needs it.
"""

import asyncio
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from mpserve.serving.execution.scheduled import Scheduled


class CoroutineRunner:
    """Runs the coroutine ``run(request)`` for each request that is started, and gives the request the outcome."""

    def __init__(self, run: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        self._jobs: deque[Scheduled] = deque()
        self._is_called = False
        self._run_job = run
        self._runner = _Runner(run)

    def start(self, job: Scheduled) -> None:
        self._jobs.append(job)
        if not self._is_called:
            self._call()

    def _call(self) -> None:
        self._is_called = True
        # The loop keeps the task until it runs, and from then on the request that waits in the task.
        asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        jobs, runner = self._jobs, self._runner
        task: Any = asyncio.current_task()
        waiting = None
        try:
            # A request may have cancelled its own task, which must not run another request.
            while waiting is None and jobs and not _is_cancelled(task):
                job = jobs.popleft()
                if job.over:
                    continue
                try:
                    awaited = job.context.run(runner.send, job)
                except BaseException as error:
                    self._runner = runner = _Runner(self._run_job)
                    job.set_exception(error)
                    continue
                if awaited is runner.end:
                    job.set_result(runner.end.take())
                    continue
                job.task = task
                self._runner = _Runner(self._run_job)
                waiting = job, runner, awaited
        finally:  # also if a request cannot take its outcome: the other requests go on
            self._go_on()
        if waiting is not None:
            await _rest(*waiting)

    def _go_on(self) -> None:
        self._is_called = False
        if self._jobs:
            self._call()


def _is_cancelled(task: Any) -> bool:
    """Whether the task was cancelled and has not noticed yet."""
    if sys.version_info >= (3, 11):
        return bool(task.cancelling())
    return bool(task._must_cancel)  # read in Python 3.10.14, whose tasks have no public way to ask


class _End:
    """A runner yields this object when a request has ended; ``outcome`` is the result."""

    __slots__ = ("outcome",)

    outcome: Any

    def take(self) -> Any:
        outcome, self.outcome = self.outcome, None
        return outcome


class _Runner:
    """Runs the requests that it is sent, and yields the futures that they wait for, or ``end``. A failure ends the runner.
    A coroutine that is stepped by ``send`` gives its outcome by raising StopIteration, which takes a fortieth of a small
    request. ``yield from`` gives the outcome without raising.
    """

    __slots__ = ("close", "end", "send", "throw")

    def __init__(self, run: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        self.end = _End()
        steps = _steps(self.end, run)
        steps.send(None)
        self.send, self.throw, self.close = steps.send, steps.throw, steps.close


@types.coroutine
def _steps(end: _End, run: Callable[[Any], Coroutine[Any, Any, Any]]) -> Generator[Any, Any, None]:
    while True:
        end.outcome = yield from run((yield end))  # and keep nothing of a request until the next request


@types.coroutine
def _rest(job: Scheduled, runner: _Runner, awaited: Any) -> Generator[Any, Any, None]:
    """Runs a request from its first wait to its end."""
    run = job.context.run
    while True:
        try:
            step: Callable[[], Any] = partial(runner.send, (yield awaited))
        except GeneratorExit:
            runner.close()
            raise
        except BaseException as error:
            step = partial(runner.throw, error)
        try:
            awaited = run(step)
        except BaseException as error:
            return job.set_exception(error)
        if awaited is runner.end:
            return job.set_result(runner.end.take())
