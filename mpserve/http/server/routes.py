"""The two ways to answer a request, as the server sees them: direct routes, and an ASGI application.

These are the types of the seam. The server knows no model, no route and no framework.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, TypeVar

RawHeaders = list[tuple[bytes, bytes]]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

RequestHead = TypeVar("RequestHead")
"""What the head of a direct request asks for. The server only keeps it, and may use it for many requests of the same head."""


class Answer(Protocol):
    """A whole response. ``headers`` have no ``content-length``."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> RawHeaders: ...
    @property
    def body(self) -> bytes: ...


class StreamedAnswer(Protocol):
    """A response that is an ASGI application: it sends its parts as they are made. It has no ``body``."""

    @property
    def headers(self) -> RawHeaders: ...
    @property
    def body(self) -> None: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Close the source of the parts if the client goes away."""


class Cancellable(Protocol):
    """A direct request that is being answered."""

    def cancel(self) -> object:
        """Stop, since the client is gone. The reply may still be called, and is ignored then."""


Reply = Callable[[Answer | StreamedAnswer, bytes], None]
"""Takes the answer to a direct request, and the id of the request for the header ``x-request-id``."""


class DirectRoutes(Protocol[RequestHead]):
    """The routes that are answered without ASGI."""

    def match(self, target: bytes, headers: RawHeaders) -> RequestHead | None:
        """Return what a POST with this head asks for. None: the request goes to the ASGI application."""

    def begin(self, head: RequestHead, body: bytes, client: tuple[str, int] | None, reply: Reply) -> Cancellable:
        """Begin to answer a request.

        ``reply`` is called exactly once, on the event loop, perhaps before this method returns.
        """


class Rebalancer(Protocol):
    """Decides which connections this worker gives up to other workers."""

    @property
    def due(self) -> int:
        """How many of the next requests are to be the last on their connections."""

    def takes_one(self) -> bool:
        """Whether the request that has just come is to be the last on its connection."""
