"""One call of ModelStreamInfer: requests are answered concurrently, and their answers begin in the order of the requests.

The messages of one answer keep their order. Messages of later answers may come between them, since an answer may be endless.
The module knows no messages: requests and answers are bytes.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

MAX_CONCURRENT = 8
"""Maximum requests of one stream that are answered at once. Each further request would take memory while it waits."""

Write = Callable[[bytes], Awaitable[None]]


class Stream:
    """A stream of requests. ``answer`` makes the messages that answer one request."""

    def __init__(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], AsyncGenerator[bytes, None]]) -> None:
        self._requests = requests
        self._answer = answer
        self._stopped = False
        self._reading: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._writing = asyncio.Lock()

    async def run(self, write: Write) -> None:
        """Read, answer and write until the client has ended, or ``stop_reading`` is called. Close all answers at the end."""
        self._reading = asyncio.create_task(self._read(write))
        if self._stopped:
            self._reading.cancel()
        try:
            await asyncio.wait({self._reading})
            await asyncio.gather(*self._answering)
        finally:
            self._reading.cancel()
            for task in self._answering:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)
        if not self._reading.cancelled():
            self._reading.result()

    @property
    def cut_short(self) -> bool:
        """Whether the server ended the stream, so that requests of the client may be unanswered."""
        return self._reading is not None and self._reading.cancelled()

    def stop_reading(self) -> None:
        """Answer the requests that have been read, and no more."""
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, write: Write) -> None:
        earlier = asyncio.Event()
        earlier.set()
        await self._slots.acquire()
        async for data in self._requests:
            begun = asyncio.Event()
            task = asyncio.create_task(self._respond(data, write, earlier, begun))
            self._answering.add(task)
            task.add_done_callback(self._answered)
            earlier = begun
            await self._slots.acquire()

    async def _respond(self, data: bytes, write: Write, earlier: asyncio.Event, begun: asyncio.Event) -> None:
        async with aclosing(self._answer(data)) as messages:
            async for message in messages:
                await earlier.wait()
                async with self._writing:
                    await write(message)
                begun.set()
        await earlier.wait()
        begun.set()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._slots.release()
        if task.cancelled() or task.exception() is None:
            self._answering.discard(task)
        else:  # nothing more can be written; ``run`` raises the error
            self.stop_reading()
