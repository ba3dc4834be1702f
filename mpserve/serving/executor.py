"""The only place that makes threads: a model's own threads, where its synchronous methods run.

The event loop never waits for a model. One thread is the default, since models are rarely thread-safe, and since
everything of a model (load, predict, stop) then runs in the same thread, which thread-bound handles need. The threads
are daemons: a predict that never returns must not keep a worker alive that has been told to end (``concurrent.futures``
joins its threads at exit).
"""

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")
Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]

DEPTH_SHOWN = 3
"""Frames of a call that does not come back: the innermost is often some library's, and does not say who called it."""


class Executor:
    """``threads`` threads and one queue, first come first served. Each thread begins with ``on_start()``."""

    def __init__(self, name: str, threads: int = 1, on_start: Callable[[], object] = lambda: None) -> None:
        self.name = name
        self.threads = threads
        self.on_start = on_start
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._started: list[threading.Thread] = []

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function(*args)`` in a thread, in the caller's context, and wait for its result.

        A caller that is cancelled while its job is still queued takes the job with it.
        """
        if not self._started:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()
        self._queue.put((lambda: context.run(function, *args), future, loop))
        return await future

    def where(self) -> str:
        """The innermost lines that each thread is at: what to say of a call that does not come back."""
        frames = sys._current_frames()
        stacks = (traceback.extract_stack(frames[t.ident]) for t in self._started if t.ident in frames)
        return "; ".join(" < ".join(map(_place, stack[: -1 - DEPTH_SHOWN : -1])) for stack in stacks)

    def close(self) -> None:
        """Let the threads end once the queue is empty. Does not wait for them."""
        for _ in self._started:
            self._queue.put(None)
        self._started = []

    def _start(self) -> None:
        # Threads do not survive a fork, so they are made on first use, which is always in the process that serves.
        for number in range(self.threads):
            thread = threading.Thread(target=self._work, name=f"mpserve-{self.name}-{number}", daemon=True)
            thread.start()
            self._started.append(thread)

    def _work(self) -> None:
        try:
            self.on_start()
        except Exception:  # without the thread every request would wait for ever
            logger.exception("thread %s could not be prepared; it goes on as it is", threading.current_thread().name)
        while (job := self._queue.get()) is not None:
            _perform(*job)
            del job  # and with it the request and its answer, which would stay in memory until the next one


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def _perform(call: Callable[[], Any], future: "asyncio.Future[Any]", loop: asyncio.AbstractEventLoop) -> None:
    if future.cancelled():
        return
    try:
        result = call()
    except BaseException as error:  # a model's sys.exit() is its failure too, not the thread's end
        _report(loop, future, None, error)
    else:
        _report(loop, future, result, None)


def _report(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", result: object, error: BaseException | None
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_settle, future, result, error)


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile: nobody waits for it
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(as_failure(error))


def as_failure(error: BaseException) -> Exception:
    """``error`` as something that ends a request and nothing else.

    A future refuses StopIteration; SystemExit, KeyboardInterrupt and CancelledError would end the loop or the task.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
