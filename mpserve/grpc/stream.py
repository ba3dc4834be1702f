"""One call of ModelStreamInfer: requests are answered at the same time, their answers written in the requests' order.

Knows no messages: a request is bytes, and so is its answer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

AHEAD = 8
"""Requests of one stream that are in hand at once. More would wait in memory, of which each may fill a message."""


class Stream:
    """A stream of requests, of which ``answer`` gives the answer to one. ``run`` is the whole of it."""

    def __init__(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._requests = requests
        self._answer = answer
        self._stopped = False
        self._reading: asyncio.Task[None] | None = None
        self._in_hand: deque[asyncio.Future[bytes]] = deque()
        self._slots = asyncio.Semaphore(AHEAD)
        self._changed = asyncio.Event()

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Read, answer and write until the client sends no more, or ``stop_reading`` is called."""
        self._reading = asyncio.create_task(self._read())
        if self._stopped:
            self._reading.cancel()
        self._reading.add_done_callback(lambda task: self._changed.set())
        try:
            while True:
                self._changed.clear()
                if self._in_hand:
                    await write(await self._in_hand[0])
                    self._in_hand.popleft()
                    self._slots.release()
                elif self._reading.done():
                    break
                else:
                    await self._changed.wait()
        finally:
            self._reading.cancel()
            for answer in self._in_hand:
                answer.cancel()
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

    async def _read(self) -> None:
        await self._slots.acquire()
        async for data in self._requests:
            self._in_hand.append(asyncio.ensure_future(self._answer(data)))
            self._changed.set()
            await self._slots.acquire()
