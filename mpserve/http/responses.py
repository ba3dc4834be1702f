"""From an outcome to an HTTP response: the one table of error codes and statuses, and how bytes are sent.

Every error is ``{"error": "..."}`` (Open Inference Protocol, "Inference Response JSON Error Object"), on V1 too.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Send

from mpserve.errors import Code, MPServeError, Overloaded
from mpserve.http.server import response_head
from mpserve.protocol.compression import OFFERED
from mpserve.serving.models.faults import report

logger = logging.getLogger(__name__)

STATUS = {
    Code.INVALID_INPUT: 400,
    Code.ALREADY_EXISTS: 400,  # Triton's (http_server.cc, HttpCodeFromError)
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.TOO_LARGE: 413,
    Code.UNSUPPORTED_ENCODING: 415,
    Code.TOO_MANY: 429,
    Code.MODEL_FAILED: 500,
    Code.CONFIGURATION: 500,
    Code.NOT_SUPPORTED: 501,
    Code.NOT_READY: 503,
    Code.OVERLOADED: 503,  # not 429, which blames one client for what all do together (RFC 6585, 4; RFC 9110, 15.6.4)
    Code.TIMED_OUT: 504,
}

RETRY_AFTER_LOADING = b"1"
"""Seconds. A guess that costs a waiting client little: how long a load takes is not known before it has ended."""

Headers = list[tuple[bytes, bytes]]

JSON_ONLY: Headers = response_head.JSON_ONLY
"""The headers of most answers, which the server knows by identity."""


HINTS: dict[Code, Headers] = {
    Code.NOT_READY: [(b"retry-after", RETRY_AFTER_LOADING)],
    Code.UNSUPPORTED_ENCODING: [(b"accept-encoding", OFFERED.encode())],  # RFC 9110, 15.5.16
}
"""What a client needs to do better next time."""


class Answer(NamedTuple):
    """A whole HTTP response: status, headers without ``content-length``, body."""

    status: int
    headers: Headers
    body: bytes

    async def __call__(self, scope: object, receive: object, send: Send) -> None:
        """Send it: an answer is an ASGI application, as Starlette's responses are, so that routes can return it."""
        headers = [*self.headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_answer(value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    return Answer(status, [(b"content-type", b"application/json"), *headers], orjson.dumps(value))


def failure_answer(error: Exception) -> Answer:
    """As ``error_answer``; failures of the server are logged with their traceback. For requests that ask no model."""
    if isinstance(error, MPServeError):
        report(error)
    return error_answer(error)


def error_answer(error: Exception) -> Answer:
    """The answer to a request that raised ``error``."""
    if isinstance(error, HTTPException):  # Starlette's own: unknown path, wrong method
        return http_exception_answer(error)
    if isinstance(error.__cause__, HTTPException):  # a model that was written for FastAPI chose its status
        return http_exception_answer(error.__cause__)
    if not isinstance(error, MPServeError):
        logger.error("unexpected error while answering a request", exc_info=error)
        return _error("internal server error", 500)
    status = STATUS[error.code]
    if isinstance(error, Overloaded):
        return _error(str(error), status, [(b"retry-after", b"%d" % error.retry_after)])
    return _error(str(error), status, HINTS.get(error.code, []))


def http_exception_answer(error: HTTPException) -> Answer:
    """Its status and headers; its detail, which FastAPI lets be anything, as text."""
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()
    ]
    return _error(str(error.detail), error.status_code, headers)


async def on_http_exception(request: Request, error: Exception) -> Any:
    """Starlette's handler for paths and methods that are not there."""
    path = request.scope["path"]
    if isinstance(error, HTTPException) and error.status_code == 404:
        return _error(f"there is no {request.method} {path}; GET /openapi.json lists the routes", 404)
    if isinstance(error, HTTPException) and error.status_code == 405:
        announced = filter(None, (error.headers or {}).get("Allow", "").split(", "))
        allowed = ", ".join(sorted(_methods_of(request).union(announced)))
        reason = f"{request.method} is not allowed on {path}; it takes {allowed}"
        return _error(reason, 405, [(b"allow", allowed.encode())])
    return failure_answer(error)


def _methods_of(request: Request) -> set[str]:
    """The methods of all routes of the path. Starlette's own ``Allow`` has those of one, and a path may have several."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for methods in matching for method in methods}


def _error(message: str, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    # A file name that is not UTF-8 reaches a message as lone surrogates, which JSON cannot carry.
    return json_answer({"error": message.encode(errors="replace").decode()}, status, headers)
