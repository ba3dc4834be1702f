"""From an outcome to an HTTP response: the one table of error codes and statuses, and how bytes are sent.

Every error is ``{"error": "..."}`` (Open Inference Protocol, "Inference Response JSON Error Object"), on V1 too.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Send

from mpserve.errors import Code, MPServeError

logger = logging.getLogger(__name__)

STATUS = {
    Code.INVALID_INPUT: 400,
    Code.NOT_FOUND: 404,
    Code.TOO_LARGE: 413,
    Code.MODEL_FAILED: 500,
    Code.CONFIGURATION: 500,
    Code.NOT_SUPPORTED: 501,
    Code.NOT_READY: 503,
}

RETRY_AFTER_LOADING = b"1"
"""Seconds. A guess that costs a waiting client little: how long a load takes is not known before it has ended."""

Headers = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """A whole HTTP response: status, headers without ``content-length``, body."""

    status: int
    headers: Headers
    body: bytes

    async def send(self, send: Send) -> None:
        """Send it over ASGI."""
        headers = [*self.headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    async def __call__(self, scope: object, receive: object, send: Send) -> None:
        """An answer is an ASGI application, as Starlette's responses are, so that routes can return it."""
        await self.send(send)


def json_answer(value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    return Answer(status, [(b"content-type", b"application/json"), *headers], orjson.dumps(value))


def error_answer(error: Exception) -> Answer:
    """The answer to a request that raised ``error``; what nobody foresaw is logged and says nothing of itself."""
    if isinstance(error, HTTPException):  # Starlette's own: unknown path, wrong method
        return http_exception_answer(error)
    if isinstance(error.__cause__, HTTPException):  # a model that was written for FastAPI chose its status
        return http_exception_answer(error.__cause__)
    if not isinstance(error, MPServeError):
        logger.error("unexpected error while answering a request", exc_info=error)
        return json_answer({"error": "internal server error"}, 500)
    headers = [(b"retry-after", RETRY_AFTER_LOADING)] if error.code is Code.NOT_READY else []
    return json_answer({"error": str(error)}, STATUS[error.code], headers)


def http_exception_answer(error: HTTPException) -> Answer:
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    return json_answer({"error": error.detail}, error.status_code, headers)


async def on_http_exception(request: Request, error: Exception) -> Any:
    """Starlette's handler for paths and methods that are not there."""
    if isinstance(error, HTTPException) and error.status_code == 404:
        return json_answer({"error": f"there is no {request.method} {request.url.path}"}, 404)
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return json_answer(
            {"error": f"{request.method} is not allowed on {request.url.path}; it takes {allowed}"},
            405,
            [(b"allow", allowed.encode())],
        )
    return error_answer(error)
