"""One call of ModelStreamInfer: requests are answered at the same time, and answers begin in the requests' order.

The messages of one answer come in their order. Where an answer has several, those of later ones may come between them:
else an answer without end would keep all others. Knows no messages: a request is bytes, and so is each of its answer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

AHEAD = 8
"""Requests of one stream that are in hand at once. More would wait in memory, of which each may fill a message."""

Write = Callable[[bytes], Awaitable[None]]


class Stream:
    """A stream of requests, of which ``answer`` gives the messages that answer one. ``run`` is the whole of it."""

    def __init__(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], AsyncGenerator[bytes, None]]) -> None:
        self._requests = requests
        self._answer = answer
        self._stopped = False
        self._reading: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AHEAD)
        self._writing = asyncio.Lock()

    async def run(self, write: Write) -> None:
        """Read, answer and write until the client sends no more, or ``stop_reading`` is called.

        However it ends, every answer has been given or closed by then.
        """
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
        """Whether it ended from this side, so that the client may have sent more than was answered."""
        return self._reading is not None and self._reading.cancelled()

    def stop_reading(self) -> None:
        """Answer what has been read, and nothing after it."""
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
        else:  # nothing more can be written; ``run`` raises it
            self.stop_reading()
