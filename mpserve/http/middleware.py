"""What concerns every request alike: its id, its count by route and status, and the access log. Plain ASGI.

``BaseHTTPMiddleware`` makes a task group and a stream per request; this adds one closure.
"""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpserve.http.request_log import RequestLog
from mpserve.telemetry.logging import begin_request

ID_HEADER = b"x-request-id"


class RequestContext:
    """Gives each request its id, returns it, and notes the answer.

    The id is the client's ``x-request-id``, or a new one where that is missing or not acceptable.
    """

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self.app = app
        self.log = log

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
                # Starlette sets it from 1.7 on. The template, since paths would make as many time series as a client likes.
                route = getattr(scope.get("route"), "path_format", "unmatched")
                status, client = message["status"], scope.get("client")
                self.log.note(route, status, start, client, scope["method"], scope["path"])
            await send(message)

        await self.app(scope, receive, send_with_id)
