"""What concerns every request alike: its id, its count by route and status, and the access log. Plain ASGI.

``BaseHTTPMiddleware`` makes a task group and a stream per request; this adds one closure.
"""

import itertools
import logging
import os
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpserve.logging import request_id
from mpserve.metrics import metrics

access_logger = logging.getLogger("mpserve.access")

ID_HEADER = b"x-request-id"
MAX_ID_LENGTH = 128


class RequestContext:
    """Gives each request its id (the client's ``x-request-id``, or a new one), returns it, and counts the answer."""

    def __init__(self, app: ASGIApp, access_log: bool) -> None:
        self.app = app
        self.access_log = access_log
        self.requests = metrics().requests
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        identity = self._identity(scope)
        request_id.set(identity.decode("latin-1"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (ID_HEADER, identity)]
                self._note(scope, message["status"], start)
            await send(message)

        await self.app(scope, receive, send_with_id)

    def _identity(self, scope: Scope) -> bytes:
        for name, value in scope["headers"]:
            if name == ID_HEADER and value:
                given: bytes = value[:MAX_ID_LENGTH]
                return given
        # Unique over workers and respawns; a uuid4 costs ten times as much.
        return b"%x-%x-%x" % (os.getpid(), time.time_ns() >> 20, next(self._numbers))

    def _note(self, scope: Scope, status: int, start: float) -> None:
        route = scope.get("route")
        template = getattr(route, "path", "unmatched")
        self.requests.labels(template, status).inc()
        if self.access_log:
            client = scope.get("client") or ("-", 0)
            access_logger.info(
                '%s:%s "%s %s" %d %.1f ms', client[0], client[1], scope["method"], scope["path"], status,
                (time.perf_counter() - start) * 1000,
            )  # fmt: skip
