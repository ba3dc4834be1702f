"""Coroutines on the event loop in fewer tasks than one for each: those that wait for nothing share one.

To make a task, and to come back to the loop for it, costs a tenth of a small request. What is begun in one turn of the loop
runs in one task, one after the other, until one of them waits: from then on the task is its own, and another task goes on with
the rest. So each is in one and the same task from its beginning to its end, as ``asyncio.timeout`` and its like must have it.
"""

import asyncio
import contextvars
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar


class Job(Protocol):
    """A coroutine that is to be run, and where its outcome is wanted: what a future is told, it is told."""

    context: contextvars.Context
    """In which the coroutine is made, and goes on: its own."""
    task: asyncio.Task[None] | None
    """The task that it has to itself, once it waits."""
    over: bool
    """Whether it need not be begun any more."""

    def set_result(self, result: Any, /) -> None:
        """It has ended. Told, as the other, in no context in particular."""

    def set_exception(self, error: BaseException, /) -> None:
        """It has failed."""


J = TypeVar("J", bound=Job)


class CoroutineRunner(Generic[J]):
    """Runs ``run(job)``, a coroutine, for each job that is started, on the running event loop."""

    def __init__(self, run: Callable[[J], Coroutine[Any, Any, Any]]) -> None:
        self._jobs: deque[J] = deque()
        self._is_called = False
        self._run_job = run
        self._runner = _Runner(run)

    def start(self, job: J) -> None:
        """Run it soon."""
        self._jobs.append(job)
        if not self._is_called:
            self._call()

    def _call(self) -> None:
        self._is_called = True
        # The loop keeps it until it runs, and from then on the job that waits in it.
        asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        jobs, runner = self._jobs, self._runner
        task: Any = asyncio.current_task()
        waiting = None
        try:
            # A job may have cancelled its own task, which must not meet another job.
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
        finally:  # also where a job fails at being told: the others go on
            self._go_on()
        if waiting is not None:
            await _rest(*waiting)

    def _go_on(self) -> None:
        self._is_called = False
        if self._jobs:
            self._call()


def _is_cancelled(task: Any) -> bool:
    """Whether somebody has cancelled a task that has not noticed it yet."""
    if sys.version_info >= (3, 11):
        return bool(task.cancelling())
    return bool(task._must_cancel)  # read in Python 3.10.14, whose tasks have no public way to ask


class _End:
    """What a runner gives where a job has ended, with its ``outcome``."""

    __slots__ = ("outcome",)

    outcome: Any

    def take(self) -> Any:
        """The outcome, which is not kept here any longer."""
        outcome, self.outcome = self.outcome, None
        return outcome


class _Runner:
    """Runs the jobs that it is sent, and gives what they wait for, or its ``end``. One that a job has failed in is spent.

    Who steps a coroutine by ``send`` is told its outcome by a StopIteration. To raise one for each job took a fortieth of a
    small request; what awaits the coroutine is just given the outcome.
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
        end.outcome = yield from run((yield end))  # and keep nothing of a job until the next one


@types.coroutine
def _rest(job: Job, runner: _Runner, awaited: Any) -> Generator[Any, Any, None]:
    """A job from where it first waits to its end."""
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
