"""The only module that makes threads: the threads of a model, in which its synchronous methods run.

The event loop never waits for a model. The jobs of one turn of the loop go to a thread together, since to wake a thread costs
as much as a small request. A job that is not alone waits until a turn brings no more jobs: a thread that wakes on the CPU of
the loop interrupts the loop in the middle of its search (``make bench-against`` shows the cost).
Results come back one by one, so that no result waits for a slower job.

An eventfd wakes a thread, not a lock. The write to an eventfd lets go of the GIL, so a thread that Linux runs at once, on the
CPU of the loop, can begin. A thread that a lock wakes would only find that the loop holds the GIL: half of the switches between
threads would be such (benchmarks/one_connection.py shows the latency).

A model has one thread by default: models are rarely thread-safe, and thread-bound handles need load, predict and stop in
the same thread. The threads are daemons: a predict that never returns must not keep a worker alive that was told to end
(``concurrent.futures`` joins its threads at exit).
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

from mpserve.errors import text_of

logger = logging.getLogger(__name__)
T = TypeVar("T")
R_contra = TypeVar("R_contra", contravariant=True)

MOMENT = 200e-6  # seconds for which jobs wait for more jobs, so that no job waits for the decoding of many large bodies
DEPTH_SHOWN = 3  # frames of a call that does not come back: the innermost often belong to a library


class Outcome(Protocol[R_contra]):
    """A future, or any object that takes a result or an error in the same way. ``cancelled`` may be called in any thread."""

    def cancelled(self) -> bool: ...
    def done(self) -> bool: ...
    def set_result(self, result: R_contra, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...


Job = tuple[contextvars.Context, Callable[..., Any], tuple[object, ...], Outcome[Any], "LoopSide"]


class LoopSide:
    """The jobs of this turn of an event loop, and the outcomes that the loop has still to deliver."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.gathered: list[Job] = []
        self._outcomes: deque[tuple[Outcome[Any], Any, BaseException | None]] = deque()
        self._is_woken = False

    def settle(self, outcome: Outcome[Any], result: object, error: BaseException | None) -> None:
        """Give the outcome its result, from any thread. Outcomes that come before the loop has looked wake it only once."""
        self._outcomes.append((outcome, result, error))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for the outcome
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # before the look: an outcome that comes after the look wakes the loop again
        try:
            while self._outcomes:
                outcome, result, error = self._outcomes.popleft()
                if outcome.done():  # cancelled
                    continue
                if error is None:
                    outcome.set_result(result)
                else:
                    outcome.set_exception(as_failure(error))
                del outcome, result  # and keep nothing of a request until the next one
        finally:
            if self._outcomes:  # a request could not take its outcome: the other requests get theirs
                self.loop.call_soon(self._deliver)


class Inbox:
    """The jobs of the threads of an executor, in lists. None tells one thread to end."""

    def __init__(self, threads: int) -> None:
        self._entries: deque[list[Job] | None] = deque()
        # Each of several threads must be woken; a single thread takes all jobs at once.
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if threads > 1 else 0))

    def put(self, entries: list[list[Job]] | list[None]) -> None:
        """Add entries, and wake as many threads."""
        self._entries.extend(entries)
        os.eventfd_write(self._bell, len(entries))

    def get(self) -> list[Job] | None:
        while True:
            try:
                return self._entries.popleft()
            except IndexError:
                os.eventfd_read(self._bell)

    def withdraw(self) -> list[Job]:
        """The jobs that no thread has taken."""
        entries = []
        with contextlib.suppress(IndexError):  # a thread may take the last one meanwhile
            while True:
                entries.append(self._entries.popleft())
        return [job for jobs in entries if jobs is not None for job in jobs]

    def __del__(self) -> None:
        # The last thread must not close it: the thread may end before the caller of ``close`` has written to the eventfd.
        os.close(self._bell)


