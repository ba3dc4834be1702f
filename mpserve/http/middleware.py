"""ASGI middleware for all requests: the id, the count by route and status, and the access log.

It is not a ``BaseHTTPMiddleware``, which makes a task group and a stream for each request.
"""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpserve.http.request_log import RequestLog
from mpserve.http.server.interface import CALLER
from mpserve.telemetry.logging import begin_request

ID_HEADER = b"x-request-id"


class RequestContext:
    """Sets the id of each request, sends it in the answer, and records the answer.

    The id is the client's ``x-request-id``, or a new id if that is missing or not acceptable.
    """

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self.app = app
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        client_id = next((value for name, value in scope["headers"] if name == ID_HEADER), b"")
        identity = begin_request(client_id.decode("latin-1")).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == ID_HEADER for name, _ in headers):  # a model may have set it
                    headers.append((ID_HEADER, identity))
                message = {**message, "headers": headers}
                # Starlette 1.7 sets the route. Not the path, since clients could make any number of time series.
                route = getattr(scope.get("route"), "path_format", "unmatched")
                status, client = message["status"], scope.get("client")
                self.log.record(route, status, start, client, scope["method"], scope["path"], scope.get(CALLER))
            await send(message)

        await self.app(scope, receive, send_with_id)
