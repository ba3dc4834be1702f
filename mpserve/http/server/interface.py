"""The types between the HTTP server and its users: limits, direct routes, their answers, ASGI, and the rebalancer."""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

RawHeaders = list[tuple[bytes, bytes]]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLER = "mpserve.caller"
"""The key of a request's ASGI scope that has the caller's name, if callers are known, or have shown certificates."""


ADMIN = "mpserve.admin"
"""The key of a request's ASGI scope that is there if the client has connected to ``--admin_bind``."""


class Answer(NamedTuple):
    """A whole response. It is an ASGI application too. ``headers`` have no ``content-length``."""

    status: int
    headers: RawHeaders
    body: bytes

    async def __call__(self, scope: object, receive: object, send: Send) -> None:
        headers = [*self.headers, (b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class StreamedAnswer(Protocol):
    """A response that is an ASGI application, which sends the parts as they are made. ``body`` is None."""

    @property
    def headers(self) -> RawHeaders: ...
    @property
    def body(self) -> None: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Close the source of the parts if the client disconnects."""


AnyAnswer = Answer | StreamedAnswer


class Cancellable(Protocol):
    """A direct request that is being answered."""

    def cancel(self) -> object:
        """Cancel the request, since the client is gone. A later reply is ignored."""


class DirectRoutes(Protocol):
    """The routes that are answered without ASGI."""

    def match(self, target: bytes, headers: RawHeaders) -> Any | None:
        """The meaning of the head of a POST, which the server may use for all requests with the same head.
        None: the ASGI application answers the request.
        """

    def exchange(self, wire: Any) -> Any:
        """A ``DirectExchange`` on a connection, which the server uses again for each request."""


class Rebalancer(Protocol):
    """Decides which connections this worker closes in favour of other workers."""

    @property
    def due(self) -> int:
        """How many of the next requests are to be the last on their connections."""

    def takes_one(self) -> bool:
        """Whether the current request is to be the last on its connection."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one HTTP server. Sizes are in bytes."""

    line: int
    fields: int
    field_size: int
    head_seconds: float  # seconds in which a head must be complete
    body_pause: float  # maximum pause within a body in seconds
    body_rate: int  # minimum bytes per second of a body, after the first ``body_pause`` seconds. 0: no minimum.
    write_seconds: float  # seconds in which a client must take a part of the answers that wait for it
    idle_seconds: float  # seconds after which an idle connection is closed
    body: int  # maximum body of a direct request. The application refuses a larger body.

    @property
    def head(self) -> int:
        return self.line + self.fields * self.field_size
