import asyncio
import threading
from typing import Any

from tests.running import PATIENCE


class Gate:
    """Holds the threads that come to it until it is opened."""

    def __init__(self) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()
        self.open = self._opened.set

    def hold(self, *arguments: Any) -> None:
        self._reached.set()
        assert self._opened.wait(PATIENCE)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, PATIENCE)
