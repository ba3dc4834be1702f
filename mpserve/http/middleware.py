"""What concerns every request alike: its id, its count by route and status, and the access log. Plain ASGI.

``BaseHTTPMiddleware`` makes a task group and a stream per request; this adds one closure.
"""

import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpserve.logging import begin_request
from mpserve.metrics import metrics

access_logger = logging.getLogger("mpserve.access")

ID_HEADER = b"x-request-id"


class RequestContext:
    """Gives each request its id, returns it, and counts the answer.

    The id is the client's ``x-request-id``, or a new one where that is missing or not acceptable.
    """

    def __init__(self, app: ASGIApp, access_log: bool) -> None:
        self.app = app
        self.access_log = access_log
        self.requests = metrics().requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == ID_HEADER), b"")
        identity = begin_request(given.decode("latin-1")).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == ID_HEADER for name, _ in headers):  # a model may have set its own
                    headers.append((ID_HEADER, identity))
                message = {**message, "headers": headers}
                self._note(scope, message["status"], start)
            await send(message)

        await self.app(scope, receive, send_with_id)

    def _note(self, scope: Scope, status: int, start: float) -> None:
        # Starlette sets it from 1.7 on. The template, since paths would make as many time series as a client likes.
        template = getattr(scope.get("route"), "path_format", "unmatched")
        self.requests.labels(template, status).inc()
        if self.access_log:
            client = scope.get("client") or ("-", 0)
            access_logger.info(
                '%s:%s "%s %s" %d %.1f ms', client[0], client[1], scope["method"], quote(scope["path"], "/:"), status,
                (time.perf_counter() - start) * 1000,
            )  # fmt: skip
