"""The common parts of all gRPC calls: headers, id, status, count and access log. Knows no method and no message."""

import asyncio
import base64
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import grpc
from google.protobuf.message import Message

from mpserve.errors import Code, MPServeError
from mpserve.serving.models.faults import report
from mpserve.telemetry.logging import begin_request, shown_caller

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("mpserve.access")

Headers = dict[str, str]
Context = grpc.aio.ServicerContext[Any, Any]
Count = Callable[[str, str], object]
Answer = Callable[[Any], Awaitable[Message]]
"""Answers a method: from its request message to its response message."""
R = TypeVar("R")
T = TypeVar("T")
Work = Callable[[R, Context, Headers, Headers], Awaitable[T]]
"""Answers a call: takes the request, its context, its headers, and a dict for the headers of the answer."""

STATUS = {
    Code.INVALID_INPUT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNSUPPORTED_MEDIA_TYPE: grpc.StatusCode.INVALID_ARGUMENT,  # HTTP alone has media types
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,  # grpc's own answer to a message beyond its limit
    Code.TOO_MANY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.MODEL_FAILED: grpc.StatusCode.INTERNAL,
    Code.CONFIGURATION: grpc.StatusCode.INTERNAL,
    Code.NOT_SUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Code.OVERLOADED: grpc.StatusCode.UNAVAILABLE,  # clients retry it, unlike RESOURCE_EXHAUSTED
    Code.TIMED_OUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.UNSUPPORTED_ENCODING: grpc.StatusCode.UNIMPLEMENTED,  # grpc's own answer to a compression it does not know
}
"""The status of each error code."""

MAX_DETAILS = 2000
"""Maximum bytes of a status message. As a header it takes up to three times as many, and clients accept 8 KiB of headers."""

ID_HEADER = "x-request-id"

# gRPC over HTTP2, "Custom-Metadata". A model must not set headers of the transport.
_KEY = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_VALUE = re.compile(r"[\x20-\x7e]*")
_TRANSPORT = ("connection", "content-length", "content-type", "te", "trailer", "transfer-encoding", "upgrade")


class Calls:
    """Makes handlers of calls. ``count`` is called with the method and the name of the status when a call has ended."""

    def __init__(self, access_log: bool, count: Count) -> None:
        self.access_log = access_log
        self.count = count
        self.total_requests = 0  # number of calls that have ended, and of requests in streams
        self.last_begun = -math.inf  # time.perf_counter of the last call for an answer of a model

    def answering(self, method: str, work: Work[R, T], reports: bool = True) -> Callable[[R, Context], Awaitable[T]]:
        """Make the handler of a method. An error of ``work`` ends the call with its status.

        ``reports``: whether faults of the server are logged here. Those of inference requests are logged before.
        """

        async def answer(request: R, context: Context) -> T:
            start = time.perf_counter()
            if method.endswith("Infer"):  # a drain does not wait for the end of health checks
                self.last_begun = start
            headers = received_headers(context)
            identity = begin_request(headers.get(ID_HEADER, ""))
            response_headers: Headers = {}
            status = grpc.StatusCode.OK
            try:
                result = await work(request, context, headers, response_headers)
                context.set_trailing_metadata(_trailing(identity, response_headers))
                return result
            except asyncio.CancelledError:
                status = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                status = STATUS[error.code] if isinstance(error, MPServeError) else grpc.StatusCode.INTERNAL
                if not isinstance(error, MPServeError):
                    logger.error("unexpected error while answering a call", exc_info=error)
                elif reports:
                    report(error)
                return await context.abort(
                    status, details(error), (*_trailing(identity, response_headers), *_hints(error))
                )
            finally:
                self._record(method, context, status, start)

        return answer

    def _record(self, method: str, context: Context, status: grpc.StatusCode, start: float) -> None:
        self.total_requests += 1
        self.count(method, status.name)
        if self.access_log:
            milliseconds = (time.perf_counter() - start) * 1000
            who = quote(context.peer(), ":/[]") + shown_caller(caller_of(context) or _certified_name(context))
            access_logger.info('%s "%s" %s %.1f ms', who, method, status.name, milliseconds)


def details(error: Exception) -> str:
    """The message for the client."""
    if not isinstance(error, MPServeError):
        return "internal server error"
    return str(error).encode(errors="replace")[:MAX_DETAILS].decode(errors="ignore")


def received_headers(context: Context) -> Headers:
    """The metadata of a call, with binary values in base64."""
    metadata = context.invocation_metadata() or ()
    return {
        name: value if isinstance(value, str) else base64.b64encode(value).decode("ascii") for name, value in metadata
    }


def address_of(peer: str) -> str | None:
    """The address of a client, as gRPC names it, or None if it has none."""
    family, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else None


def caller_of(context: Context) -> str | None:
    """The name of whoever makes a call, if callers are known (``mpserve.grpc.authentication``)."""
    return getattr(context, "caller", None)


def _certified_name(context: Context) -> str | None:
    """The name in the certificate that the client has shown: its common name, or else its first alternative name."""
    shown = context.auth_context()
    names = (*shown.get("x509_common_name", ()), *shown.get("x509_subject_alternative_name", ()))
    return next((name.decode(errors="replace") for name in names if name), None)


def time_left(context: Context) -> float:
    """Seconds until the deadline of a call, or infinity."""
    seconds: float | None = context.time_remaining()
    return math.inf if seconds is None else seconds


def _trailing(identity: str, response_headers: Headers) -> tuple[tuple[str, str], ...]:
    """The trailing metadata of an answer: its id and the headers that the model has set."""
    return sendable({ID_HEADER: identity, **response_headers}) if response_headers else ((ID_HEADER, identity),)


def _hints(error: Exception) -> tuple[tuple[str, str], ...]:
    """When to try again: as over HTTP, and for clients of gRPC that retry by themselves (gRPC proposal A6)."""
    seconds = error.retry_after if isinstance(error, MPServeError) else None
    if seconds is None:
        return ()
    return ("retry-after", str(seconds)), ("grpc-retry-pushback-ms", str(seconds * 1000))


def sendable(headers: Headers) -> tuple[tuple[str, str], ...]:
    """The headers as metadata. Headers that gRPC does not allow are left out with a warning, since HTTP may allow them."""
    metadata = {str(name).lower(): str(value) for name, value in headers.items()}
    for name in [name for name, value in metadata.items() if not (_KEY.fullmatch(name) and _VALUE.fullmatch(value))]:
        logger.warning("the header %r cannot be sent over gRPC and is left out", name)
        del metadata[name]
    return tuple((name, value) for name, value in metadata.items() if name not in _TRANSPORT)
