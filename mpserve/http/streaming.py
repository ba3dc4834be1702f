"""Answers that are sent while the model still makes them, one chunk for each of its parts."""

import asyncio
import contextvars
import logging
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from mpserve.http.responses import Headers, error_answer
from mpserve.serving.execution.stream import ModelStream

logger = logging.getLogger(__name__)


class StreamedAnswer:
    """An ASGI application that answers 200 with a model's parts, and closes their stream if the client goes away.

    Args:
        stream: the parts, of which the first is there.
        headers: of the answer.
        last_part: makes a last part of the JSON that says what failed once the head was out; None: the answer is cut
            off, which is how HTTP tells that it is not whole.
        context: that of the request, which the task that sends need not be in: what is logged is to name it.
    """

    status = 200
    body: None = None
    """There is none yet, which tells it from a whole ``Answer``."""

    def __init__(
        self,
        stream: ModelStream,
        headers: Headers,
        last_part: Callable[[bytes], bytes | None],
        context: contextvars.Context,
    ) -> None:
        self.stream = stream
        self.headers = headers
        self._last_part = last_part
        self._gone = False
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        last: bytes | None = b""
        try:
            async for part in self.stream:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except OSError:
            raise
        except Exception as error:
            if self._gone:
                return
            last = self._context.copy().run(self._told, error)
            if last is None:
                return
        await send({"type": "http.response.body", "body": last})

    def _told(self, error: Exception) -> bytes | None:
        """The last part, after a failure; None: the answer is cut off."""
        told = error_answer(error).body
        last = self._last_part(told)
        if last is None:
            logger.error("an answer was cut off, since its head was out already: %s", told.decode())
        return last
