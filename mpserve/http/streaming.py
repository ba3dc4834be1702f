"""Answers that are sent while the model still makes them, one chunk for each of its parts."""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from mpserve.http.responses import Headers, error_answer
from mpserve.serving.stream import END, ModelStream

logger = logging.getLogger(__name__)


class StreamedAnswer:
    """An ASGI application that answers 200 with a model's parts, and closes their stream if the client goes away.

    Args:
        stream: the parts.
        encode: makes the bytes of one.
        head: gives the response headers, which the model may set until its first part is there.
        tell: makes a last chunk of the JSON that says what failed once the head was out; without it the answer is cut
            off, which is how HTTP tells that it is not whole.
    """

    status = 200
    body: None = None
    """There is none yet, which tells it from a whole ``Answer``."""

    def __init__(
        self,
        stream: ModelStream,
        encode: Callable[[Any], bytes],
        head: Callable[[], Headers],
        tell: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.stream = stream
        self.encode = encode
        self.head = head
        self.tell = tell
        self.headers: Headers = []
        self._first = b""
        self._gone = False
        # That of the request, which the task that sends need not be in: what is logged is to name it.
        self._context = contextvars.copy_context()

    async def begin(self) -> "StreamedAnswer":
        """Await the first part, so that whatever fails until then raises here and is answered with its own status."""
        try:
            part = await anext(self.stream, END)
            self._first = b"" if part is END else self.encode(part)
            self.headers = self.head()
        except BaseException:
            await self.stream.aclose()
            raise
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Needs ``begin``."""
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            await self._send(send)
        except OSError:
            # How some servers say that the client is gone (ASGI 2.4); a model's own has become another error.
            self._gone = True
        finally:
            watching.cancel()
            await self.stream.aclose()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        await self.stream.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        if self._first:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
        last: bytes | None = b""
        try:
            async for part in self.stream:
                await send({"type": "http.response.body", "body": self.encode(part), "more_body": True})
        except OSError:
            raise
        except Exception as error:
            if self._gone:
                return
            last = self._context.run(self._told, error)
            if last is None:
                return
        await send({"type": "http.response.body", "body": last})

    def _told(self, error: Exception) -> bytes | None:
        """The last chunk, after a failure; None: the answer is cut off."""
        told = error_answer(error).body
        if self.tell is not None:
            return self.tell(told)
        logger.error("an answer was cut off, since its head was out already: %s", told.decode())
        return None
