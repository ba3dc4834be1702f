"""Answers in parts: the server sends each part when the model has made it."""

import asyncio
import contextvars
import logging
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from mpserve.http.responses import Headers, error_answer
from mpserve.serving.execution.stream import ModelStream

logger = logging.getLogger(__name__)


class StreamedAnswer:
    """An ASGI application that answers 200 with a model's parts, and closes their stream if the client disconnects.

    Args:
        stream: the parts. The first part is made already.
        headers: the headers of the answer.
        last_part: makes the last part after a failure from the JSON of the error. None: the answer is cut off.
        context: the context of the request, for log lines.
    """

    status = 200
    body: None = None  # distinguishes this class from ``Answer``

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
            # The client is gone (ASGI 2.4). An OSError of the model is another error by now.
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
            last = self._context.copy().run(self._after_failure, error)
            if last is None:
                return
        await send({"type": "http.response.body", "body": last})

    def _after_failure(self, error: Exception) -> bytes | None:
        """The last part after a failure. None: the answer is cut off."""
        body = error_answer(error).body
        last = self._last_part(body)
        if last is None:
            logger.error("an answer was cut off after its head: %s", body.decode())
        return last