class Executor:
    """``threads`` threads and one queue, first come first served. Each thread begins with ``on_start()``."""

    def __init__(self, name: str, threads: int = 1, on_start: Callable[[], object] = lambda: None) -> None:
        self.name = name
        self.threads = threads
        self.on_start = on_start
        self._inbox: Inbox | None = None
        self._started: list[threading.Thread] = []
        self.steps = [0] * threads  # for each thread: calls begun plus calls ended, so an odd number during a call
        self._home: LoopSide | None = None
        self._taken: list[list[Job]] = [[] for _ in range(threads)]  # for each thread: its jobs, the present one last
        self._refusal: Exception | None = None  # the answer to every job, once no thread is left

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function(*args)`` in a thread, in the caller's context, and wait for its result.
        A caller that is cancelled while its job is queued cancels the job.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(contextvars.copy_context(), function, future, *args)
        return await future

    def submit(
        self, context: contextvars.Context, function: Callable[..., T], outcome: "Outcome[T]", *args: object
    ) -> None:
        """Run ``function(*args)`` in a thread, in ``context``, which no other job may use, and settle ``outcome``."""
        if not self._started:
            self._start()
        home = self._home
        # If jobs have been gathered, their loop is running. To ask for the loop costs a system call, before Python 3.12.
        if home is None or not home.gathered:
            loop = asyncio.get_running_loop()
            if home is None or home.loop is not loop:
                home = self._home = LoopSide(loop)
            loop.call_soon(self._gather, home)
        home.gathered.append((context, function, args, outcome, home))

    def _gather(self, home: LoopSide, known: int = 1, until: float = math.inf) -> None:
        """Hand the jobs over if this turn has brought no more than the ``known`` jobs, or the time is over."""
        number, now = len(home.gathered), monotonic()
        if known < number and now < until:
            home.loop.call_soon(self._gather, home, number, min(until, now + MOMENT))
        else:
            self._hand_over(home)

    def _hand_over(self, home: LoopSide) -> None:
        jobs, home.gathered = home.gathered, []
        if not jobs:  # closed meanwhile
            return
        if self._refusal is not None:
            _fail(jobs, self._refusal)
        elif self._inbox is not None:
            # With several threads each job goes to the first free thread.
            self._inbox.put([jobs] if self.threads == 1 else [[job] for job in jobs])

    async def settle(self, stuck: int = 0) -> None:
        """Wait until the calls have ended that were begun before, for whose outcome perhaps nobody waits any more.

        ``stuck``: the threads that are waited for in vain.
        """
        threads = self.threads - stuck
        if threads > 1 and self._started:  # one thread does one thing after the other anyway
            # Each thread that comes to the barrier has ended its calls, and begins none before all have come.
            meeting = threading.Barrier(threads)
            await asyncio.gather(*(self.run(meeting.wait) for _ in range(threads)))

    def where(self) -> str:
        """The innermost lines of each thread, for messages about a call that does not come back."""
        frames = sys._current_frames()
        stacks = (traceback.extract_stack(frames[t.ident]) for t in self._started if t.ident in frames)
        return "; ".join(" < ".join(map(_place, stack[: -1 - DEPTH_SHOWN : -1])) for stack in stacks)

    def stack(self, number: int) -> str:
        frame = sys._current_frames().get(self._started[number].ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def give_up(self, stuck: Sequence[int], late: Exception, refusal: Exception) -> None:
        """Fail the calls of these threads with ``late``, for they do not come back. May be called again.
        If no other thread is left, fail all jobs that wait, and all later ones, with ``refusal``.
        """
        for number in stuck:
            jobs = list(self._taken[number])
            _fail(jobs[-1:], late)
            _fail(jobs[:-1], refusal)
        if len(stuck) == self.threads and self._inbox is not None:
            self._refusal = refusal
            inbox, self._inbox = self._inbox, None
            _fail(inbox.withdraw(), refusal)
            inbox.put([None] * self.threads)  # in case that they come back after all

    def close(self) -> None:
        """Let the threads end once the queue is empty. Does not wait for them."""
        if self._home is not None:
            self._hand_over(self._home)
        if self._inbox is not None:
            self._inbox.put([None] * self.threads)
        self._inbox = None
        self._started = []

    def _start(self) -> None:
        # Threads do not survive a fork, and two processes must not share an inbox. The first use is in the serving process.
        self._inbox = inbox = Inbox(self.threads)
        for number in range(self.threads):
            thread = threading.Thread(
                target=self._work, args=(number, inbox), name=f"mpserve-{self.name}-{number}", daemon=True
            )
            thread.start()
            self._started.append(thread)

    def _work(self, number: int, inbox: "Inbox") -> None:
        try:
            self.on_start()
        except Exception:  # without the thread every request would wait for ever
            logger.exception("thread %s could not be prepared; it goes on as it is", threading.current_thread().name)
        while (jobs := inbox.get()) is not None:
            self._perform(number, jobs)

    def _perform(self, number: int, jobs: list[Job]) -> None:
        """Run jobs. Not a part of ``_work``: CPython 3.11 specializes a function when it is called again, not in such a loop."""
        steps = self.steps
        jobs.reverse()
        self._taken[number] = jobs
        while jobs:
            context, function, args, outcome, home = jobs[-1]
            if outcome.cancelled():
                jobs.pop()
                continue
            steps[number] += 1
            result, failure = None, None
            try:
                result = context.run(function, *args)
            except BaseException as error:  # a model's sys.exit() is its failure too, not the thread's end
                failure = error
            steps[number] += 1
            jobs.pop()
            home.settle(outcome, result, failure)
            del context, function, args, outcome, home, result, failure  # and keep nothing until the next job


class Watchdog:
    """Finds calls of a model that do not come back. ``patience``: seconds that one call may take.
    A look at the threads costs a request nothing. No thread can be ended from outside, so the process has to be replaced.
    """

    def __init__(self, executor: Executor, patience: float) -> None:
        self.patience = patience
        self._executor = executor
        self._seen = [(0, 0.0)] * executor.threads  # for each thread: its steps, and the time of the last change

    def look(self, now: float) -> list[int]:
        """The threads that are stuck in a call at ``now``, on a monotonic clock. To be called often."""
        stuck = []
        for number, steps in enumerate(self._executor.steps):
            known, since = self._seen[number]
            if steps != known:
                self._seen[number] = steps, now
            elif steps % 2 and now - since > self.patience:
                stuck.append(number)
        return stuck

    def stacks(self, stuck: list[int]) -> str:
        return "\n".join(self._executor.stack(number) for number in stuck)


def _fail(jobs: list[Job], error: Exception) -> None:
    for _, _, _, outcome, home in jobs:
        home.settle(outcome, None, error)


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def as_failure(error: BaseException) -> Exception:
    """``error`` as an error that ends a request and nothing else.
    A future refuses StopIteration; SystemExit, KeyboardInterrupt and CancelledError would end the loop or the task.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(f"{type(error).__name__}: {text_of(error)}")
    failure.__cause__ = error
    return failure
