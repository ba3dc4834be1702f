"""Makes HTTP responses of errors and JSON. Here is the table of error codes and HTTP statuses.

Every error is ``{"error": "..."}`` (Open Inference Protocol, "Inference Response JSON Error Object"), also in V1.
"""

import logging
from collections.abc import Iterable
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route

from mpserve.errors import Code, MPServeError, shown
from mpserve.http.server import interface, response_head
from mpserve.http.unknown_paths import nearest, no_route
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
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.TOO_MANY: 429,
    Code.MODEL_FAILED: 500,
    Code.CONFIGURATION: 500,
    Code.NOT_SUPPORTED: 501,
    Code.NOT_READY: 503,
    Code.OVERLOADED: 503,  # not 429, which blames one client (RFC 6585, 4; RFC 9110, 15.6.4)
    Code.TIMED_OUT: 504,
}

RETRY_AFTER_LOADING = b"1"  # seconds after which a client may try again while models load

BODILESS = (204, 304)
"""Statuses of answers without a body: a client would take a body for the next answer (RFC 9110, 6.4.1)."""

Headers = interface.RawHeaders
Answer = interface.Answer
JSON_ONLY: Headers = response_head.JSON_ONLY  # the headers of most answers

HINTS: dict[Code, Headers] = {
    Code.UNAUTHENTICATED: [(b"www-authenticate", b'Bearer realm="mpserve"')],  # RFC 9110, 11.6.1; RFC 6750, 3
    Code.NOT_READY: [(b"retry-after", RETRY_AFTER_LOADING)],
    Code.UNSUPPORTED_ENCODING: [(b"accept-encoding", OFFERED.encode())],  # RFC 9110, 15.5.16
}
"""Headers of the answer to an error."""


def json_answer(value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    return Answer(status, [(b"content-type", b"application/json"), *headers], orjson.dumps(value))


def failure_answer(error: Exception) -> Answer:
    """As ``error_answer``, for requests without inference: faults of the server are logged with their traceback."""
    if isinstance(error, MPServeError):
        report(error)
    return error_answer(error)


def error_answer(error: Exception) -> Answer:
    """The answer to a request that raised ``error``, whatever a model has made of its errors."""
    try:
        return _told(error)
    except Exception as failure:
        logger.error("an error of type %s cannot be told", type(error).__name__, exc_info=failure)
        return _error("internal server error", 500)


def _told(error: Exception) -> Answer:
    if isinstance(error, HTTPException):  # Starlette's own: unknown path, wrong method
        return http_exception_answer(error)
    if isinstance(error.__cause__, HTTPException):  # raised by a model that was written for FastAPI
        return http_exception_answer(error.__cause__)
    if not isinstance(error, MPServeError):
        logger.error("unexpected error while answering a request", exc_info=error)
        return _error("internal server error", 500)
    status = STATUS[error.code]
    if error.retry_after is not None:
        return _error(str(error), status, [(b"retry-after", b"%d" % error.retry_after)])
    return _error(str(error), status, HINTS.get(error.code, []))


def http_exception_answer(error: HTTPException) -> Answer:
    """The answer with the status, the headers and the detail, which may be any object, as text.

    Raises ValueError: a header cannot be sent, or no final answer has the status.
    """
    status = error.status_code
    if not 200 <= status <= 599:
        raise ValueError(f"an HTTPException has the status {status}, expected 200 to 599")
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()
    ]
    if status in BODILESS:
        return Answer(status, headers, b"")
    return _error(str(error.detail), status, headers)


async def on_http_exception(request: Request, error: Exception) -> Any:
    """Starlette's handler for unknown paths and wrong methods."""
    method, path = shown(request.method), shown(request.scope["path"])
    if isinstance(error, HTTPException) and error.status_code == 404:
        routes, models = request.app.routes, request.app.state.core.names
        return _error(no_route(request.method, request.scope["path"], routes, models), 404)
    if isinstance(error, HTTPException) and error.status_code == 405:
        methods = filter(None, (error.headers or {}).get("Allow", "").split(", "))
        allowed = ", ".join(sorted(_methods_of(request).union(methods)))
        reason = f"{method} is not allowed on {path}; it takes {allowed}"
        if method == "POST":  # by somebody who wants to infer
            routes, models = request.app.routes, request.app.state.core.names
            reason += f"; the nearest that take POST are {nearest(request.scope['path'], routes, models, method)}"
        return _error(reason, 405, [(b"allow", allowed.encode())])
    return failure_answer(error)


def _methods_of(request: Request) -> set[str]:
    """The methods of all routes of the path. Starlette's ``Allow`` has the methods of one route only."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for methods in matching for method in methods}


def _error(message: str, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    # A message may have lone surrogates, from a file name that is not UTF-8. JSON does not allow them.
    return json_answer({"error": message.encode(errors="replace").decode()}, status, headers)
