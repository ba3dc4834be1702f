"""The only place that makes threads: a model's own threads, where its synchronous methods run.

The event loop never waits for a model. What it hands over during one turn goes to a thread together, since to wake a thread
costs as much as a small request; results come back singly, so that none waits for a slower mate.

A thread is woken by an eventfd, not by a lock: the write lets go of the GIL, so that a thread that Linux runs at once, in the
place of the loop on the same CPU, can begin. Woken by a lock it would only find that the loop holds the GIL. Of 6,000 requests
on one CPU that takes half of the switches between threads (benchmarks/one_connection.py shows the latency).

One thread is the default, since models are rarely thread-safe, and since everything of a model (load, predict, stop) then
runs in the same thread, which thread-bound handles need. The threads are daemons: a predict that never returns must not
keep a worker alive that has been told to end (``concurrent.futures`` joins its threads at exit).
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mpserve.errors import text_of

logger = logging.getLogger(__name__)
T = TypeVar("T")
R_contra = TypeVar("R_contra", contravariant=True)


DEPTH_SHOWN = 3
"""Frames of a call that does not come back: the innermost is often some library's, and does not say who called it."""


class Outcome(Protocol[R_contra]):
    """Where a result or an error is wanted: a future, or what is told of either in the same way."""

    def cancelled(self) -> bool:
        """Whether it is wanted no more, asked from a thread."""

    def done(self) -> bool:
        """Whether it is there or wanted no more."""

    def set_result(self, result: R_contra, /) -> None:
        """It is there."""

    def set_exception(self, error: Exception, /) -> None:
        """There will be none."""


Job = tuple[contextvars.Context, Callable[..., Any], tuple[object, ...], Outcome[Any], "LoopSide"]
"""A call that waits for its turn, in which context, and where its outcome is wanted."""


class LoopSide:
    """What an executor keeps for the event loop that calls it: the jobs of this turn, and the outcomes to be told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.gathered: list[Job] = []
        self._outcomes: deque[tuple[Outcome[Any], Any, BaseException | None]] = deque()
        self._is_told = False

    def tell(self, outcome: Outcome[Any], result: object, error: BaseException | None) -> None:
        """Settle the outcome, from any thread. Outcomes that come before the loop has looked wake it only once."""
        self._outcomes.append((outcome, result, error))
        if not self._is_told:
            self._is_told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_told = False  # before the look: what comes after it is told anew
        try:
            while self._outcomes:
                outcome, result, error = self._outcomes.popleft()
                if outcome.done():  # cancelled meanwhile: nobody waits for it
                    continue
                if error is None:
                    outcome.set_result(result)
                else:
                    outcome.set_exception(as_failure(error))
                del outcome, result  # and keep nothing of a request until the next one
        finally:
            if self._outcomes:  # one has failed at being told: the others are told all the same
                self.loop.call_soon(self._deliver)


class Inbox:
    """What the threads of an executor have still to do, in lists of jobs. None tells one thread to end."""

    def __init__(self, threads: int) -> None:
        self._entries: deque[list[Job] | None] = deque()
        # Of several threads each is to be woken; one thread takes all there is, however often it was told.
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if threads > 1 else 0))

    def put(self, entries: list[list[Job]] | list[None]) -> None:
        """Add entries, and wake as many threads."""
        self._entries.extend(entries)
        os.eventfd_write(self._bell, len(entries))

    def get(self) -> list[Job] | None:
        """The next entry. Waits for it, in a thread."""
        while True:
            try:
                return self._entries.popleft()
            except IndexError:
                os.eventfd_read(self._bell)

    def __del__(self) -> None:
        # Not by the last thread, which may be told to end before whoever tells it has written to the eventfd.
        os.close(self._bell)


class Executor:
    """``threads`` threads and one queue, first come first served. Each thread begins with ``on_start()``."""

    def __init__(self, name: str, threads: int = 1, on_start: Callable[[], object] = lambda: None) -> None:
        self.name = name
        self.threads = threads
        self.on_start = on_start
        self._inbox: Inbox | None = None
        self._started: list[threading.Thread] = []
        self.steps = [0] * threads
        """Of each thread: how many calls it has begun and how many it has ended, so an odd number while one runs."""
        self._home: LoopSide | None = None

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function(*args)`` in a thread, in the caller's context, and wait for its result.

        A caller that is cancelled while its job is still queued takes the job with it.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(contextvars.copy_context(), function, future, *args)
        return await future

    def submit(
        self, context: contextvars.Context, function: Callable[..., T], outcome: "Outcome[T]", *args: object
    ) -> None:
        """Run ``function(*args)`` in a thread, in this context, which is its own, and settle ``outcome`` on the loop."""
        if not self._started:
            self._start()
        home = self._home
        # Where something has been gathered, that loop is the one that runs. To ask costs a system call, until Python 3.12.
        if home is None or not home.gathered:
            loop = asyncio.get_running_loop()
            if home is None or home.loop is not loop:
                home = self._home = LoopSide(loop)
            loop.call_soon(self._hand_over, home)
        home.gathered.append((context, function, args, outcome, home))

    def _hand_over(self, home: LoopSide) -> None:
        jobs, home.gathered = home.gathered, []
        if not jobs:  # closed meanwhile
            return
        if self._inbox is not None:
            # With several threads each job goes to the thread that is free first.
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
        """The innermost lines that each thread is at: what to say of a call that does not come back."""
        frames = sys._current_frames()
        stacks = (traceback.extract_stack(frames[t.ident]) for t in self._started if t.ident in frames)
        return "; ".join(" < ".join(map(_place, stack[: -1 - DEPTH_SHOWN : -1])) for stack in stacks)

    def stack(self, number: int) -> str:
        """Where a thread is, in many lines."""
        frame = sys._current_frames().get(self._started[number].ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def close(self) -> None:
        """Let the threads end once the queue is empty. Does not wait for them."""
        if self._home is not None:
            self._hand_over(self._home)
        if self._inbox is not None:
            self._inbox.put([None] * self.threads)
        self._inbox = None
        self._started = []

    def _start(self) -> None:
        # Threads do not survive a fork, and two processes must not share an inbox: both are made on first use, which is
        # always in the process that serves.
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
        steps = self.steps
        while (jobs := inbox.get()) is not None:
            jobs.reverse()
            while jobs:
                context, function, args, outcome, home = jobs.pop()
                if outcome.cancelled():
                    continue
                steps[number] += 1
                result, failure = None, None
                try:
                    result = context.run(function, *args)
                except BaseException as error:  # a model's sys.exit() is its failure too, not the thread's end
                    failure = error
                steps[number] += 1
                home.tell(outcome, result, failure)
                del context, function, args, outcome, home, result, failure  # and keep nothing until the next job


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def as_failure(error: BaseException) -> Exception:
    """``error`` as something that ends a request and nothing else.

    A future refuses StopIteration; SystemExit, KeyboardInterrupt and CancelledError would end the loop or the task.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(f"{type(error).__name__}: {text_of(error)}")
    failure.__cause__ = error
    return failure
